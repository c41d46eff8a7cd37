"""Tests of settings.py: one row a key, and what is read from the rows."""

import math
import os
import pathlib
import subprocess
import sys

import pytest

from bert_jax.runtime import settings
from configs import base
from experiments import config_page
from tests.support import launching

launch = launching.launch
DEMO = launching.DEMO
KEYS = settings.KEYS
NUMBERS = [key.name for key in KEYS.values() if key.type in (int, float)]


def test_every_key_has_a_meaning_in_whole_sentences():
  for key in KEYS.values():
    assert key.meaning.endswith("."), key.name


def test_a_default_is_a_value_that_its_key_may_have():
  for key in KEYS.values():
    if key.default is not None:
      assert not key.problem(key.default)
      assert key.type is type(key.default), key.name


def test_a_key_of_a_later_version_says_what_runs_did_before():
  for key in KEYS.values():
    assert key.since == settings.FIRST_VERSION or key.before is not None, (
      key.name
    )


def test_the_page_of_keys_is_up_to_date():
  assert config_page.PATH.read_text() == config_page.page(), (
    "run python -m experiments.config_page"
  )


def test_every_number_has_a_range_of_its_type():
  for name in NUMBERS:
    key = KEYS[name]
    assert type(key.least) is type(key.most) is key.type, name


def test_choices_are_checked_and_have_the_default():
  for key in KEYS.values():
    if key.choices:
      assert key.default in key.choices, key.name
      assert key.choices[0] in key.problem("no such choice")


@pytest.mark.parametrize(
  ("name", "value", "wanted"),
  [
    ("data.pack", 1, "True or False"),
    ("optim.name", 1, "text"),
    ("task.text", "premise", "a list"),
    ("task.thresholds", 0.5, "a list"),
    ("task.thresholds", (0.5, "0.5"), "a number"),
    ("task.thresholds", [True], "a number"),
    ("task.thresholds", (math.nan,), "a finite number"),
    ("task.thresholds", (0.5, 1.5), "1.0 or less"),
    ("task.thresholds", (-0.1,), "0.0 or more"),
  ],
)
def test_a_value_of_another_type_is_refused(name, value, wanted):
  assert wanted in KEYS[name].problem(value)


def test_lists_of_words_and_of_numbers_are_values():
  assert not KEYS["task.thresholds"].problem([0, 0.5, 1])
  assert not KEYS["task.labels"].problem((0, "1"))


def test_a_key_with_a_typing_error_is_refused_with_the_one_that_was_meant():
  config = base.get_config()
  settings.check_names(config)
  with config.unlocked():
    config.data.seqlen = 64
  with pytest.raises(ValueError, match=r"data\.seqlen.*data\.seq_len"):
    settings.check_names(config)
  # Of two keys of that name, the one of the same group.
  assert "prepare.vocab_size" in settings.unknown("prepare.vocabsize")
  assert "model.vocab_size" in settings.unknown("model.vocabsize")


def test_every_config_is_within_its_ranges():
  for size in base.SIZES:
    config = base.get_config()
    base.set_size(config, size)
    settings.check(config)
    settings.check(config.to_dict())
  settings.check({})


@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_a_number_out_of_range_is_refused_by_name(key):
  least, most = KEYS[key].least, KEYS[key].most
  assert not KEYS[key].problem(least)
  assert not KEYS[key].problem(most)
  wrong = [10**30, -(10**30), "1", True, None]
  if isinstance(most, float):
    wrong += [math.nan, math.inf, -math.inf]
  else:
    wrong += [1.5, math.nan, math.inf]
  for value in wrong:
    assert KEYS[key].problem(value).startswith(f"{key}=")


def test_parameters_by_hand():
  config = base.get_config()
  # BERT-base: 30,522 + 512 + 2 rows of 768, and 12 layers.
  assert settings.num_parameters(config.model) == 31036 * 768 + 12 * 7077888


@pytest.mark.parametrize(
  ("mode", "args"),
  [
    ("train", ["--workdir={}/run"]),
    ("doctor", ["--workdir={}/run"]),
    ("plan", ["--topology=v5e:2x2", "--output={}/out"]),
    ("prepare", ["--input=text", "--output={}/out"]),
  ],
)
@pytest.mark.parametrize(
  "change",
  [
    "model.hidden_size=1000000000",
    "model.num_layers=1000000",
    "data.batch_size=1000000000",
    "seed=99999999999999999999",
    "train.total_steps=9223372036854775808",
    "optim.learning_rate=nan",
    "checkpoint.max_lost_secs=inf",
  ],
)
def test_absurd_settings_are_refused_by_every_mode(
  mode, args, change, launch, capsys, tmp_path
):
  given = [arg.format(tmp_path) for arg in args]
  status = launch(f"--mode={mode}", DEMO, f"--config.{change}", *given)
  assert status == 2
  assert change.partition("=")[0] in launching.message(capsys)
  assert not list(tmp_path.iterdir())


def test_a_number_out_of_range_is_refused_before_jax_is_loaded(tmp_path):
  """Jax takes seconds to load; the refusal does not wait for it."""
  program = (
    "import sys\n"
    "from bert_jax import main\n"
    "try:\n"
    "  main.run()\n"
    "except SystemExit as end:\n"
    "  print(end.code, 'jax' in sys.modules)\n"
  )
  done = subprocess.run(
    [
      sys.executable, "-c", program, "--mode=train", DEMO,
      "--config.optim.learning_rate=nan", f"--workdir={tmp_path}/run",
      "--compile_cache=off",
    ],
    cwd=launching.ROOT,
    # Otherwise the program starts itself anew, without the lines above.
    env=dict(os.environ) | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.stdout.split() == ["2", "False"], done.stderr
  assert "optim.learning_rate=nan" in done.stderr


def test_a_model_that_no_machine_holds_is_refused(launch, capsys, tmp_path):
  """Each size is within its range, but not all of them together."""
  sizes = ("hidden_size=262144", "num_layers=10000", "num_heads=64")
  changes = [f"--config.model.{size}" for size in sizes]
  status = launch("--mode=train", DEMO, *changes, f"--workdir={tmp_path}/run")
  assert status == 2
  assert "model.num_layers=10000" in launching.message(capsys)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "changes",
  [
    ("model.num_layers=1000", "model.hidden_size=16384"),
    ("data.batch_size=4194304", "model.hidden_size=1024"),
  ],
)
def test_what_these_devices_cannot_hold_is_refused(
  changes, launch, capsys, tmp_path
):
  status = launch(
    "--mode=train", DEMO, *(f"--config.{change}" for change in changes),
    "--config.model.num_heads=64", f"--workdir={tmp_path}/run",
  )  # fmt: skip
  assert status == 2
  assert "GB" in launching.message(capsys)
  assert not pathlib.Path(tmp_path, "run").exists()


def test_a_trial_out_of_range_is_refused_before_any_trial_runs(
  launch, capsys, tmp_path
):
  path = tmp_path / "sweep.py"
  path.write_text(
    "from bert_jax.sweeps import sweep\n"
    "def get_config():\n"
    "  return sweep.make(\n"
    f"    sweep.trial({DEMO.partition('=')[2]!r}, {{'seed': seed}})\n"
    "    for seed in (0, 2**70))\n"
  )
  status = launch(
    "--mode=sweep", f"--config={path}", f"--workdir={tmp_path}/runs"
  )
  assert status == 2
  assert f"seed={2**70}" in launching.message(capsys)
  assert not (tmp_path / "runs").exists()
