"""Tests of bars.py: one display, and none where nobody looks."""

import io

from rich import console
from rich import progress

from bert_jax.runtime import bars


def test_all_items_come_and_nothing_is_printed_off_a_terminal(capsys):
  assert list(bars.track(range(5), "things", 5)) == list(range(5))
  assert capsys.readouterr() == ("", "")


def test_within_a_display_the_bar_is_its_own_line_for_a_while():
  out = console.Console(file=io.StringIO(), force_terminal=True)
  display = progress.Progress(console=out)
  with bars.showing(display):
    display.add_task("train", total=10)
    items = bars.track(["ab", "cde"], "evaluate", 5, size=len)
    assert next(items) == "ab"
    assert [task.description for task in display.tasks] == ["train", "evaluate"]
    assert list(items) == ["cde"]
    assert [task.description for task in display.tasks] == ["train"]
  assert not bars._live


def test_a_bar_that_is_left_early_goes_away():
  display = progress.Progress(console=console.Console(file=io.StringIO()))
  with bars.showing(display):
    items = bars.track(range(9), "evaluate", 9)
    next(items)
    items.close()
    assert not display.tasks
