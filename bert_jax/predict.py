"""A trained model on new text: one JSON object a line in, one a line out."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import json
import os
import sys
from typing import Any, TextIO

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax import batching
from bert_jax import evaluate
from bert_jax import objectives
from bert_jax import run_log
from bert_jax import sharding
from bert_jax.models import bert

MASK = "[MASK]"
# Lengths that rows are padded to, so that few programs are compiled.
_LENGTHS = (32, 64, 128, 256, 512)


class Predictor:
  """A checkpoint, its vocabulary and its config."""

  def __init__(self, workdir: str, mesh_config: Any):
    """Reads the newest checkpoint of a run.

    Args:
      workdir: of the run.
      mesh_config: the `mesh` group of a config.

    Raises:
      ValueError: there is no run or checkpoint, or the vocabulary is gone.
    """
    run = run_log.read_run(workdir)
    self.config = ml_collections.ConfigDict(run["config"])
    self.config.mesh = mesh_config
    self.tokenizer = batching.load_vocabulary(self.config.data.dir)
    self.mesh = sharding.make_mesh(mesh_config.data, mesh_config.fsdp,
                                   mesh_config.tensor)  # fmt: skip
    objective = objectives.get_objective(self.config.objective)
    self.model = objective.make_model(
      bert.ModelConfig.from_config(self.config.model)
    )
    _, self.params = evaluate.load_params(
      self.config, workdir, self.mesh, self.model, objective
    )


def fill_masks(
  predictor: Predictor, texts: Iterable[str], *, batch_size: int, top_k: int
) -> Iterator[list[list[dict]]]:
  """Proposes tokens for every [MASK] of some texts.

  Args:
    predictor: what predicts.
    texts: each with at least one [MASK].
    batch_size: rows computed together.
    top_k: proposals a mask.

  Yields:
    For each text, for each mask, the best tokens: {"token", "id", "score"},
    the score being its probability.
  """
  step = _top_tokens(predictor.model, predictor.tokenizer.vocab_size, top_k)
  waiting: list[list[int]] = []
  for text in texts:
    waiting.append(_encode(predictor, text))
    if len(waiting) == batch_size:
      yield from _fill_rows(predictor, step, waiting, batch_size)
      waiting = []
  if waiting:
    yield from _fill_rows(predictor, step, waiting, batch_size)


def _encode(predictor: Predictor, text: str) -> list[int]:
  """[CLS] text [SEP], every [MASK] one token."""
  tokenizer, max_len = predictor.tokenizer, predictor.config.model.max_len
  parts = text.split(MASK)
  if len(parts) < 2:
    raise ValueError(f"{text!r} has no {MASK}; write {MASK} for each gap")
  ids = [tokenizer.cls_id]
  for i, part in enumerate(parts):
    ids += [tokenizer.mask_id] * (i > 0) + tokenizer.encode(part)
  ids.append(tokenizer.sep_id)
  if len(ids) > max_len:
    raise ValueError(
      f"{text[:60]!r}.. has {len(ids)} tokens, the model takes {max_len}; "
      "shorten it"
    )
  return ids


def _top_tokens(model: nn.Module, vocab_size: int, top_k: int) -> Callable:
  """The best of the vocabulary; the model's table may have spare rows."""

  def step(params, input_ids, input_mask, masked_positions):
    logits, _ = model.apply(
      {"params": params},
      input_ids,
      input_mask,
      jnp.zeros_like(input_ids),
      masked_positions,
    )
    return jax.lax.top_k(jax.nn.softmax(logits[..., :vocab_size]), top_k)

  return jax.jit(step)


def _fill_rows(
  predictor: Predictor, step: Callable, rows: list[list[int]], batch_size: int
) -> Iterator[list[list[dict]]]:
  """Computes some rows, padded to a size that was compiled before."""
  tokenizer = predictor.tokenizer
  longest = max(map(len, rows))
  length = next((n for n in _LENGTHS if n >= longest), longest)
  length = min(length, predictor.config.model.max_len)
  input_ids = np.full((batch_size, length), tokenizer.pad_id, np.int32)
  input_mask = np.zeros((batch_size, length), np.int32)
  places = []
  for i, ids in enumerate(rows):
    input_ids[i, : len(ids)] = ids
    input_mask[i, : len(ids)] = 1
    places.append([j for j, x in enumerate(ids) if x == tokenizer.mask_id])
  slots = 1 << (max(map(len, places)) - 1).bit_length()
  positions = np.zeros((batch_size, slots), np.int32)
  for i, place in enumerate(places):
    positions[i, : len(place)] = place
  with jax.set_mesh(predictor.mesh):
    scores, ids = jax.device_get(
      step(predictor.params, input_ids, input_mask, positions)
    )
  for i, place in enumerate(places):
    yield [
      [
        {"token": tokenizer.token(int(t)), "id": int(t), "score": float(s)}
        for t, s in zip(ids[i, j], scores[i, j], strict=True)
      ]
      for j in range(len(place))
    ]


def predict(config: Any, workdir: str, source: str, target: str) -> None:
  """Reads JSON lines, writes JSON lines.

  Args:
    config: `predict` and `mesh` are read.
    workdir: of the run, unless predict.model names one.
    source: a file of {"text": ...} lines; "-" or "" = standard input.
    target: the file to write; "-" or "" = standard output.

  Raises:
    ValueError: no model, a kind that is not known, or a bad line.
  """
  settings = config.predict
  if settings.kind != "fill-mask":
    raise ValueError(f"predict.kind={settings.kind!r}; there is: fill-mask")
  if not (settings.model or workdir):
    raise ValueError("give --workdir=RUN, or --config.predict.model=RUN")
  if settings.batch_size < 1:
    raise ValueError(
      f"predict.batch_size={settings.batch_size}; it must be 1 or more"
    )
  predictor = Predictor(settings.model or workdir, config.mesh)
  vocab_size = predictor.tokenizer.vocab_size
  if not 1 <= settings.top_k <= vocab_size:
    raise ValueError(f"predict.top_k={settings.top_k}; give 1 to {vocab_size}")
  with _reading(source) as lines, _writing(target) as out:
    texts = (_text(i, line) for i, line in enumerate(lines, 1) if line.strip())
    for masks in fill_masks(
      predictor, texts, batch_size=settings.batch_size, top_k=settings.top_k
    ):
      out.write(json.dumps({"masks": masks}, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _reading(source: str) -> Iterator[Iterable[str]]:
  """A file's lines, or those of standard input."""
  if source in ("", "-"):
    yield sys.stdin
    return
  with open(source, encoding="utf-8") as f:
    yield f


@contextlib.contextmanager
def _writing(target: str) -> Iterator[TextIO]:
  """A file that appears whole or not at all, or standard output."""
  if target in ("", "-"):
    yield sys.stdout
    return
  part = target + ".tmp"
  try:
    with open(part, "w", encoding="utf-8") as f:
      yield f
    os.replace(part, target)
  finally:
    if os.path.exists(part):
      os.remove(part)


def _text(number: int, line: str) -> str:
  try:
    record = json.loads(line)
    text = record["text"]
    if not isinstance(text, str) or MASK not in text:
      raise ValueError(f"its text has no {MASK}")
    return text
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f'line {number} of the input: {error!r}; give {{"text": "A {MASK} ."}}'
    ) from error
