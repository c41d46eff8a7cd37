"""Tests of training/ensemble.py."""

import json

import numpy as np
import pytest

from bert_jax.kinds import span
from bert_jax.kinds import table
from bert_jax.runtime import runs
from bert_jax.tasks import TASKS
from bert_jax.tasks import features as task_features
from bert_jax.tasks import spec
from bert_jax.training import ensemble
from bert_jax.training import jobs
from bert_jax.training import train
from tests.support import small_tasks


def test_scores_are_averaged_before_they_are_decoded():
  """Two members that disagree: the mean of their scores decides, by hand."""
  examples = [spec.PairExample("0", "a", None, 1)]
  features = task_features.Features(
    token_ids=np.zeros(3, np.int32),
    segment_ids=np.zeros(3, np.int8),
    offsets=np.array([0, 3]),
    example=np.array([0], np.int32),
    label=np.array([1], np.int32),
  )
  kind, task = table.TASK_KINDS["classify"], TASKS["cola"]
  members = [np.array([[1.0, 0.0]]), np.array([[0.0, 3.0]])]
  (found,) = kind.decode(task, features, ensemble.average(members))
  assert found.label == 1
  np.testing.assert_allclose(found.probabilities[1], 1 / (1 + np.exp(-1)))
  assert kind.score(task, [found], examples)["accuracy"] == 1.0


def test_starts_and_ends_are_averaged():
  """The first says "b c", the second "c": on the mean it is "b"."""
  features = task_features.Features(
    token_ids=np.zeros(5, np.int32),
    segment_ids=np.zeros(5, np.int8),
    offsets=np.array([0, 5]),
    example=np.array([0], np.int32),
    label=None,
    char_starts=np.array([-1, -1, 0, 2, -1], np.int32),
    char_ends=np.array([-1, -1, 1, 3, -1], np.int32),
    is_max_context=np.ones(5, bool),
    contexts=("b c",),
  )
  one = np.array([[0, 0], [0, 0], [9, 5], [0, 6], [0, 0]], float)
  two = np.array([[0, 0], [0, 0], [0, 4], [6, 1], [0, 0]], float)
  texts = [
    span.decode(features, *x.T, has_null=False)[0].text
    for x in (one, two, ensemble.average([one, two]))
  ]
  assert texts == ["b c", "c", "b"]


def test_one_run_or_one_twice_is_refused(tmp_path):
  for given in (["a"], ["a", "a"]):
    with pytest.raises(spec.TaskError, match="two runs or more"):
      ensemble.run(given, str(tmp_path / "out"))
  with pytest.raises(runs.RunError, match="holds no run"):
    ensemble.run([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path))


def test_labels_of_members_are_matched_by_name(tmp_path, monkeypatch):
  """Members that are always right are so together, in any order of labels."""

  def open_right(workdir, splits, checkpoint):
    del checkpoint
    c = small_tasks.make_config(tmp_path, task__labels=workdir.split("+"))
    job, _ = jobs.open_job(c, "")
    wanted = {x: job.split(x).features.label for x in splits}
    return job, {x: np.eye(len(c.task.labels))[y] for x, y in wanted.items()}

  monkeypatch.setattr(ensemble, "_open", open_right)
  members = ["moon+sun+sky", "sun+sky+moon", "sky+sun+moon"]
  scores = ensemble.run(members, str(tmp_path / "out"), ["validation"])
  assert scores["eval/accuracy"] == 1.0
  message = "labels moon, sun, sky, and .* has sun, moon;"
  with pytest.raises(spec.TaskError, match=message):
    ensemble.run([members[0], "sun+moon"], str(tmp_path), ["validation"])


@pytest.mark.slow
def test_an_ensemble_of_runs_is_scored_and_written(tmp_path):
  workdirs = []
  for seed in (0, 1):
    c = small_tasks.make_config(tmp_path, "classify", seed=seed)
    c.train.num_epochs = 1.0
    workdirs.append(str(tmp_path / f"run{seed}"))
    train.train(c, workdirs[-1])
  output = tmp_path / "both"
  scores = ensemble.run(workdirs, str(output))
  written = json.loads((output / "evaluation.json").read_text())
  assert written == {"members": workdirs} | scores
  path = output / "predictions" / "my-classify-validation.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  right = np.mean([row["label"] == row["gold"] for row in rows])
  assert scores["eval/accuracy"] == right
  # A member with itself is the member: equal outputs have an equal mean.
  job, outputs = ensemble._open(workdirs[0], ["validation"], "")
  alone = job.decode(job.split("validation"), outputs["validation"])
  twice = ensemble.average([outputs["validation"]] * 2)
  assert job.decode(job.split("validation"), twice) == alone
  c = small_tasks.make_config(tmp_path, "classify", data__seq_len=6)
  c.train.num_epochs = 0.5
  train.train(c, str(tmp_path / "short"))
  with pytest.raises(spec.TaskError, match="validation as other tokens"):
    ensemble.run([workdirs[0], str(tmp_path / "short")], str(output))
