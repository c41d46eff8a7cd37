r"""Scores several runs of a task as one model: an ensemble.

  python -m bert_jax.training.ensemble RUN RUN ... --output=DIR \
    [--splits=validation,test]

The runs are those of one task on the same examples, with the same vocabulary
and length of rows, and may differ in everything else: seeds, checkpoints to
start from, sizes, the order of their labels. Their scores of labels, which are
matched by name, or of starts and ends of answers, are averaged before they are
decoded. DIR gets evaluation.json and the predictions,
as `bert-jax evaluate` writes them, with the files of the benchmark's server.

Source: BERT paper, table 2 (7 systems that use different checkpoints and seeds)
"""

import argparse
from collections.abc import Sequence
import os
import sys
from typing import Any

import jax
import numpy as np

from bert_jax.runtime import checkpoint as checkpoint_lib
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.tasks import spec
from bert_jax.training import evaluate as evaluation
from bert_jax.training import finetuning
from bert_jax.training import jobs


def average(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the mean of the outputs of the members, in float64.

  Args:
    parts: the outputs of each member, of one shape.
  """
  return np.mean([np.asarray(part, np.float64) for part in parts], axis=0)


def _config(workdir: str) -> settings.Config:
  """Returns the config of a run."""
  recorded = runs.read_run(workdir)["config"]
  found: Any = settings.unflatten(settings.flatten(recorded))
  return found


def _open(workdir: str, splits: Sequence[str], checkpoint: str) -> Any:
  """Returns the job of a run, and its outputs by split."""
  config = _config(workdir)
  config.task.predict_splits = tuple(splits)
  job, _ = jobs.open_job(config, workdir, checkpoint)
  if not isinstance(job, finetuning.FineTuning):
    raise spec.TaskError(
      f"{workdir} was trained with objective={config.objective}; an ensemble is"
      " of runs of a task"
    )
  axes = job.config.mesh
  mesh = sharding.make_mesh(axes.data, axes.fsdp, axes.tensor)
  evaluator = job.evaluator(mesh)
  wanted = evaluation.wanted_params(job, mesh)
  by_average = bool(config.eval.get("average", False))
  _, params = checkpoint_lib.restore_params(
    workdir, wanted, checkpoint, by_average
  )
  with jax.set_mesh(mesh):
    outputs = {
      name: evaluator.outputs(params, job.split(name)) for name in splits
    }
  return job, outputs


def _check_alike(first: Any, other: Any, names: Sequence[str]) -> None:
  """Raises TaskError if two runs do not read the same features.

  Args:
    first: (workdir, job).
    other: (workdir, job).
    names: the splits.
  """
  (workdir, job), (other_workdir, other_job) = first, other
  if job.task.name != other_job.task.name:
    raise spec.TaskError(
      f"{workdir} is a run of task {job.task.name}, and {other_workdir} of"
      f" {other_job.task.name}; an ensemble is of one task"
    )
  kinds = [j.objective.name for j in (job, other_job)]
  if kinds[0] != kinds[1]:
    raise spec.TaskError(
      f"{workdir} is a run of kind {kinds[0]}, and {other_workdir} of"
      f" {kinds[1]}; an ensemble is of one kind"
    )
  for name in names:
    one, two = (j.split(name).features for j in (job, other_job))
    if not (
      np.array_equal(one.token_ids, two.token_ids)
      and np.array_equal(one.offsets, two.offsets)
    ):
      raise spec.TaskError(
        f"{workdir} and {other_workdir} read the split {name} as other tokens;"
        " an ensemble needs one vocabulary, one data.seq_len and one"
        " task.doc_stride"
      )


def _in_order(
  first: Any, other: Any, outputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns the outputs of a run with its labels in the order of the first.

  Args:
    first: (workdir, job).
    other: (workdir, job) of the outputs.
    outputs: split -> [..., K] if the labels of the task have names.

  Raises:
    spec.TaskError: the two runs have other labels.
  """
  wanted, given = (
    job.facts.get("task", {}).get("labels", []) for _, job in (first, other)
  )
  if given == wanted:
    return outputs
  if sorted(given) != sorted(wanted):
    raise spec.TaskError(
      f"{first[0]} has the labels {', '.join(wanted):.300}, and {other[0]} has"
      f" {', '.join(given):.300}; an ensemble needs the same labels, in any"
      " order"
    )
  columns = [given.index(label) for label in wanted]
  return {name: found[..., columns] for name, found in outputs.items()}


def run(
  workdirs: Sequence[str],
  output: str,
  splits: Sequence[str] = (),
  checkpoint: str = "",
) -> dict[str, float]:
  """Evaluates an ensemble and writes its predictions.

  Args:
    workdirs: the workdirs of the members, two or more.
    output: the folder to write to.
    splits: the splits to predict; () = those that the first run evaluates.
      Those with labels are scored.
    checkpoint: as for `evaluate.evaluate`, for each member.

  Returns:
    eval/METRIC of the first split with labels, eval/SPLIT/METRIC of others.

  Raises:
    spec.TaskError: The runs do not fit each other.
  """
  if len(set(workdirs)) < max(2, len(workdirs)):
    raise spec.TaskError(
      f"{', '.join(workdirs)}: an ensemble needs two runs or more, each once"
    )
  files.make_folders(output)
  first: Any = None
  parts: dict[str, list[np.ndarray]] = {}
  for workdir in workdirs:
    names = list(splits) or list(evaluation_splits(workdir))
    names = names if first is None else list(parts)
    job, outputs = _open(workdir, names, checkpoint)
    if first is None:
      first = (workdir, job)
    _check_alike(first, (workdir, job), names)
    for name, found in _in_order(first, (workdir, job), outputs).items():
      parts.setdefault(name, []).append(found)
  job = first[1]
  scores: dict[str, float] = {}
  for name, members in parts.items():
    split = job.split(name)
    predictions = job.decode(split, average(members))
    job.write_split(split, predictions, output)
    if split.features.label is not None:
      found = job.objective.score(split.task, predictions, split.examples)
      prefix = f"eval/{name}/" if scores else "eval/"
      scores |= {prefix + key: value for key, value in found.items()}
  facts: dict[str, Any] = {"members": list(workdirs)}
  path = os.path.join(output, "evaluation.json")
  files.write_json(path, facts | scores, indent=1)
  return scores


def evaluation_splits(workdir: str) -> tuple[str, ...]:
  """Returns the splits that a run evaluates."""
  config = _config(workdir)
  given = tuple(config.task.eval_splits)
  return given or finetuning.get_task(config.task).eval_splits


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("workdirs", nargs="+", metavar="RUN")
  parser.add_argument("--output", required=True, help="folder to write to")
  parser.add_argument("--splits", default="", help="such as validation,test")
  parser.add_argument("--checkpoint", default="", help="best, newest or a step")
  args = parser.parse_args(argv)
  try:
    scores = run(
      args.workdirs,
      args.output,
      tuple(filter(None, args.splits.split(","))),
      args.checkpoint,
    )
  except (errors.UserError, ValueError) as error:
    print(error, file=sys.stderr)
    return 2
  for name, value in scores.items():
    print(f"{name:36} {value:.4f}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
