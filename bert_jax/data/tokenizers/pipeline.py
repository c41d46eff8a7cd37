"""Tokenizers that the `tokenizers` package runs, by the rules in a file.

Byte-level BPE, SentencePiece unigram and other kinds are pipelines: a
normaliser, a step that cuts text into words, a model that cuts words into
pieces, and added tokens. A tokenizer.json of Hugging Face holds all of them,
and `hf_pipeline` makes one from other files of a vocabulary.

The spelling of a special token in a text is read as text, so that no text can
end a sequence or mask itself. Added tokens that have no role are found in the
text, as that package does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
import pathlib
from typing import Any, Self

import numpy as np
import tokenizers

from bert_jax.data import templates
from bert_jax.data.tokenizers import byte_bpe
from bert_jax.data.tokenizers import interface
from bert_jax.runtime import files

METASPACE = "\u2581"  # SentencePiece's mark of a space
# The roles that special tokens may have, in the order in which the reference
# adds them to a vocabulary.
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_NO_ID = -1
_MOST_HOLES = 100_000  # ids without a piece; more would only fill the memory
# Begins the spelling of pieces that no text may become. U+FDD0 is not a
# character, and no normaliser makes one of it.
_HIDDEN = "\ufdd0"


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """The content of a tokenizer.

  Attributes:
    rules: the content of a tokenizer.json of the `tokenizers` package.
    special_tokens: role -> the spelling of the special token.
    template: the form of sequences.
    hf_class: the class of transformers that reads these rules.
  """

  rules: Mapping[str, Any]
  special_tokens: Mapping[str, str]
  template: templates.Template
  hf_class: str = "PreTrainedTokenizerFast"

  def dumps(self) -> str:
    """Returns it as JSON; `loads` reads it."""
    content = dataclasses.asdict(self)
    return json.dumps(content, ensure_ascii=False, sort_keys=True)

  @classmethod
  def loads(cls, text: str | bytes) -> Self:
    """Returns what `dumps` wrote.

    Raises:
      ValueError: it is something else.
    """
    content = json.loads(text)
    try:
      parts = {
        form: tuple((str(name), int(type_id)) for name, type_id in parts)
        for form, parts in content["template"].items()
      }
      return cls(
        rules=dict(content["rules"]),
        special_tokens={
          str(k): str(v) for k, v in content["special_tokens"].items()
        },
        template=templates.Template(**parts),
        hf_class=str(content["hf_class"]),
      )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"it is not a tokenizer that this program saved: {error!r:.200}"
      ) from None


def build(rules: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
  """Makes the object of the `tokenizers` package that runs rules.

  Raises:
    ValueError: the package refuses them; the message names the source.
  """
  try:
    return tokenizers.Tokenizer.from_str(json.dumps(rules))
  except BaseException as error:  # a panic of Rust is not an Exception
    if not isinstance(error, Exception) and "Panic" not in type(error).__name__:
      raise
    raise ValueError(
      f"{source}: the tokenizers package {tokenizers.__version__} does not "
      f"accept this tokenizer of type {model_type(rules)!s:.60}: {error!s:.300}"
      ". Correct the file, or install the version that wrote it"
    ) from None


def added_tokens_of(
  named: Mapping[str, str], ids: Mapping[str, int], mask_lstrip: bool
) -> list[dict[str, Any]]:
  """Returns special tokens as a tokenizer.json lists them.

  Args:
    named: role -> token.
    ids: token -> id.
    mask_lstrip: whether the mask token takes the spaces before it.
  """
  flags = dict.fromkeys(("single_word", "rstrip", "normalized"), False)
  tokens = sorted(set(named.values()), key=ids.__getitem__)
  return [
    {
      "id": ids[token],
      "content": token,
      "lstrip": mask_lstrip and token == named.get("mask"),
      **flags,
      "special": True,
    }
    for token in tokens
  ]


def post_processor_of(
  template: templates.Template,
  named: Mapping[str, str],
  ids: Mapping[str, int],
) -> dict[str, Any]:
  """Returns a form of sequences as a tokenizer.json writes it.

  Args:
    template: the form.
    named: role -> token.
    ids: token -> id.
  """

  def parts(is_pair: bool) -> list[dict[str, Any]]:
    return [
      {"Sequence": {"id": name, "type_id": type_id}}
      if name in templates.TEXTS
      else {"SpecialToken": {"id": named[name], "type_id": type_id}}
      for name, type_id in template.parts(is_pair)
    ]

  used = {
    named[name] for name, _ in template.pair if name not in templates.TEXTS
  }
  return {
    "type": "TemplateProcessing",
    "single": parts(False),
    "pair": parts(True),
    "special_tokens": {
      token: {"id": token, "ids": [ids[token]], "tokens": [token]}
      for token in sorted(used)
    },
  }


def model_type(rules: Mapping[str, Any]) -> Any:
  """Returns the type of model of a tokenizer.json; older files leave it out."""
  model = rules.get("model")
  if not isinstance(model, dict):
    return model
  if "type" in model:
    return model["type"]
  if "merges" in model:
    return "BPE"
  if isinstance(model.get("vocab"), list):
    return "Unigram"
  is_wordpiece = "continuing_subword_prefix" in model
  return "WordPiece" if is_wordpiece or "vocab" not in model else "WordLevel"


def steps(node: Any) -> Iterator[dict[str, Any]]:
  """Yields the steps of a part of rules, with those inside sequences."""
  if not isinstance(node, dict):
    return
  yield node
  for key in ("normalizers", "pretokenizers", "processors", "decoders"):
    for child in node.get(key) or ():
      yield from steps(child)


class PipelineTokenizer(interface.Tokenizer):
  """A tokenizer that the `tokenizers` package runs.

  Args:
    pipeline: its content.
    source: the name of the vocabulary in errors.

  Attributes:
    pipeline: its content, as given.
    mask_id: the id of the mask token, or -1 if there is none.

  Raises:
    ValueError: the package refuses the rules, or a special token is missing.

  Example:
    >>> tokenizer = load_tokenizer("roberta-base")  # doctest: +SKIP
    >>> tokenizer.tokenize("Hello world")  # doctest: +SKIP
    ['Hello', '\u0120world']

  Source: https://huggingface.co/docs/tokenizers/pipeline
  """

  kind = "pipeline"
  file_name = "pipeline.json"
  lower_case: None = None
  learns_bytes = True

  def __init__(self, pipeline: Pipeline, *, source: str = "the tokenizer"):
    self.pipeline = pipeline
    self._full = build(pipeline.rules, source)
    ids = self._full.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    if size > 2 * len(ids) + _MOST_HOLES:
      raise ValueError(
        f"{source} has {len(ids)} pieces with ids up to {size - 1}; most ids "
        "have no piece, so the vocabulary is damaged"
      )
    pieces = [""] * size
    for piece, i in ids.items():
      pieces[i] = piece
    named = dict(pipeline.special_tokens)
    absent = [token for token in named.values() if token not in ids]
    if absent:
      raise ValueError(
        f"{source} lacks the special token {absent[0]!r:.60}; wanted a "
        f"vocabulary with {' '.join(dict.fromkeys(named.values()))}"
      )
    self.template = pipeline.template
    roles = _with_defaults(named, self.template, source)
    by_role = {role: ids.get(token, _NO_ID) for role, token in roles.items()}
    super().__init__(
      pieces,
      [by_role[role] for role in ("pad", "unk", "cls", "sep", "mask")],
    )
    for role, id in by_role.items():
      setattr(self, f"{role}_id", id)
    self._marks = {token for token in roles.values() if token in ids}
    self.special_ids = frozenset(ids[token] for token in self._marks)
    self._added = {
      token["content"] for token in pipeline.rules.get("added_tokens") or ()
    }
    self._run = _runnable(pipeline.rules, self._marks, source)
    mask = roles.get("mask")
    self._mask = mask if mask in ids else None
    self._run_masked = (
      _runnable(pipeline.rules, self._marks - {mask}, source)
      if self._mask
      else None
    )
    self._begins = _word_marks(pipeline.rules)
    self._takes_space = _takes_space(pipeline.rules)
    self._source = source

  @classmethod
  def read(cls, file: pathlib.Path, **settings: Any) -> Self:
    """Reads a pipeline.json, which takes no settings."""
    try:
      pipeline = Pipeline.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{file}: {error!s:.300}") from None
    return cls(pipeline, source=str(file), **settings)

  @classmethod
  def learn(
    cls,
    texts: Iterable[str],
    vocab_size: int,
    lower_case: bool,
    *,
    special_tokens: str = "bert",
  ) -> Self:
    """Learns byte-level BPE; the same text gives the same vocabulary.

    Args:
      texts: lines or documents, read once.
      vocab_size: the number of pieces, special tokens included.
      lower_case: whether text is lower-cased and loses its accents.
      special_tokens: a key of `byte_bpe.FORMS`.

    Returns:
      A tokenizer whose ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK], or that
      has the special tokens of RoBERTa.

    Raises:
      ValueError: the texts cannot give exactly `vocab_size` pieces.
    """
    form = byte_bpe.FORMS[special_tokens]
    rules = byte_bpe.learn(texts, vocab_size, lower_case, form)
    named = form.special_tokens
    rules["added_tokens"] = added_tokens_of(
      named, rules["model"]["vocab"], mask_lstrip=True
    )
    rules["post_processor"] = post_processor_of(
      form.template, named, rules["model"]["vocab"]
    )
    return cls(Pipeline(rules, named, form.template, form.hf_class))

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without special tokens."""
    return self._run.encode(_clean(text), add_special_tokens=False).ids

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns `encode` of every text, in order."""
    if isinstance(texts, str):
      return super().encode_batch(texts)
    encoded = self._run.encode_batch_fast(
      [_clean(text) for text in texts], add_special_tokens=False
    )
    return [one.ids for one in encoded]

  def encode_sentences(self, sentences: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each sentence, all but the first after a space."""
    first, rest = list(sentences[:1]), list(sentences[1:])
    return self.encode_batch(first + self._after_space(rest))

  def encode_words(self, words: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each word after a space."""
    return self.encode_batch(self._after_space(words))

  def encode_masked(self, text: str, mark: str) -> list[int]:
    """Returns the ids of a text with gaps.

    The mask token takes the spaces beside it if its flags say so. Its own
    spelling is a gap, too.
    """
    if self._run_masked is None or self._mask is None:
      raise ValueError(
        f"{self._source} has no mask token, so that a text cannot have gaps"
      )
    text = _clean(text).replace(mark, self._mask)
    return self._run_masked.encode(text, add_special_tokens=False).ids

  def encode_with_offsets(self, text: str) -> interface.Encoding:
    """Returns the ids of `text`, and the characters that each stands for."""
    found = self._run.encode(_clean(text), add_special_tokens=False)
    starts: list[int] = []
    ends: list[int] = []
    first = last = 0
    for start, end in found.offsets:
      start, end = interface.without_spaces(text, start, end)
      first = max(first, start)
      last = max(last, end, first)
      starts.append(first)
      ends.append(last)
    return found.ids, starts, ends

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text that the pieces spell."""
    words: list[str] = []
    named = self.special_ids
    for is_special, run in itertools.groupby(ids, key=named.__contains__):
      run_ids = [int(i) for i in run]
      pieces = [self.token(i) for i in run_ids if i != self.pad_id]
      if is_special:
        words += pieces
      else:
        text = self._full.decode(run_ids, skip_special_tokens=False)
        words.append(text.strip())
    return " ".join(words)

  def continues_word(self) -> np.ndarray:
    """Returns [V] bool: the pieces that continue the word before them.

    Raises:
      ValueError: no piece says whether it begins a word.
    """
    if self._begins is None:
      raise ValueError(
        f"{self._source}: its pieces do not say where words begin, so that "
        "whole words cannot be masked; set data.whole_word=False"
      )
    marks, is_continuing = self._begins
    apart = self._marks | self._added
    return np.array(
      [
        piece.startswith(marks) == is_continuing
        and piece not in apart
        and bool(piece)
        for piece in self._pieces
      ]
    )

  def write_vocabulary(self, path: interface.Path) -> None:
    """Writes the content."""
    files.write_text(str(path), self.pipeline.dumps() + "\n")

  def meaning(self) -> tuple[Any, ...]:
    # Where rules cut text is not said by the pieces.
    return self.lower_case, self._pieces, (), self.fingerprint

  def _content(self) -> bytes:
    content = [self.pipeline.rules, self.pipeline.special_tokens]
    form = dataclasses.asdict(self.pipeline.template)
    text = json.dumps([self.kind, *content, form], sort_keys=True)
    return text.encode("utf-8")

  def _after_space(self, texts: Sequence[str]) -> list[str]:
    """Returns texts with the space that a word has before it, if it counts."""
    if not self._takes_space:
      return list(texts)
    return [
      text if not text or text[0].isspace() else f" {text}" for text in texts
    ]

  def __reduce__(self):
    return _from_text, (self.pipeline.dumps(),)


def _from_text(text: str) -> PipelineTokenizer:
  return PipelineTokenizer(Pipeline.loads(text))


def _clean(text: str) -> str:
  """Returns a text that UTF-8 can hold."""
  if text.isascii():
    return text
  return interface.SURROGATE.sub("\ufffd", text)


def _with_defaults(
  named: Mapping[str, str], template: templates.Template, source: str
) -> dict[str, str]:
  """Returns role -> token for all roles and for the names in a template.

  A sequence may have neither [CLS] nor [SEP]. In their roles are then the
  first and the last special token of a sequence.
  """
  roles = dict(named)
  names = [
    name for name, _ in template.single + template.pair
    if name not in templates.TEXTS
  ]  # fmt: skip
  lost = [name for name in names if name not in roles]
  if lost:
    raise ValueError(
      f"{source}: sequences have the special token {lost[0]!r:.60}, which the "
      "vocabulary does not name"
    )
  if names:
    first, *_, last = [
      name for name, _ in template.single if name not in templates.TEXTS
    ] * 2
    roles.setdefault("cls", roles[first])
    roles.setdefault("sep", roles[last])
  if "pad" not in roles:
    raise ValueError(
      f"{source} names no padding token; add pad_token to tokenizer_config.json"
    )
  for role in ("cls", "sep", "unk"):
    roles.setdefault(role, roles["pad"])
  roles.setdefault("mask", "")
  return roles


def _runnable(
  rules: Mapping[str, Any], marks: set[str], source: str
) -> tokenizers.Tokenizer:
  """Returns the object that encodes text without its special tokens.

  Args:
    rules: the content of a tokenizer.json.
    marks: the special tokens, whose spelling in a text is read as text.
    source: the name of the vocabulary in errors.
  """
  model = dict(rules["model"])
  in_vocabulary = set()
  if model_type(rules) == "Unigram":
    # A unigram model would choose the piece that is spelled like the token.
    in_vocabulary = {piece for piece, _ in model["vocab"]} & marks
    model["vocab"] = [
      [_HIDDEN + piece if piece in marks else piece, score]
      for piece, score in model["vocab"]
    ]
  added = [
    # "special" only says here that the token is not searched for.
    {**token, "special": token["content"] in marks}
    for token in rules.get("added_tokens") or ()
    if token["content"] not in in_vocabulary
  ]
  run = build(
    {**rules, "model": model, "added_tokens": added, "post_processor": None},
    source,
  )
  run.encode_special_tokens = True
  run.no_truncation()
  run.no_padding()
  return run


def _byte_spaces() -> tuple[str, ...]:
  """Returns the characters by which byte-level BPE writes ASCII spaces."""
  return tuple(chr(256 + code) for code in (9, 10, 11, 12, 13, 32))


def _word_marks(
  rules: Mapping[str, Any],
) -> tuple[tuple[str, ...], bool] | None:
  """Returns how pieces show that they continue a word.

  Returns:
    Beginnings of pieces, and whether they mark pieces that continue a word; if
    not, they mark those that begin one. None if pieces show nothing.
  """
  cutters = [*steps(rules.get("pre_tokenizer"))]
  normalizers = [*steps(rules.get("normalizer"))]
  types = {step.get("type") for step in cutters}
  if "ByteLevel" in types:
    return _byte_spaces(), False
  writes_mark = any(step.get("content") == METASPACE for step in normalizers)
  if "Metaspace" in types or writes_mark:
    return (METASPACE,), False
  prefix = rules["model"].get("continuing_subword_prefix")
  if model_type(rules) == "WordPiece":
    prefix = prefix or "##"
  return ((prefix,), True) if prefix else None


def _takes_space(rules: Mapping[str, Any]) -> bool:
  """Returns whether a text has other pieces if a space is before it.

  This is so if a piece contains the space before its word, and nothing puts a
  space in front of a text.
  """
  for step in steps(rules.get("pre_tokenizer")):
    if step.get("type") == "ByteLevel":
      return not step.get("add_prefix_space", True)
    if step.get("type") == "Metaspace":
      scheme = step.get("prepend_scheme")
      if scheme is None:  # files of older versions
        return not step.get("add_prefix_space", True)
      return scheme == "never"
  normalizers = [*steps(rules.get("normalizer"))]
  writes_mark = any(step.get("content") == METASPACE for step in normalizers)
  return writes_mark and not any(
    step.get("type") == "Prepend" for step in normalizers
  )
