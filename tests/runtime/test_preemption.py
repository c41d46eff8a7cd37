"""Tests of preemption.py: when to save, without a process being killed."""

import signal

import jax
from jax.experimental import multihost_utils
import pytest

from bert_jax.runtime import preemption


@pytest.fixture
def clock(monkeypatch):
  """A function that moves the time on."""
  now = [100.0]
  monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])

  def move(secs):
    now[0] += secs

  return move


def saves(move, num_steps, secs_a_step, max_secs, *, plan_every=10, every=0):
  """The steps at which a loop like that of train.py saves."""
  timer = preemption.SaveClock(max_secs, 1000)
  found = []
  for step in range(1001, 1001 + num_steps):
    move(secs_a_step)
    due = timer.is_due(step)
    if step % plan_every == 0:
      timer.plan(step)
    if due or (every and step % every == 0):
      timer.saved(step)
      found.append(step)
  return found


@pytest.fixture(params=[1, 2], ids=["one_host", "two_hosts"])
def hosts(request, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: request.param)
  monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: x)


def test_saves_are_as_far_apart_as_may_be_lost(clock, hosts):
  found = saves(clock, 600, 1.0, 150.0)
  gaps = [b - a for a, b in zip([1000, *found], found, strict=False)]
  assert 4 <= len(found) <= 5
  assert all(120 <= gap <= 151 for gap in gaps)


def test_other_saves_count(clock, hosts):
  assert saves(clock, 600, 1.0, 150.0, every=100) == [
    1100, 1200, 1300, 1400, 1500, 1600,
  ]  # fmt: skip


def test_nothing_is_due_where_all_may_be_lost(clock, hosts):
  assert saves(clock, 600, 100.0, 0.0) == []


def test_a_notice_is_seen_once_and_a_second_signal_is_the_usual_one():
  taken = []
  before = signal.signal(signal.SIGTERM, lambda *_: taken.append(1))
  try:
    with preemption.Notice() as notice:
      notice.listen()
      assert not notice.stops_at(1)
      signal.raise_signal(signal.SIGTERM)
      assert notice.stops_at(2) and not taken
      signal.raise_signal(signal.SIGTERM)
      assert taken == [1]
    signal.raise_signal(signal.SIGTERM)
    assert taken == [1, 1]
  finally:
    signal.signal(signal.SIGTERM, before)


def test_several_hosts_are_asked_by_the_calls_of_this_session(monkeypatch):
  asked = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    multihost_utils,
    "reached_preemption_sync_point",
    lambda step: asked.append(step) or step == 2,
  )
  with preemption.Notice() as notice:
    notice.listen()
    assert [notice.stops_at(step) for step in (501, 502)] == [False, True]
  assert asked == [1, 2]
