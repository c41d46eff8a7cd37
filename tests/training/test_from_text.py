"""Tests of adapting a model: from_text.py, export.py, configs/adapt.py."""

import json
import types

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.models import params as param_trees
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.training import evaluate
from bert_jax.training import export
from bert_jax.training import from_text
from bert_jax.training import pretraining
from bert_jax.training import session
from bert_jax.training import train
from configs import adapt
from tests.support import small_models
from tests.support import tiny_run


def make_config(source, **values):
  c = adapt.get_config(f"from={source},seq_len=12,batch_size=8,epochs=1.0")
  c.data.max_sequences = 2
  c.prepare.held_out_rate = 0.25
  c.prepare.num_workers = 1
  c.train.log_every_steps = 1
  c.eval.batch_size = 8
  c.train.tensorboard = False
  c.update_from_flattened_dict(values)
  return c


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A model as Hugging Face writes it, and a text in its words."""
  folder = tmp_path_factory.mktemp("adapt")
  model = small_models.make()
  model.params.pop("nsp")
  model.sentence = ("mean", "normalize")
  model.params["encoder"].pop("pooler")
  weights.write(model, folder / "model", "huggingface")
  rng = np.random.default_rng(0)
  words = ["walk", "walked", "the", "!"]
  documents = [
    "\n".join(" ".join(rng.choice(words, 6)) for _ in range(2))
    for _ in range(60)
  ]
  (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
  return folder


@pytest.fixture(scope="module")
def adapted(folders):
  """The run that `train --config=adapt --input` makes, and its config."""
  workdir = str(folders / "run")
  config = from_text.prepare_text(
    make_config(folders / "model"), [str(folders / "text.txt")], workdir
  )
  result = train.train(config, workdir)
  return types.SimpleNamespace(config=config, workdir=workdir, result=result)


def rows_of(workdir):
  with open(f"{workdir}/metrics.jsonl") as f:
    return [json.loads(line) for line in f]


def test_the_text_has_the_tokens_of_the_model(adapted, folders):
  model = weights.read(folders / "model")
  found = weights.read(adapted.workdir)
  assert found.tokenizer.fingerprint == model.tokenizer.fingerprint
  assert adapted.config.data.dir == f"{adapted.workdir}/data"


def test_scores_before_are_those_of_the_given_weights(adapted, folders):
  first, *rest = rows_of(adapted.workdir)
  assert first["step"] == 0
  as_given = make_config(folders / "model")
  as_given.data.dir = adapted.config.data.dir
  found = evaluate.evaluate(as_given, str(folders / "given"), None)
  for name, value in found.items():
    assert first[name] == pytest.approx(value, rel=1e-5), name
  assert rest[-1].keys() >= found.keys()


def test_steps_are_those_of_the_epochs(adapted):
  opened = session.open_session(adapted.config, adapted.workdir)
  epoch = opened.batches.epoch_steps
  assert opened.total_steps == int(np.ceil(epoch)) > 2
  assert rows_of(adapted.workdir)[-1]["step"] == opened.total_steps


def test_the_export_is_the_run_in_the_format_that_came(adapted, folders):
  found = weights.read(f"{adapted.workdir}/export")
  run = weights.read(adapted.workdir)
  assert found.format == "huggingface"
  assert found.sentence == ("mean", "normalize")
  got, want = (param_trees.flatten(x.params) for x in (found, run))
  assert {k for k in want if k not in got} == {"nsp/kernel", "nsp/bias"}
  assert all(np.array_equal(got[k], want[k]) for k in got)
  before = param_trees.flatten(weights.read(folders / "model").params)
  assert any((got[k] != before[k]).any() for k in before)
  assert runs.read_run(adapted.workdir)["config"]["train"]["export"] == (
    "huggingface"
  )


def test_the_same_command_changes_nothing(adapted, folders):
  config = from_text.prepare_text(
    make_config(folders / "model"), [str(folders / "text.txt")], adapted.workdir
  )
  before = rows_of(adapted.workdir)
  assert train.train(config, adapted.workdir) == {}
  assert rows_of(adapted.workdir) == before


def test_evaluation_has_a_rate_of_its_own(adapted):
  def masked(**values):
    config = adapted.config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    opened = session.open_session(config, adapted.workdir)
    return opened.evaluator._batches[0]["masked_weights"].sum()

  often = masked(**{"eval.mask_rate": 0.5})
  assert often > 1.5 * masked(**{"eval.mask_rate": 0.15})
  assert masked(**{"eval.mask_rate": 0.0}) == masked()  # 15 %, as in training


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"data.seq_len": 64}, ("data.seq_len=64", "max_len=12")),
    ({"objective": "task"}, ("--input", "task.dir")),
    ({"train.total_steps": 5}, ("num_epochs", "total_steps=5")),
    ({"objective": "mlm_nsp"}, ("mlm_nsp", "--config.objective=mlm")),
  ],
)
def test_a_training_that_cannot_start_prepares_nothing(
  folders, tmp_path, values, words
):
  config = make_config(folders / "model", **values)
  with pytest.raises(ValueError) as error:
    from_text.prepare_text(config, [str(folders / "text.txt")], str(tmp_path))
  assert all(word in str(error.value) for word in words)
  assert not list(tmp_path.iterdir())


def test_a_format_without_such_a_family_is_refused(folders):
  config = make_config(folders / "model")
  config.model.family = "modernbert"
  config.train.export = "tf1"
  with pytest.raises(ValueError, match="tf1"):
    export.check(config)
  config.init_from, config.train.export = None, "same"
  with pytest.raises(ValueError, match="init_from"):
    export.check(config)


def test_opening_a_training_refuses_what_its_export_could_not_write(
  prepared, tmp_path, monkeypatch
):
  def open_with(format, **values):
    config = tiny_run.tiny_config(prepared)
    config.train.export = format
    config.update_from_flattened_dict(values)
    session.open_abstract(config, jax.devices())
    opened = session.open_session(config, str(tmp_path / "run"))
    run = {"config": settings.plain(opened.config)}
    return weights.of_run(run, opened.abstract.params, opened.job.tokenizer)

  for format in ("", "huggingface", "flax", "tf1"):
    found = open_with(format)
  # Zeros stand for the parameters, so writing can be tried without training.
  weights.write(found, tmp_path / "zeros", "tf1")
  for key, value in (
    ("model.attention_pattern", "causal"),
    ("model.norm_place", "pre"),
    ("model.mlm_bias", False),
  ):
    found = open_with("", **{key: value})
    with pytest.raises(weights.WeightsError, match=key.split(".")[1]):
      weights.write(found, tmp_path / "other", "huggingface")
    message = f"train.export=huggingface: .*{key.split('.')[1]}"
    with pytest.raises(ValueError, match=message):
      open_with("huggingface", **{key: value})
  other = types.SimpleNamespace(
    kind="sentencepiece", vocab_size=32, lower_case=None
  )
  monkeypatch.setattr(pretraining.Pretraining, "tokenizer", other)
  with pytest.raises(ValueError, match="train.export=tf1: a sentencepiece voc"):
    open_with("tf1")
  assert not (tmp_path / "run").exists()
