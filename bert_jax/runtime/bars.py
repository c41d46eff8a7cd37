"""Progress bars with the time that is left, one display at a time."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
from typing import Any

from rich import console
from rich import progress

_live: list[progress.Progress] = []  # the display that is there now, if any


@contextlib.contextmanager
def showing(display: progress.Progress) -> Iterator[progress.Progress]:
  """A context in which `track` adds its bars to a display."""
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
  """Yields items, and shows the progress and the time that is left.

  The bar is on standard error, and only on a terminal; within `showing` it is
  where that display is.

  Args:
    items: the items to yield.
    what: what is done with them, in a word or two.
    total: the sum of all sizes; None = not known.
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
