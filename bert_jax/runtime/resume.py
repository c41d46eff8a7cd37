"""Decides whether a run may be resumed in a workdir."""

from collections.abc import Collection
import os

from bert_jax.runtime import runs
from bert_jax.runtime import settings


def check_workdir(
  workdir: str, run: dict, free_keys: Collection[str] = ()
) -> None:
  """Checks that a run may go on in a workdir, or start in it.

  Args:
    workdir: the folder of the run.
    run: the facts of the run that is asked for, from `runs.describe`.
    free_keys: the names of keys that may differ, beside those that a resumed
      run may change.

  Raises:
    runs.RunError: run.json there has another config or other data; the message
      says what differs.
  """
  if not runs.exists(workdir):
    for name in ("checkpoints", "best"):
      folder = os.path.join(workdir, name)
      if os.path.isdir(folder) and os.listdir(folder):
        raise runs.RunError(
          f"--workdir={workdir} holds {name} but no run.json that says of what "
          "run; give another --workdir, or put its run.json back"
        )
    return
  before = runs.read_run(workdir)
  old, new = (settings.flatten(r["config"]) for r in (before, run))
  differs = [
    f"{k}: {old[k]!r} there, {new.get(k)!r} asked"
    # A key that came later, and does not say what was before, changes nothing.
    for k in sorted(settings.names("weights", "run") & old.keys())
    if old[k] != new.get(k) and k not in free_keys
  ]
  if run["data_hash"] not in (None, before["data_hash"]):
    differs.append(
      f"data: {before['data_hash'][:12]} there, {run['data_hash'][:12]} now"
    )
  if differs:
    raise runs.RunError(
      f"--workdir={workdir} holds another run ({'; '.join(differs)}). Give "
      "another --workdir to start anew, or those values to go on"
    )


def other_code(workdir: str, run: dict) -> str:
  """Returns what differs in code between a run and this process, or "".

  Args:
    workdir: the folder of the run.
    run: the facts of this process, from `runs.describe`.
  """
  if not runs.exists(workdir):
    return ""
  before = runs.read_run(workdir)
  pairs = {"commit": (before.get("commit"), run["commit"])}
  old, new = before.get("versions") or {}, run["versions"]
  pairs |= {
    k: (old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys())
  }
  return ", ".join(
    f"{name} {str(a)[:12]} there, {str(b)[:12]} here"
    for name, (a, b) in pairs.items()
    if a != b
  )


def refuse_converted(workdir: str) -> None:
  """Raises RunError if a workdir holds weights that were not trained here."""
  if "converted_from" in runs.read_run(workdir):
    raise runs.RunError(
      f"{workdir} holds converted weights, not a run; give a new --workdir and "
      f"the weights by --config, as in configs/finetune.py:task=TASK,"
      f"from={workdir}"
    )
