"""One stage of a preparation: jobs whose reports are kept until all are done.

Each job writes a shard into the folder of the stage. The reports of finished
jobs are kept in DATA/.progress/NAME, so that a preparation that was killed can
continue. At the end the stage writes a manifest and deletes the reports.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import logging
import os
import shutil
from typing import Any

from bert_jax.data.stages import workers
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.runtime import files
from bert_jax.runtime.settings import Prepare

_log = logging.getLogger(__name__)

PROGRESS = ".progress"  # the folder of the reports of finished jobs


def check_same(found: Any, asked: dict, path: str) -> None:
  """Raises DataError if a folder was made with other settings than asked."""
  if not isinstance(found, dict):
    raise records.DataError(
      f"{path}: its settings are damaged; delete that folder to make it again"
    )
  differs = [
    f"{k}: {found.get(k)!r} there, {asked.get(k)!r} asked"
    for k in sorted(found.keys() | asked.keys())
    if found.get(k) != asked.get(k)
  ]
  if differs:
    raise records.DataError(
      f"{path} was made with other settings ({'; '.join(differs)}); give "
      "another --output, or delete that folder to make it again"
    )


def shard_jobs(
  shards: dict[str, list[dict]], size: str, **settings: Any
) -> list[workers.Job]:
  """Returns a job for each shard of a manifest.

  Args:
    shards: split -> the rows of the manifest.
    size: the key of a row whose value is the size of the job.
    **settings: the entries that all jobs get.

  Returns:
    Jobs with name, split, shard, index (of the row), size and the settings.
  """
  return [
      dict(name=f"{split}-{records.shard_name(row['shard'])}", split=split,
           shard=row["shard"], index=i, size=row[size], **settings)
      for split, rows in shards.items()
      for i, row in enumerate(rows)
  ]  # fmt: skip


def sum_rows(shards: dict[str, list[dict]], keys: Sequence[str]) -> dict:
  """Returns split -> key -> the sum of that key over the rows of shards."""
  return {
    split: {key: sum(row[key] for row in rows) for key in keys}
    for split, rows in shards.items()
  }


class Stage:
  """One stage of a preparation.

  Attributes:
    target: the folder that it writes.
    progress: the folder of the reports of its finished jobs.
  """

  def __init__(
    self, prepare: Prepare, folder: str, name: str, target: str, *suffixes: str
  ):
    """Sets the paths of the stage; no file is read yet.

    Args:
      prepare: the `prepare` group of the config.
      folder: DATA.
      name: the name of the stage.
      target: the folder that it writes.
      *suffixes: the suffixes of the files of a shard.
    """
    self._prepare = prepare
    self.target = target
    self.progress = os.path.join(folder, PROGRESS, name)
    self._all_progress = os.path.join(folder, PROGRESS)
    self._suffixes = suffixes

  def is_whole(self, manifest: dict, others: Sequence[str] = ()) -> bool:
    """Returns whether all files of a manifest and some others exist."""
    paths = [os.path.join(self.target, name) for name in others]
    for split, rows in manifest["shards"].items():
      for suffix in self._suffixes:
        paths += records.shard_paths(self.target, split, rows, suffix)
    return not files.missing(paths)

  def begin(self, settings: dict) -> None:
    """Creates the folders and records the settings of the stage.

    Raises:
      records.DataError: the stage was begun with other settings.
    """
    files.make_folders(self.target)
    files.make_folders(self.progress)
    if files.is_remote(self.progress) and files.exists(self._end_mark()):
      files.delete_folder(self.progress)
    path = os.path.join(self.progress, "settings.json")
    if files.exists(path):
      check_same(records.read_json(path), settings, self._all_progress)
    else:
      records.write_json(path, settings)

  def finished(self, jobs: Sequence[workers.Job], form: dict) -> dict[str, Any]:
    """Reads the reports of finished jobs.

    Args:
      jobs: the jobs of the stage.
      form: the form of a report, for manifests.has_form.

    Returns:
      Name of a job -> its report, for each job that is finished.

    Raises:
      records.DataError: a report is damaged.
    """
    reports = {}
    paths = [_report_path(self.progress, job) for job in jobs]
    missing = set(files.missing(paths))
    for job, path in zip(jobs, paths, strict=True):
      if path not in missing:
        report = reports[job["name"]] = records.read_json(path)
        if not manifests.has_form(report, form):
          raise records.DataError(
            f"{path} is damaged; delete it and run bert-jax prepare again"
          )
    return reports

  def run(
    self,
    function: Callable[[workers.Job], dict],
    jobs: Sequence[workers.Job],
    title: str,
    form: dict,
  ) -> list[Any]:
    """Runs a function on each job that is not finished yet, in any order.

    Args:
      function: a module-level function that takes a job and returns its report.
      jobs: dicts with at least `name` and `size`.
      title: the title of the progress bar.
      form: the form of a report, for manifests.has_form.

    Returns:
      The reports, in the order of the jobs.

    Raises:
      records.DataError: a report that was kept is damaged.
    """
    done = self.finished(jobs, form)
    if done:
      _log.info("%s: %d of %d jobs done before", title, len(done), len(jobs))
    workers.run(
      functools.partial(_run_job, function, self.progress),
      [job for job in jobs if job["name"] not in done],
      self._prepare.runner, self._prepare.num_workers, title,
    )  # fmt: skip
    done = self.finished(jobs, form)
    return [done[job["name"]] for job in jobs]

  def run_by_split(self, function, jobs, title, form) -> dict[str, list]:
    """Does the same for jobs with one split each; returns split -> reports."""
    reports: dict[str, list] = {split: [] for split in records.SPLITS}
    results = self.run(function, jobs, title, form)
    for job, report in zip(jobs, results, strict=True):
      reports[job["split"]].append(report)
    return reports

  def end(self, path: str = "", **manifest: Any) -> None:
    """Writes the manifest, if one is given, and removes the reports.

    Renaming their folder removes all reports at once, so that a kill leaves
    none that a later stage would trust.

    Args:
      path: the path of the manifest.
      **manifest: its content.
    """
    if manifest:
      records.write_json(path, {"version": records.VERSION, **manifest})
    if files.is_remote(self.progress):  # where nothing can be renamed
      files.write_bytes(self._end_mark(), b"")
      files.delete_folder(self.progress)
      return
    gone = os.path.join(self._all_progress, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
      os.rename(self.progress, gone)
      shutil.rmtree(gone)
    with contextlib.suppress(OSError):
      os.rmdir(self._all_progress)  # fails while other stages have reports

  def _end_mark(self) -> str:
    """Returns the file by which the reports in a bucket are not trusted."""
    return os.path.join(self.progress, "gone")


def _report_path(progress: str, job: workers.Job) -> str:
  return os.path.join(progress, job["name"] + ".json")


def _run_job(
  function: Callable[[workers.Job], dict], progress: str, job: workers.Job
) -> int:
  """Runs one job and keeps its report; returns its size."""
  records.write_json(_report_path(progress, job), function(job))
  return job["size"]
