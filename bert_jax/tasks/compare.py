"""Compares the predictions of two runs for the same examples.

  python -m bert_jax.tasks.compare A/predictions/mrpc-validation.jsonl \
    B/predictions/mrpc-validation.jsonl

The files are those that `bert-jax evaluate --config.task.predict_splits=...`
writes, of classification, tags, choices or several labels.
"""

from collections.abc import Sequence
import json
import sys
from typing import Any

import numpy as np

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.tasks import uncertainty

_ANSWERS = ("label", "labels", "choice", "tags")
_NUM_SAMPLES = 10_000


class CompareError(errors.UserError):
  """Two files of predictions cannot be compared."""


def compare(first: str, second: str) -> dict[str, Any]:
  """Compares two files of predictions.

  Args:
    first: the path of the predictions of one model.
    second: the path of those of another model for the same examples.

  Returns:
    examples, the accuracy of each (`first`, `second`), only_first and
    only_second (how many examples only one of them gets right), difference
    (first - second) with its interval (`low`, `high`), and `p_value` of
    McNemar's test. An example with several tags or labels is right if all are.

  Raises:
    CompareError: a file is no such file, or the examples differ.
  """
  files_read = [_read(path) for path in (first, second)]
  one, other = files_read
  if [row[:2] for row in one] != [row[:2] for row in other]:
    raise CompareError(
      f"{first} and {second} do not have the same examples and labels in the "
      "same order; predict the same split with both runs"
    )
  hits = np.array(
    [[answer == gold for _, gold, answer in rows] for rows in files_read]
  )
  gains = hits[0].astype(int) - hits[1]
  interval = uncertainty.bootstrap(
    lambda drawn: {"difference": float(gains[drawn].mean())},
    len(gains),
    _NUM_SAMPLES,
  )["difference"]
  only_first, only_second = int((gains > 0).sum()), int((gains < 0).sum())
  return {
    "examples": len(gains),
    "first": float(hits[0].mean()),
    "second": float(hits[1].mean()),
    "only_first": only_first,
    "only_second": only_second,
    "difference": float(gains.mean()),
    "low": interval[0],
    "high": interval[1],
    "p_value": uncertainty.mcnemar(only_first, only_second),
  }


def _read(path: str) -> list[tuple[str, Any, Any]]:
  """Returns (id, right answer, predicted answer) of each line of a file."""
  rows: list[tuple[str, Any, Any]] = []
  with files.reading(path) as f:
    for number, line in enumerate(f, start=1):
      where = f"{path}, line {number}"
      try:
        row = json.loads(line)
      except UnicodeDecodeError as error:
        raise CompareError(f"{where} is not UTF-8: {error}") from error
      except (ValueError, RecursionError) as error:
        raise CompareError(f"{where} is not JSON: {error}") from error
      row = row if isinstance(row, dict) else {}
      name = next((x for x in _ANSWERS if x in row), "")
      if not name or "gold" not in row:
        raise CompareError(
          f"{where} does not have the right answer (`gold`) and one of "
          f"{', '.join(_ANSWERS)}; it must be a file of predictions for "
          "examples with labels, and not of scores or answers to questions"
        )
      rows.append((str(row.get("id")), row["gold"], row[name]))
  if not rows:
    raise CompareError(f"{path} is empty")
  return rows


def main(argv: Sequence[str]) -> int:
  """Prints the comparison of two files; returns the exit status."""
  if len(argv) != 2:
    print(__doc__, file=sys.stderr)
    return errors.USAGE
  try:
    found = compare(*argv)
  except (CompareError, OSError) as error:
    print(f"compare: {error}", file=sys.stderr)
    return errors.USAGE
  print(
    f"{found['examples']:,} examples\n"
    f"accuracy {found['first']:.4f}  {argv[0]}\n"
    f"accuracy {found['second']:.4f}  {argv[1]}\n"
    f"difference {found['difference']:+.4f}, 95 % interval "
    f"{found['low']:+.4f} to {found['high']:+.4f}\n"
    f"right in the first alone {found['only_first']:,}, in the second alone "
    f"{found['only_second']:,}: p = {found['p_value']:.3g} (McNemar, exact)"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
