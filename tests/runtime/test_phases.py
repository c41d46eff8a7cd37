"""Tests of phases.py: what a text of phases means."""

import pytest

from bert_jax.runtime import phases
from bert_jax.training import jobs
from configs import base
from configs import modernbert

TEXTS = (
  "main optim.warmup_rate=0.5",
  "longer data.seq_len=64 train.total_steps=7 model.rope_theta=160000.0",
  "decay data.seq_len=64 train.total_steps=3 optim.schedule=linear",
)


def make_config(*texts, **values):
  c = base.get_config()
  base.set_size(c, "base", "modernbert")
  c.data.batch_size = 4
  c.train.total_steps = 10
  c.train.phases = texts or TEXTS
  c.train.export = "huggingface"
  c.update_from_flattened_dict(values)
  return c


def test_each_phase_starts_from_the_last_step_of_the_one_before():
  main, longer, decay = phases.read(make_config(), "/w")
  assert [p.workdir for p in (main, longer, decay)] == [
    "/w/phases/main", "/w/phases/longer", "/w",
  ]  # fmt: skip
  assert main.config.init_from is None and not main.config.init_moments
  assert longer.config.init_from == "/w/phases/main/checkpoints/10"
  assert decay.config.init_from == "/w/phases/longer/checkpoints/7"
  assert longer.config.init_moments and decay.config.init_moments
  assert not decay.config.train.phases


def test_keys_are_of_one_phase_and_the_model_goes_on():
  main, longer, decay = phases.read(make_config(), "/w")
  assert main.config.optim.warmup_rate == 0.5 != decay.config.optim.warmup_rate
  assert [p.config.data.seq_len for p in (main, longer)] == [128, 64]
  assert longer.config.init_changes == ("model.rope_theta=160000.0",)
  assert decay.config.init_changes == ()
  thetas = [p.planned.model.rope_theta for p in (main, longer, decay)]
  assert thetas == [160_000.0] * 3
  assert longer.planned.init_from is None
  assert [p.config.train.export for p in (main, decay)] == ["", "huggingface"]


def test_phases_on_the_same_rows_take_the_ones_that_follow():
  main, longer, decay = phases.read(make_config(), "/w")
  assert [p.config.data.first_row for p in (main, longer, decay)] == [0, 0, 28]
  found = phases.read(
    make_config(
      "a data.batch_warmup_sizes=1,2 data.batch_warmup_steps=5",
      "b data.batch_size=8",
      "c data.dir=/other",
    ),
    "/w",
  )
  # 2 steps of 1 row, 3 of 2 and 5 of 4; then 10 of 8.
  assert [p.config.data.first_row for p in found] == [0, 28, 0]


def test_weights_to_start_from_are_those_of_the_first_phase():
  config = make_config("a model.full_every=2", "b", init_from="/model")
  first, second = phases.read(config, "/w")
  assert first.config.init_from == "/model" == second.planned.init_from
  assert first.config.init_changes == ("model.full_every=2",)
  assert second.planned.init_changes == ("model.full_every=2",)
  assert second.config.init_changes == ()


def test_later_phases_take_the_model_as_it_is():
  config = make_config(
    "a model.full_every=2", "b model.rope_theta=9.0",
    init_from="/model", init_random=True, init_layers=3,
    init_changes=("model.max_len=64",),
  )  # fmt: skip
  config.reinit_layers = 2
  first, second = phases.read(config, "/w")
  kept = ("model.max_len=64", "model.full_every=2")
  one, two = first.config, second.config
  assert (one.init_random, one.init_layers, one.reinit_layers) == (True, 3, 2)
  assert one.init_changes == kept
  assert (two.init_random, two.init_layers, two.reinit_layers) == (False, 0, 0)
  assert two.init_changes == ("model.rope_theta=9.0",)
  # A plan has the first weights, so it needs all of it.
  assert second.planned.init_random and second.planned.init_layers == 3
  assert second.planned.init_changes == (*kept, "model.rope_theta=9.0")


def test_only_the_last_phase_may_stop_early():
  texts = ("a", "b train.patience=2")
  assert phases.read(make_config(*texts), "/w")[1].config.train.patience == 2
  with pytest.raises(phases.PhaseError, match="'b'.*train.patience=2.*=0"):
    phases.read(make_config(*texts, "c"), "/w")


def test_a_config_without_phases_is_one_phase():
  config = base.get_config()
  (found,) = phases.read(config, "/w")
  assert found.config is config and found.workdir == "/w"


@pytest.mark.parametrize(
  ("texts", "words"),
  [
    (("a", "a"), ("'a', 'a'",)),
    (("data.seq_len=64",), ("no name",)),
    (("a data.seq_lenn=64",), ("data.seq_lenn", "data.seq_len")),
    (("a data.seq_len=many",), ("many", "int")),
    (("a data.mask_rate=2",), ("mask_rate", "1.0 or less")),
    (("a objective=mlm",), ("objective", "all phases")),
    (("a mesh.data=2",), ("mesh.data", "all phases")),
    (("a", "b reinit_layers=1"), ("reinit_layers", "all phases")),
    (("a train.num_epochs=2",), ("num_epochs",)),
  ],
)
def test_a_text_that_is_wrong_is_refused(texts, words):
  with pytest.raises(phases.PhaseError) as error:
    phases.read(make_config(*texts), "/w")
  assert all(word in str(error.value) for word in words)


def test_phases_are_for_pre_training():
  with pytest.raises(phases.PhaseError, match="objective=task"):
    phases.read(make_config(objective="task"), "/w")


def test_the_recipe_of_modernbert_has_its_shares_of_tokens():
  main, longer, decay = (
    p.planned for p in phases.read(modernbert.get_config(), "/w")
  )

  def tokens(config):
    rows = config.train.total_steps * config.data.batch_size
    return rows * config.data.seq_len / 1e9

  assert tokens(main) == pytest.approx(1717, abs=2)
  assert tokens(longer) == pytest.approx(250, abs=1)
  assert tokens(decay) == pytest.approx(50, abs=1)
  assert (main.model.rope_theta, longer.model.rope_theta) == (1e4, 160_000.0)
  assert main.data.mask_rate == 0.3 and main.eval.mask_rate == 0.15


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ("model.num_layers=3", ("num_layers", "rope_theta")),
    ("model.max_len=64", ("64", "12 rows", "convert.max_len=64")),
  ],
)
def test_a_change_that_needs_other_parameters_is_refused(change, words):
  config = base.get_config()
  config.model.max_len = 12
  config.init_from, config.init_changes = "/model", (change,)
  with pytest.raises(ValueError) as error:
    jobs._change_model(config)
  assert all(word in str(error.value) for word in words)
