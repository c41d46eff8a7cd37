"""What a job takes from imported weights and from runs of older versions."""

import pytest

from bert_jax import weights
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.training import jobs
from configs import base
from tests.support import small_models

SWITCHES = ("family", "norm", "norm_place", "positions", "feed_forward",
            "attention_pattern")  # fmt: skip


@pytest.mark.parametrize("format", ["huggingface", "bert_jax"])
def test_imported_weights_bring_their_family_and_switches(tmp_path, format):
  made = small_models.make()
  weights.write(made, tmp_path / "model", format)
  config = base.get_config()
  config.init_from = str(tmp_path / "model")
  config.data.seq_len = 8
  for key in SWITCHES:
    config.model[key] = "another"
  job, _ = jobs.open_job(config, "", is_abstract=True)
  got = {key: job.config.model[key] for key in settings.SHAPE_KEYS}
  defaults = {
    key: settings.KEYS[f"model.{key}"].default for key in settings.SHAPE_KEYS
  }
  assert got == defaults | made.model


def test_a_run_from_before_the_switches_is_of_bert(tmp_path):
  weights.write(small_models.make(), tmp_path / "run", "bert_jax")
  run = runs.read_run(str(tmp_path / "run"))
  for key in SWITCHES:
    del run["config"]["model"][key]
  runs.write_run(str(tmp_path / "run"), run)
  model = weights.read(tmp_path / "run")
  assert model.family == "bert" and model.shape["positions"] == "learned"


@pytest.mark.parametrize(
  ("task", "wanted"),
  [
    ("mrpc", "auto"),
    ("my-classify", "auto"),
    ("no-such", "auto"),
    ("my-similarity", "mean"),
  ],
)
def test_the_pooling_of_the_weights_is_for_kinds_that_pool(task, wanted):
  config = base.get_config()
  config.objective, config.task.name = "task", task
  pretrained = small_models.make()
  pretrained.sentence = ("mean", "normalize")
  jobs._settle_pooling(config, "", pretrained)
  assert config.task.pooling == wanted
