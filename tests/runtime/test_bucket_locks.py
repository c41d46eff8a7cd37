"""Locks of a bucket's folder, without a bucket."""

import threading

import pytest

from bert_jax.runtime import bucket_locks
from bert_jax.runtime import buckets


@pytest.fixture
def held(monkeypatch):
  """A lock that this process holds; its object is written by nobody."""
  lock = bucket_locks._Held("gs://b/run/.lock", b"", 1, bucket_locks._now())
  monkeypatch.setitem(bucket_locks._held, lock.path, lock)
  monkeypatch.setattr(buckets, "delete", lambda path, generation: None)
  return lock


def test_a_lock_that_was_released_is_not_written_again(held, monkeypatch):
  writes = []
  monkeypatch.setattr(buckets, "put", lambda *args: writes.append(args))
  with held.guard:  # as while the object is deleted
    beat = threading.Thread(target=bucket_locks._beat, args=(held,))
    beat.start()
    bucket_locks._held.pop(held.path)
  beat.join(10)
  assert not beat.is_alive() and not writes


def test_a_released_lock_keeps_nobody_from_writing(held):
  held.at -= bucket_locks.EXPIRE_SECS
  bucket_locks._release(held)
  bucket_locks.check("gs://b/run/run.json")  # returns


@pytest.mark.parametrize(
  "error", [buckets.BucketError("no credentials"), OSError("no answer")]
)
def test_a_beat_that_fails_is_tried_again(held, monkeypatch, error):
  def put(*args):
    raise error

  monkeypatch.setattr(buckets, "put", put)
  assert not bucket_locks._beat(held)
  assert bucket_locks._held[held.path] is held


def test_who_lost_a_lock_ends_before_anything_else_is_written(
  held, monkeypatch
):
  ended = []

  def put(*args):
    raise buckets.ChangedError

  def end(status):
    ended.append((status, held.guard.locked(), held.at))
    raise SystemExit(status)

  monkeypatch.setattr(buckets, "put", put)
  monkeypatch.setattr(bucket_locks, "_read", lambda path: None)
  monkeypatch.setattr(bucket_locks.os, "_exit", end)
  with pytest.raises(SystemExit):
    bucket_locks._beat(held)
  # Whoever asks now finds the lock old, and waits for `guard`.
  assert ended == [(1, True, -float("inf"))]
  assert bucket_locks._held[held.path] is held
