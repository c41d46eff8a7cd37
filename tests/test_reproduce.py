"""Tests of experiments/reproduce: commands that can be typed, a new page."""

import collections
import json
from pathlib import Path
import re
import shlex

import pytest

from bert_jax import main
from bert_jax.sweeps import sweep
from experiments.feature_ner import run
from experiments.reproduce import page

ROOT = Path(page.__file__).parents[2]
ROWS = page.rows()
COMMANDS = sorted({text for row in ROWS for text in row.commands})


def _settings(arguments):
  """The --config of some arguments, and what changes it."""
  named = dict(a.removeprefix("--").split("=", 1) for a in arguments)
  path = named.pop("config")
  prefix = "config."
  changes = {
    k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)
  }
  return path, changes, {k for k in named if not k.startswith(prefix)}


@pytest.mark.parametrize("work", page.missing({}), ids=lambda work: work.key)
def test_what_is_planned_is_a_config(work, monkeypatch):
  monkeypatch.chdir(ROOT)
  path, changes, others = _settings(work.arguments)
  config = sweep.Trial("planned", path, changes, "nowhere").load_config()
  assert config.model.dtype == "bfloat16"
  assert not others


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_typed(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  program, *arguments = shlex.split(command)
  if program == "python":
    module, *others = arguments[1:]
    if module.startswith("bert_jax."):
      assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
      return
    if module == "experiments.reproduce.figure5":
      assert all("=" in x for x in others)
      return
    assert (arguments[0], module) == ("-m", "experiments.feature_ner.run")
    args = run.parse_args(others)
    assert (args.task, args.context, args.seq_len) == (
      "conll2003", "document", 512
    )  # fmt: skip
    return
  assert program == "bert-jax"
  path, changes, flags = _settings(arguments)
  assert flags <= {"mode", "workdir", "output", "input"}
  named = dict(a.removeprefix("--").split("=", 1) for a in arguments)
  assert named["mode"] in main.MODES
  config = sweep.Trial("typed", path, changes, "nowhere").load_config()
  if "mode=sweep" in command:
    assert len(config.trials) >= 5
    trials = sweep.read_trials(config, "runs/x")
    config = trials[0].load_config()
  assert config.data.batch_size in (16, 32, 48, 256)


def _starts(command):
  """Folders of runs/ that a command reads."""
  found = re.findall(
    r"(?:[:,]from|--from|init_from|data\.dir)=(runs/[\w.-]+)", command
  )
  if "triviaqa TRIVIAQA" in command:
    return found
  if "ensemble " in command:
    found += re.findall(r" (runs/[\w.-]+)/seed=", command)
  if "figure5" in command:
    found += re.findall(r"[=,](runs/[\w.-]+)", command.partition("=")[2])
  assert found or "mode=prepare" in command, command
  return found


def test_what_a_command_starts_from_an_earlier_one_makes():
  made, lengths = set(), set()
  for row in ROWS:
    for command in row.commands:
      assert set(_starts(command)) <= made, command
      outputs = re.findall(r"--(?:workdir|output)=(\S+)", command)
      length = re.findall(r"data\.seq_len=(\d+)", command)
      if "mode=prepare" in command:
        assert "--input=" in command or outputs[0] in made
        lengths.add((outputs[0], *length))
      if "mode=train" in command and "task=" not in command:
        data = re.findall(r"data\.dir=(\S+)", command)
        assert (*data, *length) in lengths
      made.update(outputs)


@pytest.mark.slow
def test_what_is_planned_is_what_is_trained(monkeypatch):
  """The steps of each program; the shape of tasks comes with the weights."""
  monkeypatch.chdir(ROOT)
  for row in ROWS:
    if "no plan" in row.status:
      assert not row.work
      continue
    planned, trained = collections.Counter(), collections.Counter()
    for work in row.work:
      path, changes, _ = _settings(work.arguments)
      config = sweep.Trial("x", path, changes, "nowhere").load_config()
      planned[_program(config)] += work.steps
    for command in row.commands:
      if "mode=sweep" not in command and "mode=train" not in command:
        continue
      path, changes, _ = _settings(shlex.split(command)[1:])
      config = sweep.Trial("x", path, changes, "nowhere").load_config()
      trials = sweep.read_trials(config, "x") if "trials" in config else ()
      configs = [one.load_config() for one in trials] or [config]
      for config in configs:
        trained[_program(config)] += _steps(config)
    assert planned == trained, row


def _steps(config):
  if not config.task.name:
    return config.train.total_steps
  examples = page.EXAMPLES[config.task.name]
  return int(examples / config.data.batch_size * config.train.num_epochs)


def _program(config):
  kind = config.task.name and next(
    kind for kind, names in page.KINDS.items() if config.task.name in names
  )
  data, model = config.data, config.model
  shape = (model.num_layers, model.hidden_size, model.num_heads)
  return (
    page.PLANNED_AS.get(kind, ""), model.dtype, model.attention,
    data.seq_len, data.batch_size, *(() if kind else shape),
  )  # fmt: skip


def test_a_status_names_what_the_linked_page_has():
  linked = 0
  for row in ROWS:
    for name in re.findall(r"\]\(([^)]+)\)", row.status):
      text = (page.HERE / name).read_text()
      for task in re.findall(r"(?:encoder|novels): ([\w, ]+) \(", row.status):
        for one in task.split(", "):
          assert f"| {one} |" in text
          linked += 1
  assert linked > 10


def test_the_sizes_are_those_of_the_paper(monkeypatch):
  monkeypatch.chdir(ROOT)
  for name, size in page.SHAPES.items():
    layers, width = name.split(",")[0].split(" x ")
    heads = 3 if "3 heads" in name else int(width) // 64
    for work in (*page.pretraining(size), *page.finetuning(["mrpc"], 1, size)):
      path, changes, _ = _settings(work.arguments)
      model = sweep.Trial("x", path, changes, "nowhere").load_config().model
      assert (model.num_layers, model.hidden_size) == (int(layers), int(width))
      assert model.mlp_dim == 4 * model.hidden_size
      assert model.num_heads == heads


def test_recipes_are_those_of_the_config(monkeypatch):
  monkeypatch.chdir(ROOT)
  for kind, recipe in page.RECIPES.items():
    for task in page.KINDS[kind]:
      path = f"configs/finetune.py:task={task}"
      config = sweep.Trial("x", path, {}, "nowhere").load_config()
      found = config.data.batch_size, config.train.num_epochs
      assert found == recipe, task


def test_a_workdir_is_of_one_run(monkeypatch):
  monkeypatch.chdir(ROOT)
  known = {}
  for command in COMMANDS:
    program, *arguments = shlex.split(command)
    if program != "bert-jax":
      continue
    named = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    if named["mode"] == "prepare":
      continue
    workdir = named.pop("workdir")
    assert known.setdefault(workdir, named) == named, workdir


def test_the_grid_of_ner_is_that_of_its_sweep(monkeypatch):
  monkeypatch.chdir(ROOT)
  path = "experiments/ner/sweep.py:from=x,seeds=1"
  config = sweep.Trial("x", path, {}, "nowhere").load_config()
  trials = sweep.read_trials(config, "runs/x")
  found = [
    (c.data.batch_size, c.train.num_epochs)
    for c in (one.load_config() for one in trials)
  ]
  assert sorted(found) == sorted(page.NER_GRID)


def test_hours_are_steps_times_their_plan():
  work = (
    page.Work("v5e:4x4", ("a",), 3600),
    page.Work("v5e:2x2", ("b",), 7200),
  )
  plans = {
    "v5e:4x4 a": {"predicted_step_secs": 0.5, "num_devices": 16},
    "v5e:2x2 b": {"predicted_step_secs": 0.25, "num_devices": 4},
  }
  assert page.cost(work, plans) == (1.0, 10.0)
  assert page.cost(work, {"v5e:4x4 a": plans["v5e:4x4 a"]}) is None


def test_hours_by_the_older_ruler_are_marked_and_planned_again():
  older = {"predicted_step_secs": 0.5, "num_devices": 16}
  works = [page.Work("v5e:4x4", (name,), 3600) for name in "abc"]
  rows = [page.Row("T", x.key, "", (), (x,)) for x in works]
  plans = {
    works[0].key: older, works[1].key: older | {"assumed_mfu": 0.4}
  }  # fmt: skip
  assert page.missing(plans, rows) == [works[0], works[2]]
  old, new, none = page.table_lines(rows, plans)[2:]
  assert "| 0.5* | 8.0* |" in old and "| 0.5 | 8.0 |" in new
  assert "*" not in none
  assert "older" in page.ruler_lines(rows, plans)[0]
  assert page.ruler_lines(rows[1:], plans) == []


def test_the_page_is_that_of_the_plans_there_are():
  path = page.HERE / "plans.json"
  plans = json.loads(path.read_text()) if path.exists() else {}
  assert (page.HERE / "README.md").read_text() == page.page(plans)
