"""Tests of doctor.py: it says no exactly where a training would not start."""

import os
import pathlib
import shutil
import socket

import jax
import pytest

from bert_jax import command_line
from bert_jax import main
from bert_jax.data import summary
from bert_jax.launching import plans
from bert_jax.planning import doctor
from bert_jax.runtime import locks
from bert_jax.sweeps import costs
from bert_jax.training import train
from tests.support import launching

launch = launching.launch


def lines(capsys):
  """What was printed: {check: (word, text)}, and the last line."""
  *rows, last = capsys.readouterr().out.strip().splitlines()
  found = {}
  for row in rows:
    word, rest = row[:4].strip(), row[5:]
    found[rest[:12].strip()] = (word, rest[13:])
  return found, last


def files(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in pathlib.Path(folder).rglob("*")
    if p.is_file()
  }


def test_a_new_run_and_one_to_go_on_with_are_sound(
  finished_run, tmp_path, capsys
):
  config = finished_run.config
  assert doctor.examine(config, str(tmp_path / "new" / "run"))
  found, last = lines(capsys)
  assert {word for word, _ in found.values()} == {"OK", "--"}
  assert last == "a training would start"
  assert "8 x cpu" in found["devices"][1]
  assert "data 8, fsdp 1, tensor 1; batches of 16" in found["mesh, batch"][1]
  assert "a new run of 8 steps" in found["run"][1]
  assert "no checkpoint yet" in found["checkpoint"][1]
  assert "a step needs 0." in found["memory"][1]
  assert not os.listdir(tmp_path)
  before = files(finished_run.workdir)
  assert doctor.examine(config, finished_run.workdir)
  found, _ = lines(capsys)
  assert "resumes the run of" in found["run"][1]
  assert found["checkpoint"] == ("OK", "step 8 of 8, sound")
  assert files(finished_run.workdir) == before


def test_each_remark_on_the_text_has_a_line(
  prepared, tiny_config, tmp_path, monkeypatch, capsys
):
  def stop(workdir):
    raise ValueError(f"{workdir} is not looked at, so nothing is compiled")

  monkeypatch.setattr(doctor, "_folder", stop)
  monkeypatch.setattr(summary, "remarks", lambda data, folder: ["odd [text]"])
  assert not doctor.examine(tiny_config(prepared), str(tmp_path / "run"))
  found, _ = lines(capsys)
  assert found["text"] == ("NOTE", "odd [text]")


@pytest.mark.parametrize(
  ("key", "value", "check", "message"),
  [
    ("train.spike_factor", 0.5, "config", "spike_factor=0.5"),
    ("mesh.data", 3, "mesh, batch", "does not fit the 8 devices"),
    ("data.batch_size", 20, "mesh, batch", "use 16 or 24"),
    ("eval.batch_size", 20, "mesh, batch", "use 16 or 24"),
    ("model.vocab_size", 16, "vocabulary", "model.vocab_size=21"),
    ("data.dir", "/nowhere", "data", "/nowhere"),
    ("data.dupe_factor", 5, "data", "bert-jax prepare"),
    ("init_from", "/nowhere", "run", "init_from: "),
    ("optim.name", "sgd", "run", "optim.name='sgd' is unknown"),
    ("checkpoint.best_metric", "eval/f1", "run", "'eval/f1' is not evaluated"),
    ("seed", 5, "run", "holds another run (seed: "),
  ],
)
def test_what_training_would_refuse_is_bad(
  finished_run, capsys, key, value, check, message
):
  config = finished_run.config.copy_and_resolve_references()
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  assert not doctor.examine(config, finished_run.workdir)
  found, last = lines(capsys)
  assert found[check][0] == "BAD"
  assert message in found[check][1]
  assert last == "a training would not start"
  with pytest.raises(ValueError):
    train.train(config, finished_run.workdir)


def test_a_damaged_checkpoint_is_named_and_left_where_it_is(
  finished_run, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(finished_run.workdir, workdir)
  for path in (workdir / "checkpoints" / "8").rglob("manifest.*"):
    path.write_bytes(b"")
  before = files(workdir)
  assert doctor.examine(finished_run.config, str(workdir))
  word, text = lines(capsys)[0]["checkpoint"]
  assert word == "OK"
  assert text.startswith("step 6, sound, but ") and "checkpoints/8" in text
  assert files(workdir) == before
  for path in (workdir / "checkpoints").rglob("manifest.*"):
    path.write_bytes(b"")
  assert not doctor.examine(finished_run.config, str(workdir))
  assert lines(capsys)[0]["checkpoint"][0] == "BAD"


def test_a_workdir_in_use_is_bad(finished_run, tmp_path, capsys):
  workdir = str(tmp_path / "run")
  shutil.copytree(finished_run.workdir, workdir)
  with locks.lock(workdir):
    assert not doctor.examine(finished_run.config, workdir)
  word, text = lines(capsys)[0]["workdir"]
  assert word == "BAD" and f"in use by process {os.getpid()}" in text


def test_a_flipped_byte_of_the_data_is_bad(
  tiny_config, prepared, tmp_path, capsys
):
  folder = shutil.copytree(prepared, tmp_path / "data")
  config = tiny_config(str(folder))
  assert doctor.examine(config, str(tmp_path / "run"))
  capsys.readouterr()
  path = next(folder.glob("tokens/train-*.array_record"))
  content = bytearray(path.read_bytes())
  content[100] ^= 1
  path.write_bytes(bytes(content))
  assert not doctor.examine(config, str(tmp_path / "run"))
  word, text = lines(capsys)[0]["data"]
  assert word == "BAD" and str(path) in text


def test_the_address_of_the_first_process_is_looked_at(
  finished_run, tmp_path, capsys
):
  def look(address, process_id):
    config, workdir = finished_run.config, str(tmp_path / "run")
    good = doctor.examine(config, workdir, address, process_id)
    return good, lines(capsys)[0]["coordinator"][1]

  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    address = f"127.0.0.1:{port}"
    good, text = look(address, 0)
    assert not good and "cannot be used here" in text
    assert look(address, 1) == (True, f"{address} answers")
  assert look(address, 0)[0]
  good, text = look(address, 1)
  assert good and f"no process listens on port {port} yet" in text
  for address in ("localhost", "localhost:port", "no.such.host.invalid:1234"):
    assert not look(address, 1)[0]


def test_the_launcher_says_by_its_status_whether_it_would_start(
  finished_run, capsys, launch
):
  workdir = f"--workdir={finished_run.workdir}"
  data = f"--config.data.dir={finished_run.config.data.dir}"
  assert launch("--mode=doctor", workdir) == 0
  config = "--config=configs/base.py"
  assert launch("--mode=doctor", config, data, workdir) == 1
  assert "BAD" in capsys.readouterr().out


def test_a_mesh_of_several_processes_is_checked_from_one(
  finished_run, tmp_path, capsys
):
  config = finished_run.config.copy_and_resolve_references()
  config.mesh.fsdp, workdir = 16, str(tmp_path / "run")
  assert not doctor.examine(config, workdir)
  capsys.readouterr()
  assert doctor.examine(config, workdir, "localhost:0123", 1, 2)
  found, _ = lines(capsys)
  assert "data 1, fsdp 16, tensor 1" in found["mesh, batch"][1]


def test_a_plan_is_asked_for_by_the_config_alone(monkeypatch):
  """Of its own command line the doctor passes on what a plan takes."""
  words = [
    "doctor", "--workdir=W", "--config", "tpu:devices=4", "--topology=v5e:2x2",
    "--config.seed=3", "--config.data.batch_size", "64",
  ]  # fmt: skip
  config = command_line.config_arguments(words)
  assert config == [
    "--config=tpu:devices=4", "--config.seed=3", "--config.data.batch_size=64"
  ]  # fmt: skip
  asked = []

  def run(command, **kwargs):
    asked.append(command)
    raise costs.sweep.SweepError("stopped here")

  monkeypatch.setattr(plans.subprocess, "run", run)
  with pytest.raises(costs.sweep.SweepError, match="stopped here"):
    costs.make_plan(config, "v5e:2x2")
  ((_, _, module, *rest),) = asked
  assert module == "bert_jax.main"
  values = launching.parse(*rest)
  mode = command_line.check_flags(values, rest, main.MODES)
  assert mode is main.MODES["plan"] and values.topology == "v5e:2x2"
  assert values.config.data.batch_size == 64


class _Card:
  """A stand-in for jax's device of an NVIDIA GPU."""

  platform = "gpu"

  def __init__(self, capability):
    self.compute_capability = capability

  def memory_stats(self):
    return {"bytes_limit": 60 * 2**30}


def test_the_memory_and_the_age_of_a_card_are_told():
  new, old = (doctor._card_text(_Card(x)) for x in ("9.0", "7.5"))
  assert "60.0 GiB" in new and "XLA_PYTHON_CLIENT_MEM_FRACTION" in new
  assert "model.dtype" in old and "model.dtype" not in new
  assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in doctor._more_of_a_card(_Card("9"))
  cpu = jax.devices("cpu")[0]
  assert doctor._card_text(cpu) == doctor._more_of_a_card(cpu) == ""
