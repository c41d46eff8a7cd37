"""Decides whether a run may be resumed in a workdir."""

from collections.abc import Collection, Iterable, Mapping
import os
from typing import Any

from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import settings


def check_workdir(
  workdir: str,
  run: dict,
  free_keys: Collection[str] = (),
  can_allow: bool = False,
) -> None:
  """Checks that a run may go on in a workdir, or start in it.

  Args:
    workdir: the folder of the run.
    run: the facts of the run that is asked for, from `runs.describe`.
    free_keys: the names of keys that may differ, beside those that a resumed
      run may change.
    can_allow: whether --allow_changes can be given, which a refusal then says.

  Raises:
    runs.RunError: run.json there has another config or other data; the message
      says what differs.
  """
  if not runs.exists(workdir):
    for name in ("checkpoints", "best"):
      folder = os.path.join(workdir, name)
      if files.is_folder(folder) and files.list_names(folder):
        raise runs.RunError(
          f"--workdir={workdir} holds {name} but no run.json that says of what "
          "run; give another --workdir, or put its run.json back"
        )
    return
  before = runs.read_run(workdir)
  keys = settings.names("weights", "run").difference(free_keys)
  differs = differences(before["config"], run["config"], keys)
  names = [text.partition(":")[0] for text in differs]
  may_change = all(settings.KEYS[name].can_change for name in names)
  if run["data_hash"] not in (None, before["data_hash"]):
    differs.append(
      f"data: {before['data_hash'][:12]} there, {run['data_hash'][:12]} now"
    )
    may_change = False
  if differs:
    way = (
      f", or --allow_changes={','.join(names)} to go on with the new ones"
      if can_allow and may_change
      else ""
    )
    raise runs.RunError(
      f"--workdir={workdir} holds another run ({'; '.join(differs)}). Give "
      f"another --workdir to start anew, or those values to go on{way}"
    )


def changes(workdir: str, run: dict) -> dict[str, list]:
  """Returns key -> [old value, new value] of what a resumed run changes.

  Only keys count that `--allow_changes` can name.
  """
  if not runs.exists(workdir):
    return {}
  old = settings.flatten(runs.read_run(workdir)["config"])
  new = settings.flatten(run["config"])
  return {
    name: [old[name], new.get(name)]
    for name, key in settings.KEYS.items()
    if key.can_change and name in old and old[name] != new.get(name)
  }


def differences(
  before: Mapping[str, Any], asked: Mapping[str, Any], keys: Iterable[str]
) -> list[str]:
  """Describes the keys whose values differ between a run and another config.

  Args:
    before: the config of the run. A key that it lacks does not differ: the key
      is newer than the run and has no value for older runs.
    asked: the config that is asked for.
    keys: the names of the keys to compare.
  """
  old, new = settings.flatten(before), settings.flatten(asked)
  return [
    f"{key}: {old[key]!r} there, {new.get(key)!r} asked"
    for key in sorted(old.keys() & keys)
    if _comparable(key, old[key]) != _comparable(key, new.get(key))
  ]


def _comparable(key: str, value: Any) -> Any:
  """Returns a value in which paths are absolute."""
  is_path = settings.KEYS[key].is_path if key in settings.KEYS else False
  if not is_path or not isinstance(value, str):
    return value
  *groups, name = key.split(".")
  config: dict[str, Any] = {name: value}
  for group in reversed(groups):
    config = {group: config}
  return settings.flatten(settings.map_paths(config, settings.absolute))[key]


def changes_after(run: Mapping[str, Any], step: int) -> dict[str, Any]:
  """Returns key -> value at a step, of the keys that the run changed later.

  Args:
    run: from `runs.read_run`.
    step: the number of the step.
  """
  before: dict[str, Any] = {}
  for change in reversed(run.get("changes", [])):
    if change["step"] >= step:
      before |= {key: old for key, (old, _) in change["config"].items()}
  return before


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
      f"the weights by --config, as in finetune:task=TASK,"
      f"from={workdir}"
    )
