"""Long texts as windows, whose outputs are pooled to one of the text.

A text that does not fit into a row is read in windows that overlap. Of a pair,
the second text is cut into windows, and the first one stands in each of them.
In training, the windows of a text are sequences with its label, which together
weigh as much as one text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import interface
from bert_jax.kinds import task_kind
from bert_jax.tasks import features as task_features
from bert_jax.tasks import spec

CUT = "cut"  # the value of task.long_texts that makes no windows
FIRST = "first"  # the value that reads the first window alone
STRIDE = 128  # the default of task.doc_stride
SETTINGS = ("long_texts", "doc_stride")


def sequences(
  tokenizer: interface.Tokenizer,
  texts: Sequence[list[int]],
  seq_len: int,
  stride: int,
  how: str = "mean",
) -> tuple[list[tuple[list[int], list[int]]], bool]:
  """Returns the windows of a text or a pair of texts.

  Args:
    tokenizer: the tokenizer, whose template is used.
    texts: the token ids of each text.
    seq_len: L, the most tokens of a window.
    stride: the tokens from the start of a window to that of the next; at most
      as many as a window holds, so that no token is left out.
    how: the value of task.long_texts.

  Returns:
    The token ids and segment ids of each window, and whether text was left out:
    of the first text of a pair, because it would fill more than half of a
    window, or behind the first window if that alone is read.
  """
  is_pair = len(texts) > 1
  room = seq_len - tokenizer.template.num_special(is_pair)
  first, last = texts if is_pair else ([], texts[0])
  kept = first
  if len(first) + len(last) > room:
    kept = first[: room // 2]
  size = room - len(kept)
  starts = [0]
  while starts[-1] + size < len(last):
    starts.append(starts[-1] + min(stride, size))
  is_cut = len(kept) < len(first)
  if how == FIRST and len(starts) > 1:
    starts, is_cut = starts[:1], True
  parts = (last[start : start + size] for start in starts)
  return [
    tokenizer.template.build(
      tokenizer, *((kept, part) if is_pair else (part, None))
    )
    for part in parts
  ], is_cut


def columns(
  examples: Sequence[spec.PairExample],
  tokenizer: interface.Tokenizer,
  seq_len: int,
  stride: int,
  how: str = "mean",
) -> dict[str, Any]:
  """Returns the columns of the features of windows, but their labels.

  Args:
    examples: texts or pairs.
    tokenizer: the tokenizer, whose template is used.
    seq_len: L, the most tokens of a window.
    stride: see `sequences`.
    how: see `sequences`.
  """
  given = [
    [text for text in (e.text_a, e.text_b) if text is not None]
    for e in examples
  ]
  ids = iter(task_features.encode(tokenizer, [x for y in given for x in y]))
  found = [
    sequences(tokenizer, [next(ids) for _ in texts], seq_len, stride, how)
    for texts in given
  ]
  counts = np.array([len(parts) for parts, _ in found])
  return task_features.columns_of([x for parts, _ in found for x in parts]) | {
    "example": np.repeat(np.arange(len(found), dtype=np.int32), counts),
    "weights": np.repeat(1 / counts, counts).astype(np.float32),
  }


class TextKind(task_kind.TaskKind):
  """The base of kinds with one answer to a text or a pair of texts."""

  feature_settings = SETTINGS

  def _features(
    self,
    task,
    examples,
    tokenizer,
    seq_len,
    long_texts=CUT,
    doc_stride=STRIDE,
  ):
    """Makes a sequence of every text, or several of a long one."""
    if long_texts == CUT:
      return super()._features(task, examples, tokenizer, seq_len)
    has_labels = spec.have_labels(task, examples)
    found = columns(examples, tokenizer, seq_len, doc_stride, long_texts)
    label = self._label_array(task, examples) if has_labels else None
    return task_features.Features(
      **found,
      label=None if label is None else label[found["example"]],
      labels=self.labels,
    )


def pool(
  features: task_features.Features, outputs: np.ndarray, how: str
) -> np.ndarray:
  """Returns the outputs of texts [E, K], from those of their windows [N, K].

  Args:
    features: the features, in which the windows of a text follow one another.
    outputs: [N, K].
    how: "mean" or "max", of each output; "cut" and "first" leave single
      windows as they are.
  """
  starts = np.flatnonzero(np.diff(features.example, prepend=-1))
  if how == CUT or len(starts) == len(outputs):
    return outputs
  if how == "max":
    return np.maximum.reduceat(outputs, starts)
  counts = np.diff(np.append(starts, len(outputs)))
  return np.add.reduceat(outputs, starts) / counts[:, None]
