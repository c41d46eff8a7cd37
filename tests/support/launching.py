"""Starts the launcher as a user does, and reads what it says."""

import contextlib
import logging
import pathlib
import sys

from absl import flags
import pytest

from bert_jax import main

with contextlib.suppress(ImportError):
  # Its import closes the stream of absl's log, which may be that of a test.
  import submitit  # noqa: F401

ROOT = pathlib.Path(__file__).parents[2]
DEMO = f"--config={ROOT}/configs/demo.py"


def parse(*args):
  """Returns the flag values of a command line, parsed as the launcher does."""
  flag_values = flags.FlagValues()
  main.define_flags(flag_values)
  flags.DEFINE_integer("verbosity", 0, "absl's", flag_values=flag_values)
  main.parse(flag_values, ["bert-jax", *map(str, args)])
  return flag_values


@pytest.fixture
def launch(monkeypatch):
  """A function (arguments) -> exit status, in this process."""
  log = logging.getLogger("bert_jax")
  before = (list(log.handlers), log.level, log.propagate)

  def run(*args):
    flag_values = flags.FlagValues()
    main.define_flags(flag_values)
    flags.DEFINE_integer("verbosity", 0, "absl's", flag_values=flag_values)
    argv = ["bert-jax", *map(str, args)]
    monkeypatch.setattr(main, "FLAGS", flag_values)
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads it
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
      return main.main(main._parse(argv))
    except SystemExit as stop:
      return stop.code

  yield run
  log.handlers[:], log.level, log.propagate = before


def message(capsys):
  """What was said on standard error: one line that says who speaks."""
  text = capsys.readouterr().err
  assert text.startswith("bert-jax: "), text
  assert text.count("\n") == 1, text
  return text
