"""Confusion matrices as pictures."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from bert_jax.sweeps import pages

# Beyond so many labels, numbers do not fit the cells, and names do not fit the
# edges of a picture.
_MOST_NUMBERS = 24
_MOST_NAMES = 60
_NAME_LENGTH = 24


@dataclasses.dataclass(frozen=True)
class Picture:
  """The picture of a split.

  Attributes:
    split: the name of the split.
    caption: what the picture shows.
    png: its bytes.
  """

  split: str
  caption: str
  png: bytes


def draw(confusion: Mapping[str, Any]) -> list[Picture]:
  """Returns the picture of each split.

  Args:
    confusion: what `training.confusion.read` returns.
  """
  found = []
  for split, one in confusion.get("splits", {}).items():
    counts = np.array(one["counts"])
    right, total = int(np.trace(counts)), int(counts.sum())
    caption = (
      f"{split} at step {confusion['step']:,}: right label down, predicted "
      f"label across; {right:,} of {total:,} are right. The color is the share "
      "of the row."
    )
    found.append(Picture(split, caption, _png(counts, one["labels"])))
  return found


def _png(counts: np.ndarray, labels: list[str]) -> bytes:
  plt = pages.pyplot()
  number = len(labels)
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  side = min(3.2 + 0.42 * number, 14.0)
  figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
  image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
  figure.colorbar(image, ax=axes, fraction=0.046, label="share of the row")
  axes.set(xlabel="predicted label", ylabel="right label")
  if number <= _MOST_NAMES:
    size = 9 if number <= _MOST_NUMBERS else 6
    names = [
      x if len(x) <= _NAME_LENGTH else f"{x[: _NAME_LENGTH - 1]}\u2026"
      for x in (label.replace("$", r"\$") for label in labels)
    ]
    axes.set_xticks(range(number), names, rotation=90, fontsize=size)
    axes.set_yticks(range(number), names, fontsize=size)
  if number <= _MOST_NUMBERS:
    for i, j in np.ndindex(number, number):
      color = "white" if shares[i, j] > 0.5 else "black"
      if counts[i, j]:
        axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center",
                  color=color, fontsize=8)  # fmt: skip
  return pages.png_of(figure, 105, bbox_inches="tight")
