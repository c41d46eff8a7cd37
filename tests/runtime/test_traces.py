"""Tests of traces.py: what is kept of tracing, and when it is made again."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.kinds import classify
from bert_jax.runtime import compile_cache
from bert_jax.runtime import traces


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The folder of the entries, as if the user had given its parent."""
  monkeypatch.setattr(compile_cache, "own_folder", lambda: str(tmp_path))
  return tmp_path / "traces"


class Counted:
  """A function that counts how often it is traced."""

  def __init__(self):
    self.count = 0

  def __call__(self, params, batch):
    self.count += 1
    return {"y": jnp.tanh(batch["x"] @ params["w"])}


def arguments(rows=3):
  w = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) / 7
  return {"w": jax.device_put(w)}, {"x": jax.device_put(x)}


def test_a_program_that_is_read_back_is_not_traced_and_bit_equal(folder):
  first, second = Counted(), Counted()
  wanted = traces.Program(first, {"a": 1})(*arguments())
  found = traces.Program(second, {"a": 1})(*arguments())
  assert (first.count, second.count) == (1, 0)
  np.testing.assert_array_equal(wanted["y"], found["y"])
  plain = jax.jit(Counted())(*arguments())
  np.testing.assert_array_equal(wanted["y"], plain["y"])
  assert [path.suffix for path in folder.iterdir()] == [".programs"]


def test_other_facts_shapes_code_or_settings_are_another_program(
  folder, monkeypatch
):
  def count(facts, **shape):
    function = Counted()  # jax itself would remember the same function
    traces.Program(function, facts)(*arguments(**shape))
    return function.count

  assert [count({"a": 1}), count({"a": 1})] == [1, 0]
  assert [count({"a": 2}), count({"a": 2})] == [1, 0]
  assert [count({"a": 1}, rows=6), count({"a": 1}, rows=6)] == [1, 0]
  monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} ")
  assert [count({"a": 1}), count({"a": 1})] == [1, 0]
  monkeypatch.setattr(traces, "_code", lambda: ["other"])
  assert [count({"a": 1}), count({"a": 1})] == [1, 0]


def test_a_damaged_entry_is_made_again(folder):
  wanted = traces.Program(Counted(), {})(*arguments())
  (path,) = folder.iterdir()
  whole = path.read_bytes()
  for content in (b"", whole[: len(whole) // 2], b"no pickle"):
    path.write_bytes(content)
    function = Counted()
    found = traces.Program(function, {})(*arguments())
    assert function.count == 1
    np.testing.assert_array_equal(wanted["y"], found["y"])
    assert len(path.read_bytes()) > 100


def test_nothing_is_kept_without_a_folder_or_facts(folder, monkeypatch):
  traces.Program(Counted(), None)(*arguments())
  assert not folder.exists()
  monkeypatch.setattr(compile_cache, "own_folder", lambda: "")
  traces.Program(Counted(), {})(*arguments())
  assert traces.shapes({}, dict) == {}
  assert not folder.exists()


def test_shapes_keep_their_order_and_dtypes(folder):
  made = {
    "z/kernel": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16),
    "a/bias": jax.ShapeDtypeStruct((), jnp.int32),
  }
  first = traces.shapes({"a": 1}, lambda: made)
  again = traces.shapes({"a": 1}, lambda: pytest.fail("traced again"))
  assert list(first.items()) == list(again.items()) == list(made.items())
  (path,) = folder.iterdir()
  path.write_text("[]")
  assert traces.shapes({"a": 1}, lambda: made) == made


def test_code_of_other_packages_is_told_apart():
  class Own(classify.Answerer):
    name = "own"

  assert traces.of_package(classify.CLASSIFY)
  assert not traces.of_package(classify.CLASSIFY, object.__new__(Own))


def test_what_was_not_read_for_the_longest_time_goes_first():
  entries = [("new", 4, 30), ("old", 5, 10), ("middle", 2, 20)]
  assert traces._oldest_above(entries, 11) == []
  assert traces._oldest_above(entries, 10) == ["old"]
  assert traces._oldest_above(entries, 5) == ["old", "middle"]


def test_a_program_is_read_back_onto_the_devices_of_its_mesh(folder):
  mesh = jax.sharding.Mesh(np.array(jax.devices())[::-1][:4], ("data",))
  split = jax.NamedSharding(mesh, jax.P("data"))
  params, batch = arguments(rows=8)
  params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
  batch = jax.device_put(batch, split)
  second = Counted()
  wanted = traces.Program(Counted(), {})(params, batch)["y"]
  found = traces.Program(second, {})(params, batch)["y"]
  assert second.count == 0
  assert found.sharding == wanted.sharding
  np.testing.assert_array_equal(wanted, found)


def test_a_program_that_jax_has_read_from_its_own_cache_is_kept_whole(
  folder, tmp_path
):
  # Twice, with the entries of this module gone: jax could read its own.
  wanted = traces.Program(Counted(), {})(*arguments())["y"]
  jax.jit(Counted())(*arguments())
  (path,) = folder.iterdir()
  path.unlink()
  jax.clear_caches()
  traces.Program(Counted(), {})(*arguments())
  last = Counted()
  found = traces.Program(last, {})(*arguments())["y"]
  assert last.count == 0
  np.testing.assert_array_equal(wanted, found)
