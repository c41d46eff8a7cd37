"""The same properties of files in a local folder and in a bucket."""

import os
import pathlib
import subprocess
import sys
import threading

import pytest

from bert_jax.runtime import bucket_appends
from bert_jax.runtime import bucket_cache
from bert_jax.runtime import bucket_locks
from bert_jax.runtime import buckets
from bert_jax.runtime import files
from bert_jax.runtime import locks
from tests.support.storage_server import needs_server

ROOT = pathlib.Path(__file__).parents[2]


def join(*parts):
  return os.path.join(*parts)


def test_what_was_written_is_read(place):
  path = join(place, "a", "x.txt")
  files.make_folders(join(place, "a"))
  files.write_text(path, "ä\n")
  assert files.read_text(path) == "ä\n"
  assert files.read_bytes(path) == "ä\n".encode()
  files.write_bytes(path, b"\0" * 1000)
  assert files.size(path) == 1000
  with files.reading(path) as f:
    f.seek(990)
    assert f.read() == b"\0" * 10
  assert files.exists(path) and files.is_file(path)
  assert not files.is_folder(path)
  assert files.is_folder(join(place, "a")) and files.exists(join(place, "a"))
  assert not files.is_file(join(place, "a"))
  with open(files.local(path), "rb") as f:
    assert len(f.read()) == 1000
  files.delete(path)
  assert not files.exists(path)
  with pytest.raises(FileNotFoundError, match="x.txt"):
    files.reading(path)
  with pytest.raises(FileNotFoundError):
    files.delete(path)


def test_a_failed_write_leaves_the_old_content(place):
  path = join(place, "x")
  files.write_text(path, "old")
  with pytest.raises(KeyError):
    with files.writing(path, "w") as f:
      f.write("new")
      raise KeyError
  with pytest.raises(KeyError):
    with files.replacing(path) as temporary:
      with open(temporary, "w") as f:
        f.write("new")
      raise KeyError
  assert files.read_text(path) == "old"
  assert files.list_names(place) == ["x"]
  with files.replacing(path) as temporary:
    with open(temporary, "w") as f:
      f.write("new")
  assert files.read_text(path) == "new"
  assert files.read_text(files.local(path)) == "new"


def test_a_folder_appears_whole(place):
  path = join(place, "out")
  with pytest.raises(KeyError):
    with files.whole_folder(path) as temporary:
      files.write_text(join(temporary, "x"), "x")
      raise KeyError
  assert not files.exists(path)
  with files.whole_folder(path) as temporary:
    os.mkdir(join(temporary, "in"))
    files.write_text(join(temporary, "x"), "x")
    files.write_text(join(temporary, "in", "y"), "y")
  assert sorted(files.list_names(path)) == ["in", "x"]
  assert sorted(files.walk(path)) == [join(path, "in", "y"), join(path, "x")]
  with pytest.raises(OSError):
    with files.whole_folder(path) as temporary:
      files.write_text(join(temporary, "z"), "z")
  assert files.read_text(join(path, "in", "y")) == "y"
  local = files.local(path)
  assert files.read_text(join(local, "in", "y")) == "y"
  assert sorted(files.list_names(local)) == ["in", "x"]


def test_folders_are_moved_and_deleted_with_all_in_them(place):
  path = join(place, "7")
  for name in ("a", "in/b", "mark"):
    files.make_folders(os.path.dirname(join(path, name)))
    files.write_text(join(path, name), name)
  files.move_folder(path, join(place, "8"), ["mark"])
  assert not files.exists(path)
  found = {x: files.read_text(x) for x in files.walk(join(place, "8"))}
  assert found == {join(place, "8", n): n for n in ("a", "in/b", "mark")}
  files.delete_folder(join(place, "8"), ["mark"])
  assert not files.exists(join(place, "8"))
  with pytest.raises(FileNotFoundError):
    files.list_names(join(place, "8"))


def test_of_several_one_creates_a_file(place):
  path = join(place, "token")
  won = []

  def create(i):
    try:
      files.create(path, str(i).encode())
      won.append(str(i))
    except FileExistsError:
      pass

  threads = [threading.Thread(target=create, args=[i]) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [files.read_text(path)] == won


def test_patterns_name_the_same_files(place):
  names = ("a.txt", "b.txt", "c.md", "in/d.txt", "in/e/f.txt")
  for name in names:
    files.make_folders(os.path.dirname(join(place, name)))
    files.write_text(join(place, name), name)
  for pattern, wanted in {
    "*.txt": names[:2],
    "[ab].*": names[:2],
    "?.md": names[2:3],
    "*/*.txt": names[3:4],
    "**/*.txt": (*names[:2], *names[3:]),
    "in/**/*": names[3:],
    "x*": (),
  }.items():
    found = [x for x in files.glob(join(place, pattern)) if files.is_file(x)]
    assert sorted(found) == [join(place, name) for name in wanted], pattern
  assert files.missing([join(place, n) for n in ("a.txt", "in/no")]) == [
    join(place, "in/no")
  ]


def test_lines_are_appended_and_can_be_read(place):
  path = join(place, "log.jsonl")
  for i in range(5):
    files.append(path, f"{i}\n")
  assert files.read_text(path) == "0\n1\n2\n3\n4\n"
  files.write_text(path, "0\n")
  files.append(path, "5\n")
  files.sync(place)
  assert files.read_text(path) == "0\n5\n"


def test_json_with_a_default(place):
  path = join(place, "x.json")
  assert files.read_json(path, {}) == {}
  with pytest.raises(FileNotFoundError):
    files.read_json(path)
  files.write_text(path, '{"a": 1}')
  assert files.read_json(path) == {"a": 1}
  assert files.file_hash(path) == files.file_hash(files.local(path))


def test_a_folder_is_locked_once(place):
  with locks.lock(place, "--workdir"):
    assert locks.holder(join(place, ".lock")) is not None
    with pytest.raises(locks.LockedError, match=f"process {os.getpid()}"):
      with locks.lock(place, "--workdir"):
        pass
  assert locks.holder(join(place, ".lock")) is None
  with locks.lock(place, "--workdir"):
    pass


def test_libraries_write_to_a_folder(place):
  with files.local_output(join(place, "profile")) as folder:
    files.write_text(join(folder, "x"), "x")
  assert files.read_text(join(place, "profile", "x")) == "x"


# --- only of buckets ----------------------------------------------------------


@pytest.fixture
def fast_locks(monkeypatch):
  monkeypatch.setattr(bucket_locks, "BEAT_SECS", 0.2)
  monkeypatch.setattr(bucket_locks, "EXPIRE_SECS", 1.5)


def held_by(bucket, process):
  return buckets.put(
    f"{bucket}/.lock", f'{{"process": "{process}"}}'.encode(), 0
  )


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_at_once(bucket):
  name = locks.process_name(os.getpid())
  held_by(bucket, f"{name} 1")  # of an earlier process with this number
  assert locks.holder(f"{bucket}/.lock") is None
  with locks.lock(bucket):
    pass
  held_by(bucket, f"{locks.process_name(2**22 + 1)} 1")
  with locks.lock(bucket):
    pass


def test_a_silent_lock_of_another_machine_expires(bucket, fast_locks, caplog):
  caplog.set_level("INFO")
  held_by(bucket, "17 elsewhere 1 2 3")
  assert locks.holder(f"{bucket}/.lock") == "17 elsewhere 1 2 3"
  with locks.lock(bucket):
    pass
  assert "waiting for up to" in caplog.text
  assert "17 elsewhere" in caplog.text


def test_a_lock_that_beats_is_refused(bucket, fast_locks):
  written = held_by(bucket, "17 elsewhere 1 2 3")
  ends = threading.Event()

  def beat():
    nonlocal written
    content = b'{"process": "17 elsewhere 1 2 3"}'
    while not ends.wait(0.2):
      written = buckets.put(f"{bucket}/.lock", content, written.generation)

  thread = threading.Thread(target=beat)
  thread.start()
  with pytest.raises(locks.LockedError, match="process 17 on host elsewhere"):
    with locks.lock(bucket, "--workdir"):
      pass
  ends.set()
  thread.join()


def test_of_many_that_wait_one_takes_an_expired_lock(bucket, fast_locks):
  held_by(bucket, "17 elsewhere 1 2 3")
  got, refused, ends = [], [], threading.Event()

  def claim(i):
    try:
      with bucket_locks.lock(bucket, f"{i} far 1 2 3", lambda name: None):
        got.append(i)
        ends.wait(20)
    except bucket_locks.HeldError:
      refused.append(i)
    if len(refused) == 7:
      ends.set()

  threads = [threading.Thread(target=claim, args=[i]) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (len(got), len(refused)) == (1, 7)


def test_a_process_that_lost_its_lock_ends(bucket):
  program = (
    "import sys, time\n"
    "from bert_jax.runtime import bucket_locks, locks\n"
    "bucket_locks.BEAT_SECS = 0.2\n"
    "with locks.lock(sys.argv[1]):\n"
    "  print('locked', flush=True)\n"
    "  time.sleep(60)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program, bucket],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout.readline() == "locked\n"
  buckets.put(f"{bucket}/.lock", b'{"process": "9 far 1 2 3"}')
  _, said = process.communicate(timeout=20)
  assert process.returncode == 1
  assert "taken over by 9 far" in said
  assert b"far" in buckets.read(f"{bucket}/.lock")  # not released


def test_no_write_before_a_lock_that_was_not_renewed_is(bucket, monkeypatch):
  with locks.lock(bucket):
    (held,) = bucket_locks._held.values()
    generation = held.generation
    files.write_text(f"{bucket}/x", "x")
    assert held.generation == generation
    held.at -= 100  # as if the machine had been paused
    files.write_text(f"{bucket}/x", "x")
    assert held.generation != generation


def test_copies_are_made_once_and_again_after_a_change(bucket, monkeypatch):
  files.write_text(f"{bucket}/x", "old")
  copy = files.local(f"{bucket}/x")
  monkeypatch.setattr(buckets, "download", None)  # would fail
  assert files.local(f"{bucket}/x") == copy
  monkeypatch.undo()
  monkeypatch.setenv("BERT_JAX_CACHE", os.path.dirname(copy) + "/../..")


def test_copies_that_nobody_uses_make_room(bucket, monkeypatch, tmp_path):
  monkeypatch.setenv("BERT_JAX_CACHE_GB", "0.003")
  for name in "abcd":
    files.write_bytes(f"{bucket}/{name}", bytes(1_000_000))
  copies = [files.local(f"{bucket}/{name}") for name in "abc"]
  with pytest.raises(bucket_cache.NoRoomError, match="BERT_JAX_CACHE_GB"):
    files.local(f"{bucket}/d")  # this process uses the others
  monkeypatch.setattr(bucket_cache, "_used", lambda: {copies[1]})
  os.utime(bucket_cache._note(copies[2]), (1, 1))
  copies.append(files.local(f"{bucket}/d"))
  assert [os.path.exists(x) for x in copies] == [True, True, False, True]


@needs_server
def test_a_bucket_that_is_not_there_is_named(bucket):
  for attempt in (
    files.check_writable, files.read_text, files.list_names, files.exists,
    files.is_folder, files.local, lambda p: files.write_text(p, ""),
    lambda p: locks.lock(p).__enter__(),
  ):  # fmt: skip
    with pytest.raises(buckets.BucketError, match="no bucket other; create"):
      attempt("gs://other/x")


def test_what_the_service_refuses_says_which_rights_are_missing(bucket):
  from google.api_core import exceptions

  with pytest.raises(PermissionError, match="roles/storage.objectUser"):
    with buckets.naming("gs://b/x"):
      raise exceptions.Forbidden("no storage.objects.create")


def test_appended_lines_are_uploaded_at_intervals(bucket, monkeypatch):
  monkeypatch.setattr(bucket_appends, "EVERY_SECS", 0.0)
  files.append(f"{bucket}/log", "1\n")
  for _ in range(100):
    if buckets.find(f"{bucket}/log"):
      break
    threading.Event().wait(0.05)
  assert buckets.read(f"{bucket}/log") == b"1\n"


def test_no_package_of_buckets_is_imported_for_local_paths(tmp_path):
  program = (
    "import sys\n"
    "from bert_jax import main\n"
    "from bert_jax.runtime import files, locks\n"
    "files.write_text(sys.argv[1] + '/x', 'x')\n"
    "with locks.lock(sys.argv[1]):\n"
    "  files.local(sys.argv[1] + '/x')\n"
    "print({'fsspec', 'gcsfs', 'google.cloud', 'requests'} & {*sys.modules})\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path)],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout.strip() == "set()"
