"""Tests of probes.py: what an encoder is worth to tasks as it pre-trains."""

import json
import shutil
import types

import jax
import numpy as np
import pytest
from scipy import stats

from bert_jax import tasks
from bert_jax.models import encoder
from bert_jax.planning import doctor
from bert_jax.runtime import metrics_log
from bert_jax.runtime import settings
from bert_jax.training import probes
from bert_jax.training import session
from bert_jax.training import train
from tests.support import tiny_run


def _write_tasks(folder):
  """Writes small files of SST-2 and STS-B in their official layouts."""
  words = tiny_run.WORDS
  rng = np.random.default_rng(0)

  def text(count):
    return " ".join(rng.choice(words[2:], count))

  for split, count in (("train", 60), ("dev", 30)):
    lines = ["sentence\tlabel"]
    for _ in range(count):
      label = int(rng.integers(2))
      lines.append(f"{text(3)} {words[label]} {text(2)}\t{label}")
    path = folder / "SST-2" / f"{split}.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    heads = "index genre filename year old_index source1 source2 sentence1"
    lines = ["\t".join([*heads.split(), "sentence2", "score"])]
    for i in range(count):
      score = i % 6
      one = text(5).split()
      other = one[:score] + text(6 - score).split()[: 5 - min(score, 5)]
      row = [str(i), *"abcdef", " ".join(one), " ".join(other), str(score)]
      lines.append("\t".join(row))
    path = folder / "STS-B" / f"{split}.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
  return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory, prepared):
  c = tiny_run.tiny_config(prepared)
  c.probe.every_steps = 4
  c.probe.dir = _write_tasks(tmp_path_factory.mktemp("tasks"))
  c.probe.similarity = ("stsb",)
  c.probe.linear = ("sst2",)
  # A fine-tuning has an optimizer of its own.
  c.optim.name = "muon"
  c.optim.schedule = "trapezoid"
  c.optim.cooldown_rate = 0.25
  return c


@pytest.fixture(scope="module")
def opened(config, tmp_path_factory):
  """A session that has trained nothing, its fresh parameters and its scores."""
  found = session.open_session(config, str(tmp_path_factory.mktemp("run")))
  with jax.set_mesh(found.mesh):
    params = found.fresh_state().params
    prober = probes.Prober(found.job, found.mesh)
    return found, params, prober(params, lambda: params)


def test_similarity_is_the_rank_correlation_of_cosines_of_mean_vectors(
  config, opened
):
  found, params, scores = opened
  task = tasks.TASKS["stsb"]
  examples = tasks.read_examples(task, config.probe.dir, "validation")
  model = encoder.Encoder(found.job.model.config)
  tokenizer = found.job.tokenizer

  def vectors(texts):
    ids = np.array(
      [
        [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
        for text in texts
      ]
    )
    ones = np.ones_like(ids)
    hidden, _ = model.apply({"params": params["encoder"]}, ids, ones, 0 * ids)
    mean = np.asarray(hidden).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)

  one, other = (
    vectors([getattr(e, side) for e in examples])
    for side in ("text_a", "text_b")
  )
  cosines = (one * other).sum(axis=1)
  wanted = stats.spearmanr(cosines, [e.label for e in examples]).statistic
  assert scores["probe/stsb_similarity_spearman"] == pytest.approx(
    wanted, abs=0.02
  )


def test_the_baselines_stand_beside_each_score(config, opened):
  _, _, scores = opened
  labels = [
    example.label
    for example in tasks.read_examples(
      tasks.TASKS["sst2"], config.probe.dir, "validation"
    )
  ]
  accuracy = scores["probe/sst2_linear_accuracy"]
  # These parameters are untrained themselves.
  assert accuracy == scores["probe/sst2_linear_accuracy_untrained"]
  share = np.mean(labels)
  majority = scores["probe/sst2_linear_accuracy_majority"]
  assert majority in (pytest.approx(share), pytest.approx(1 - share))
  assert "probe/stsb_similarity_spearman_majority" not in scores
  assert len(scores) == 5


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"dir": None}, ["probe.dir"]),
    ({"similarity": (), "linear": ()}, ["probe.every_steps=4"]),
    ({"similarity": ("sst2",)}, ["probe.similarity", "sst2"]),
    ({"linear": ("stsb",)}, ["probe.linear", "stsb"]),
    ({"linear": ("sst3",)}, ["sst3"]),
    ({"dir": "/nowhere"}, ["/nowhere"]),
  ],
)
def test_a_probe_that_cannot_be_is_refused(config, opened, changes, words):
  found, _, _ = opened
  group = found.job.config.probe
  for key, value in changes.items():
    group[key] = value
  try:
    with pytest.raises(ValueError) as error:
      probes.Prober(found.job, found.mesh)
  finally:
    for key in changes:
      group[key] = config.probe[key]
  assert all(word in str(error.value) for word in words)


def test_the_recipe_of_a_probe_is_not_that_of_the_pre_training(config, opened):
  c = config.copy_and_resolve_references()
  changes = {
    "init_changes": ("model.max_len=8",), "init_moments": True,
    "init_layers": 1, "reinit_layers": 1, "optim.layer_decay": 0.5,
    "optim.head_rate": 3.0, "optim.frozen_layers": 1,
    "optim.frozen_embeddings": True, "optim.unfreeze_steps": 5,
    "train.spike_factor": 2.0, "data.batch_warmup_sizes": (2,),
    "data.batch_warmup_steps": 4, "data.first_row": 8, "data.mixture": ("/x",),
    "eval.mask_rate": 0.2, "optim.b1": 0.5,
  }  # fmt: skip
  c.update_from_flattened_dict(changes)
  made, plain = (
    settings.flatten(probes._task_config(x, "sst2", opened[0].mesh))
    for x in (c, config)
  )
  assert made == plain
  assert made["optim.layer_decay"] == 1.0 and made["optim.frozen_layers"] == 0


def test_a_list_may_be_one_word_with_commas(opened):
  found, _, _ = opened
  group = found.job.config.probe
  group.linear, group.finetune = ("sst2,sst2",), ("stsb",)
  try:
    prober = probes.Prober(found.job, found.mesh)
  finally:
    group.linear, group.finetune = ("sst2",), ()
  linear = "sst2_linear_accuracy"
  assert prober.names == [
    "stsb_similarity_spearman", linear, linear, "stsb_finetune_spearman"
  ]  # fmt: skip
  assert prober.is_due(4) and not prober.is_due(0) and not prober.is_due(6)


def test_the_doctor_names_the_probes(opened):
  found, _, _ = opened
  training = types.SimpleNamespace(job=(found.job, None), mesh=found.mesh)
  assert doctor._probes(training) == (
    "every 4 steps: stsb_similarity_spearman, sst2_linear_accuracy"
  )


def _rows(workdir, group):
  return [
    row
    for row in metrics_log.read_metrics(str(workdir))
    if any(key.startswith(group) for key in row)
  ]


@pytest.mark.slow
def test_probes_are_a_function_of_the_step_and_change_nothing(config, tmp_path):
  """Also with a fine-tuning, on more steps than one session makes."""
  config = config.copy_and_resolve_references()
  config.probe.finetune = ("sst2",)
  whole, parts, plain = (tmp_path / x for x in ("whole", "parts", "plain"))
  train.train(config, str(whole))
  probed = _rows(whole, "probe/")
  assert [row["step"] for row in probed] == [4, 8]
  assert probed[0].keys() == probed[1].keys()
  assert len(probed[0]) == 1 + 8

  # A run that goes on from its sixth step.
  train.train(config, str(parts))
  for folder in ("checkpoints", "best"):
    shutil.rmtree(parts / folder / "8", ignore_errors=True)
  train.train(config, str(parts))
  assert _rows(parts, "probe/") == probed

  config.probe.every_steps = 0
  train.train(config, str(plain))
  assert not _rows(plain, "probe/")
  losses = [
    [(row["step"], row["train/loss"]) for row in _rows(folder, "train/")]
    for folder in (whole, plain)
  ]
  assert losses[0] == losses[1]
  record = json.loads((whole / "run.json").read_text())
  assert record["config"]["probe"]["finetune"] == ["sst2"]


def test_probes_are_off_by_default():
  found = tiny_run.tiny_config()
  assert found.probe.every_steps == 0
