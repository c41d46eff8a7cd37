"""Tests of completion.py: what bash completes."""

import pathlib
import shutil
import subprocess

from absl import flags
import pytest

from bert_jax import main
from bert_jax.runtime import completion
from tests.support import launching

ROOT = pathlib.Path(__file__).parents[2]
launch = launching.launch

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")


@pytest.fixture
def complete(launch, capsys):
  """A function (what was typed) -> words that bash offers."""
  config = ROOT / "configs" / "pretrain.py"
  assert launch("--completion=bash", f"--config={config}") == 0
  script = capsys.readouterr().out

  def run(typed, breaks=" \t\n=:"):
    program = (
      f'{script}\nCOMP_WORDBREAKS="$1" COMP_LINE="$2"\n'
      "COMP_POINT=${#COMP_LINE}\n_bert_jax\n"
      "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
      ["bash", "-c", program, "bash", breaks, typed],
      capture_output=True,
      text=True,
      cwd=ROOT,
      check=True,
    )
    return done.stdout.split()

  return run


def test_modes_are_completed(complete):
  assert sorted(complete("bert-jax --mode=")) == sorted(main.MODES)
  assert sorted(complete("bert-jax --mode=pr")) == ["predict", "prepare"]
  assert sorted(complete("bert-jax pr")) == ["predict", "prepare"]
  assert complete("bert-jax --mode=sweep --engine=sl") == ["slurm"]


def test_where_the_sign_is_part_of_a_word_so_it_is_of_the_answer(complete):
  assert complete("bert-jax --mode=pla", breaks=" ") == ["--mode=plan"]


def test_options_are_completed_and_not_those_of_libraries(complete):
  found = complete("bert-jax --")
  assert {"--mode=", "--config=", "--workdir=", "--config."} <= set(found)
  assert not any("log_dir" in word for word in found)
  assert complete("bert-jax --mode=train --work") == ["--workdir="]


def test_configs_are_completed(complete):
  found = complete("bert-jax --config=configs/pre")
  assert sorted(found) == ["configs/predict.py", "configs/pretrain.py"]
  assert {"pretrain", "glue"} <= set(complete("bert-jax --config="))
  assert "configs/" in complete("bert-jax --config=conf")


def test_keys_of_a_config_are_completed(complete):
  found = complete("bert-jax --config.optim.learn")
  assert found == ["--config.optim.learning_rate="]


def test_files_are_completed_elsewhere(complete):
  assert complete("bert-jax --input=setup.p") == ["setup.py"]


def test_zsh_reads_what_bash_reads():
  values = flags.FlagValues()
  main.define_flags(values)
  text = completion.script("zsh", {"mode": values["mode"]}, None)
  assert text.startswith("autoload") and "bashcompinit" in text
