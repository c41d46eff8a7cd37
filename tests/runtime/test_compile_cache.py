"""Tests of compile_cache.py: what is kept, where, and what it is good for."""

import os
import pathlib
import subprocess
import sys

import filelock
import jax
import pytest

from bert_jax.runtime import compile_cache
from tests.support import run_checks

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def changed(monkeypatch):
  """What is set of jax's settings, without setting it."""
  settings = {}
  monkeypatch.setattr(jax.config, "update", settings.__setitem__)
  return settings


def test_a_folder_given_is_made_for_the_user_alone(tmp_path, changed):
  asked = tmp_path / "programs"
  folder = compile_cache.enable(str(asked), on_cpu=True)
  assert folder == str(asked / compile_cache.cpu_name())
  assert os.stat(folder).st_mode & 0o777 == 0o700
  assert changed["jax_compilation_cache_dir"] == folder
  assert 0 < changed["jax_compilation_cache_max_size"] <= 2 << 30


def test_a_folder_that_jax_knows_already_stays(changed):
  known = jax.config.jax_compilation_cache_dir
  assert known == os.environ["JAX_COMPILATION_CACHE_DIR"]  # of the tests
  assert compile_cache.enable("auto", on_cpu=True) == known
  assert not changed


def test_off_keeps_nothing(changed):
  assert compile_cache.enable("off", on_cpu=True) is None
  assert changed == {"jax_enable_compilation_cache": False}
  for asked in ("", "s3://bucket/programs"):
    with pytest.raises(ValueError, match="give a folder.* auto or off"):
      compile_cache.enable(asked, on_cpu=True)


def test_without_a_place_to_write_the_program_runs_on(
  tmp_path, changed, caplog
):
  (tmp_path / "file").write_text("")
  assert compile_cache.enable(str(tmp_path / "file"), on_cpu=True) is None
  assert "not kept" in caplog.text
  assert not changed


def test_the_default_is_in_the_cache_of_the_user(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(compile_cache, "rejects_own_programs", lambda: False)
  folder = compile_cache.choose_folder("auto", on_cpu=True)
  assert folder.parents[1] == tmp_path / "bert_jax"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path))
  folder = compile_cache.choose_folder("auto", on_cpu=True)
  assert folder.parents[2] == tmp_path / ".cache"


def test_where_the_cpu_rejects_its_own_programs_none_are_kept(
  tmp_path, monkeypatch
):
  report = tmp_path / "gather_data_sampling"
  for text, rejects in (("Mitigation: Microcode\n", True),
                        ("Not affected\n", False)):  # fmt: skip
    report.write_text(text)
    assert compile_cache.rejects_own_programs(str(report)) == rejects
  assert not compile_cache.rejects_own_programs(str(tmp_path / "none"))
  monkeypatch.setattr(compile_cache, "rejects_own_programs", lambda: True)
  assert compile_cache.choose_folder("auto", on_cpu=True) is None
  assert compile_cache.choose_folder("auto", on_cpu=False) is not None
  assert compile_cache.choose_folder(str(tmp_path), on_cpu=True) is not None


def test_cpus_share_a_name_only_with_the_same_instructions(tmp_path):
  names = []
  for features in ("sse avx fma", "fma avx sse", "sse avx fma avx512f"):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {features}\n\nmodel: x\n")
    names.append(compile_cache.cpu_name(str(path)))
  assert names[0] == names[1] != names[2]
  assert compile_cache.cpu_name() == compile_cache.cpu_name()


def test_a_program_whose_writing_was_killed_is_dropped(tmp_path, changed):
  for name, size in (("whole", 8), ("half", None), ("empty", 0)):
    (tmp_path / f"{name}-cache").write_bytes(b"program")
    if size is not None:
      (tmp_path / f"{name}-atime").write_bytes(bytes(size))
  compile_cache.drop_unfinished(tmp_path)
  left = {path.name for path in tmp_path.iterdir()} - {".lockfile"}
  assert left == {"whole-cache", "whole-atime"}


def test_a_folder_in_use_is_left_alone(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(compile_cache, "_LOCK_SECS", 0.01)
  (tmp_path / "half-cache").write_bytes(b"program")
  with filelock.FileLock(tmp_path / ".lockfile"):
    compile_cache.drop_unfinished(tmp_path)
  assert (tmp_path / "half-cache").exists()
  assert "locked" in caplog.text


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_computes_the_same(
  prepared, tmp_path
):
  keys = {
    "data.dir": prepared,
    "model.vocab_size": 32,
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.mlp_dim": 64,
    "model.max_len": 16,
    "data.seq_len": 16,
    "data.batch_size": 16,
    "data.dupe_factor": 4,
    "train.total_steps": 8,
    "train.log_every_steps": 1,
    "eval.batch_size": 16,
  }
  environ = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  del environ["XLA_FLAGS"]  # which switch LLVM's optimisations off
  said = {}
  for name, cache in (("none", "off"), ("first", "C"), ("second", "C")):
    done = subprocess.run(
      [sys.executable, "-m", "bert_jax.main", "--mode=train", "--verbosity=1",
       "--config=configs/base.py", f"--workdir={tmp_path / name}",
       f"--compile_cache={cache if cache == 'off' else tmp_path / cache}",
       *(f"--config.{k}={v}" for k, v in keys.items())],
      cwd=ROOT, capture_output=True, text=True, check=True, env=environ,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    said[name] = [line for line in lines if line.startswith("programs: ")]
  assert not said["none"]
  (first,), (second,) = said["first"], said["second"]
  # The first start reads, too, where it needs a program a second time.
  read, compiled = (int(first.split()[i]) for i in (1, 3))
  assert compiled > 10
  assert second.startswith(f"programs: {read + compiled} read, 0 compiled")
  for name in ("first", "second"):
    run_checks.assert_same_state(
      str(tmp_path / "none"), str(tmp_path / name), 8
    )
    assert run_checks.rows(tmp_path / name) == run_checks.rows(
      tmp_path / "none"
    )
