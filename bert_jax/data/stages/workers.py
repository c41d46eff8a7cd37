"""Maps a function over the jobs of a stage, in processes or under Beam."""

from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from typing import Any

from rich import progress

from bert_jax.runtime import signals

# A job is a dict with at least `name` and `size`.
Job = dict[str, Any]


def run(
  task: Callable[[Job], int],
  jobs: Sequence[Job],
  runner: str,
  workers: int,
  title: str,
) -> None:
  """Runs all jobs, in any order.

  Args:
    task: a function that can be pickled; it returns the size of its job.
    jobs: the jobs to run.
    runner: "processes" or "beam".
    workers: the number of processes; 0 means one for each core.
    title: the text of the progress bar.

  Raises:
    ChildProcessError: a worker process was killed.
    ValueError: the runner is "beam", but Beam is not installed.
  """
  if runner == "beam":
    _run_beam(task, jobs, workers or 1)
    return
  workers = min(workers or os.cpu_count() or 1, max(len(jobs), 1))
  columns = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.TextColumn("{task.fields[rate]}"),
    progress.TimeRemainingColumn(),
  )
  with progress.Progress(*columns) as bar:
    line = bar.add_task(title, total=sum(j["size"] for j in jobs), rate="")
    start, made = time.monotonic(), 0
    sizes = (
      _run_processes(task, jobs, workers)
      if workers > 1
      else (task(job) for job in jobs)
    )
    # Closing it after an error cancels the jobs that have not begun.
    with contextlib.closing(sizes):
      for size in sizes:
        made += size
        rate = made / (time.monotonic() - start)
        bar.update(line, completed=made, rate=f"{rate / 1e6:.2f} M/s")


def _run_processes(task, jobs: Sequence[Job], workers: int):
  """Yields the sizes of jobs as processes finish them."""
  # Processes are spawned, because a fork of a process with threads may hang.
  context = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
    with signals.kept_from_children():
      waiting = [pool.submit(task, job) for job in jobs]
    try:
      for future in futures.as_completed(waiting):
        yield future.result()
    except process.BrokenProcessPool as error:
      raise ChildProcessError(
        "a worker process was killed, perhaps because memory ran out; give the "
        "same command to continue, with prepare.num_workers below "
        f"{workers} to use less memory"
      ) from error
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _end_with_parent() -> None:
  """Ends this worker when the process that started it is killed.

  Otherwise a worker of the pool would wait for its next job without end.
  """
  parent = multiprocessing.parent_process()
  if parent is None:
    return
  signals.release([signal.SIGTERM])  # a broken pool ends its workers with it

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _run_beam(task, jobs: Sequence[Job], workers: int) -> None:
  """Runs the jobs under Apache Beam; all its workers must see the files."""
  try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise ValueError(
      "prepare.runner=beam needs the extra: pip install 'bert_jax[beam]'"
    ) from error
  options = pipeline_options.PipelineOptions(
    flags=[],
    runner=os.environ.get("BEAM_RUNNER", "DirectRunner"),
    direct_num_workers=workers,
  )
  with beam.Pipeline(options=options) as pipeline:
    _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(task)
