"""Tests of experiments/minilm: the table, and the runs of the other library."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.kinds import table
from bert_jax.models import config as model_config
from bert_jax.runtime import metrics_log
from bert_jax.training import jobs
from bert_jax.training import train
from configs import finetune
from experiments.minilm import run

WORDS = "sun moon star sky rain wind snow hill lake tree bird".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def _keep(folder, task, seed, **values):
  folder.mkdir(exist_ok=True)
  start = values.pop("start", None)
  record = {"task": task, "seed": seed, "final": values}
  record |= {"start": start} if start else {}
  (folder / f"{task}-{start}-{seed}.json").write_text(json.dumps(record))


def test_the_table_has_median_and_range_of_what_was_run(tmp_path):
  for seed, value in enumerate((0.2, 0.4, 0.3)):
    metrics = {"eval/matthews": value, "eval/accuracy": 0.5}
    _keep(tmp_path / "runs", "cola", seed, start="minilm", **metrics)
  lines = run.table(tmp_path).splitlines()
  assert "HF torch" not in lines[2]
  assert lines[4:-2] == [
    "| cola | matthews | 30.0 (20.0 to 40.0) | not run | 3 / 0 | ? / - |",
    "| cola | accuracy | 50.0 (50.0 to 50.0) | not run | 3 / 0 | ? / - |",
  ]
  metrics = {"eval/accuracy": 0.75, "eval/f1": 0.5}
  _keep(tmp_path / "reference", "mrpc", 0, **metrics)
  lines = run.table(tmp_path).splitlines()
  assert "HF torch, same recipe: median (min to max)" in lines[2]
  assert lines[4:6] == [
    "| mrpc | accuracy | not run | not run | 75.0 (75.0 to 75.0) "
    "| 0 / 0 / 1 | - / - / ? |",
    "| mrpc | f1 | not run | not run | 50.0 (50.0 to 50.0) "
    "| 0 / 0 / 1 | - / - / ? |",
  ]
  assert len({line.count("|") for line in lines[2:-2]}) == 1


def test_the_table_is_that_of_the_records_there_are():
  assert (run.HERE / "results.md").read_text() == run.table()


def test_settings_are_those_of_the_command():
  for task in run.TRIALS:
    changes = run.settings(task, 3, "DATA")
    config = finetune.get_config(f"task={task}")
    config.update_from_flattened_dict(changes)  # known keys of the right type
    command = run.command(task, "minilm", 3, "DATA")
    for key, value in changes.items():
      assert f"--config.{key}={value}" in command


@pytest.fixture(params=["classify", "regress"])
def config(tmp_path, request):
  """A run from a small model in Hugging Face format, without dropout."""
  for split, count in (("train", 48), ("validation", 40)):
    with open(tmp_path / f"{split}.jsonl", "w") as f:
      for i in range(count):
        label = WORDS[i % 2]
        line = {"text": " ".join([label, *WORDS[i % 9 :][: i % 4]])}
        line["label"] = label if request.param == "classify" else i % 2
        f.write(json.dumps(line) + "\n")
  (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  config = finetune.get_config(f"task=my-{request.param}")
  config.task.dir = str(tmp_path)
  config.task.files.train = str(tmp_path / "train.jsonl")
  config.task.files.validation = str(tmp_path / "validation.jsonl")
  config.task.text, config.task.label = ("text",), "label"
  config.task.vocab = str(tmp_path / "vocab.txt")
  config.model.update(
    vocab_size=len(VOCAB), num_layers=1, hidden_size=32, num_heads=8,
    mlp_dim=64, max_len=16, dropout_rate=0.0, attention_dropout_rate=0.0,
    init_stddev=0.1, hidden_act="gelu_erf",
  )  # fmt: skip
  config.data.seq_len, config.data.batch_size = 16, 16
  config.mesh.data, config.mesh.tensor = 1, 8
  config.eval.batch_size = 8
  config.train.num_epochs, config.train.log_every_steps = 1.0, 1
  config.train.tensorboard = False
  train.train(config, str(tmp_path / "first"))
  found = weights.read(str(tmp_path / "first"))
  weights.write(found, tmp_path / "hf", "huggingface")
  config.init_from, config.task.vocab = str(tmp_path / "hf"), ""
  config.train.num_epochs = 6.0
  config.optim.learning_rate, config.optim.warmup_rate = 3e-3, 0.2
  return config


@pytest.mark.slow
def test_both_libraries_run_the_same_recipe(config, tmp_path):
  """Every loss on the way and the scores: warm-up, jump, decay and clipping."""
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from experiments.minilm import reference

  want = train.train(config, str(tmp_path / "run"))
  rows = metrics_log.read_metrics(str(tmp_path / "run"))
  job, _ = jobs.open_job(config, "")
  model, losses = reference.train(job)
  rows = [row for row in rows if "train/loss" in row]
  assert len(rows) == len(losses) == job.total_steps == 18
  assert max(row["train/grad_norm"] for row in rows) > 1.0  # it was clipped
  assert losses[-1] < 0.7 * losses[0]
  for row, loss in zip(rows, losses, strict=True):
    assert row["train/loss"] == pytest.approx(loss, rel=1e-3)
    assert row["train/learning_rate"] == pytest.approx(
      reference.learning_rate(row["step"] - 1, 18, 3e-3, 0.2)
    )
  assert reference.evaluate(job, model) == pytest.approx(want, rel=1e-3)


@pytest.mark.slow
def test_a_head_that_the_weights_lack_is_drawn_within_two_deviations(
  config, tmp_path
):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from experiments.minilm import reference

  found = weights.read(config.init_from)
  bare = {k: v for k, v in found.params.items() if k != "task"}
  found = dataclasses.replace(found, params=bare, kind=None, labels=())
  config.init_from = str(tmp_path / "bare")
  weights.write(found, tmp_path / "bare", "huggingface")
  torch.manual_seed(0)
  model = reference.make_model(config, num_labels=500)
  kernel = model.classifier.weight.detach()
  assert kernel.abs().max() <= 0.2
  assert float(kernel.std()) == pytest.approx(0.088, rel=0.02)
  assert not model.classifier.bias.any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dropout_spreads_scores_as_in_the_other_library(tmp_path):
  """Mean and deviation over many draws: every dropout is there, at its rate."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model = finetune.get_config().model
  model.update(
    vocab_size=50, num_layers=2, hidden_size=64, num_heads=4, mlp_dim=128,
    max_len=16, dropout_rate=0.2, attention_dropout_rate=0.2,
    init_stddev=0.3, hidden_act="gelu_erf",
  )  # fmt: skip
  objective = table.get("classify")
  ours = objective.make_model(
    model_config.ModelConfig.from_config(model), num_labels=2
  )
  draws, rng = 4096, np.random.default_rng(0)
  row = rng.integers(5, 50, (1, 12)).astype(np.int32)
  inputs = {
    "input_ids": np.repeat(row, draws, 0),
    "input_mask": np.ones((draws, 12), np.int32),
    "segment_ids": np.zeros((draws, 12), np.int32),
    "cls_positions": np.zeros((draws, 1), np.int32),
  }
  params = ours.init(jax.random.key(0), **inputs)["params"]
  apply = jax.jit(ours.apply, static_argnames="deterministic")
  scores = apply(
    {"params": params}, **inputs, deterministic=False,
    rngs={"dropout": jax.random.key(1)},
  )[:, 0]  # fmt: skip
  shape = {key: model[key] for key in model_config.MODEL_KEYS}
  given = weights.Pretrained(
    format="bert_jax", model=shape, kind="classify", labels=("no", "yes"),
    params=jax.tree.map(np.asarray, params),
  )  # fmt: skip
  weights.write(given, tmp_path / "x", "huggingface")
  theirs = transformers.BertForSequenceClassification.from_pretrained(
    tmp_path / "x", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2
  ).train()
  torch.manual_seed(0)
  with torch.no_grad():
    tokens = torch.tensor(inputs["input_ids"], dtype=torch.long)
    wanted = theirs(input_ids=tokens).logits.numpy()
  spread = wanted.std(0)
  error = spread * (2 / draws) ** 0.5
  assert (abs(scores.mean(0) - wanted.mean(0)) < 4 * error).all()
  np.testing.assert_allclose(scores.std(0), spread, rtol=4 * draws**-0.5)
