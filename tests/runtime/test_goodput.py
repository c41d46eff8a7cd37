"""Tests of goodput.py: where the time of a run goes."""

import time

import pytest

from bert_jax.runtime import goodput


@pytest.fixture
def hands(monkeypatch):
  """A list with the time of the clock, which the test moves by itself."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


def run_session(workdir, start, last, hands, saved=(), killed=False):
  """A session of 10 s of start, 5 of compiling, steps of 2 s, saves of 1."""
  clock = goodput.Clock()
  hands[0] += 10
  ledger = goodput.Ledger(str(workdir), start, 4, clock)
  clock.switch("compile")
  hands[0] += 5
  clock.switch("steps")
  for step in range(start + 1, last + 1):
    hands[0] += 2
    if step in saved:
      with clock.during("saves"):
        hands[0] += 1
      ledger.write(step)
  if not killed:
    ledger.write(last)
  return ledger


def test_the_parts_add_up_to_the_time_that_has_passed(hands):
  clock = goodput.Clock(since=97.0)
  hands[0] = 105.0
  with clock.during("evaluation"):
    hands[0] += 3
    with clock.during("saves"):
      hands[0] += 1
  clock.switch("data")
  hands[0] += 2
  clock.switch("steps", spent_on="steps")
  hands[0] += 7
  found = clock.secs()
  assert {part: secs for part, secs in found.items() if secs} == {
    "start": 8, "evaluation": 3, "saves": 1, "steps": 9,
  }  # fmt: skip
  assert sum(found.values()) == hands[0] - 97


def test_steps_after_the_last_save_of_a_killed_session_are_lost(
  tmp_path, hands
):
  run_session(tmp_path, 0, 10, hands, saved=(4, 8))  # 9 and 10 are lost
  run_session(tmp_path, 8, 9, hands)  # 9 is lost: nothing was saved
  ledger = run_session(tmp_path, 8, 12, hands, saved=(12,))
  for spent in (goodput.read(str(tmp_path)), ledger.spent()):
    assert spent.secs == {
      "steps": 8 * 2 + 4 * 2, "saves": 3, "start": 30, "compile": 15,
      "lost": 2 * 2 + 2, "evaluation": 0, "data": 0, "other": 0,
    }  # fmt: skip
    assert spent.total == hands[0] - 100
    assert spent.chip_hours == pytest.approx(4 * spent.total / 3600)
    assert spent.share("lost") == pytest.approx(6 / spent.total)


def test_a_run_that_goes_back_further_loses_what_earlier_sessions_did(
  tmp_path, hands
):
  """As where the newest checkpoints are damaged."""
  run_session(tmp_path, 0, 8, hands, saved=(4, 8))
  run_session(tmp_path, 8, 12, hands, saved=(12,))
  run_session(tmp_path, 4, 5, hands)
  secs = goodput.read(str(tmp_path)).secs
  assert (secs["steps"], secs["saves"]) == (4 * 2 + 2, 1)
  assert secs["lost"] == 4 * 2 + 1 + 4 * 2 + 1
  assert sum(secs.values()) == hands[0] - 100


def test_a_killed_session_counts_up_to_its_last_line(tmp_path, hands):
  clock = goodput.Clock()
  ledger = goodput.Ledger(str(tmp_path), 0, 1, clock)
  clock.switch("steps")
  for step in range(100):
    hands[0] += 1
    ledger.note(step)
  found = goodput.read(str(tmp_path))
  assert 78 < found.total < 100
  lines = (tmp_path / "goodput.jsonl").read_text().splitlines()
  assert len(lines) < 8


def test_broken_lines_are_ignored_and_the_next_one_is_whole(
  tmp_path, hands, caplog
):
  run_session(tmp_path, 0, 4, hands, saved=(4,))
  path = tmp_path / "goodput.jsonl"
  before = goodput.read(str(tmp_path))
  for odd in (
    "[1]",
    '{"session": 1, "secs": {"steps": NaN}}',
    "\0",
    "[" * 9000,
  ):
    path.write_text(path.read_text() + odd + "\n")
  path.write_text(path.read_text() + '{"session": 2, "fr')
  assert goodput.read(str(tmp_path)) == before
  assert "broken line" in caplog.text
  run_session(tmp_path, 4, 6, hands)
  assert goodput.read(str(tmp_path)).secs["steps"] == 12
  assert goodput.read(str(tmp_path / "none")) is None


def test_a_run_goes_on_where_its_time_cannot_be_written(tmp_path, caplog):
  ledger = goodput.Ledger(str(tmp_path), 0, 1, goodput.Clock())
  (tmp_path / "goodput.jsonl").unlink()
  (tmp_path / "goodput.jsonl").mkdir()
  for step in (1, 2):
    ledger.write(step)
  assert caplog.text.count("is not recorded") == 1
  assert ledger.spent().total > 0
  assert goodput.read(str(tmp_path)) is None


def test_one_line_says_where_the_time_went():
  secs = dict.fromkeys(goodput.PARTS, 0.0)
  spent = goodput.Spent(secs | {"steps": 5400.0, "saves": 1800.0}, 16.0)
  assert spent.describe() == "steps 75 %, saves 25 % of 2.0 h; 16 chip-hours"
  row = spent.metrics()
  assert row["goodput/steps"] == 0.75 and row["goodput/chip_hours"] == 16
  assert goodput.Spent(secs, 0.0).share("steps") == 0
