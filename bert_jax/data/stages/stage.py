"""One stage of a preparation: jobs whose results are kept until all are there.

A stage writes one shard a job into its folder, and then a manifest. What each
finished job reports is kept in DATA/.progress/NAME, so that a preparation that
was killed goes on; the manifest ends the stage, and the reports go.
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
from bert_jax.runtime.settings import Prepare

_log = logging.getLogger(__name__)

PROGRESS = ".progress"  # folder of what finished jobs report


def check_same(found: Any, asked: dict, path: str) -> None:
  """Raises DataError if a folder was made with other settings than asked."""
  if not isinstance(found, dict):
    raise records.DataError(
      f"{path}: its settings are damaged; delete that folder to make it anew"
    )
  differs = [
    f"{k}: {found.get(k)!r} there, {asked.get(k)!r} asked"
    for k in sorted(found.keys() | asked.keys())
    if found.get(k) != asked.get(k)
  ]
  if differs:
    raise records.DataError(
      f"{path} was made with other settings ({'; '.join(differs)}); give "
      "another --output, or delete that folder to make it anew"
    )


def shard_jobs(
  shards: dict[str, list[dict]], size: str, **settings: Any
) -> list[workers.Job]:
  """Returns a job for each shard of a manifest.

  Args:
    shards: split -> rows of the manifest.
    size: the key of a row that says how much work it is.
    **settings: given to all jobs.

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
  """Returns the totals of some keys of the rows of shards, for each split."""
  return {
    split: {key: sum(row[key] for row in rows) for key in keys}
    for split, rows in shards.items()
  }


class Stage:
  """One stage of a preparation.

  Attributes:
    target: the folder that it writes.
    progress: the folder where its finished jobs report.
  """

  def __init__(
    self, prepare: Prepare, folder: str, name: str, target: str, *suffixes: str
  ):
    """Looks at nothing yet.

    Args:
      prepare: the `prepare` group of the config.
      folder: DATA.
      name: of the stage.
      target: the folder that it writes.
      *suffixes: of the files of a shard.
    """
    self._prepare = prepare
    self.target = target
    self.progress = os.path.join(folder, PROGRESS, name)
    self._all_progress = os.path.join(folder, PROGRESS)
    self._suffixes = suffixes

  def is_whole(self, manifest: dict, others: Sequence[str] = ()) -> bool:
    """Whether all files of a manifest are there; a lost one is made anew."""
    paths = [os.path.join(self.target, name) for name in others]
    for split, rows in manifest["shards"].items():
      for suffix in self._suffixes:
        paths += records.shard_paths(self.target, split, rows, suffix)
    return all(map(os.path.exists, paths))

  def begin(self, settings: dict) -> None:
    """Makes the folders, and notes the settings of the stage.

    Raises:
      records.DataError: the stage was begun with other settings.
    """
    os.makedirs(self.target, exist_ok=True)
    os.makedirs(self.progress, exist_ok=True)
    path = os.path.join(self.progress, "settings.json")
    if os.path.exists(path):
      check_same(records.read_json(path), settings, self._all_progress)
    else:
      records.write_json(path, settings)

  def finished(self, jobs: Sequence[workers.Job], form: dict) -> dict[str, Any]:
    """Reads what finished jobs reported.

    Args:
      jobs: of the stage.
      form: that each report must have, for manifests.has_form.

    Returns:
      Name of a job -> its report; jobs that are not done yet are left out.

    Raises:
      records.DataError: a report is damaged.
    """
    reports = {}
    for job in jobs:
      path = _report_path(self.progress, job)
      if os.path.exists(path):
        report = reports[job["name"]] = records.read_json(path)
        if not manifests.has_form(report, form):
          raise records.DataError(
            f"{path} is damaged; delete it, and try again"
          )
    return reports

  def run(
    self,
    function: Callable[[workers.Job], dict],
    jobs: Sequence[workers.Job],
    title: str,
    form: dict,
  ) -> list[Any]:
    """Maps a function over the jobs that are not done yet, in any order.

    Args:
      function: a module-level function of a job; returns its report.
      jobs: dicts with at least `name` and `size`.
      title: of the progress bar.
      form: of a report, for manifests.has_form.

    Returns:
      The reports, in the order of the jobs.

    Raises:
      records.DataError: a report that was kept is damaged.
    """
    done = self.finished(jobs, form)
    if done:
      _log.info("%s: %d of %d done before", title, len(done), len(jobs))
    workers.run(
      functools.partial(_run_job, function, self.progress),
      [job for job in jobs if job["name"] not in done],
      self._prepare.runner, self._prepare.num_workers, title,
    )  # fmt: skip
    done = self.finished(jobs, form)
    return [done[job["name"]] for job in jobs]

  def run_by_split(self, function, jobs, title, form) -> dict[str, list]:
    """The same for jobs of one split each: returns split -> reports."""
    reports: dict[str, list] = {split: [] for split in records.SPLITS}
    results = self.run(function, jobs, title, form)
    for job, report in zip(jobs, results, strict=True):
      reports[job["split"]].append(report)
    return reports

  def end(self, path: str = "", **manifest: Any) -> None:
    """Writes the manifest, if one is given, and removes the reports.

    They go all at once: a kill would otherwise leave some of them, or all, for
    a later stage to believe.

    Args:
      path: of the manifest.
      **manifest: its content.
    """
    if manifest:
      records.write_json(path, {"version": records.VERSION, **manifest})
    gone = os.path.join(self._all_progress, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
      os.rename(self.progress, gone)
      shutil.rmtree(gone)
    with contextlib.suppress(OSError):
      os.rmdir(self._all_progress)  # where nothing else is going on


def _report_path(progress: str, job: workers.Job) -> str:
  return os.path.join(progress, job["name"] + ".json")


def _run_job(
  function: Callable[[workers.Job], dict], progress: str, job: workers.Job
) -> int:
  """Runs one job and keeps its report; returns its size."""
  records.write_json(_report_path(progress, job), function(job))
  return job["size"]
