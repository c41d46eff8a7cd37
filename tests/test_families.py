"""A family is fine-tuned, evaluated, written out and predicted with."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from bert_jax import tasks
from bert_jax import weights
from bert_jax.data.tokenizers import load
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.planning import doctor
from bert_jax.prediction import predict
from bert_jax.runtime import metrics_log
from bert_jax.tasks import spec
from bert_jax.training import evaluate
from bert_jax.training import members
from bert_jax.training import train
from configs import predict as predict_config
from experiments.families import sweep as families_sweep
from tests.support import small_tasks

FAMILIES = {
  "roberta": {"type_vocab_size": 1, "position_offset": 2},
  "modernbert": {"local_radius": 2, "full_every": 2, "pooling": "mean"},
  "albert": {"embedding_size": 16, "layer_groups": 1},
  "electra": {"embedding_size": 16},
  "deberta-v2": {"relative_buckets": 4, "relative_distance": 32},
}
ROOT = pathlib.Path(__file__).parents[1]
FORMS = ("classify", "regress", "tag", "choice", "span")


def write_weights(folder, name):
  """Writes a random encoder with a head of masked words."""
  (folder / "vocab.txt").write_text("\n".join(small_tasks.VOCAB) + "\n")
  model = {
    "vocab_size": len(small_tasks.VOCAB), "num_layers": 3, "hidden_size": 32,
    "num_heads": 4, "mlp_dim": 64, "max_len": 32, "type_vocab_size": 2,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-5,
    **families.FAMILIES[name].switches, **FAMILIES[name],
  }  # fmt: skip
  rng = np.random.default_rng(0)
  flat = {
    path: (rng.normal(size=shape) * 0.1 + path.endswith("scale")).astype(
      np.float32
    )
    for path, shape in heads.param_shapes({**model, "family": name}, 1).items()
    if path.startswith(("encoder/", "mlm/")) and "pooler" not in path
  }
  found = weights.Pretrained(
    format="bert_jax", model=model, params=param_trees.nest(flat), family=name,
    tokenizer=load.load_tokenizer(folder / "vocab.txt"),
  )  # fmt: skip
  weights.write(found, folder / "hf", "huggingface")
  return str(folder / "hf")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_kind_learns_and_comes_back(tmp_path, name, form):
  """Packed rows in training, and the same scores from the exported folder."""
  config = small_tasks.make_config(tmp_path, form, train__num_epochs=6.0)
  config.init_from, config.task.vocab = write_weights(tmp_path, name), ""
  scores = train.train(config, str(tmp_path / "run"))
  rows = metrics_log.read_metrics(str(tmp_path / "run"))
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  assert scores["eval/loss"] < losses[0]
  again = weights.read(tmp_path / "run")
  assert again.family == name
  weights.write(again, tmp_path / "out", "huggingface")
  back = weights.read(tmp_path / "out")
  flat = param_trees.flatten(again.params)
  for path, array in param_trees.flatten(back.params).items():
    np.testing.assert_array_equal(flat[path], array)
  config.init_from = str(tmp_path / "out")
  there = evaluate.evaluate(config, str(tmp_path / "new"), None)
  assert there["eval/loss"] == pytest.approx(scores["eval/loss"], rel=1e-4)


def _config(folder, name, **changes):
  """A fine-tuning from random weights of a family, in rows of one length."""
  config = small_tasks.make_config(
    folder,
    data__one_row_len=True,
    train__num_epochs=2.0,
    train__log_every_steps=1,
    **changes,
  )
  config.init_from, config.task.vocab = write_weights(folder, name), ""
  return config


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_members_of_every_family_are_what_they_are_alone(tmp_path, name):
  """Two seeds with learning rates of their own, in one program."""
  config = _config(tmp_path, name)
  together = [
    members.Member(f"{tmp_path}/together/{seed}", seed, 3e-4 / (seed + 1))
    for seed in (0, 1)
  ]
  train.train_together(config, together)
  found = []
  for member in together:
    config.seed = member.seed
    config.optim.learning_rate = member.learning_rate
    alone = f"{tmp_path}/alone/{member.seed}"
    train.train(config, alone)
    losses = [
      [row["train/loss"] for row in metrics_log.read_metrics(workdir)
       if "train/loss" in row]
      for workdir in (member.workdir, alone)
    ]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-3)
    got, want = (
      param_trees.flatten(weights.read(workdir).params)
      for workdir in (member.workdir, alone)
    )
    for path, array in want.items():
      np.testing.assert_allclose(got[path], array, rtol=1e-3, atol=3e-5)
    found.append(losses[0])
  assert found[0] != found[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_doctor_finds_a_fine_tuning_of_every_family_sound(
  tmp_path, name, capsys
):
  config = _config(tmp_path, name)
  assert doctor.examine(config, str(tmp_path / "run"))
  assert "a training would start" in capsys.readouterr().out
  assert not (tmp_path / "run").exists()


SWEEP = """
from bert_jax.sweeps import sweep

def get_config(text=None):
  return sweep.make([
    sweep.trial("configs/finetune.py:task=my-classify,from={start}", {{
      "task.dir": "{folder}", "task.text": ("text",), "task.label": "label",
      "task.files.train": "{folder}/train.jsonl", "data.seq_len": 16,
      "data.batch_size": 16, "optim.learning_rate": rate, "seed": 0,
      "train.num_epochs": 4.0, "checkpoint.every_steps": 1000,
    }})
    for rate in (3e-3, 1e-3)
  ])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_sweep_of_every_family_ends_with_a_table(tmp_path, name):
  """Two learning rates, each trial in a process of its own."""
  config = _config(tmp_path, name)
  file = tmp_path / "sweep.py"
  file.write_text(SWEEP.format(start=config.init_from, folder=tmp_path))
  done = subprocess.run(
    [sys.executable, "-m", "bert_jax.main", "sweep", f"--config={file}",
     f"--workdir={tmp_path / 'sweep'}"],
    cwd=ROOT, capture_output=True, text=True, check=False,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  runs = sorted((tmp_path / "sweep").rglob("run.json"))
  assert len(runs) == 2
  for path in runs:
    rows = metrics_log.read_metrics(str(path.parent))
    accuracy = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
    assert 0 <= accuracy[-1] <= 1
    assert json.loads(path.read_text())["config"]["model"]["family"] == name


def test_electras_sweep_learns_both_orders_where_pairs_have_none():
  some = "mrpc+rte+stsb"
  config = families_sweep.get_config(f"family=electra,from=x,tasks={some}")
  found = {
    re.search(r"task=(\w+)", trial.config)[1]: json.loads(trial.settings)
    for trial in config.trials
  }
  assert all(k["optim.layer_decay"] == 0.8 for k in found.values())
  both = {task: k.get("task.both_orders") for task, k in found.items()}
  assert both == {"mrpc": True, "rte": None, "stsb": True}


def test_each_pair_is_followed_by_the_same_in_the_other_order():
  task = tasks.TASKS["mrpc"]
  pair = spec.PairExample("7", "a", "b", 1)
  found = spec.in_both_orders(task, [pair, dataclasses.replace(pair, id="8")])
  assert [(e.id, e.text_a, e.text_b, e.label) for e in found] == [
    ("7", "a", "b", 1), ("7", "b", "a", 1), ("8", "a", "b", 1),
    ("8", "b", "a", 1),
  ]  # fmt: skip
  alone = dataclasses.replace(pair, text_b=None)
  with pytest.raises(spec.TaskError, match="both_orders.*mrpc.*not a pair"):
    spec.in_both_orders(task, [alone])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_words_and_vectors_do_not_depend_on_their_neighbors(tmp_path, name):
  folder = write_weights(tmp_path, name)
  for kind, fields in (("fill-mask", ""), ("embed", "mean+layers")):
    config = predict_config.get_config(f"kind={kind},fields={fields}")
    config.predict.decimals = 0
    model = predict.Predictor.load(folder, config)
    texts = ["sun [MASK] star", "[MASK]", "moon star sky rain wind [MASK] lake"]
    together = list(model({"text": text} for text in texts))
    for text, got in zip(texts, together, strict=True):
      (alone,) = model([{"text": text}])
      assert "error" not in got
      for one, two in zip(_numbers(got), _numbers(alone), strict=True):
        assert one == pytest.approx(two, abs=2e-5)


def _numbers(value):
  """Yields the numbers in a prediction, in their order."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    for item in value:
      yield from _numbers(item)
  elif isinstance(value, float):
    yield value


def test_a_new_head_begins_with_the_pre_trained_one(tmp_path):
  """ModernBERT's heads share their inner layers by name; RoBERTa's do not."""
  assert families.FAMILIES["modernbert"].shared_head == ("dense", "norm")
  assert families.FAMILIES["roberta"].shared_head == ()
  assert dataclasses.replace(families.FAMILIES["bert"]).shared_head == ()
