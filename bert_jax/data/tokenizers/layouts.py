"""Makes the rules of a tokenizer from a vocabulary without tokenizer.json.

The same vocabulary gives other ids in other families: each has its own
normalisation, its own pieces in front of those of the file, and its own special
tokens. A layout is one row of `LAYOUTS`.

Source: transformers 5.24, models/*/tokenization_*.py and
convert_slow_tokenizer.py, which these rules equal.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from bert_jax.data.tokenizers import byte_bpe
from bert_jax.data.tokenizers import pipeline
from bert_jax.data.tokenizers import sentencepiece_file
from bert_jax.data.tokenizers import wordpiece
from bert_jax.runtime import files

_Rules = dict[str, Any]
_SPACES = {"type": "WhitespaceSplit"}


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a tokenizer is built from the files of a vocabulary.

  Attributes:
    file_names: the names that the vocabulary may have, the usual one first.
    build: (path of the vocabulary, tokenizer_config.json) -> the rules, without
      special tokens.
    switches: key of tokenizer_config.json -> its value if the file lacks it.
      Other keys that change text are refused.
  """

  file_names: tuple[str, ...]
  build: Callable[[str, Mapping[str, Any]], _Rules]
  switches: Mapping[str, Any]

  def find(self, folder: str) -> str | None:
    """Returns the path of the vocabulary in a folder; None if it has none."""
    for name in self.file_names:
      path = os.path.join(folder, name)
      if files.exists(path):
        return path
    return None


def _normalizers(*steps: Mapping[str, Any]) -> _Rules | None:
  """Returns several steps of normalisation as one."""
  if not steps:
    return None
  return {"type": "Sequence", "normalizers": [*map(dict, steps)]}


def _charsmap(model: sentencepiece_file.Model) -> list[_Rules]:
  """Returns the normalisation that a model contains, as a list of steps."""
  if not model.charsmap:
    return []
  text = base64.b64encode(model.charsmap).decode("ascii")
  return [{"type": "Precompiled", "precompiled_charsmap": text}]


def _unigram_rules(
  model: sentencepiece_file.Model,
  vocabulary: Sequence[tuple[str, float]],
  unk_id: int,
  normalizer: _Rules | None,
  cuts: Sequence[Mapping[str, Any]],
  prepend_scheme: str,
) -> _Rules:
  """Returns the rules of a unigram model.

  Args:
    model: the content of the file, whose control and user-defined symbols are
      found in a text before it is normalised.
    vocabulary: (piece, score) by id.
    unk_id: the id of the unknown piece.
    normalizer: the steps of normalisation.
    cuts: the steps before the one that marks the words.
    prepend_scheme: which parts of a text get a mark at their start.
  """
  metaspace = {
    "type": "Metaspace",
    "replacement": pipeline.METASPACE,
    "prepend_scheme": prepend_scheme,
    "split": True,
  }
  ids = {piece: i for i, (piece, _) in reversed(list(enumerate(vocabulary)))}
  flags = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
  )
  symbols = [
    piece
    for piece in model.pieces
    if piece.type
    in (sentencepiece_file.CONTROL, sentencepiece_file.USER_DEFINED)
    and piece.text in ids
  ]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      {
        "id": ids[piece.text],
        "content": piece.text,
        **flags,
        "special": piece.type == sentencepiece_file.CONTROL,
      }
      for piece in symbols
    ],
    "normalizer": normalizer,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, metaspace]},
    "post_processor": None,
    "decoder": metaspace,
    "model": {
      "type": "Unigram",
      "unk_id": unk_id,
      "vocab": [[piece, score] for piece, score in vocabulary],
      "byte_fallback": False,
    },
  }


def _pieces(model: sentencepiece_file.Model) -> list[tuple[str, float]]:
  return [(piece.text, piece.score) for piece in model.pieces]


def _model_of(path: str) -> sentencepiece_file.Model:
  return sentencepiece_file.read(files.read_bytes(path), path)


def _always(config: Mapping[str, Any], otherwise: str = "never") -> str:
  return "always" if config["add_prefix_space"] else otherwise


def _fairseq_rules(
  path: str, config: Mapping[str, Any], first: Sequence[tuple[str, float]],
  kept: int,
) -> _Rules:  # fmt: skip
  """Returns the rules of a model whose file lacks fairseq's own pieces.

  Args:
    path: of the file.
    config: the switches.
    first: the pieces that replace those at the start of the file.
    kept: the first id of the file that is kept.
  """
  model = _model_of(path)
  vocabulary = [*first, *_pieces(model)[kept:], ("<mask>", 0.0)]
  return _unigram_rules(
    model, vocabulary, 3, _one(_charsmap(model)), [_SPACES], _always(config)
  )


def _one(steps: Sequence[_Rules]) -> _Rules | None:
  return steps[0] if steps else None


def _xlm_roberta(path: str, config: Mapping[str, Any]) -> _Rules:
  first = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
  return _fairseq_rules(path, config, first, kept=3)


def _camembert(path: str, config: Mapping[str, Any]) -> _Rules:
  names = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>")
  first = [(token, 0.0) for token in names]
  return _fairseq_rules(path, config, [*first, ("<unk>NOTUSED", -100.0)], 1)


def _albert(path: str, config: Mapping[str, Any]) -> _Rules:
  """ALBERT and XLNet: quotes, accents, case, then the model's own rules."""
  model = _model_of(path)
  steps: list[_Rules] = [
    {"type": "Replace", "pattern": {"String": quotes}, "content": '"'}
    for quotes in ("``", "''")
  ]
  if not config["keep_accents"]:
    steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
  if config["do_lower_case"]:
    steps += [{"type": "Lowercase"}]
  return _unigram_rules(
    model,
    _pieces(model),
    model.unk_id,
    _normalizers(*steps, *_charsmap(model)),
    [_SPACES],
    _always(config),
  )


def _deberta_v2(path: str, config: Mapping[str, Any]) -> _Rules:
  """DeBERTa: its own normalisation instead of the model's."""
  model = _model_of(path)
  steps: list[_Rules] = [{"type": "Lowercase"}] * config["do_lower_case"]
  steps += [
    {
      "type": "Replace",
      "pattern": {"Regex": r"\s{2,}|[\n\r\t]"},
      "content": " ",
    },
    {"type": "NFC"},
    {"type": "Strip", "strip_left": False, "strip_right": True},
  ]
  cuts = [{"type": "Punctuation", "behavior": "Isolated"}]
  return _unigram_rules(
    model,
    _pieces(model),
    model.unk_id,
    _normalizers(*steps),
    cuts if config["split_by_punct"] else [],
    _always(config, "first"),
  )


def _byte_bpe(path: str, config: Mapping[str, Any]) -> _Rules:
  return byte_bpe.read(
    os.path.dirname(path), add_prefix_space=config["add_prefix_space"]
  )


def _mpnet(path: str, config: Mapping[str, Any]) -> _Rules:
  """WordPiece, with the words of the original BERT."""
  pieces = wordpiece.read_pieces(pathlib.Path(path))
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {
      "type": "BertNormalizer",
      "clean_text": True,
      "handle_chinese_chars": config["tokenize_chinese_chars"],
      "strip_accents": config["strip_accents"],
      "lowercase": config["do_lower_case"],
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": None,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
      "type": "WordPiece",
      "unk_token": "[UNK]",
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 100,
      "vocab": {piece: i for i, piece in enumerate(pieces)},
    },
  }


_BPE_MODEL = ("sentencepiece.bpe.model", "spiece.model", "spm.model")
# Value of `TokenizerSpec.layout` -> how its folders are read.
LAYOUTS = {
  "byte_bpe": Layout(
    (byte_bpe.VOCABULARY,), _byte_bpe, {"add_prefix_space": False}
  ),
  "xlm_roberta": Layout(_BPE_MODEL, _xlm_roberta, {"add_prefix_space": True}),
  "camembert": Layout(_BPE_MODEL, _camembert, {"add_prefix_space": True}),
  "albert": Layout(
    ("spiece.model",),
    _albert,
    {
      "add_prefix_space": True,
      "do_lower_case": True,
      "keep_accents": False,
      "remove_space": True,
    },
  ),
  "xlnet": Layout(
    ("spiece.model",),
    _albert,
    {
      "add_prefix_space": True,
      "do_lower_case": False,
      "keep_accents": False,
      "remove_space": True,
    },
  ),
  "deberta_v2": Layout(
    ("spm.model", "spiece.model"),
    _deberta_v2,
    {
      "add_prefix_space": True,
      "do_lower_case": False,
      "split_by_punct": False,
    },
  ),
  "mpnet": Layout(
    ("vocab.txt",),
    _mpnet,
    {
      "do_lower_case": True,
      "strip_accents": None,
      "tokenize_chinese_chars": True,
    },
  ),
}
