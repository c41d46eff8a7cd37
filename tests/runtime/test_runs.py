"""Tests of runs.py: run.json, metrics.jsonl, and refusing another run."""

import json
import math
import os
import struct
import subprocess

import jax
import pytest

from bert_jax.runtime import files
from bert_jax.runtime import metrics_log
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from configs import base
from tests.support import full_disk


@pytest.fixture
def run(tiny_config):
  return runs.describe(tiny_config("data"), "0" * 64, jax.devices())


def test_a_run_says_what_made_it(run, tiny_config):
  assert set(run) == {
    "config",
    "commit",
    "dirty",
    "argv",
    "versions",
    "devices",
    "data_hash",
    "seed",
    "started",
  }
  assert json.loads(json.dumps(run)) == run
  assert settings.flatten(run["config"])["optim.learning_rate"] == 1e-2
  assert run["devices"]["count"] == 8
  assert len(run["commit"] or "0" * 40) == 40


def test_new_code_makes_a_tree_differ_and_a_new_record_does_not(
  tmp_path, monkeypatch
):
  def git(*args):
    subprocess.run(
      ("git", "-c", "user.name=a", "-c", "user.email=a@b", *args),
      cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip

  module = tmp_path / "bert_jax" / "runs.py"
  module.parent.mkdir()
  module.write_text("1\n")
  (tmp_path / ".gitignore").write_text("/runs/\n")
  git("init")
  git("add", ".")
  git("commit", "-m", "first")
  monkeypatch.setattr(runs, "__file__", str(module))
  assert runs.commit()[1] is False
  for name in ("runs/scratch.py", "experiments/minilm/runs/cola.json"):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("{}\n")
  assert runs.commit()[1] is False
  config = tmp_path / "experiments" / "mine.py"
  config.write_text("1\n")
  assert runs.commit()[1] is True
  config.unlink()
  module.write_text("2\n")
  assert runs.commit()[1] is True
  git("commit", "-am", "second")
  assert runs.commit()[1] is False


def test_a_run_is_read_as_it_was_written(run, tmp_path):
  runs.write_run(str(tmp_path), run)
  assert runs.read_run(str(tmp_path)) == run
  assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_run_with_a_number_that_is_not_finite_is_json_and_can_be_read(
  run, tmp_path
):
  runs.write_run(str(tmp_path), run | {"odd": [math.nan, math.inf]})
  text = (tmp_path / "run.json").read_text()
  json.loads(text, parse_constant=pytest.fail)
  assert runs.read_run(str(tmp_path)) == run | {"odd": [None, None]}


def test_a_run_that_goes_on_keeps_when_it_started(run, tmp_path):
  runs.write_run(str(tmp_path), run | {"started": "then"})
  runs.write_run(str(tmp_path), run)
  again = runs.read_run(str(tmp_path))
  assert again["started"] == "then"
  assert again["resumed"] > run["started"]


def test_a_run_that_goes_on_keeps_what_every_session_ran_with(run, tmp_path):
  for commit in ("first", "second", "third"):
    runs.write_run(str(tmp_path), run | {"commit": commit})
  again = runs.read_run(str(tmp_path))
  assert again["commit"] == "third"
  assert [s["commit"] for s in again["sessions"]] == ["first", "second"]


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("mesh.tensor", 2),
    ("mesh.spread_optimizer", False),
    ("data.num_threads", 5),
    ("checkpoint.keep", 9),
    ("eval.every_steps", 3),
    ("prepare.num_workers", 2),
    ("predict.top_k", 2),
    ("train.log_every_steps", 7),
  ],
)
def test_what_does_not_change_the_numbers_may_change(
  key, value, run, tmp_path, tiny_config
):
  runs.write_run(str(tmp_path), run)
  config = tiny_config("data")
  config.update_from_flattened_dict({key: value})
  new = runs.describe(config, "0" * 64, jax.devices())
  assert new["config"] != run["config"]
  resume.check_workdir(str(tmp_path), new)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("seed", 3, "seed: 0 there, 3 asked"),
    ("model.num_layers", 2, "model.num_layers: 1 there, 2 asked"),
    ("optim.num_micro_batches", 2, "num_micro_batches: 1 there, 2 asked"),
    ("train.total_steps", 9, "train.total_steps: 8 there, 9 asked"),
    ("data.batch_size", 8, "data.batch_size: 16 there, 8 asked"),
  ],
)
def test_what_changes_the_numbers_must_not(
  key, value, message, run, tmp_path, tiny_config
):
  runs.write_run(str(tmp_path), run)
  config = tiny_config("data")
  config.update_from_flattened_dict({key: value})
  new = runs.describe(config, "0" * 64, jax.devices())
  with pytest.raises(runs.RunError, match=message) as error:
    resume.check_workdir(str(tmp_path), new)
  assert str(error.value).count(" there, ") == 1  # only what differs
  assert "Give another --workdir" in str(error.value)


def test_a_run_from_before_packing_goes_on_unpacked_and_not_otherwise(
  run, tmp_path, tiny_config
):
  old = run | {"config": {k: v for k, v in run["config"].items()}}
  old["config"]["data"] = dict(old["config"]["data"])
  del old["config"]["data"]["max_sequences"]
  runs.write_run(str(tmp_path), old)
  resume.check_workdir(str(tmp_path), run)
  # Evaluation takes its config from there.
  data = runs.read_run(str(tmp_path))["config"]["data"]
  assert data["max_sequences"] == 1
  config = tiny_config("data")
  config.data.max_sequences = 4
  packed = runs.describe(config, "0" * 64, jax.devices())
  with pytest.raises(runs.RunError, match="max_sequences: 1 there, 4 asked"):
    resume.check_workdir(str(tmp_path), packed)


def test_keys_that_older_runs_lack_are_filled_in(run, tmp_path):
  later = [k for k in settings.KEYS.values() if k.before is not None]
  assert {"task.thresholds", "model.family"} <= {k.name for k in later}
  old = run | {"config": json.loads(json.dumps(run["config"]))}
  for key in later:
    group, _, name = key.name.rpartition(".")
    del (old["config"][group] if group else old["config"])[name]
  runs.write_run(str(tmp_path), old)
  found = settings.flatten(runs.read_run(str(tmp_path))["config"])
  assert {k.name: found[k.name] for k in later} == {
    k.name: k.before for k in later
  }


@pytest.mark.parametrize(
  ("family", "objective", "has"),
  [("deberta-v2", "task", True), ("deberta-v2", "mlm", False),
   ("bert", "task", False)],
)  # fmt: skip
def test_older_heads_of_deberta_keep_their_dropout(
  run, tmp_path, family, objective, has
):
  def places(**changes):
    config = json.loads(json.dumps(run["config"])) | {"objective": objective}
    config["model"] |= {"family": family} | changes
    if not changes:
      del config["model"]["conv_size"]
    runs.write_run(str(tmp_path), run | {"config": config})
    model = runs.read_run(str(tmp_path))["config"]["model"]
    (tmp_path / "run.json").unlink()
    return model["dropout_places"]

  assert ("head_input" in places()) == has
  assert "head_input" not in places(conv_size=0)


def test_other_data_is_another_run(run, tmp_path):
  runs.write_run(str(tmp_path), run)
  with pytest.raises(runs.RunError, match="data: 0{12} there, f{12} now"):
    resume.check_workdir(str(tmp_path), run | {"data_hash": "f" * 64})


def test_a_new_workdir_fits_any_run(run, tmp_path):
  resume.check_workdir(str(tmp_path / "none"), run)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"config": 1}', "\0"])
def test_a_damaged_run_is_said_to_be_damaged(text, tmp_path, run):
  (tmp_path / "run.json").write_text(text)
  with pytest.raises(runs.RunError, match="run.json is damaged"):
    runs.read_run(str(tmp_path))
  with pytest.raises(runs.RunError, match="run.json is damaged"):
    resume.check_workdir(str(tmp_path), run)
  assert (tmp_path / "run.json").read_text() == text


def test_a_record_that_is_not_what_was_written_is_refused(tmp_path, run):
  runs.write_run(str(tmp_path), run)
  path = tmp_path / "run.json"
  content = json.loads(path.read_text())
  content["config"]["optim"]["learning_rate"] = "fast"
  path.write_text(json.dumps(content))
  with pytest.raises(runs.RunError, match="run.json is damaged: its checksum"):
    runs.read_run(str(tmp_path))
  del content["sha256"]  # by somebody who means it, or an older release
  path.write_text(json.dumps(content))
  assert runs.read_run(str(tmp_path)) == content


def test_no_run_says_how_to_make_one(tmp_path):
  with pytest.raises(runs.RunError, match="no run.json.*bert-jax train"):
    runs.read_run(str(tmp_path))


def _log(tmp_path, start, steps, tensorboard=False):
  log = metrics_log.MetricsLog(str(tmp_path), start, tensorboard)
  for step in steps:
    log.write(step, {"train/loss": 1 / step})
  log.close()


def test_lines_after_the_step_to_go_on_from_are_dropped(tmp_path):
  _log(tmp_path, 0, [1, 2, 3, 4])
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 5, "train/lo')  # a kill in the middle of a line
  _log(tmp_path, 2, [3, 4, 5])
  rows = metrics_log.read_metrics(str(tmp_path))
  assert rows == [{"step": s, "train/loss": 1 / s} for s in range(1, 6)]


def test_lines_that_are_broken_are_dropped_and_the_last_gets_an_end(tmp_path):
  good = [b'{"step": 1}', b'{"step": 2, "train/loss": 0.5}']
  bad = [
    b"",
    b'{"step": 1',
    b"\xff",
    b"[" * 5000,
    b'{"a": 1}',
    b'{"step": "1"}',
  ]
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b"\n".join([good[0], *bad, good[1]]))
  _log(tmp_path, 2, [3])
  assert path.read_bytes().splitlines()[:2] == good
  assert [row["step"] for row in metrics_log.read_metrics(str(tmp_path))] == [
    1,
    2,
    3,
  ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
  log = metrics_log.MetricsLog(str(tmp_path), 0, False)
  log.write(1, {"train/loss": 2.0})
  assert metrics_log.read_metrics(str(tmp_path)) == [
    {"step": 1, "train/loss": 2.0}
  ]
  log.close()


def test_metrics_that_are_not_finite_are_null_in_the_file(tmp_path):
  """So that other programs can read it; read back, they are NaN."""
  log = metrics_log.MetricsLog(str(tmp_path), 0, False)
  log.write(1, {"eval/a": math.nan, "eval/b": math.inf, "eval/c": 0.5})
  log.write_bad_step(2, {"loss": math.inf, "examples": [1, math.nan]})
  log.close()
  assert (tmp_path / "metrics.jsonl").read_text() == (
    '{"step": 1, "eval/a": null, "eval/b": null, "eval/c": 0.5}\n'
  )
  assert (tmp_path / "bad_steps.jsonl").read_text() == (
    '{"step": 2, "loss": null, "examples": [1, null]}\n'
  )
  (row,) = metrics_log.read_metrics(str(tmp_path))
  assert math.isnan(row["eval/a"]) and math.isnan(row["eval/b"])
  assert row["eval/c"] == 0.5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_told_with_the_name_of_the_log(tmp_path, tensorboard):
  log = metrics_log.MetricsLog(str(tmp_path), 0, tensorboard)
  writer = log._board if tensorboard else log
  writer._file.close()
  writer._file = files.Appended("/dev/full")
  for act in (lambda: log.write(1, {"train/loss": 2.0}), log.close):
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
      act()


def test_a_full_disk_leaves_the_record_as_it_was(run, tmp_path):
  runs.write_run(str(tmp_path), run)
  full = pytest.raises(OSError, match=r"File too large: '.*/run.json'")
  with full_disk.no_room(), full:
    runs.write_run(str(tmp_path), run)
  assert runs.read_run(str(tmp_path)) == run


def test_tensorboard_gets_what_runs_differ_in(tmp_path):
  from tensorboardX.proto import event_pb2
  from tensorboardX.proto import plugin_hparams_pb2

  changed = base.get_config()
  changed.optim.learning_rate, changed.objective = 2e-4, "mlm"
  changed.checkpoint.keep = 7
  config = settings.plain(changed)
  log = metrics_log.MetricsLog(str(tmp_path), 0, True, config, ["eval/loss"])
  log.write(1, {"eval/loss": 2.0})
  log.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  data, found = path.read_bytes(), {}
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]
    for value in event.summary.value:
      plugin = value.metadata.plugin_data
      if plugin.plugin_name == "hparams":
        found[value.tag] = plugin_hparams_pb2.HParamsPluginData.FromString(
          plugin.content
        )
  start = found["_hparams_/session_start_info"].session_start_info.hparams
  assert start["optim.learning_rate"].number_value == 2e-4
  assert start["objective"].string_value == "mlm"
  assert len(start) == 2  # neither defaults, nor keys of the session
  shown = found["_hparams_/experiment"].experiment.metric_infos
  assert [info.name.tag for info in shown] == ["eval/loss"]


def test_metrics_that_are_not_there_or_damaged_are_an_error(tmp_path):
  with pytest.raises(runs.RunError, match="cannot be read"):
    metrics_log.read_metrics(str(tmp_path))
  (tmp_path / "metrics.jsonl").write_text("{\n")
  with pytest.raises(runs.RunError, match="cannot be read"):
    metrics_log.read_metrics(str(tmp_path))


@pytest.mark.parametrize("name", ["checkpoints", "best"])
def test_checkpoints_of_nobody_knows_which_run_are_not_gone_on_from(
  run, tmp_path, name
):
  (tmp_path / name / "10").mkdir(parents=True)
  with pytest.raises(runs.RunError, match="no run.json"):
    resume.check_workdir(str(tmp_path), run)


def test_who_goes_on_with_other_code_is_told_what_differs(tmp_path):
  run = {"commit": "a" * 40, "versions": {"jax": "1.0", "numpy": "2.0"}}
  assert resume.other_code(str(tmp_path), run) == ""  # nothing begun
  record = run | {"config": {}, "data_hash": "0"}
  runs.write_run(str(tmp_path), record)
  assert resume.other_code(str(tmp_path), run) == ""
  other = {"commit": "b" * 40, "versions": {"jax": "1.1", "numpy": "2.0"}}
  assert resume.other_code(str(tmp_path), other) == (
    "commit aaaaaaaaaaaa there, bbbbbbbbbbbb here, jax 1.0 there, 1.1 here"
  )


def _with_paths(config, **values):
  for name, value in values.items():
    group, _, key = name.rpartition("__")
    target = config
    for part in filter(None, group.split("__")):
      target = target[part]
    target[key] = value
  return config


def test_paths_in_the_workdir_are_stored_relative_to_it(
  tmp_path, monkeypatch, tiny_config
):
  """So that a workdir can be moved, and a run be started from anywhere."""
  monkeypatch.chdir(tmp_path)
  config = _with_paths(
    tiny_config("run/data"), init_from="weights/a", task__dir="tfds:~/sets",
    task__files__train="run/tables/train.tsv", task__vocab="",
  )  # fmt: skip
  (tmp_path / "run").mkdir()
  runs.write_run("run", runs.describe(config, "0" * 64, jax.devices()))
  stored = json.loads((tmp_path / "run/run.json").read_text())["config"]
  assert stored["data"]["dir"] == "{workdir}/data"
  assert stored["task"]["files"]["train"] == "{workdir}/tables/train.tsv"
  assert stored["init_from"] == str(tmp_path / "weights/a")
  assert stored["task"]["dir"] == "tfds:" + os.path.expanduser("~/sets")
  assert stored["task"]["vocab"] == "" and stored["predict"]["model"] is None
  (tmp_path / "run").rename(tmp_path / "moved")
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  found = runs.read_run(os.path.join("..", "moved"))["config"]
  assert found["data"]["dir"] == str(tmp_path / "moved/data")
  assert found["init_from"] == str(tmp_path / "weights/a")
  # Writing it again changes nothing, and the same weights are the same run.
  runs.write_run("../moved", runs.read_run("../moved"))
  assert runs.read_run("../moved")["config"] == found
  config.init_from = "../weights/a"
  asked = runs.describe(config, "0" * 64, jax.devices())
  resume.check_workdir("../moved", asked)
  config.init_from = "weights/a"
  asked = runs.describe(config, "0" * 64, jax.devices())
  with pytest.raises(runs.RunError, match="init_from: .*weights/a"):
    resume.check_workdir("../moved", asked)


def test_paths_of_an_older_record_stay_as_they_were_given(
  run, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  runs.write_run(str(tmp_path), run)
  path = tmp_path / "run.json"
  old = json.loads(path.read_text())
  del old["sha256"]
  old["config"] |= {"init_from": "runs/minilm"}
  path.write_text(json.dumps(old))
  assert runs.read_run(str(tmp_path))["config"]["init_from"] == "runs/minilm"
  asked = run | {"config": run["config"] | {"init_from": "runs/minilm"}}
  resume.check_workdir(str(tmp_path), asked)
  absolute = str(tmp_path / "runs/minilm")
  asked["config"] = run["config"] | {"init_from": absolute}
  resume.check_workdir(str(tmp_path), asked)


def test_keys_that_are_newer_than_a_run_are_added_in_and_beside_groups(
  run, tmp_path
):
  newer = [key for key in settings.KEYS.values() if key.before is not None]
  assert {bool(key.name.count(".")) for key in newer} == {False, True}
  old = json.loads(json.dumps(run))
  for key in newer:
    *groups, name = key.name.split(".")
    values = old["config"]
    for group in groups:
      values = values[group]
    values.pop(name, None)
  runs.write_run(str(tmp_path), old)
  found = settings.flatten(runs.read_run(str(tmp_path))["config"])
  assert {key.name: found[key.name] for key in newer} == {
    key.name: key.before for key in newer
  }
