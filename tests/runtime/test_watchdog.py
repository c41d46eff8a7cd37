"""Tests of watchdog.py: a job that makes no progress ends."""

import time

import pytest

from bert_jax.runtime import peers
from bert_jax.runtime import settings
from bert_jax.runtime import watchdog
from bert_jax.training import checks


def test_the_watchdog_says_what_stood_still_and_for_how_long():
  now, said = [100.0], []
  dog = watchdog.Watchdog(60, said.append, clock=lambda: now[0])
  dog.note("training", 7)
  now[0] += 59
  assert not dog.look()
  dog.note("saving")  # the step is still that
  now[0] += 60
  assert not dog.look()
  now[0] += 1
  assert dog.look() and len(said) == 1
  for part in ("61 s", "saving", "step 7", "train.max_stall_secs=60"):
    assert part in said[0]


def test_the_watchdog_is_off_at_0_and_outside_of_its_context():
  now, said = [0.0], []
  with watchdog.Watchdog(0, said.append, clock=lambda: now[0]) as dog:
    now[0] += 1e9
    assert not dog.look() and not said
  watchdog.note("training", 1)  # of nobody who is watched
  assert peers.watching(5).__enter__() is None  # one process alone


def test_the_thread_of_the_watchdog_barks_once():
  said = []
  with watchdog.Watchdog(0.2, said.append):
    give_up = time.monotonic() + 30
    while not said and time.monotonic() < give_up:
      time.sleep(0.02)
  assert len(said) == 1


def test_the_limit_of_the_watchdog_is_a_key_that_is_free_to_change(tiny_config):
  config = tiny_config()
  assert config.train.max_stall_secs == 1800
  assert settings.KEYS["train.max_stall_secs"].scope == "session"
  config.train.max_stall_secs = -1.0
  with pytest.raises(ValueError, match="train.max_stall_secs=-1"):
    checks.check_settings(config)
