"""Tests of sweep.py: names of trials, and how far each is."""

import importlib.util
import os
import pathlib

import pytest

from bert_jax.data import summary
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep
from configs import base
from tests.support import sweep_trials
from tests.support.sweep_trials import seeds
from tests.support.sweep_trials import trials_of_tasks

ROOT = sweep_trials.ROOT
launcher = sweep_trials.launcher


def test_trials_are_named_by_what_differs(tmp_path):
  config = sweep.make(
    sweep.trial(
      f"configs/finetune.py:task={task},from=runs/base",
      {"optim.learning_rate": rate, "task.dir": "a/b"},
    )
    for task in ("mrpc", "rte")
    for rate in (5e-5, 3e-5)
  )
  trials = sweep.read_trials(config, str(tmp_path))
  assert [t.name for t in trials] == [
    "task=mrpc,learning_rate=5e-05",
    "task=mrpc,learning_rate=3e-05",
    "task=rte,learning_rate=5e-05",
    "task=rte,learning_rate=3e-05",
  ]
  assert trials[0].workdir == str(tmp_path / trials[0].name)
  loaded = trials[3].load_config()
  assert loaded.task.name == "rte" and loaded.init_from == "runs/base"
  assert loaded.optim.learning_rate == 3e-5 and loaded.task.dir == "a/b"


@pytest.mark.parametrize(
  ("trials", "message"),
  [
    ([], "with at least one trial"),
    ([("configs/base.py", {})] * 2, "trials 0 and 1 are the same"),
    ([("configs/base.py", {"optim.rate": 1})], "trial trial: .*rate"),
    ([("configs/none.py", {})], "trial trial: .*none.py"),
    ([("configs/base.py", {"seed": "x"})], "trial seed=x: "),
    ([("configs/finetune.py:tusk=1", {})], "tusk=1' is not known"),
  ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_runs(
  tmp_path, trials, message
):
  config = sweep.make(sweep.trial(*t) for t in trials)
  with pytest.raises(sweep.SweepError, match=message):
    sweep.read_trials(config, str(tmp_path))


def test_different_trials_have_different_names(tmp_path):
  trials = [
    ("configs/finetune.py:from=runs/nsp/best", {"task.dir": "a/b"}),
    ("configs/finetune.py:from=runs/no/best", {"task.dir": "a/b"}),
    ("configs/finetune.py:from=runs/no/best", {"task.dir": "a-b"}),
    ("configs/finetune.py:from=runs/no/best", {"task.dir": "x" * 300}),
    ("configs/finetune.py:from=runs/no/best", {"task.dir": "x" * 300 + "y"}),
  ]
  config = sweep.make(sweep.trial(*t) for t in trials)
  names = [t.name for t in sweep.read_trials(config, str(tmp_path))]
  assert len(set(names)) == 5
  assert all("/" not in n and len(n) <= 120 for n in names)
  assert names[0].startswith("from=runs-nsp-best,")


def test_more_seeds_leave_the_names_of_the_others(tmp_path):
  (one,), more = (
    seeds(0, workdir=tmp_path),
    seeds(0, 1, workdir=tmp_path),
  )
  assert one.name == more[0].name == "seed=0"


def test_the_ablations_can_be_read(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.syspath_prepend(ROOT)
  names = {}
  for name in ("pretrain", "sweep"):
    path = f"experiments/ablations/{name}.py"
    config = sweep.Trial("x", path, {}, "").load_config()
    names[name] = [t.name for t in sweep.read_trials(config, str(tmp_path))]
  assert names["pretrain"] == ["nsp", "no-nsp", "masks-100"]
  assert len(names["sweep"]) == 4 * 4 * 2 * 3


@pytest.mark.parametrize("name", ["glue", "squad", "swag", "ner"])
def test_the_grids_of_the_paper_can_be_read(name, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  path = ROOT / "experiments" / name / "sweep.py"
  spec = importlib.util.spec_from_file_location("sweep_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  trials = sweep.read_trials(module.get_config("seeds=2"), str(tmp_path))
  wanted = {"glue": 9 * 4 * 2, "squad": 2 * 2, "swag": 2, "ner": 2 * 3 * 3 * 2}
  assert len(trials) == wanted[name]
  assert all("/" not in t.name for t in trials)


def test_a_trial_may_have_a_name_of_its_own(tmp_path):
  def trials(*names):
    return sweep.make(
      sweep.trial("configs/base.py", {"seed": i}, name)
      for i, name in enumerate(names)
    )

  found = sweep.read_trials(trials("no-nsp", ""), str(tmp_path))
  assert [t.name for t in found] == ["no-nsp", "seed=1"]
  assert found[0].workdir == str(tmp_path / "no-nsp")
  with pytest.raises(sweep.SweepError, match="two trials have the same name"):
    sweep.read_trials(trials("a", "a"), str(tmp_path))
  for name in ("../a", "a b", ".a"):
    with pytest.raises(
      sweep.SweepError, match="cannot be the name of a folder"
    ):
      trials(name)


def test_a_member_is_its_workdir_seed_and_rate(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  one = trials_of_tasks(tmp_path)[3]
  assert one.member() == (
    f"--member={one.workdir}:seed=0,optim.learning_rate=3e-05"
  )


def test_a_workdir_of_another_run_is_refused(tmp_path, launcher):
  (one,) = trials = seeds(1, workdir=tmp_path)
  os.makedirs(one.workdir)
  config = base.get_config()
  config.seed, config.data.seq_len = 1, 64
  run = {"config": settings.plain(config), "data_hash": "0", "total_steps": 7}
  runs.write_run(one.workdir, run)
  with pytest.raises(sweep.SweepError, match="another run .*seq_len: 64 there"):
    running.run(trials, str(tmp_path), launcher=launcher)
  assert not (tmp_path / "calls").exists()


def test_a_log_that_broke_off_holds_nothing_up(tmp_path, launcher):
  trials = seeds(1, 2, workdir=tmp_path)
  running.run(trials, str(tmp_path), launcher=launcher)
  log = pathlib.Path(trials[0].workdir, "metrics.jsonl")
  log.write_text('{"step": 7, "eval/lo')
  assert [t.state() for t in trials] == ["begun", "done"]


@pytest.mark.parametrize(("is_there", "has_text", "state"), [
  (True, False, "done"), (True, True, "begun"), (False, False, "begun")
])  # fmt: skip
def test_without_held_out_text_a_trial_is_done_at_its_last_step(
  tmp_path, launcher, monkeypatch, is_there, has_text, state
):
  trials = seeds(1, workdir=tmp_path)
  running.run(trials, str(tmp_path), launcher=launcher)
  (one,) = trials
  log = pathlib.Path(one.workdir, "metrics.jsonl")
  log.write_text('{"step": 7, "train/loss": 1.0}\n')
  assert one.state() == "begun"
  evaluates = sweep._evaluates
  config = {"objective": "mlm", "data": {"dir": str(tmp_path / "data")}}
  if is_there:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").touch()
  monkeypatch.setattr(summary, "has_held_out", lambda folder: has_text)
  monkeypatch.setattr(sweep, "_evaluates", lambda _: evaluates(config))
  assert one.state() == state


def test_what_was_trained_on_other_data_is_another_run(tmp_path, launcher):
  (one,) = seeds(1, workdir=tmp_path)
  running.run([one], str(tmp_path), launcher=launcher)
  config = sweep.make(
    [sweep.trial("configs/base.py", {"seed": 1, "data.dir": "elsewhere"})]
  )
  (other,) = sweep.read_trials(config, str(tmp_path))
  assert other.workdir == one.workdir
  with pytest.raises(sweep.SweepError, match="data.dir: None there, 'elsewher"):
    other.state()
