"""LoRA in whole runs: what changes, what is saved, how it is resumed."""

import functools

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.models import adapters
from bert_jax.models import params as param_trees
from bert_jax.runtime import checkpoint
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.training import checks
from bert_jax.training import evaluate
from bert_jax.training import members
from bert_jax.training import session
from bert_jax.training import train
from configs import base
from tests.support import run_checks
from tests.support import small_tasks

FORMS = ("classify", "pairs", "regress", "tag", "choice", "span")


@pytest.fixture
def make_config(tmp_path):
  return functools.partial(small_tasks.make_config, tmp_path)


def lora(make_config, first, form="classify", **changes):
  """A config that trains adapters of the model of a run."""
  config = make_config(
    form, optim__lora_rank=2, optim__lora_alpha=8.0,
    optim__learning_rate=1e-2, train__num_epochs=2.0, **changes,
  )  # fmt: skip
  config.init_from, config.task.vocab = first, ""
  return config


def saved(run):
  """The parameters of the last step of a run, as they are saved."""
  return param_trees.flatten(
    checkpoint.read_params(saved_steps.choose(run).path)
  )


@pytest.fixture
def first(make_config, tmp_path):
  """A run whose weights the others start from."""
  run = str(tmp_path / "first")
  train.train(make_config(train__num_epochs=0.2), run)
  return run


def test_a_run_trains_adapters_and_head_alone(make_config, tmp_path, first):
  run = str(tmp_path / "run")
  config = lora(make_config, first, optim__lora_targets=("all",))
  opened = session.open_session(config, str(tmp_path / "none"))
  moments = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, x in jax.tree_util.tree_leaves_with_path(
      opened.abstract.opt_state
    )
    if x.ndim
  }
  trained = opened.job.is_trained
  assert len(moments) == 2 * sum(
    trained(path) for path in param_trees.flatten(opened.abstract.params)
  )
  found = train.train(config, run)
  before, after = param_trees.flatten(weights.read(first).params), saved(run)
  changed = {
    path for path in before if not np.array_equal(before[path], after[path])
  }
  assert changed == {p for p in before if trained(p)}
  assert any(map(adapters.is_adapter, after))
  merged = weights.read(run)
  assert param_trees.flatten(merged.params).keys() == before.keys()
  # The merged weights as they are give the scores of the run.
  weights.write(merged, tmp_path / "hf", "huggingface")
  config = make_config()
  config.init_from, config.task.vocab = str(tmp_path / "hf"), ""
  again = evaluate.evaluate(config, str(tmp_path / "given"), None)
  assert again["eval/loss"] == pytest.approx(found["eval/loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_can_have_adapters(make_config, tmp_path, form):
  from bert_jax.prediction import model as model_lib

  first, run = str(tmp_path / "first"), str(tmp_path / "run")
  train.train(make_config(form, train__num_epochs=0.2), first)
  config = lora(
    make_config, first, form, optim__lora_dropout_rate=0.1,
    optim__lora_norms=True, optim__num_micro_batches=2,
    optim__layer_decay=0.9, model__scan_layers=True,
  )  # fmt: skip
  train.train(config, run)
  config.task.predict_splits = ("validation",)
  found = evaluate.evaluate(config, run, None)
  again = evaluate.evaluate(config, run, None)
  assert found == again and np.isfinite(found["eval/loss"])
  after = saved(run)
  assert np.any([x for p, x in after.items() if p.endswith("lora_b")][0])
  assert model_lib.load(run).kinds  # merged, it loads like any other


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(make_config, tmp_path, first):
  config = lora(
    make_config, first, optim__lora_dropout_rate=0.2,
    model__dropout_rate=0.1, checkpoint__every_steps=4,
  )  # fmt: skip
  whole, parts = run_checks.train_whole_and_in_parts(config, tmp_path)
  one, other = saved(whole), saved(parts)
  assert one.keys() == other.keys()
  for path, array in one.items():
    np.testing.assert_array_equal(array, other[path], err_msg=path)


@pytest.mark.slow
def test_members_with_adapters_are_those_trained_alone(
  make_config, tmp_path, first
):
  config = lora(make_config, first, data__one_row_len=True)
  wanted = [
    members.Member(str(tmp_path / f"m{seed}"), seed, rate)
    for seed, rate in ((0, 1e-2), (1, 3e-3))
  ]
  train.train_together(config, wanted)
  for member in wanted:
    own = config.copy_and_resolve_references()
    own.seed, own.optim.learning_rate = member.seed, member.learning_rate
    alone = str(tmp_path / f"alone{member.seed}")
    train.train(own, alone)
    one, other = saved(member.workdir), saved(alone)
    for path, array in one.items():
      np.testing.assert_allclose(
        array, other[path], rtol=1e-3, atol=1e-3, err_msg=path
      )


def with_values(values):
  config = base.get_config()
  config.objective = "task"
  config.update_from_flattened_dict(values)
  return config


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"optim.lora_alpha": 8.0}, "lora_alpha=8.0.*lora_rank=0"),
    ({"optim.lora_targets": ("all",)}, "lora_targets.*lora_rank=0"),
    ({"optim.lora_rank": 8}, "lora_rank=8.*init_from=None"),
    (
      {"optim.lora_rank": 8, "init_from": "/x", "init_random": True},
      "lora_rank=8.*init_random=True",
    ),
    (
      {"optim.lora_rank": 8, "init_from": "/x", "reinit_layers": 1},
      "reinit_layers=1.*lora_rank=8",
    ),
    (
      {"optim.lora_rank": 8, "init_from": "/x", "init_moments": True},
      "init_moments=True.*lora_rank=8",
    ),
    (
      {"optim.lora_rank": 8, "init_from": "/x", "optim.lora_targets": ("q",)},
      "lora_targets='q'",
    ),
    (
      {"optim.lora_rank": 8, "init_from": "/x", "objective": "mlm"},
      "lora_rank=8.*objective=mlm",
    ),
    ({"optim.lora_rank": -1}, "lora_rank=-1"),
  ],
)
def test_keys_of_adapters_that_do_not_fit_are_refused(values, says):
  with pytest.raises(ValueError, match=says):
    checks.check_settings(with_values(values))


def test_lists_of_a_resumed_run_are_no_change():
  flat = {"optim.lora_targets": ["query", "value"], "init_from": "/x"}
  config = with_values(flat)
  checks.check_settings(config)
  assert settings.KEYS["optim.lora_rank"].before == 0
