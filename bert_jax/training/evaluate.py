"""Scores a model on a held-out split, for any batch size and mesh."""

import logging
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models import adapters
from bert_jax.runtime import checkpoint as checkpoint_lib
from bert_jax.runtime import files
from bert_jax.runtime import peers
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training import checks
from bert_jax.training import confusion
from bert_jax.training import init_from
from bert_jax.training import jobs
from bert_jax.training import meeting
from bert_jax.training.job import Job

if TYPE_CHECKING:
  from bert_jax import weights

_log = logging.getLogger(__name__)


def evaluate(
  config: Config, workdir: str, output: str | None, checkpoint: str = ""
) -> dict[str, float]:
  """Evaluates a saved step of a run on its held-out split.

  If the workdir holds no run, the weights of `init_from` are evaluated as they
  are, with their head.

  Args:
    config: the configuration of the run; evaluation settings may differ.
    workdir: the workdir of the run.
    output: the JSON file to write; None means workdir/evaluation.json.
    checkpoint: the step: "best", "newest" or its number; "" means the best step
      if the run keeps one, and otherwise the newest. See `saved_steps.choose`.

  Returns:
    The value of every metric, by the key eval/NAME.

  Raises:
    ValueError: There is no run or no checkpoint, the config does not fit the
      run, or the weights have no head for the task.
  """
  settings.check(config)
  checks.check_effects(config, scopes=("session",))
  check_workdir(workdir)
  meeting.meet("evaluate", config, [workdir], checkpoint=checkpoint)
  if output and jax.process_index() == 0:
    files.check_writable(output)
  job, pretrained = jobs.open_job(config, workdir, checkpoint)
  config = job.config
  as_given = bool(config.init_from) and not _holds_run(workdir)
  axes = config.mesh
  mesh = sharding.make_mesh(axes.data, axes.fsdp, axes.tensor)
  facts: dict[str, Any] = {}
  if as_given:
    params, facts = given_params(job, pretrained, mesh)
    step = 0
  else:
    asked = runs.describe(config, job.held_out_hash, list(mesh.devices.flat))
    resume.check_workdir(workdir, asked, free_keys=("data.pack",))
  evaluator = job.evaluator(mesh)
  if evaluator.is_off:
    raise ValueError(
      f"{config.data.dir} has no held-out text, so there is nothing to "
      "evaluate on; give --config.data.dir of data that has some"
    )
  facts_of_job = job.facts | {"holds a run": not as_given}
  meeting.meet_opened(job, pretrained, mesh, facts_of_job)
  if as_given:
    files.make_folders(workdir)
  else:
    wanted = wanted_params(job, mesh)
    by_average = config.eval.get("average", False)  # older runs lack it
    step, params = checkpoint_lib.restore_params(
      workdir, wanted, checkpoint, by_average
    )
  stall = config.train.get("max_stall_secs", 0)  # older runs lack the key
  with jax.set_mesh(mesh), peers.watching(stall):
    values = evaluator(params)
  values |= job.intervals(evaluator)
  if jax.process_index() == 0:
    path = output or os.path.join(workdir, "evaluation.json")
    files.write_json(path, {"step": step} | facts | values, indent=1)
    for name, value in values.items():
      print(f"{name:36} {value:.4f}")
    _log.info("wrote %s", path)
    for written in job.explain(evaluator, path):
      _log.info("wrote %s", written)
    if path := confusion.write(workdir, step, job.confusions(evaluator)):
      _log.info("wrote %s", path)
  with jax.set_mesh(mesh), peers.watching(stall):
    for path in job.write_predictions(evaluator, params, workdir):
      _log.info("wrote %s", path)
  return values


def check_workdir(workdir: str) -> None:
  """Raises an error for a workdir that no config can evaluate.

  Args:
    workdir: the value of --workdir; the folder need not exist yet.

  Raises:
    ValueError: No checkpoint can be kept there, the folder is a step of a run,
      or it holds converted weights.
  """
  checkpoint_lib.check_path(workdir)
  saved_steps.refuse_step(workdir)
  if runs.exists(workdir):
    resume.refuse_converted(workdir)


def _holds_run(workdir: str) -> bool:
  """Returns whether a folder is the workdir of a run."""
  names = ("run.json", "checkpoints", "best")
  return any(files.exists(os.path.join(workdir, name)) for name in names)


def given_params(
  job: Job, pretrained: "weights.Pretrained | None", mesh: Any
) -> tuple[Any, dict[str, Any]]:
  """Puts weights that were trained elsewhere onto a mesh.

  If the weights name the labels of their head, its outputs are put into the
  order of the task's labels; otherwise they are assumed to have that order.

  Args:
    job: the job to evaluate.
    pretrained: the weights of `init_from`.
    mesh: the mesh that the parameters are put onto.

  Returns:
    All parameters of the model, and their description with the keys "weights",
    "task", "commit" and "dirty".

  Raises:
    ValueError: A part is missing, or the head belongs to another task.
  """
  from bert_jax import weights  # slow to import, and not always needed

  source = job.config.init_from
  if pretrained is None:
    raise ValueError(
      "init_random=True leaves nothing to evaluate; set it to False, or train "
      "first"
    )
  given = dict(pretrained.params)
  task = job.facts.get("task")
  if "task" in given and task:
    given["task"] = _head_of(pretrained, task, source)
  wanted = wanted_params(job, mesh)
  tree, added, _ = weights.fit(given, wanted, job.model.config)
  needs, config = job.objective.needs, job.model.config
  added = tuple(path for path in added if not adapters.is_adapter(path))
  if missing := sorted(path for path in added if needs(path, config)):
    why = "".join(f" ({reason})" for reason in pretrained.refused.values())
    raise ValueError(
      f"{source} has no {', '.join(missing)}{why}: it can be trained, with "
      "bert-jax train, but not evaluated as it is"
    )
  _log.info("evaluating the weights of %s as they are", source)
  seq_len = job.config.data.seq_len
  if pretrained.seq_len not in (None, seq_len):
    _log.warning(
      "%s says that it is for data.seq_len=%d; it is evaluated at %d",
      source, pretrained.seq_len, seq_len,
    )  # fmt: skip

  # No score depends on a parameter that the weights lack.
  filled = jax.tree.map(
    lambda leaf, x: np.zeros(leaf.shape, leaf.dtype) if x is None else x,
    wanted,
    tree,
  )
  placed = init_from.place_params(wanted, filled)
  commit, dirty = runs.commit()
  name = job.config.task.name or job.config.objective
  return placed, {
    "weights": source, "task": name, "commit": commit, "dirty": dirty
  }  # fmt: skip


def _head_of(pretrained: Any, task: Any, source: str) -> Any:
  """Returns the head with its outputs in the order of the task's labels."""
  head, labels = pretrained.params["task"], list(task["labels"])
  theirs = list(pretrained.labels)
  if why := pretrained.refused.get("task"):
    raise ValueError(
      f"the head of {source} cannot be evaluated: {why}; train a head for this "
      "task on its encoder, with bert-jax train"
    )
  if pretrained.kind is None:
    raise ValueError(
      f"{source} does not say what its head is for; write it out by "
      f"bert-jax convert --config.convert.kind={task['kind']}, if that is it"
    )
  if pretrained.kind != task["kind"] or (
    theirs and sorted(theirs) != sorted(labels)
  ):
    raise ValueError(
      f"the head of {source} is for {pretrained.kind} with labels {theirs}, "
      f"the task is {task['kind']} with labels {labels}; name the task that it "
      "is for, correct the labels beside the weights, or train first"
    )
  if not theirs:
    if labels:
      _log.warning(
        "%s does not name the outputs of its head; they are assumed to be %s",
        source, ", ".join(labels),
      )  # fmt: skip
    return head
  order = np.array([theirs.index(label) for label in labels])
  last = {
    name: np.asarray(head[name])[..., order] for name in ("kernel", "bias")
  }
  return {**head, **last}


def wanted_params(job: Job, mesh: Any) -> Any:
  """Returns the shapes, dtypes and shardings of the parameters of a model."""
  row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  inputs = dict.fromkeys(job.objective.inputs, row)
  abstract = jax.eval_shape(
    lambda **kw: job.model.init(jax.random.key(0), **kw)["params"], **inputs
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    sharding.state_sharding(abstract, mesh, job.config.mesh.rules),
  )
