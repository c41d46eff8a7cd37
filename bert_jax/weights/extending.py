"""Extends a model: longer rows, more words, other rotations.

`convert` writes the extended model. It computes what it computed before, as far
as nothing new is used: shorter rows and old words have the same outputs, unless
positions are interpolated or rotations change.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.models import params as param_trees
from bert_jax.models.families import family
from bert_jax.runtime.settings import Convert
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError

_POSITIONS = "encoder/embeddings/position/embedding"
_DECODER = "mlm/decoder"
_BIAS = "mlm/bias"


def with_layers(pretrained: Pretrained, count: int) -> Pretrained:
  """Returns a model with some of its layers, evenly spread.

  Of 12 layers, 6 are the layers 0, 2, 4, 7, 9 and 11, as in DistilBERT.

  Args:
    pretrained: the model.
    count: how many layers to keep.

  Raises:
    WeightsError: the model has fewer, or its layers share parameters.
  """
  total = pretrained.model["num_layers"]
  if not 1 <= count <= total or pretrained.model.get("layer_groups"):
    raise WeightsError(
      f"init_layers={count}: the model has {total} layers and "
      f"model.layer_groups={pretrained.model.get('layer_groups', 0)}; give 1 "
      f"to {total}, of a model whose layers have parameters of their own"
    )
  kept = [
    (2 * i * (total - 1) + count - 1) // (2 * max(count - 1, 1))
    for i in range(count)
  ]
  flat = param_trees.flatten(pretrained.params)
  prefix = "encoder/layer_"
  params = {k: v for k, v in flat.items() if not k.startswith(prefix)}
  for new, old in enumerate(kept):
    start = f"{prefix}{old}/"
    params |= {
      f"{prefix}{new}/{path.removeprefix(start)}": array
      for path, array in flat.items()
      if path.startswith(start)
    }
  model = {**pretrained.model, "num_layers": count}
  return dataclasses.replace(
    pretrained, model=model, params=param_trees.nest(params)
  )


def extend(pretrained: Pretrained, settings: Convert) -> Pretrained:
  """Returns a model with the changes that the group `convert` asks for.

  Args:
    pretrained: the model.
    settings: the group `convert`.

  Raises:
    WeightsError: the model has no such part, or would get smaller.
  """
  model = dict(pretrained.shape)
  flat = param_trees.flatten(pretrained.params)
  tokenizer = pretrained.tokenizer
  seq_len = pretrained.seq_len
  if settings.max_len:
    _lengthen(flat, model, settings)
    seq_len = None
  if settings.rename_tokens:
    tokenizer = _with_names(tokenizer, settings.rename_tokens)
  if settings.add_tokens:
    tokenizer = _with_tokens(tokenizer, settings.add_tokens)
  rows = settings.vocab_size
  if tokenizer is not None and settings.add_tokens:
    rows = max(rows, tokenizer.vocab_size)
  if rows:
    _grow(flat, model, rows, settings.new_rows)
  if settings.rope_theta:
    if not model["attention_positions"].startswith("rope"):
      raise WeightsError(
        f"convert.rope_theta={settings.rope_theta}, but the model has no "
        f"rotations (attention_positions={model['attention_positions']}); "
        "leave the key out"
      )
    model["rope_theta"] = settings.rope_theta
  del model["family"]
  return dataclasses.replace(
    pretrained,
    model=model,
    params=param_trees.nest(flat),
    tokenizer=tokenizer,
    seq_len=seq_len,
  )


def _lengthen(
  flat: dict[str, np.ndarray], model: dict[str, Any], settings: Convert
) -> None:
  """Makes the longest row longer, with more rows of a table of positions."""
  old, new = model["max_len"], settings.max_len
  if new <= old:
    raise WeightsError(
      f"convert.max_len={new} is not more than the {old} tokens that the model "
      "takes; give a larger number"
    )
  if model["positions"] == "learned":
    table, first = flat[_POSITIONS], model["position_offset"]
    head, rest = table[:first], table[first:]
    if settings.new_positions == "tile":
      rest = np.tile(rest, (-(-new // old), 1))[:new]
    else:
      at = np.linspace(0.0, old - 1, new)
      low = np.minimum(at.astype(int), old - 2)
      share = (at - low)[:, None].astype(np.float32)
      wide = rest.astype(np.float32)
      rest = wide[low] * (1 - share) + wide[low + 1] * share
    flat[_POSITIONS] = np.concatenate([head, rest.astype(table.dtype)])
  model["max_len"] = new


def _pieces(tokenizer: Any, key: str, advice: str) -> set[str]:
  """Returns the pieces of a WordPiece tokenizer, which a key needs."""
  if not isinstance(tokenizer, wordpiece.WordPieceTokenizer):
    kind = "no tokenizer" if tokenizer is None else f"a {tokenizer.kind} one"
    raise WeightsError(
      f"{key} needs a WordPiece tokenizer; the model has {kind}. {advice}"
    )
  return {tokenizer.token(i) for i in range(tokenizer.vocab_size)}


def _with_names(tokenizer: Any, pairs: Sequence[str]) -> Any:
  """Returns a tokenizer with other spellings of some pieces.

  Args:
    tokenizer: the tokenizer.
    pairs: texts such as "[unused1]=covid", or several with commas between, as
      a command line gives them.
  """
  key = "convert.rename_tokens"
  known = _pieces(tokenizer, key, "Rename the tokens in its files")
  names: dict[str, str] = {}
  for pair in ",".join(pairs).split(","):
    old, _, new = pair.partition("=")
    problem = (
      "wanted OLD=NEW"
      if not old or not new
      else f"the vocabulary has no piece {old!r}"
      if old not in known
      else f"{old!r} is a special or added token"
      if old in {*interface.SPECIAL_TOKENS, *tokenizer.added_ids}
      else f"{new!r} is in the vocabulary already"
      if new in known or new in names.values()
      else f"{old!r} is renamed twice"
      if old in names
      else ""
    )
    if problem:
      raise WeightsError(f"{key}: {pair!r}: {problem}")
    names[old] = new
  found = tokenizer.with_renamed(names)
  for old, new in names.items():
    if not new.startswith("##") and found.tokenize(new) != [new]:
      raise WeightsError(
        f"{key}: {new!r} in the place of {old!r} would never occur, because "
        f"text is read as {found.tokenize(new)}; give a word without spaces "
        "and marks, in lower case if the model is uncased, or use "
        "convert.add_tokens"
      )
  return found


def _with_tokens(tokenizer: Any, tokens: Any) -> Any:
  """Returns a tokenizer that reads more tokens whole."""
  advice = "Add the tokens to its files, and give convert.vocab_size"
  known = _pieces(tokenizer, "convert.add_tokens", advice)
  if twice := [token for token in tokens if token in known]:
    raise WeightsError(
      f"convert.add_tokens has {', '.join(twice)}, which the vocabulary has "
      "already; leave them out"
    )
  return tokenizer.with_added(
    [
      *tokenizer.added,
      *(added_tokens.AddedToken(token, normalized=False) for token in tokens),
    ]
  )


def _grow(
  flat: dict[str, np.ndarray], model: dict[str, Any], rows: int, how: str
) -> None:
  """Adds rows to the table of words, and to the decoder of masked words."""
  old = model["vocab_size"]
  if rows < old:
    raise WeightsError(
      f"convert.vocab_size={rows} is less than the {old} words that the model "
      "has; words cannot be removed"
    )
  rng = np.random.default_rng(0)
  for path in (family.WORDS, _DECODER):
    if path in flat:
      table = flat[path]
      wide = table.astype(np.float32)
      more = np.repeat(wide.mean(0, keepdims=True), rows - old, 0)
      if how == "normal":
        more = rng.normal(0.0, 0.02, more.shape)
      flat[path] = np.concatenate([table, more.astype(table.dtype)])
  if _BIAS in flat:
    bias = flat[_BIAS]
    flat[_BIAS] = np.concatenate([bias, np.zeros(rows - old, bias.dtype)])
  model["vocab_size"] = rows


def is_asked(settings: Convert) -> bool:
  """Returns whether the group `convert` asks for an extended model."""
  return bool(
    settings.max_len
    or settings.vocab_size
    or settings.add_tokens
    or settings.rename_tokens
    or settings.rope_theta
  )


def describe(before: Pretrained, after: Pretrained) -> str:
  """Returns what became larger or different, as one line."""
  names = ("max_len", "vocab_size", "rope_theta")
  old, new = before.shape, after.shape
  found = [
    f"{name} {old[name]} -> {new[name]}"
    for name in names
    if old[name] != new[name]
  ]
  if (first := before.tokenizer) is not None and after.tokenizer is not None:
    for i in range(first.vocab_size):
      if first.token(i) != (piece := after.tokenizer.token(i)):
        found.append(f"{first.token(i)} -> {piece}")
  return ", ".join(found)
