"""Cases of a parametrized test that only the slow tests run."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], is_quick: Callable[..., bool]) -> list[Any]:
  """Marks the cases as slow, but those that the default suite runs, too.

  Args:
    cases: values, or tuples of values, for `pytest.mark.parametrize`.
    is_quick: a function of the values of a case.
  """
  marked = []
  for case in cases:
    values = case if isinstance(case, tuple) else (case,)
    marks = () if is_quick(*values) else pytest.mark.slow
    marked.append(pytest.param(*values, marks=marks))
  return marked
