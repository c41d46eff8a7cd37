"""Progress bars with the remaining time, one display at a time."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
from typing import Any

from rich import console
from rich import progress

_live: list[progress.Progress] = []  # the display that is shown now, if any


@contextlib.contextmanager
def showing(display: progress.Progress) -> Iterator[progress.Progress]:
  """A context that shows a display, to which `track` adds its bars."""
  with display:
    _live.append(display)
    try:
      yield display
    finally:
      _live.remove(display)


def track(
  items: Iterable[Any],
  what: str,
  total: float | None,
  size: Callable[[Any], float] = lambda item: 1,
) -> Iterator[Any]:
  """Yields items, and shows the progress and the remaining time.

  The bar appears on standard error if that is a terminal, or within `showing`
  as a part of that display.

  Args:
    items: the items to yield.
    what: a word or two that describe the work.
    total: the sum of all sizes; None = unknown.
    size: a function that returns the size of an item.
  """
  with contextlib.ExitStack() as stack:
    if _live:
      display = _live[-1]
    else:
      errors = console.Console(stderr=True)
      display = stack.enter_context(
        progress.Progress(
          progress.TextColumn("{task.description}"),
          progress.BarColumn(),
          progress.TaskProgressColumn(show_speed=True),
          progress.TimeRemainingColumn(),
          console=errors,
          disable=not errors.is_terminal,
          transient=True,
        )
      )
    line = display.add_task(what, total=total)
    stack.callback(display.remove_task, line)
    for item in items:
      yield item
      display.advance(line, size(item))
