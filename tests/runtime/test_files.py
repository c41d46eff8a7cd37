"""Tests of files.py, and of all that is written and read by its rules."""

from concurrent import futures
import errno
import fcntl
import json
import os
import pathlib
import stat
import subprocess
import sys
import threading

import pytest

from bert_jax import main
from bert_jax import weights
from bert_jax.planning import plan
from bert_jax.runtime import buckets
from bert_jax.runtime import files
from bert_jax.runtime import locks
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.sweeps import sweep
from configs import base
from tests.support import breadth
from tests.support import launching
from tests.support import small_models
from tests.support import sweep_folders

ROOT = pathlib.Path(__file__).parents[2]
RANDOM = "0123456789abcdef"
launch = launching.launch


@pytest.fixture
def pipe(tmp_path):
  """A FIFO, and a function that returns what was written into it."""
  path = tmp_path / "pipe"
  os.mkfifo(path)
  found = []
  reader = threading.Thread(
    target=lambda: found.append(path.read_bytes()), daemon=True
  )
  reader.start()

  def read():
    reader.join(60)
    assert stat.S_ISFIFO(path.lstat().st_mode)
    return found[0]

  yield path, read
  if reader.is_alive():  # nobody wrote
    os.close(os.open(path, os.O_WRONLY))
    reader.join(60)


# --- what the target is -------------------------------------------------------


@pytest.mark.parametrize("before", [None, "old"])
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path, before):
  (tmp_path / "there").mkdir()
  target = tmp_path / "there" / "target"
  if before:
    target.write_text(before)
  (tmp_path / "there" / "second").symlink_to("target")
  (tmp_path / "link").symlink_to("there/second")
  files.write_text(str(tmp_path / "link"), "new")
  assert target.read_text() == "new" and not target.is_symlink()
  assert os.readlink(tmp_path / "link") == "there/second"
  assert sorted(os.listdir(tmp_path / "there")) == ["second", "target"]


def test_links_in_a_circle_are_told_with_the_name(tmp_path):
  (tmp_path / "a").symlink_to("b")
  (tmp_path / "b").symlink_to("a")
  with pytest.raises(OSError, match="a'") as info:
    files.write_text(str(tmp_path / "a"), "new")
  assert info.value.errno == errno.ELOOP


def test_a_fifo_is_written_directly(pipe):
  path, read = pipe
  with files.writing(str(path), "w") as f:
    f.write("one\n")
    f.flush()
    f.write("two\n")
  assert read() == b"one\ntwo\n"


def test_a_device_stays_a_device(tmp_path):
  (tmp_path / "link").symlink_to("/dev/null")
  before = os.stat("/dev/null")
  files.write_text(str(tmp_path / "link"), "gone")
  after = os.stat("/dev/null")
  assert stat.S_ISCHR(after.st_mode) and after.st_ino == before.st_ino
  assert os.readlink(tmp_path / "link") == "/dev/null"


@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_a_descriptor_is_written_where_it_stands(tmp_path, form):
  """Also one of a regular file, as /dev/stdout of `command > FILE` is."""
  with open(tmp_path / "file", "wb") as f:
    path = form.format(f.fileno())
    if form == "link":
      (tmp_path / "link").symlink_to(f"/dev/fd/{f.fileno()}")
      path = str(tmp_path / "link")
    f.write(b"before\n")
    f.flush()
    files.write_text(path, "given\n")
    f.write(b"after\n")
  assert (tmp_path / "file").read_bytes() == b"before\ngiven\nafter\n"


def test_process_substitution_gets_what_is_written():
  reader, writer = os.pipe()
  files.write_text(f"/dev/fd/{writer}", "given")
  os.close(writer)
  with open(reader, "rb") as f:
    assert f.read() == b"given"


@pytest.mark.parametrize("path", ["", "folder", "folder/", "no/folder/x"])
def test_what_is_no_file_is_refused_with_its_name(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "folder").mkdir()
  for write in (files.check_writable, lambda p: files.write_text(p, "x")):
    with pytest.raises(files.FilesError) as info:
      write(path)
    assert path in str(info.value)
  assert os.listdir(tmp_path) == ["folder"]
  assert os.listdir(tmp_path / "folder") == []


def test_a_writer_of_paths_refuses_what_it_would_replace(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (str(tmp_path / "pipe"), "/dev/null"):
    with pytest.raises(files.FilesError, match=path):
      with files.replacing(path):
        pass
  assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


NAMES = [
  b"a[a]*?", b"-x", b"new\nline", b"\xff\xfe", b" ", b"'\"\\$", b"x" * 255,
  b"\xe6\x97\xa5" * 85, b".tmp", b"{}%s",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_name_that_a_file_system_has_works(tmp_path, name):
  folder = tmp_path / os.fsdecode(name)
  folder.mkdir()
  path = folder / os.fsdecode(name)
  for text in ("one", "two"):
    files.write_text(str(path), text)
    assert path.read_text() == text
  assert [os.fsencode(p) for p in os.listdir(folder)] == [name]
  with pytest.raises(ZeroDivisionError), files.writing(str(path)):
    raise ZeroDivisionError  # as a kill, but for what cleans up
  with files.writing(str(path)):
    left = [p for p in os.listdir(folder) if os.fsencode(p) != name]
    assert len(left) == 1 and files.is_temporary(left[0])
    abandoned = left[0][: -len(f"{RANDOM}.tmp")] + f"{RANDOM}.tmp"
    (folder / abandoned).write_text("of a killed writer")
  files.write_text(str(path), "three")
  assert [os.fsencode(p) for p in os.listdir(folder)] == [name]
  with files.whole_folder(str(folder / "whole")) as whole:
    pathlib.Path(whole, os.fsdecode(name)).write_text("x")
  assert os.listdir(os.fsencode(folder / "whole")) == [name]


# --- temporary names ----------------------------------------------------------


def test_a_link_laid_where_a_name_could_be_guessed_is_not_followed(
  tmp_path, tiny_config
):
  victim = tmp_path / "victim"
  victim.write_text("precious")
  workdir = tmp_path / "run"
  workdir.mkdir()
  names = ("run.json", "metrics.jsonl", "evaluation.json")
  for name in names:
    for suffix in (".tmp", f".{os.getpid()}.tmp", ".1.tmp"):
      (workdir / f"{name}{suffix}").symlink_to(victim)
  run = {"config": {}, "data_hash": "", "started": "now"}
  runs.write_run(str(workdir), run)
  (workdir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 9}\n')
  metrics_log.MetricsLog(str(workdir), 1, tensorboard=False).close()
  files.write_text(str(workdir / "evaluation.json"), "{}")
  assert victim.read_text() == "precious"
  assert (workdir / "metrics.jsonl").read_text() == '{"step": 1}\n'
  assert run.items() <= json.loads((workdir / "run.json").read_text()).items()


def test_a_lock_that_is_a_link_is_refused_and_not_followed(tmp_path):
  victim = tmp_path / "victim"
  victim.write_text("precious")
  (tmp_path / ".lock").symlink_to(victim)
  with pytest.raises(OSError, match=r"\.lock"), locks.lock(str(tmp_path)):
    pass
  assert victim.read_text() == "precious"


def test_the_temporary_file_is_new_private_and_of_no_known_name(tmp_path):
  path = tmp_path / "x"
  path.write_text("old")
  path.chmod(0o600)
  seen = set()
  for _ in range(5):
    with files.writing(str(path)) as f:
      f.write(b"new")
      (name,) = set(os.listdir(tmp_path)) - {"x"}
      assert (tmp_path / name).stat().st_mode & 0o077 == 0
      seen.add(name)
  assert len(seen) == 5


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o444, 0o755])
def test_a_file_keeps_its_mode(tmp_path, mode):
  path = tmp_path / "x"
  path.write_text("old")
  path.chmod(mode)
  for write in (
    lambda: files.write_text(str(path), "new"),
    lambda: _write_by_path(str(path), "new"),
  ):
    write()
    assert stat.S_IMODE(path.stat().st_mode) == mode
  assert path.read_text() == "new"


def _write_by_path(path, text):
  with files.replacing(path) as temporary:
    pathlib.Path(temporary).write_text(text)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_any_new_file_has(tmp_path, mask):
  before = os.umask(mask)
  try:
    files.write_text(str(tmp_path / "x"), "new")
    with files.whole_folder(str(tmp_path / "folder")) as folder:
      pathlib.Path(folder, "y").write_text("")
      os.chmod(pathlib.Path(folder, "y"), 0o600)  # as safetensors does
  finally:
    os.umask(before)
  modes = [
    stat.S_IMODE((tmp_path / name).stat().st_mode)
    for name in ("x", "folder", "folder/y")
  ]
  assert modes == [0o666 & ~mask, 0o777 & ~mask, 0o666 & ~mask]


def test_what_killed_writers_left_is_removed_by_the_next_of_that_target(
  tmp_path,
):
  (tmp_path / f".x.{RANDOM}.tmp").write_text("of a file")
  (tmp_path / f".x.{RANDOM[::-1]}.tmp").mkdir()
  (tmp_path / f".x.{RANDOM[::-1]}.tmp" / "y").write_text("of a folder")
  others = {
    f".xx.{RANDOM}.tmp", f".x.x.{RANDOM}.tmp", "x.tmp", "x.12.tmp",
    f"x.{RANDOM}.tmp", f".x.{RANDOM}", ".x.0123.tmp",
  }  # fmt: skip
  for name in others:
    (tmp_path / name).write_text("of others")
  files.write_text(str(tmp_path / "x"), "new")
  assert set(os.listdir(tmp_path)) == others | {"x"}


def test_what_a_live_writer_writes_is_left_alone(tmp_path):
  path = str(tmp_path / "x")
  with files.writing(path, "w") as slow:
    slow.write("slow")
    files.write_text(path, "fast")
    assert (tmp_path / "x").read_text() == "fast"
  assert (tmp_path / "x").read_text() == "slow"
  folder = str(tmp_path / "folder")
  with files.whole_folder(folder) as whole:
    pathlib.Path(whole, "y").write_text("first")
    with files.whole_folder(folder):
      pass
    os.rmdir(folder)
  assert os.listdir(folder) == ["y"]
  assert sorted(os.listdir(tmp_path)) == ["folder", "x"]


def test_writers_at_once_leave_one_whole_file_and_nothing_else(tmp_path):
  path = str(tmp_path / "x")

  def write(i):
    files.write_text(path, f"{i % 10}" * 5_000)
    text = (tmp_path / "x").read_text()
    assert len(text) == 5_000 and len(set(text)) == 1

  with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(write, range(200)))
  assert os.listdir(tmp_path) == ["x"]


def test_a_file_system_without_locks_is_written_all_the_same(
  tmp_path, monkeypatch
):
  def refuse(*args):
    raise OSError(errno.ENOLCK, "no locks")

  monkeypatch.setattr(fcntl, "flock", refuse)
  left = tmp_path / f".x.{RANDOM}.tmp"
  left.write_text("perhaps of a live writer")
  files.write_text(str(tmp_path / "x"), "new")
  assert (tmp_path / "x").read_text() == "new" and left.exists()


# --- whole or not at all ------------------------------------------------------


def test_a_write_that_fails_leaves_what_was_there_and_names_the_file(tmp_path):
  path = tmp_path / "x"
  path.write_text("old")
  with pytest.raises(ZeroDivisionError):
    with files.writing(str(path)) as f:
      f.write(b"new" * 100_000)
      raise ZeroDivisionError
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("size", [1, 1_000_000])
@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_full_device_is_told_with_its_name(mode, size):
  text = "x" * size
  with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
    with files.writing("/dev/full", mode) as f:
      f.write(text if mode == "w" else text.encode())


def test_an_error_of_something_else_keeps_its_own_name(tmp_path):
  with pytest.raises(FileNotFoundError, match="elsewhere"):
    with files.writing(str(tmp_path / "x")):
      open(tmp_path / "elsewhere")
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_appears_whole(tmp_path, link):
  target = tmp_path / "there" / "folder"
  path = tmp_path / "link" if link else target
  if link:
    path.symlink_to("there/folder")
  with pytest.raises(ZeroDivisionError):
    with files.whole_folder(str(path)) as folder:
      pathlib.Path(folder, "x").write_text("")
      raise ZeroDivisionError
  assert os.listdir(tmp_path / "there") == []
  with files.whole_folder(str(path)) as folder:
    pathlib.Path(folder, "x").write_text("")
    assert not target.exists()
  assert os.listdir(target) == ["x"] and path.is_symlink() == link
  with pytest.raises(OSError, match="folder|link"):
    with files.whole_folder(str(path)):
      pass  # it is not empty
  assert os.listdir(target) == ["x"]


# --- every mode that has --output ---------------------------------------------


@pytest.fixture
def modes(finished_run, tmp_path, monkeypatch):
  """Mode -> a function (output) that writes a file there, and its status."""
  run = finished_run.workdir
  lines = tmp_path / "lines.jsonl"
  lines.write_text('{"text": "sun [MASK] sun"}\n')
  (tmp_path / "sweep.py").write_text(
    "from bert_jax.sweeps import sweep\n"
    "def get_config():\n"
    f"  return sweep.make([sweep.trial('{ROOT}/configs/base.py')])\n"
  )
  made = {"fits": True, "text": "a plan"}

  def make_plan(config, topology, slices, search, dump, *rest):
    if dump:
      files.write_text(dump, "the program")
    return made

  monkeypatch.setattr(plan, "make_plan", make_plan)
  monkeypatch.setattr(plan.report, "report", lambda plan: "")
  monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: True)

  def run_plan(*paths):
    return plan.run(base.get_config(), "v5e:2x2", 1, "", *paths, 0)

  return {
    "evaluate": lambda launch, path: launch(
      "--mode=evaluate", f"--workdir={run}", f"--output={path}"
    ),
    "predict": lambda launch, path: launch(
      "--mode=predict", f"--workdir={run}", f"--input={lines}",
      f"--output={path}",
    ),
    "sweep": lambda launch, path: launch(
      "--mode=sweep", f"--config={tmp_path}/sweep.py", "--engine=commands",
      f"--workdir={tmp_path}/trials", f"--output={path}",
    ),
    "plan": lambda launch, path: run_plan(path, ""),
    "dump": lambda launch, path: run_plan("", path),
    "replay": lambda launch, path: launch(
      "--mode=train", "--replay_step=8", f"--workdir={run}",
      f"--output={path}",
    ),
  }  # fmt: skip


FILE_MODES = breadth.slow_but(
  ("evaluate", "predict", "sweep", "plan", "dump", "replay"),
  lambda mode: mode in ("predict", "plan"),
)


@pytest.mark.parametrize("mode", FILE_MODES)
def test_a_mode_keeps_a_link_and_writes_into_a_fifo(
  mode, modes, launch, pipe, tmp_path
):
  path, read = pipe
  assert modes[mode](launch, str(path)) == 0
  (tmp_path / "link").symlink_to("dangling")
  assert modes[mode](launch, str(tmp_path / "link")) == 0
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "dangling").read_bytes() == read() != b""
  before = set(os.listdir(tmp_path))
  for refused in ("", "no/folder"):
    with_folder = str(tmp_path / refused)
    try:
      assert modes[mode](launch, with_folder) == 2
    except files.FilesError as error:  # of a function that was called directly
      assert with_folder.rstrip("/") in str(error)
    except AssertionError:
      assert mode in ("plan", "dump") and refused  # it makes folders
  assert set(os.listdir(tmp_path)) - {"no"} == before


@pytest.fixture
def folder_modes(tmp_path):
  """Mode -> its arguments, but --output; each writes a folder."""
  sweep_folders.write(
    tmp_path / "study", [sweep_folders.make_row("rte", 0, 60.0)]
  )
  weights.write(small_models.make(), tmp_path / "model", "flax")
  (tmp_path / "text.txt").write_text("a b\n\nb a\n\na\n\nb\n")
  return {
    "report": [f"--input={tmp_path}/study"],
    "convert": [
      f"--config={ROOT}/configs/convert.py", f"--input={tmp_path}/model",
    ],
    "prepare": [
      f"--config={ROOT}/configs/base.py", f"--input={tmp_path}/text.txt",
      "--config.data.seq_len=8", "--config.prepare.held_out_rate=0.0",
      f"--config.prepare.vocab={tmp_path}/vocab",
      "--config.prepare.num_workers=1", "--config.data.dupe_factor=1",
    ],
  }  # fmt: skip


@pytest.mark.parametrize("mode", ["report", "convert", "prepare"])
def test_a_mode_that_writes_a_folder_refuses_what_is_none(
  mode, folder_modes, launch, tmp_path, capfd
):
  small_models.make().tokenizer.save(tmp_path / "vocab")
  arguments = [f"--mode={mode}", *folder_modes[mode]]
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "file").write_text("mine")
  for name in ("pipe", "file"):
    capfd.readouterr()
    assert launch(*arguments, f"--output={tmp_path / name}") == 2
    assert str(tmp_path / name) in capfd.readouterr().err
  assert (tmp_path / "file").read_text() == "mine"
  assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
  (tmp_path / "link").symlink_to("made/folder")
  assert launch(*arguments, f"--output={tmp_path / 'link'}") == 0
  assert (tmp_path / "link").is_symlink()
  assert os.listdir(tmp_path / "made" / "folder")


def test_results_of_a_sweep_refuse_a_folder_that_is_none(tmp_path):
  from bert_jax.sweeps import results

  (tmp_path / "file").write_text("mine")
  with pytest.raises(files.FilesError, match="file cannot be a folder"):
    results.record([], str(tmp_path), str(tmp_path / "file"), "")
  assert (tmp_path / "file").read_text() == "mine"


# --- paths with a scheme ------------------------------------------------------

SCHEMES = ("s3://b/x", "az://c/x", "file:///x", "hdfs://h/x", "http://h/x")


@pytest.mark.parametrize(
  ("mode", "argument"),
  breadth.slow_but(
    [
      ("prepare", "--output=s3://b/data"),
      ("prepare", "--input=text.txt,s3://b/*.txt"),
      ("train", "--workdir=s3://b/run"),
      ("evaluate", "--output=s3://b/x.json"),
      ("predict", "--input=http://h/x.jsonl"),
      ("plan", "--dump=s3://b/x.txt"),
      ("convert", "--input=hdfs://h/x"),
      ("doctor", "--compile_cache=s3://b/x"),
      ("sweep", "--workdir=file:///x"),
      ("report", "--output=s3://b/x"),
    ],
    lambda mode, argument: mode in ("prepare", "train", "predict"),
  ),
)
def test_every_mode_refuses_a_scheme_before_jax_is_loaded(
  tmp_path, mode, argument
):
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
      sys.executable, "-c", program, f"--mode={mode}", argument,
      *([] if mode == "report" else ["--config=base"]),
    ],
    cwd=tmp_path,
    env=dict(os.environ) | {
      "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    },
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.stdout.split() == ["2", "False"], done.stderr
  flag, _, path = argument.partition("=")
  (line,) = done.stderr.splitlines()
  assert f"{flag}={path.split(',')[-1]}" in line
  assert not list(tmp_path.iterdir())


def parse(*arguments, mode="train"):
  config = "--config=base"
  if any(a.startswith("--config=") for a in arguments):
    config = ""
  return launching.parse(mode, *filter(None, (config, *arguments)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
  "flag",
  [
    "--workdir", "--input", "--output", "--dump", "--compile_cache",
    "--config.data.dir", "--config.init_from", "--config.task.dir",
    "--config.task.files.train", "--config.task.files.validation",
    "--config.task.files.test", "--config.task.vocab",
    "--config.prepare.vocab", "--config.predict.model",
  ],
)  # fmt: skip
def test_a_path_with_a_scheme_is_refused_wherever_it_is_given(flag, scheme):
  with_argv = [f"{flag}={scheme}"]
  before, sys.argv = sys.argv, ["bert-jax", *with_argv]
  try:
    problem = main._scheme_in(parse(*with_argv))
  finally:
    sys.argv = before
  assert f"{flag}={scheme}" in problem


def test_schemes_are_found_in_members_and_arguments_and_the_environment(
  monkeypatch,
):
  member = "--member=s3://b/run:seed=1"
  assert member in main._scheme_in(parse(member))
  for given in ("tfds:s3://b/words:train", "x.py:task=rte,from=s3://b/run"):
    assert "s3://" in files.scheme_problem("--config", given)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "s3://b/programs")
  assert not main._scheme_in(parse())  # jax reads that by itself
  assert "JAX_COMPILATION_CACHE_DIR" in main._scheme_in(
    parse("--compile_cache=s3://b/programs")
  )
  monkeypatch.setenv("XDG_CACHE_HOME", "s3://b/cache")
  assert "XDG_CACHE_HOME=s3://" in main._scheme_in(parse())
  assert not main._scheme_in(parse(mode="prepare"))  # it compiles nothing
  assert not main._scheme_in(parse("--compile_cache=off"))


def test_schemes_are_found_in_the_trials_of_a_sweep():
  values = parse()
  for trial in (
    sweep.trial("configs/finetune.py:task=rte,from=s3://b/run"),
    sweep.trial("configs/base.py", {"init_from": "s3://b/run"}),
  ):
    values.config = sweep.make([trial])
    assert "--config.trials=" in main._scheme_in(values)
  # What a cluster is told is not read here.
  values.config = sweep.make(
    [sweep.trial("configs/base.py")], xpk={"storage": "s3://b"}
  )
  assert not main._scheme_in(values)


def test_what_only_looks_like_a_scheme_is_a_path():
  for path in (
    "gs:/b/x", "./gs://b/x", "a:b", "runs/a", "tfds:/data/words:train", "://x",
    "1gs://x", "host:8476", None, 3, ("a", "b"),
  ):  # fmt: skip
    assert not files.scheme_problem("--workdir", path)


# --- what is read -------------------------------------------------------------


def test_a_fifo_or_device_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (str(tmp_path / "pipe"), "/dev/null"):
    with pytest.raises(files.FilesError, match=path):
      files.check_readable(path)
  for path in (str(tmp_path), __file__, "no/such", ""):
    files.check_readable(path)


def test_modes_refuse_a_fifo_to_read_from(tmp_path, launch, capfd):
  os.mkfifo(tmp_path / "flax_model.msgpack")
  os.mkfifo(tmp_path / "results.jsonl")
  (tmp_path / "config.json").write_text("{}")
  fifo = f"{tmp_path}/flax_model.msgpack"
  for arguments in (
    ["--mode=prepare", f"--config={ROOT}/configs/base.py", f"--input={fifo}"],
    ["--mode=convert", f"--config={ROOT}/configs/convert.py",
     f"--input={fifo}"],
    ["--mode=convert", f"--config={ROOT}/configs/convert.py",
     f"--input={tmp_path}"],
    ["--mode=report", f"--input={tmp_path}"],
  ):  # fmt: skip
    capfd.readouterr()
    assert launch(*arguments, f"--output={tmp_path}/out") == 2
    assert "is a FIFO" in capfd.readouterr().err
  assert not (tmp_path / "out").exists()


def test_predict_reads_and_writes_streams(finished_run, launch, tmp_path, pipe):
  """As `predict --input=<(COMMAND) --output=>(COMMAND)` does."""
  path, read = pipe
  reader, writer = os.pipe()
  os.write(writer, b'{"text": "sun [MASK] sun"}\n')
  os.close(writer)
  status = launch(
    "--mode=predict", f"--workdir={finished_run.workdir}",
    f"--input=/dev/fd/{reader}", f"--output={path}",
  )  # fmt: skip
  os.close(reader)
  assert status == 0
  (line,) = read().splitlines()
  assert json.loads(line)["masks"]


@pytest.mark.parametrize("name", ["copy", "file"])
def test_a_bucket_is_refused_where_a_file_of_this_machine_is_needed(
  name, monkeypatch
):
  monkeypatch.setattr(buckets, "_EXTRA", ())
  values = parse()
  values[name].value = "gs://b/x.py"
  assert f"--{name}=gs://b/x.py" in main._scheme_in(values)


def test_buckets_are_found_wherever_they_are_given(monkeypatch):
  monkeypatch.setattr(buckets, "_EXTRA", ())
  values = parse(
    "--workdir=gs://a/run", "--input=x,gs://b/*.txt", "--member=gs://c/r:seed=1",
    "--config.data.dir=gs://d/x", "--config.task.dir=tfds:gs://e/x",
  )  # fmt: skip
  assert not main._scheme_in(values)
  found = files.bucket_paths(list(main._paths_in(values).values()))
  assert {buckets.split(path)[0] for path in found} == set("abcde")


def test_a_missing_extra_is_named_before_anything_else(monkeypatch):
  monkeypatch.setattr(buckets, "_EXTRA", ("no_such_package.inner",))
  problem = main._scheme_in(parse("--workdir=gs://b/run"))
  assert problem.startswith("--workdir=gs://b/run")
  assert "bert_jax[gcs]" in problem
  assert not main._scheme_in(parse("--workdir=runs/b"))
