"""Steps on the disks of the machines: files, their damage, and the choice."""

import os
import socket
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.runtime import files
from bert_jax.runtime import local_peers
from bert_jax.runtime import local_shards
from bert_jax.runtime import local_steps
from bert_jax.runtime import runs


@pytest.fixture(scope="module")
def state():
  """Arrays cut up in several ways, on eight devices."""
  mesh = jax.make_mesh(
    (2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )

  def put(value, *axes):
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.device_put(value, place)

  wide = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
  return {
    "params": {
      "cut": put(wide, "data", "model"),
      "half": put(wide.astype(jnp.bfloat16), None, "model"),
      "whole": put(wide),
    },
    "rest": {"step": put(np.int32(7))},
  }


@pytest.fixture
def wanted(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def assert_equal(found, state):
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
    assert (x.dtype, x.sharding) == (y.dtype, y.sharding)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def header(state, **changes):
  facts = dict(
    run="now", session="ab", step=7, process=0, sizes=[], sums=[],
    digest=local_shards.digest(state, 0),
  )  # fmt: skip
  return local_shards.Header(**facts | changes)


@pytest.fixture
def path(tmp_path, state):
  path = str(tmp_path / "7-ab-0.shards")
  pieces = local_shards.take(state)
  assert len(pieces) == 8 + 4 + 1 + 1  # what devices share is written once
  local_shards.write(path, header(state), pieces)
  return path


def test_a_file_gives_the_same_bits_on_the_same_devices(path, state, wanted):
  found = local_shards.check(path)
  assert (found.step, found.session, found.run) == (7, "ab", "now")
  assert found.digest == local_shards.digest(wanted, 0)
  pieces = local_shards.read_pieces(path, found, wanted)
  assert_equal(local_shards.place(wanted, pieces), state)


def test_what_is_placed_may_be_donated(path, state, wanted):
  """No two devices share the memory of what was read."""
  pieces = local_shards.read_pieces(path, local_shards.check(path), wanted)
  placed = local_shards.place(wanted, pieces)
  add = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  assert_equal(add(placed), jax.tree.map(lambda x: x + 1, state))


def test_a_change_of_any_byte_is_found(path):
  with open(path, "rb") as f:
    content = f.read()
  places = {0, 30, 40, len(content) - 1, *range(0, len(content), 997)}
  for place in places:
    changed = bytearray(content)
    changed[place] ^= 4
    with open(path, "wb") as f:
      f.write(changed)
    with pytest.raises(local_shards.DamageError, match=r"shards is damaged"):
      local_shards.check(path)
  for other in (content[:-1], content[:10], b"", content + b"0"):
    with open(path, "wb") as f:
      f.write(other)
    with pytest.raises(local_shards.DamageError):
      local_shards.check(path)


def test_digests_tell_who_can_serve_whom(state, wanted):
  own = local_shards.digest(wanted, 0)
  assert own == local_shards.digest(state, 0)
  assert own != local_shards.digest(wanted, 1)  # which holds nothing
  other = wanted | {"rest": {"step": wanted["params"]["whole"]}}
  assert own != local_shards.digest(other, 0)


# --- the choice ---------------------------------------------------------------


def report(need, *have):
  return {
    "need": need,
    "have": [[step, who, part, f"{step}{part}"] for step, who, part in have],
  }


def test_the_newest_step_that_is_whole_is_chosen():
  found = local_steps.choose(
    [
      report("A", (20, "s", "A"), (10, "s", "A"), (10, "s", "C")),
      report("B", (20, "s", "B"), (10, "s", "B"), (10, "s", "A")),
      report("C", (10, "s", "B")),  # this one lost its disk of step 20
    ]
  )
  assert (found["step"], found["session"]) == (10, "s")
  assert found["holder"] == [0, 1, 0]
  assert found["name"] == ["10A", "10B", "10C"]
  # B's copy is with process 2, as it should; C's with 0, and A's with 1.
  assert found["lonely"] == [False, False, False]


def test_a_lost_machine_is_served_by_its_peer_and_gets_its_copy_back():
  found = local_steps.choose(
    [report("A", (5, "s", "A"), (5, "s", "B")), report("B")]
  )
  assert found["holder"] == [0, 0]
  assert found["lonely"] == [True, False]


def test_parts_of_two_sessions_are_no_step():
  reports = [report("A", (9, "s", "A")), report("B", (9, "t", "B"))]
  assert local_steps.choose(reports) is None
  assert local_steps.choose([report("A"), report("A")]) is None


def test_equal_parts_serve_all_and_not_from_one_process():
  reports = [report("A", (3, "s", "A")) for _ in range(3)] + [report("A")] * 2
  assert local_steps.choose(reports)["holder"] == [0, 1, 2, 0, 0]


# --- a session ----------------------------------------------------------------


def settings(folder, every=5):
  return types.SimpleNamespace(
    local_dir=str(folder), local_every_steps=every, every_steps=100
  )


def write_run(workdir, started="now"):
  facts = {"config": {}, "data_hash": "0" * 64, "started": started}
  runs.write_run(str(workdir), facts)
  return str(workdir)


@pytest.fixture
def run(tmp_path):
  """A workdir with the record of a run, and a folder for local steps."""
  (tmp_path / "run").mkdir()
  workdir = write_run(tmp_path / "run")
  return types.SimpleNamespace(
    workdir=workdir, settings=settings(tmp_path / "local")
  )


def files_of(steps):
  return sorted(x for x in os.listdir(steps.folder) if x.endswith(".shards"))


def save(steps, step, state, committed=0):
  state = state | {"rest": {"step": state["rest"]["step"] * 0 + step}}
  steps.save(step, state, committed)


def test_a_session_goes_on_from_the_newest_local_step(run, state, wanted):
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    assert steps.restore(0) is None
    steps.begin()
    assert [x for x in range(1, 13) if steps.is_due(x)] == [5, 10]
    for step in (5, 10, 15):
      save(steps, step, state)
    steps.finish()
    assert [x.split("-")[0] for x in files_of(steps)] == ["15"]
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    step, found = steps.restore(14)
    assert step == 15
    assert_equal(found["params"], state["params"])
    assert int(found["rest"]["step"]) == 15
    # It stays until all have a newer one, and a newer checkpoint counts more.
    save(steps, 20, state)
    steps.finish()
    assert [x.split("-")[0] for x in files_of(steps)] == ["20"]
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    assert steps.restore(20) is None
    assert not files_of(steps)


def test_steps_before_the_newest_checkpoint_are_deleted(run, state, wanted):
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    steps.restore(0)
    steps.begin()
    save(steps, 5, state)
    steps.finish(committed=5)
    assert len(files_of(steps)) == 1
    save(steps, 10, state, committed=6)
    steps.finish(committed=11)
    assert not files_of(steps)


def test_a_damaged_file_is_told_and_the_checkpoint_counts(
  run, state, wanted, caplog
):
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    steps.restore(0)
    steps.begin()
    save(steps, 5, state)
    steps.finish()
    path = os.path.join(steps.folder, files_of(steps)[0])
  content = bytearray(files.read_bytes(path))
  content[-1] ^= 1
  with open(path, "wb") as f:
    f.write(content)
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    assert steps.restore(3) is None
    assert f"{path} is damaged" in caplog.text
    assert not files_of(steps)


def test_steps_of_another_run_of_the_workdir_are_not_read(
  run, state, wanted, tmp_path
):
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    steps.restore(0)
    steps.begin()
    save(steps, 5, state)
  os.remove(f"{run.workdir}/run.json")
  write_run(tmp_path / "run", started="later")
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    assert steps.restore(0) is None


def test_only_the_last_session_counts_and_takes_over_what_it_reads(
  run, state, wanted, tmp_path
):
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    steps.restore(0)
    steps.begin()
    save(steps, 9, state)
  # A session that reads it and ends before it saves leaves it for the next.
  for _ in range(2):
    with local_steps.opened(run.settings, run.workdir, wanted) as steps:
      step, found = steps.restore(5)
      assert step == 9
      assert_equal(found["params"], state["params"])
      write_run(tmp_path / "run")
      steps.begin()
      steps.finish()
      assert [x.split("-")[0] for x in files_of(steps)] == ["9"]
  write_run(tmp_path / "run")  # of a session on other machines
  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    assert steps.restore(5) is None


def test_a_full_disk_costs_a_warning(run, state, wanted, caplog, monkeypatch):
  def fail(*args):
    raise OSError(28, "No space left on device")

  with local_steps.opened(run.settings, run.workdir, wanted) as steps:
    steps.restore(0)
    steps.begin()
    save(steps, 5, state)
    steps.finish()
    monkeypatch.setattr(local_shards, "write", fail)
    save(steps, 10, state)
    steps.finish()
    assert "step 10 is not saved locally: [Errno 28]" in caplog.text
    assert [x.split("-")[0] for x in files_of(steps)] == ["5"]


def test_a_folder_of_another_user_is_refused(run, wanted, monkeypatch):
  monkeypatch.setattr(os, "getuid", lambda: -1)
  with pytest.raises(local_steps.LocalError, match="another user owns"):
    with local_steps.opened(run.settings, run.workdir, wanted):
      pass


def test_what_cannot_be_used_is_refused(run, wanted, tmp_path):
  for key, value, what in (
    ("local_dir", "", "go together"),
    ("local_every_steps", 0, "go together"),
    ("local_dir", "gs://bucket/x", "is a bucket"),
    ("local_every_steps", 100, "must be less than"),
  ):
    wrong = settings(tmp_path / "local")
    setattr(wrong, key, value)
    with pytest.raises(ValueError, match=what):
      local_steps.check_settings(wrong)
  local_steps.check_settings(settings("", 0))
  (tmp_path / "file").touch()
  wrong = settings(tmp_path / "file")
  with pytest.raises(local_steps.LocalError, match="process 0 cannot write"):
    with local_steps.opened(wrong, run.workdir, wanted):
      pass


# --- between processes --------------------------------------------------------


@pytest.fixture
def server(tmp_path):
  (tmp_path / "theirs").mkdir()
  server = local_peers.Server(
    str(tmp_path / "theirs"), "secret", local_shards.check, "127.0.0.1"
  )
  yield server
  server.close()


def test_files_go_to_another_process_and_back(server, path, tmp_path):
  local_peers.put(server.address, "secret", path)
  there = tmp_path / "theirs" / os.path.basename(path)
  assert there.read_bytes() == files.read_bytes(path)
  os.remove(path)
  local_peers.fetch(server.address, "secret", path)
  assert there.read_bytes() == files.read_bytes(path)


def test_a_file_that_arrives_damaged_is_not_kept(server, path, tmp_path):
  with open(path, "ab") as f:
    f.write(b"x")
  with pytest.raises(OSError, match="too long"):
    local_peers.put(server.address, "secret", path)
  assert not os.listdir(tmp_path / "theirs")


def test_strangers_and_other_paths_are_refused(server, path, tmp_path):
  with pytest.raises(OSError):
    local_peers.put(server.address, "wrong", path)
  outside = tmp_path / ".hidden"
  outside.write_bytes(files.read_bytes(path))
  for name in (str(outside), path.replace("ab", "a b")):
    os.rename(path, name) if not os.path.exists(name) else None
    with pytest.raises(OSError):
      local_peers.put(server.address, "secret", name)
  with pytest.raises(OSError, match="nothing"):
    local_peers.fetch(server.address, "secret", str(tmp_path / "nothing"))
  with socket.create_connection(server.address) as link:
    link.sendall(b"nonsense\n")
    assert not link.recv(10)
  assert not os.listdir(tmp_path / "theirs")
