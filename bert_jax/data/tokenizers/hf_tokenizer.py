"""Reads the tokenizer settings of a Hugging Face folder.

Every key that changes token ids is either applied, or refused with an error
that names the key and the accepted value. Keys that change nothing are listed
below; any other key is logged as unknown.

Files: tokenizer_config.json, tokenizer.json, special_tokens_map.json,
added_tokens.json, sentence_bert_config.json.

Where the slow and the fast tokenizer of transformers differ, this module
follows the fast one, which AutoTokenizer returns. There is one exception: a
special token that is spelled out in a text is read as text, as in the original
code.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import os
from typing import Any

from bert_jax.data import key_table
from bert_jax.data import templates
from bert_jax.data.tokenizers import added_tokens
from bert_jax.runtime import files

CONFIG = "tokenizer_config.json"
WHOLE = "tokenizer.json"
_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_SENTENCES = "sentence_bert_config.json"

_KEYS = key_table.KeyTable(
  only={
    "auto_map": (None, {}),
    "do_basic_tokenize": (None, True),
    "tokenize_chinese_chars": (None, True),
    "clean_text": (None, True),
    "split_special_tokens": (None, False),
    "wordpieces_prefix": (None, "##"),
    "padding_side": (None, "right"),
    "truncation_side": (None, "right"),
    # Keys of the Japanese tokenizer, which finds words in a dictionary.
    "do_word_tokenize": (None, True),
    "do_subword_tokenize": (None, True),
    "word_tokenizer_type": (None, "basic"),
    "subword_tokenizer_type": (None, "wordpiece"),
    "mecab_kwargs": (None, {}),
    "sudachi_kwargs": (None, {}),
    "jumanpp_kwargs": (None, {}),
    "spm_file": (None,),
  },
  read=frozenset({
    "do_lower_case", "strip_accents", "never_split", "model_max_length",
    "max_len", "model_input_names", "max_input_chars_per_word", "bos_token",
    "eos_token", "additional_special_tokens", "extra_special_tokens",
    "added_tokens_decoder",
  }),
  # Names, decoding, chat, and how calls pad and cut, which the caller decides.
  ignored=frozenset({
    "name_or_path", "_name_or_path", "special_tokens_map_file",
    "tokenizer_file", "vocab_file", "full_tokenizer_file", "init_inputs",
    "__slow_tokenizer", "clean_up_tokenization_spaces", "add_prefix_space",
    "add_special_tokens", "chat_template", "max_length", "stride", "truncation",
    "truncation_strategy", "padding", "pad_to_multiple_of", "pad_token_type_id",
    "pad_token_type", "return_tensors", "return_token_type_ids",
    "return_attention_mask", "use_fast", "trust_remote_code", "from_slow",
    "legacy", "verbose", "errors", "processor_class", "backend", "is_local",
    "local_files_only", "transformers_version", "tokenizer_version",
    "model_specific_special_tokens", "fix_mistral_regex", "cache_dir",
    "revision", "use_auth_token", "token", "unk_id", "device_map",
    "__version__", "pad_token_id", "unk_token_id", "cls_token_id",
    "sep_token_id", "mask_token_id", "bos_token_id", "eos_token_id",
    "vocab_size", "do_split_on_punc",
  }),
  effect="tokens",
  advice=". To use the model by those rules, write that into the file",
)  # fmt: skip
_SENTENCE_KEYS = key_table.KeyTable(
  only={},
  read=frozenset({"max_seq_length", "do_lower_case"}),
  ignored=frozenset(),
  effect="tokens",
)
_MODEL_INPUT = "token_type_ids"
# transformers writes a number this large if no length was set.
_NO_LENGTH = 10**9


@dataclasses.dataclass(frozen=True)
class Settings:
  """The tokenizer settings of a folder, checked.

  Attributes:
    lower_case: whether text is lower-cased; None = they do not say.
    max_input_chars_per_word: a longer word is [UNK]; None = they do not say.
    pieces: the vocabulary in tokenizer.json, by id; None = there is none.
    added: (id, token) of the tokens that were added; an id of None is the next
      free one. The five special tokens are not among them.
    seq_len: tokens of a sequence that the model is meant for, where that is
      said; it may be more than the model takes.
  """

  lower_case: bool | None = None
  max_input_chars_per_word: int | None = None
  pieces: tuple[str, ...] | None = None
  added: tuple[tuple[int | None, added_tokens.AddedToken], ...] = ()
  seq_len: int | None = None


def read(
  folder: str | os.PathLike[str],
  spec: templates.TokenizerSpec = templates.WORDPIECE,
) -> Settings:
  """Reads and checks what a folder says about its tokenizer.

  Args:
    folder: it need not hold any of the files.
    spec: what the family of the model says about its tokenizer.

  Raises:
    ValueError: names the file, the key and what would be accepted.
  """
  folder = os.fspath(folder)
  config = _read_json(folder, CONFIG)
  names = _read_json(folder, _MAP)
  whole = _read_json(folder, WHOLE)
  if "model" not in whole:
    whole = {}  # one of ours has the same name
  for file, found in ((CONFIG, config), (_MAP, names)):
    check_keys(os.path.join(folder, file), found, spec)
  path = os.path.join(folder, CONFIG)
  lower_case = config.get("do_lower_case")
  _check_words(path, config, lower_case, spec)
  limit = config.get("max_input_chars_per_word")
  if limit is not None and type(limit) is not int:
    raise ValueError(f"{path}: max_input_chars_per_word is {limit!r:.100}")
  pieces = None
  if whole:
    own = os.path.join(folder, WHOLE)
    pieces = _pieces_of(own, whole)
    theirs = _check_whole(own, whole, spec)
    lower_case = _agreed(own, "lowercase", lower_case, theirs["lowercase"])
    limit = _agreed(
      own, "max_input_chars_per_word", limit, theirs["max_input_chars_per_word"]
    )
  return Settings(
    lower_case=lower_case,
    max_input_chars_per_word=limit,
    pieces=pieces,
    added=tuple(_added_tokens(folder, config, names, whole, spec)),
    seq_len=_seq_len(folder, config, lower_case),
  )


def _read_json(folder: str, name: str) -> dict[str, Any]:
  """Reads a file that is one JSON object; returns {} if there is no file."""
  return files.read_json(os.path.join(folder, name), default={})


# --- settings ----------------------------------------------------------------


def keys_of(spec: templates.TokenizerSpec) -> key_table.KeyTable:
  """Returns the keys that tokenizer_config.json may have for a tokenizer."""
  special = {f"{k}_token": (None, v) for k, v in spec.special_tokens.items()}
  return _KEYS.extended({"tokenizer_class": (None, *spec.hf_classes)} | special)


def check_keys(
  path: str,
  config: Mapping[str, Any],
  spec: templates.TokenizerSpec = templates.WORDPIECE,
) -> None:
  """Refuses values that would change token ids, and logs unknown keys.

  Args:
    path: of the file, for messages.
    config: its content.
    spec: what the family of the model says about its tokenizer.
  """
  keys = keys_of(spec)
  try:
    keys.check(config)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  keys.warn(path, config)


def _check_words(
  path: str,
  config: Mapping[str, Any],
  lower_case: Any,
  spec: templates.TokenizerSpec,
) -> None:
  """Refuses settings that would split a text into different words."""
  if lower_case not in (None, True, False):
    raise ValueError(f"{path}: do_lower_case is {lower_case!r:.100}")
  strip = config.get("strip_accents")
  if strip is not None and strip != (lower_case is not False):
    raise ValueError(
      f"{path}: strip_accents={strip!r:.100} with do_lower_case={lower_case}; "
      "here accents go where capitals go. Set strip_accents to null to accept "
      "that"
    )
  kept = config.get("never_split")
  if kept and not set(map(str, kept)) <= set(spec.special_tokens.values()):
    raise ValueError(
      f"{path}: {_KEYS.refusal('never_split', kept, (None, []))}"
    )
  inputs = config.get("model_input_names")
  if inputs is not None and _MODEL_INPUT not in inputs:
    raise ValueError(
      f"{path}: model_input_names is {inputs!r:.100}, without {_MODEL_INPUT}, "
      "so that both texts of a pair would have the same type; here they have "
      f"types 0 and 1. Add {_MODEL_INPUT} to accept that"
    )


def _agreed(path: str, key: str, said: Any, theirs: Any) -> Any:
  """Returns the value that one or both files give; both must agree."""
  if said is not None and theirs is not None and said != theirs:
    raise ValueError(
      f"{path} has {key}={theirs}, but {CONFIG} beside it says {said}; "
      "correct one of them"
    )
  return theirs if said is None else said


def _seq_len(
  folder: str, config: Mapping[str, Any], lower_case: bool | None
) -> int | None:
  """Returns the length in tokens that the model is meant for; None = not set.

  sentence-transformers' setting comes first: its models are trained with it.
  """
  path = os.path.join(folder, _SENTENCES)
  sentences = _read_json(folder, _SENTENCES)
  _SENTENCE_KEYS.warn(path, sentences)
  if sentences.get("do_lower_case") and lower_case is False:
    raise ValueError(
      f"{path}: do_lower_case is true, but the tokenizer keeps capitals; here "
      "only the tokenizer decides. Set it to false to accept that"
    )
  key = "model_max_length" if "model_max_length" in config else "max_len"
  for file, name, found in (
    (path, "max_seq_length", sentences),
    (os.path.join(folder, CONFIG), key, config),
  ):
    value = found.get(name)
    if value is None:
      continue
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(f"{file}: {name} is {value!r:.100}; wanted a number")
    if value < 3:
      raise ValueError(
        f"{file}: {name} is {value}, which leaves no room for text beside "
        "[CLS] and [SEP]"
      )
    if value < _NO_LENGTH:
      return int(value)
  return None


# --- tokenizer.json ----------------------------------------------------------


def _pieces_of(path: str, whole: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Returns the pieces in tokenizer.json by id; None if it has none."""
  model = whole["model"]
  kind = model.get("type", "WordPiece") if isinstance(model, dict) else model
  if kind != "WordPiece":
    raise ValueError(f"{path}: a {kind!s:.60} vocabulary; WordPiece was wanted")
  if "vocab" not in model:
    return None
  ids = model["vocab"]
  if not isinstance(ids, dict):
    raise ValueError(f"{path}: model.vocab is not an object of pieces and ids")
  if sorted(ids.values()) != list(range(len(ids))):
    raise ValueError(f"{path}: the ids of its vocabulary are not 0, 1, 2, ..")
  return tuple(sorted(ids, key=ids.__getitem__))


def _template(
  spec: templates.TokenizerSpec, is_pair: bool
) -> list[dict[str, Any]]:
  """Returns the template of a sequence in the form of tokenizer.json."""
  return [
    {"Sequence": {"id": name, "type_id": type_id}}
    if name in templates.TEXTS
    else {"SpecialToken": {"id": spec.special_tokens[name], "type_id": type_id}}
    for name, type_id in spec.template.parts(is_pair)
  ]


def _check_whole(
  path: str, whole: Mapping[str, Any], spec: templates.TokenizerSpec
) -> dict[str, Any]:
  """Refuses a tokenizer.json whose rules differ from those of a spec.

  A part that is missing is not checked, because some files hold a vocabulary
  only. A part that is null means that there is no such step.

  Returns:
    lowercase and max_input_chars_per_word, None where they are not said.
  """
  model = whole["model"]
  limit = model.get("max_input_chars_per_word")
  if limit is not None and type(limit) is not int:
    raise ValueError(
      f"{path}: model.max_input_chars_per_word is {limit!r:.100}"
    )
  lowercase = (whole.get("normalizer") or {}).get("lowercase")
  # Part -> key -> (what stands where the key is missing, what is accepted).
  unk = spec.special_tokens["unk"]
  rules: dict[str, dict[str, tuple[Any, ...]]] = {
    "model": {
      "unk_token": (unk, unk),
      "continuing_subword_prefix": ("##", "##"),
    },
    "normalizer": {
      "type": (None, "BertNormalizer"),
      "clean_text": (True, True),
      "handle_chinese_chars": (True, True),
      "lowercase": (None, None, True, False),
      "strip_accents": (None, None, lowercase is not False),
    },
    "pre_tokenizer": {"type": (None, "BertPreTokenizer")},
    "post_processor": _post_processor_rules(whole, spec),
  }
  for part, keys in rules.items():
    if part in whole:
      values = whole[part] or {}
      for key, (default, *accepted) in keys.items():
        _check_rule(path, f"{part}.{key}", values.get(key, default), accepted)
  for part in ("truncation", "padding"):
    side = (whole.get(part) or {}).get("direction", "Right")
    _check_rule(path, f"{part}.direction", side, ["Right"])
  return {"lowercase": lowercase, "max_input_chars_per_word": limit}


def _post_processor_rules(
  whole: Mapping[str, Any], spec: templates.TokenizerSpec
) -> dict[str, tuple[Any, ...]]:
  """Returns the accepted values of the part that adds special tokens."""
  rules: dict[str, tuple[Any, ...]] = {
    "type": (None, "TemplateProcessing", "BertProcessing")
  }
  kind = (whole.get("post_processor") or {}).get("type")
  if kind == "TemplateProcessing":
    rules["single"] = (None, _template(spec, is_pair=False))
    rules["pair"] = (None, _template(spec, is_pair=True))
  elif kind == "BertProcessing":
    rules |= {
      name: (None, spec.special_tokens[name]) for name in ("cls", "sep")
    }
  return rules


def _check_rule(path: str, key: str, value: Any, accepted: list[Any]) -> None:
  if key in ("post_processor.cls", "post_processor.sep"):
    value = list(value or [None])[0]  # a token and its id
  if value not in accepted:
    raise ValueError(f"{path}: {_KEYS.refusal(key, value, tuple(accepted))}")


# --- added tokens ------------------------------------------------------------


class _Collected:
  """Collects added tokens from several files, which must agree."""

  def __init__(self, spec: templates.TokenizerSpec):
    self._own = set(spec.special_tokens.values())
    self._found: dict[str, tuple[int | None, added_tokens.AddedToken, str]] = {}

  def add(
    self, path: str, id: Any, value: Any, defaults: Mapping[str, Any]
  ) -> None:
    """Adds one token; if it is known already, its first flags stay.

    Args:
      path: of the file that names it.
      id: None = the file does not say.
      value: text, or an object with the fields of AddedToken.
      defaults: fields that a mere text has.
    """
    fields = {"content": value} | dict(defaults)
    if isinstance(value, dict):
      names = {f.name for f in dataclasses.fields(added_tokens.AddedToken)}
      fields = dict(defaults) | {k: v for k, v in value.items() if k in names}
    if not isinstance(fields.get("content"), str):
      raise ValueError(f"{path}: {value!r:.100} is no added token")
    if id is not None and (type(id) is not int or id < 0):
      raise ValueError(
        f"{path}: the added token {fields['content']!r:.60} has id {id!r:.60}; "
        "wanted a number of 0 or more"
      )
    try:
      token = added_tokens.AddedToken(**fields)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
    old_id, old, old_path = self._found.get(token.content, (id, token, path))
    if id is not None and old_id is not None and id != old_id:
      raise ValueError(
        f"{path} gives the added token {token.content!r:.60} the id {id}, "
        f"{old_path} the id {old_id}; correct one of them"
      )
    if (
      id is not None
      and isinstance(value, dict)
      and (
        (old.single_word, old.normalized)
        != (token.single_word, token.normalized)
      )
    ):
      raise ValueError(
        f"{path} and {old_path} give the added token {token.content!r:.60} "
        "other flags (single_word, normalized); correct one of them"
      )
    self._found[token.content] = (
      id if old_id is None else old_id, old, old_path
    )  # fmt: skip

  def tokens(self) -> Iterator[tuple[int | None, added_tokens.AddedToken]]:
    """Yields the tokens by id, then those without one; no special tokens."""
    rows = [
      (id, token)
      for id, token, _ in self._found.values()
      if token.content not in self._own
    ]
    placed = [(id, token) for id, token in rows if id is not None]
    yield from sorted(placed, key=lambda row: row[0])
    yield from (row for row in rows if row[0] is None)


def _added_tokens(
  folder: str,
  config: Mapping[str, Any],
  names: Mapping[str, Any],
  whole: Mapping[str, Any],
  spec: templates.TokenizerSpec,
) -> Iterator[tuple[int | None, added_tokens.AddedToken]]:
  """Yields the tokens that the files of a folder add to the vocabulary."""
  of_config = os.path.join(folder, CONFIG)
  of_names = os.path.join(folder, _MAP)
  of_added = os.path.join(folder, _ADDED)
  special = {"special": True, "normalized": False}
  found = _Collected(spec)
  of_whole = os.path.join(folder, WHOLE)
  for token in _list(of_whole, whole, "added_tokens"):
    if not isinstance(token, dict):
      raise ValueError(f"{of_whole}: added_tokens has {token!r:.100}")
    found.add(of_whole, token.get("id"), token, {})
  decoder = config.get("added_tokens_decoder") or {}
  if not isinstance(decoder, dict):
    raise ValueError(f"{of_config}: added_tokens_decoder is not an object")
  for id, token in decoder.items():
    if not id.isdecimal():
      raise ValueError(f"{of_config}: added_tokens_decoder has id {id!r:.60}")
    found.add(of_config, int(id), token, {})
  marks = [
    (path, token)
    for path, values in ((of_config, config), (of_names, names))
    for token in _marks(path, values)
  ]
  contents = {
    token.get("content") if isinstance(token, dict) else token
    for _, token in marks
  }
  for content, id in _read_json(folder, _ADDED).items():
    is_special = content in contents
    found.add(
      of_added, id, content,
      {"special": is_special, "normalized": not is_special},
    )  # fmt: skip
  for path, token in marks:
    found.add(path, None, token, special)
  return found.tokens()


def _marks(path: str, values: Mapping[str, Any]) -> Iterator[Any]:
  """Yields further special tokens, in the order in which they are added."""
  for key in ("bos_token", "eos_token"):
    if values.get(key) is not None:
      yield values[key]
  yield from _list(path, values, "additional_special_tokens")
  extra = values.get("extra_special_tokens") or []
  yield from extra.values() if isinstance(extra, dict) else extra


def _list(path: str, values: Mapping[str, Any], key: str) -> list[Any]:
  found = values.get(key) or []
  if not isinstance(found, list):
    raise ValueError(f"{path}: {key} is {found!r:.100}; wanted a list")
  return found
