"""Tests of main.py: what a command does, says and returns."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

from absl import flags
import pytest

from bert_jax import command_line
from bert_jax import main
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.training import run as run_lib
from bert_jax.training import train
from tests.support import launching
from tests.support.launching import DEMO
from tests.support.launching import ROOT
from tests.support.launching import message

launch = launching.launch


@pytest.mark.parametrize(
  ("args", "said"),
  [
    ((), "name a mode: configs, convert, demo, doctor, eval"),
    (("--mode=plan", DEMO), "plan needs --topology, such as v5e:4x4"),
    (("--mode=plan", DEMO, "--search=size"), "search"),
    (("--mode=fly",), "fly"),
    (("trian",), "Did you mean train? The modes are configs, convert, demo"),
    (("workdir=W",), "'workdir=W'. The modes are configs, convert, demo"),
    (("train", "now"), "'now' is not expected here: options start with --"),
    (("train", DEMO, "--search=batch"), "--search is a flag of plan, not of"),
    (("report", DEMO), "--config is a flag of prepare, train, evaluate, pred"),
    (("train", "--config=pretrian", "--workdir=W"), "Did you mean pretrain?"),
    (("train", "--config=pretrain:size=minni"), "(did you mean mini?)"),
    (("train", "--config=pretrain:sise=mini"), "(did you mean size?)"),
    (("train", DEMO, "--config.lr=1"), "Did you mean optim.learning_rate (fl"),
    (("train", "--config.optim.lr=1", DEMO), "mean optim.learning_rate (fl"),
    (("prepare", "--config.seed=1"), "--config.seed changes a config, and no"),
    (("configs", "--copy=finetun", "a.py"), "Did you mean finetune?"),
    (("configs", "--copy=finetune", "a"), "the copy must end in .py"),
    (("configs", "--copy=finetune"), "name the config and the file to write"),
    (("configs", "finetune"), "name the config and the file to write"),
    (
      ("report", "--input=x", "--file=y"),
      "command line flag '--file=y'",
    ),
    (
      ("train", "--workdir=W", "--allow_changes=a", "--replay_step=3"),
      "one run",
    ),
    (("train", DEMO, "--workdir=W", "--output=x"), "--output of train is for"),
    (("train", "--mode=plan"), "train and --mode=plan are two modes"),
    (("plan", DEMO), "plan needs --topology, such as v5e:4x4"),
    ((DEMO, "plan"), "plan needs --topology, such as v5e:4x4"),
    (("--mode=train", "--speed=9"), "speed"),
    (("--mode=train", "--workdir=W"), "W holds no run to go on with"),
    (("--mode=train", DEMO), "this mode needs --workdir=DIR"),
    (("--mode=prepare",), "this mode needs --config"),
    (("--mode=evaluate",), "this mode needs --workdir=DIR"),
    (("--mode=predict",), "this mode needs --workdir=DIR"),
    (
      ("--mode=predict", DEMO, "--workdir=W", "--input=a,b"),
      "reads one file",
    ),
    (("--mode=evaluate", "--workdir=W"), "W holds no run"),
    (
      ("--mode=train", DEMO, "--config.optim.learnrate=1"),
      "--config.optim.learnrate=1: there is no such key. Did you mean "
      "optim.learning_rate (float, ",
    ),
    (
      ("--mode=train", DEMO, "--config.nothing=1"),
      "--config.nothing=1: there is no such key. All keys are in docs/",
    ),
    (("--mode=train", DEMO, "--config.train.total_steps=1e3"), "1e3"),
    (("--mode=train", "--workdir=W", "--config=none.py"), "none.py"),
    (("--mode=train", f"{DEMO}:size=tiny"), "size=tiny"),
  ],
)
def test_a_command_that_cannot_be_meant_says_why(
  args, said, launch, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert launch(*args) == 2
  assert said in message(capsys)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", main.MODES)
def test_a_mode_is_named_by_a_word_before_or_after_flags_or_by_a_flag(mode):
  for words in (
    [mode, "--workdir=W"],
    ["--workdir=W", mode],
    ["--workdir", "W", mode],
    [f"--mode={mode}", "--workdir=W"],
    [f"--mode={mode}", mode, "--workdir=W"],
  ):
    values = flags.FlagValues()
    main.define_flags(values)
    main.parse(values, ["bert-jax", *words])
    assert (values.mode, values.workdir) == (mode, "W")


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (
      ["--config.data.batch_size=100"],
      "batch_size=100 is not divisible by 8 devices (mesh data=8); use"
      " 96 or 104",
    ),
    (["--config.data.dir=nowhere"], "bert-jax prepare"),
    (
      ["--config.data.seq_len=128", "--config.model.vocab_size=4096"],
      "longer than model.max_len=64",
    ),
    (["--config.mesh.tensor=3"], "tensor=3 does not fit the 8 devices"),
  ],
)
def test_training_that_cannot_be_says_why_and_writes_nothing(
  changes, said, launch, capsys, tmp_path
):
  status = launch("--mode=train", DEMO, f"--workdir={tmp_path}/run", *changes)
  assert status == 2
  assert said in message(capsys)
  assert not list(tmp_path.iterdir())


def test_a_workdir_of_another_config_says_what_differs(
  launch, capsys, finished_run, prepared
):
  path = pathlib.Path(finished_run.workdir, "run.json")
  before = path.read_bytes()
  c = finished_run.config
  same = [
    f"--config.{group}.{key}={value}"
    for group in ("model", "data", "optim", "train", "eval")
    for key, value in c[group].items()
  ]
  status = launch(
    "--mode=train",
    f"--config={ROOT}/configs/base.py",
    f"--workdir={finished_run.workdir}",
    *same,
    "--config.seed=3",
  )
  assert status == 2
  assert "(seed: 0 there, 3 asked). Give another" in message(capsys)
  assert path.read_bytes() == before


def test_a_finished_run_started_again_returns_0(launch, capsys, finished_run):
  c = finished_run.config
  status = launch(
    "--mode=train",
    f"--config={ROOT}/configs/base.py",
    f"--workdir={finished_run.workdir}",
    *(
      f"--config.{group}.{key}={value}"
      for group in ("model", "data", "optim", "train")
      for key, value in c[group].items()
    ),
  )
  assert status == 0
  assert "is trained already: step 8" in capsys.readouterr().err


def test_a_finished_run_goes_on_with_a_change_that_is_named(
  launch, capsys, finished_run, tmp_path
):
  run = tmp_path / "run"
  shutil.copytree(finished_run.workdir, run)
  longer = ("train", f"--workdir={run}", "--config.train.total_steps=10")
  assert launch(*longer) == 2
  assert "train.total_steps: 8 there, 10 asked" in message(capsys)
  for name, said in (
    ("train.total_step", "Did you mean train.total_steps"),
    ("model.hidden_size", "a run keeps this key"),
  ):
    assert launch(*longer, f"--allow_changes={name}") == 2
    assert said in message(capsys)
  assert launch(*longer, "--allow_changes=train.total_steps") == 0
  record = json.loads((run / "run.json").read_text())
  assert record["changes"] == [
    {"step": 8, "config": {"train.total_steps": [8, 10]}}
  ]
  steps = [row["step"] for row in metrics_log.read_metrics(str(run))]
  assert steps[-1] == 10 and 8 in steps
  # The change is that of the run now, and others are still refused.
  assert launch("train", f"--workdir={run}") == 0
  capsys.readouterr()
  assert launch("train", f"--workdir={run}", "--config.seed=5") == 2
  assert "allow_changes" not in message(capsys)
  # A step before the change is computed with the values of its time.
  out = tmp_path / "replay.json"
  replays = ("train", f"--workdir={run}", "--replay_step=8")
  assert launch(*replays, f"--output={out}") == 0
  (logged,) = [
    row["train/learning_rate"]
    for row in metrics_log.read_metrics(str(run))
    if row["step"] == 8 and "train/learning_rate" in row
  ]
  found = json.loads(out.read_text())["metrics"]["learning_rate"]
  assert found == pytest.approx(logged, rel=1e-6)
  capsys.readouterr()
  assert launch("evaluate", *longer[1:2], "--config.data.batch_size=8") == 2
  assert "allow_changes" not in message(capsys)  # it is a flag of train


@pytest.mark.parametrize("mode", ["train", "doctor"])
def test_converted_weights_are_no_run_to_go_on_with(
  mode, launch, tmp_path, capsys
):
  (tmp_path / "run.json").write_text(
    json.dumps({"config": {"model": {}}, "data_hash": "", "converted_from": ""})
  )
  assert launch(mode, f"--workdir={tmp_path}") == 2
  assert "holds converted weights, not a run" in message(capsys)


def test_a_key_that_the_run_did_not_set_can_be_changed(finished_run):
  where = f"--workdir={finished_run.workdir}"
  values = launching.parse("predict", where, "--config.init_from=a")
  assert command_line.run_config(values).init_from == "a"
  values = launching.parse("predict", "--config.predict.top_k", "3", where)
  assert command_line.run_config(values).predict.top_k == 3


def test_a_run_evaluates_and_predicts_by_its_own_config(
  launch, finished_run, tmp_path
):
  """Without --config: what run.json holds is enough."""
  scores, lines = tmp_path / "scores.json", tmp_path / "lines.jsonl"
  where = f"--workdir={finished_run.workdir}"
  assert launch("--mode=evaluate", where, f"--output={scores}") == 0
  got = json.loads(scores.read_text())
  assert got.pop("step") == 8
  assert got == pytest.approx(finished_run.result)
  lines.write_text('{"text": "sun [MASK] sun"}\n')
  out = tmp_path / "out.jsonl"
  status = launch(
    "--mode=predict", where, f"--input={lines}", f"--output={out}"
  )
  assert status == 0
  (answer,) = map(json.loads, out.read_text().splitlines())
  assert len(answer["masks"][0]) == 5


def test_a_workdir_with_its_data_can_be_moved(
  launch, finished_run, tmp_path, monkeypatch, capsys
):
  """Then evaluated, asked, and gone on with, from another folder."""
  before, run = tmp_path / "before", tmp_path / "moved" / "run"
  shutil.copytree(finished_run.workdir, before)
  shutil.copytree(finished_run.config.data.dir, before / "data")
  record = runs.read_run(str(before))
  record["config"]["data"]["dir"] = str(before / "data")
  runs.write_run(str(before), record)
  run.parent.mkdir()
  before.rename(run)
  monkeypatch.chdir(run.parent)
  assert launch("evaluate", "--workdir=run", "--output=scores.json") == 0
  found = json.loads(pathlib.Path("scores.json").read_text())
  assert found["eval/loss"] == pytest.approx(finished_run.result["eval/loss"])
  assert launch("predict", "--workdir=run", "--text=sun [MASK] sun") == 0
  smaller = (
    "train", "--workdir=run", "--config.train.total_steps=9",
    "--config.data.batch_size=8",
  )  # fmt: skip
  assert launch(*smaller, "--allow_changes=train.total_steps") == 2
  assert "data.batch_size" in capsys.readouterr().err
  allowed = "--allow_changes=train.total_steps,data.batch_size"
  assert launch(*smaller, allowed) == 0
  record = runs.read_run("run")
  assert record["config"]["data"]["dir"] == str(run / "data")
  assert record["changes"][0]["config"]["data.batch_size"] == [16, 8]
  assert metrics_log.read_metrics("run")[-1]["step"] == 9


def test_predicting_needs_no_more_than_the_model(
  launch, finished_run, tmp_path, capsys
):
  lines = tmp_path / "lines.jsonl"
  lines.write_text('{"text": "sun [MASK] sun"}\n')
  capsys.readouterr()
  status = launch(
    "--mode=predict",
    f"--config={ROOT}/configs/predict.py:from={finished_run.workdir}",
    f"--input={lines}",
  )
  assert status == 0
  assert json.loads(capsys.readouterr().out)["masks"]


def test_divergence_returns_1(launch, capsys, monkeypatch):
  def diverge(*args):
    raise run_lib.DivergedError("train/loss is nan at step 7; stopped.")

  monkeypatch.setattr(train, "train", diverge)
  assert launch("--mode=train", DEMO, "--workdir=W") == 1
  assert message(capsys) == (
    "bert-jax: train/loss is nan at step 7; stopped.\n"
  )


def test_a_bug_is_not_dressed_as_a_usage_error(launch, monkeypatch):
  def bug(*args):
    raise RuntimeError("a bug")

  monkeypatch.setattr(train, "train", bug)
  with pytest.raises(RuntimeError, match="a bug"):
    launch("--mode=train", DEMO, "--workdir=W")


def test_flags_reach_the_config(launch, monkeypatch):
  seen = []
  monkeypatch.setattr(train, "train", lambda *args: seen.append(args))
  demo = DEMO.partition("=")[2]
  assert (
    launch(
      "--mode=train",
      "--config",  # the path may follow a space
      demo,
      "--workdir=W",
      "--config.optim.learning_rate=0.5",
      "--config.data.whole_word",
    )
    == 0
  )
  ((config, workdir, allowed, _),) = seen
  assert not allowed
  assert workdir == "W"
  assert config.optim.learning_rate == 0.5
  assert config.data.whole_word
  assert config.train.total_steps == 1700
  with pytest.raises(AttributeError, match="locked"):
    config.optim.learning_rat = 1


def _process(*args, cwd=ROOT):
  return subprocess.run(
    [sys.executable, "-m", "bert_jax.main", *args],
    capture_output=True,
    text=True,
    cwd=cwd,
  )


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_shows_every_mode(flag):
  done = _process(flag)
  assert done.returncode == 0
  for word in (*main.MODES, "--config", "--workdir", "--input", "--output"):
    assert word in done.stdout, word
  assert not done.stderr


def test_help_fits_a_screen_and_the_rest_has_every_flag():
  lines = _process("--help").stdout.splitlines()
  assert len(lines) <= 24 and max(map(len, lines)) <= 80
  assert sum(line.startswith("  bert-jax ") for line in lines) == 5
  everything = _process("--helpfull").stdout
  for name in command_line.shown_flags(main.MODES):
    assert name in everything, name


def test_colours_are_for_terminals_only(tmp_path):
  done = _process("--mode=train", "--config=configs/nothing.py")
  assert "\x1b" not in done.stdout + done.stderr
  assert done.returncode == 2


def test_the_process_exits_with_the_status(tmp_path):
  done = _process("--mode=train", DEMO, "--config.data.bath_size=3")
  assert done.returncode == 2
  assert "bath_size" in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["--mode={}", "{}"])
@pytest.mark.parametrize("mode", main.MODES)
def test_only_modes_that_compute_start_again_with_huge_pages(
  mode, form, monkeypatch
):
  class EndError(Exception):
    pass

  def end():
    raise EndError

  started = []
  monkeypatch.setattr(
    main.machine, "restart_with_huge_pages", lambda: started.append(mode)
  )
  monkeypatch.setattr(main.streams, "guard", end)
  monkeypatch.setattr(main.signals, "finish", lambda: None)
  monkeypatch.setattr(sys, "argv", ["bert-jax", form.format(mode)])
  with pytest.raises(EndError):
    main.run()
  computing = ("train", "evaluate", "predict", "doctor", "serve", "explore")
  computing += ("export",)
  assert started == [mode] * (mode in computing)


def test_convert_names_what_it_dropped(launch, finished_run, tmp_path, capsys):
  target = tmp_path / "hf"
  config = f"--config={ROOT}/configs/convert.py:to=huggingface"
  done = launch(
    "--mode=convert", config, f"--input={finished_run.workdir}",
    f"--output={target}",
  )  # fmt: skip
  said = capsys.readouterr().out
  assert not done, said
  assert (target / "model.safetensors").exists()
  assert "encoder, mlm, nsp" in said
  assert "dropped  nothing" in said
  assert launch("--mode=convert", config, "--input=nowhere") == 2
  assert "needs --input=DIR and --output=DIR" in capsys.readouterr().err


def test_what_an_interruption_leaves_is_what_an_earlier_start_has_saved(
  launch, monkeypatch, tmp_path
):
  """Before the first step; a training then goes on, so it has not failed."""
  left = []
  monkeypatch.setattr(main.signals, "leaves", lambda *args: left.append(args))

  def interrupted(*args):
    assert launch(*args) == 2  # there is no --config
    text, status = left.pop()
    return text.rpartition(" ")[2], status

  for name, steps in (("a", (2, 10, 30)), ("b", (2, 10)), ("c", (5,))):
    for step in steps:
      (tmp_path / name / "checkpoints" / str(step)).mkdir(parents=True)
  a, b, c, new = (f"{tmp_path}/{name}" for name in ("a", "b", "c", "new"))
  assert interrupted("--mode=train", f"--workdir={a}") == ("30", 75)
  both = [f"--member={a}:seed=1", f"--member={b}:seed=2"]
  assert interrupted("--mode=train", *both) == ("10", 75)
  assert interrupted("--mode=train", *both, f"--member={c}:seed=3")[1] == 130
  assert interrupted("--mode=train", f"--workdir={new}")[1] == 130
  assert interrupted("--mode=train")[1] == 130
  replays = ("--mode=train", f"--workdir={a}", "--replay_step=3")
  assert interrupted(*replays)[1] == 130
  assert interrupted("--mode=sweep", f"--workdir={a}") != ("saved", 130)


def test_signals_are_held_before_anything_else_is_imported():
  """An import takes time, in which a signal would end in a traceback."""
  source = pathlib.Path(main.__file__).read_text()
  before = source.partition("signals.hold()")[0]
  imported = re.findall(r"^(?:import|from) .*$", before, re.M)
  assert imported == [
    "import os", "import sys", "from bert_jax.runtime import signals"
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("value", "wanted"),
  [
    ("{a}: {b}", "('{a}: {b}',)"),
    ("[unused1]=x,[unused2]=y", "('[unused1]=x,[unused2]=y',)"),
    ("('a b',)", "('a b',)"),
    ("a,b", "a,b"),
  ],
)
def test_words_of_a_list_need_no_quotes(value, wanted):
  found = command_line._quote(f"--config.task.text={value}")
  assert found == f"--config.task.text={wanted}"
