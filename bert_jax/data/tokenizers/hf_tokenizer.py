"""Reads and writes a WordPiece tokenizer in a Hugging Face folder.

Every key that changes token ids is either applied, or refused with an error
that names the key and the accepted value. Keys that change nothing are listed
below; any other key is logged as unknown.

Files: tokenizer_config.json, tokenizer.json, special_tokens_map.json,
added_tokens.json, sentence_bert_config.json.

Where the slow and the fast tokenizer of transformers differ, this module
follows the fast one, which AutoTokenizer returns. There is one exception: the
spelling of a special token in a text is read as text, as in the original code.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import os
from typing import Any

from bert_jax.data import key_table
from bert_jax.data import templates
from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.runtime import files

CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_SENTENCES = "sentence_bert_config.json"

# Names, decoding, chat, and the padding and truncation that a caller chooses.
IGNORED = frozenset({
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
})  # fmt: skip
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
  ignored=IGNORED,
  effect="tokens",
  advice=". To use the model by those rules, write that value into the file",
)  # fmt: skip
_SENTENCE_KEYS = key_table.KeyTable(
  only={},
  read=frozenset({"max_seq_length", "do_lower_case"}),
  ignored=frozenset(),
  effect="tokens",
)
_MODEL_INPUT = "token_type_ids"
# transformers writes a length of this size or more if no length is set.
_NO_LENGTH = 10**9


@dataclasses.dataclass(frozen=True)
class Settings:
  """The tokenizer settings of a folder, checked.

  Attributes:
    lower_case: whether text is lower-cased; None if the folder does not say it.
    strip_accents: whether text loses its accents; None = as `lower_case`.
    max_input_chars_per_word: the longest word that is not [UNK], in characters;
      None if the folder does not say it.
    pieces: the vocabulary in tokenizer.json, by id; None if it has none.
    added: (id, token) of each added token; an id of None means the next free
      one. The five special tokens are not included.
    seq_len: the length of sequences that the model is meant for, in tokens,
      which may be more than the model takes; None if the folder does not say
      it.
  """

  lower_case: bool | None = None
  strip_accents: bool | None = None
  max_input_chars_per_word: int | None = None
  pieces: tuple[str, ...] | None = None
  added: tuple[tuple[int | None, added_tokens.AddedToken], ...] = ()
  seq_len: int | None = None


def read(
  folder: str | os.PathLike[str],
  spec: templates.TokenizerSpec = templates.WORDPIECE,
) -> Settings:
  """Reads and checks the tokenizer settings of a folder.

  Args:
    folder: the folder, which may lack any of the files.
    spec: the tokenizer of the model's family.

  Raises:
    ValueError: a file has a value that is not accepted; the message names the
      file, the key and the accepted values.
  """
  folder = os.fspath(folder)
  config = _read_json(folder, CONFIG)
  names = _read_json(folder, MAP)
  whole = whole_of(folder)
  path = os.path.join(folder, CONFIG)
  for file, content in ((path, config), (os.path.join(folder, MAP), names)):
    check_keys(file, content, spec)
  _check_words(path, config, spec)
  said: dict[str, Any] = {
    "lower_case": config.get("do_lower_case"),
    "strip_accents": config.get("strip_accents"),
    "max_input_chars_per_word": _checked_limit(path, config),
  }
  pieces = None
  if whole:
    file = os.path.join(folder, interface.SETTINGS_FILE)
    pieces = _pieces_of(file, whole)
    rules = _check_whole(file, whole, spec, said["strip_accents"])
    remedy = f"correct its normalizer.lowercase and model, or {CONFIG}"
    said = agreed(said, rules, file, remedy)
  return Settings(
    **said,
    pieces=pieces,
    added=added_tokens_of(folder, config, names, whole, spec.special_tokens),
    seq_len=seq_len_of(folder, config, said.get("lower_case")),
  )


def _read_json(folder: str, name: str) -> dict[str, Any]:
  """Reads a JSON object; returns {} if the file does not exist."""
  return files.read_json(os.path.join(folder, name), default={})


@functools.lru_cache(maxsize=1)
def _read_large_json(path: str, stamps: tuple[int, ...]) -> dict[str, Any]:
  """Reads a JSON object again only if the file has changed."""
  del stamps  # a part of the key
  return files.read_json(path)


def whole_of(folder: str) -> dict[str, Any]:
  """Returns the content of tokenizer.json; {} if it does not hold the rules.

  It is asked several times while a folder is read, and must not be changed.
  """
  path = os.path.join(folder, interface.SETTINGS_FILE)
  if not files.exists(path):
    return {}
  whole = _read_large_json(path, tuple(files.stamps(path)))
  # `Tokenizer.save` writes another file of this name.
  return whole if "model" in whole else {}


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
    spec: the tokenizer of the model's family.
  """
  keys_of(spec).check_file(path, config)


def _checked_limit(path: str, values: Mapping[str, Any]) -> int | None:
  """Returns max_input_chars_per_word; None if it is not set.

  Raises:
    ValueError: it is not a whole number.
  """
  limit = values.get("max_input_chars_per_word")
  if limit is not None and type(limit) is not int:
    raise ValueError(
      f"{path}: max_input_chars_per_word is {limit!r:.100}; wanted a number"
    )
  return limit


def _check_words(
  path: str, config: Mapping[str, Any], spec: templates.TokenizerSpec
) -> None:
  """Refuses settings that would split a text into different words."""
  lower_case = config.get("do_lower_case")
  if lower_case not in (None, True, False):
    raise ValueError(
      f"{path}: do_lower_case is {lower_case!r:.100}; wanted true or false"
    )
  strip = config.get("strip_accents")
  if strip not in (None, True, False):
    raise ValueError(
      f"{path}: strip_accents is {strip!r:.100}; wanted true, false or null"
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
      "so that both texts of a pair would have the same type; in this program "
      f"they have types 0 and 1. Add {_MODEL_INPUT} to accept that"
    )


def agreed(
  asked: Mapping[str, Any], said: Mapping[str, Any], source: str, remedy: str
) -> dict[str, Any]:
  """Returns the settings that at least one of two sources gives.

  Args:
    asked: the settings of the first source; None means not given.
    said: the settings of the second; None or a missing key means not given.
    source: the name of the second source in errors.
    remedy: what errors advise.

  Raises:
    ValueError: both sources give a setting, and the values differ.
  """
  values = {}
  for name, value in asked.items():
    other = said.get(name)
    if None not in (value, other) and value != other:
      raise ValueError(
        f"{name}={value}, but {source} has {name}={other}; {remedy}"
      )
    values[name] = other if value is None else value
  return {name: value for name, value in values.items() if value is not None}


def seq_len_of(
  folder: str, config: Mapping[str, Any], lower_case: bool | None
) -> int | None:
  """Returns the length in tokens that the model is meant for; None if not set.

  The setting of sentence-transformers has priority, because its models are
  trained with it.
  """
  path = os.path.join(folder, _SENTENCES)
  sentences = _read_json(folder, _SENTENCES)
  _SENTENCE_KEYS.warn(path, sentences)
  if sentences.get("do_lower_case") and lower_case is False:
    raise ValueError(
      f"{path}: do_lower_case is true, but the tokenizer keeps capitals; in "
      "this program only the tokenizer decides. Set it to false to accept that"
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
        "[CLS] and [SEP]; wanted 3 or more"
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
    raise ValueError(
      f"{path}: its vocabulary is of the type {kind!s:.60}; a model with "
      "the tokenizer of BERT wants WordPiece. Name the class of its tokenizer "
      "in tokenizer_config.json, or put the tokenizer.json of the model there"
    )
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
  """Returns the template of a sequence as tokenizer.json writes it."""
  return [
    {"Sequence": {"id": name, "type_id": type_id}}
    if name in templates.TEXTS
    else {"SpecialToken": {"id": spec.special_tokens[name], "type_id": type_id}}
    for name, type_id in interface.Tokenizer.template.parts(is_pair)
  ]


def _check_whole(
  path: str,
  whole: Mapping[str, Any],
  spec: templates.TokenizerSpec,
  strip: bool | None,
) -> dict[str, Any]:
  """Refuses a tokenizer.json whose rules differ from those of a spec.

  A missing part is not checked, because some files hold only a vocabulary. A
  part that is null means that the tokenizer has no such step.

  Args:
    path: tokenizer.json, for errors.
    whole: its content.
    spec: the tokenizer of the model's family.
    strip: strip_accents of tokenizer_config.json, which transformers puts in
      the place of the normalizer's.

  Returns:
    lower_case and max_input_chars_per_word; None if the file does not say it.
  """
  limit = _checked_limit(f"{path}: model", whole["model"])
  lowercase = (whole.get("normalizer") or {}).get("lowercase")
  # Part -> key -> (the value of a missing key, *accepted values).
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
      "strip_accents": (None, None, lowercase is not False)
      if strip is None
      else (None, None, strip),
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
  return {"lower_case": lowercase, "max_input_chars_per_word": limit}


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


def added_tokens_of(
  folder: str,
  config: Mapping[str, Any],
  names: Mapping[str, Any],
  whole: Mapping[str, Any],
  special_tokens: Mapping[str, str],
) -> tuple[tuple[int | None, added_tokens.AddedToken], ...]:
  """Returns the tokens that the files of a folder add to the vocabulary.

  Args:
    folder: the folder, for the paths of its files.
    config: the content of tokenizer_config.json.
    names: the content of special_tokens_map.json.
    whole: the content of tokenizer.json.
    special_tokens: role -> the special tokens to leave out.

  Returns:
    (id, token) in the order of the ids; tokens without an id come last.

  Raises:
    ValueError: a token is damaged, or the files contradict each other.
  """
  found: dict[str, tuple[int | None, added_tokens.AddedToken, str]] = {}
  for path, id, value, special in _mentions(folder, config, names, whole):
    token = _added_token(path, id, value, special)
    # If several files name a token, the flags of the first one count.
    old_id, old, old_path = found.get(token.content, (id, token, path))
    if None not in (id, old_id) and id != old_id:
      raise ValueError(
        f"{path} gives the added token {token.content!r:.60} the id {id}, "
        f"{old_path} the id {old_id}; correct one of them"
      )
    flags = [(t.single_word, t.normalized) for t in (old, token)]
    if id is not None and isinstance(value, dict) and flags[0] != flags[1]:
      raise ValueError(
        f"{path} and {old_path} give the added token {token.content!r:.60} "
        "other flags (single_word, normalized); correct one of them"
      )
    old_id = id if old_id is None else old_id
    found[token.content] = old_id, old, old_path
  left_out = special_tokens.values()
  rows = [
    (id, token)
    for id, token, _ in found.values()
    if token.content not in left_out
  ]
  return tuple(
    sorted(rows, key=lambda row: math.inf if row[0] is None else row[0])
  )


def _added_token(
  path: str, id: Any, value: Any, special: bool
) -> added_tokens.AddedToken:
  """Returns one added token, checked; the arguments are as in `_mentions`."""
  fields: dict[str, Any] = {"special": special, "normalized": not special}
  if isinstance(value, dict):
    names = {f.name for f in dataclasses.fields(added_tokens.AddedToken)}
    fields |= {k: v for k, v in value.items() if k in names}
  else:
    fields["content"] = value
  if not isinstance(fields.get("content"), str):
    raise ValueError(f"{path}: {value!r:.100} is not an added token")
  if id is not None and (type(id) is not int or id < 0):
    raise ValueError(
      f"{path}: the added token {fields['content']!r:.60} has id {id!r:.60}; "
      "wanted a number of 0 or more"
    )
  try:
    return added_tokens.AddedToken(**fields)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def _mentions(
  folder: str,
  config: Mapping[str, Any],
  names: Mapping[str, Any],
  whole: Mapping[str, Any],
) -> Iterator[tuple[str, Any, Any, bool]]:
  """Yields every mention of an added token in the files of a folder.

  Yields:
    The path of the file; the id, or None if the file does not say it; a text,
    or an object with fields of AddedToken; whether a text is a special token.
  """
  path = os.path.join(folder, interface.SETTINGS_FILE)
  for token in _list(path, whole, "added_tokens"):
    if not isinstance(token, dict):
      raise ValueError(
        f"{path}: added_tokens has {token!r:.100}, not an object"
      )
    yield path, token.get("id"), token, False
  path = os.path.join(folder, CONFIG)
  decoder = config.get("added_tokens_decoder") or {}
  if not isinstance(decoder, dict):
    raise ValueError(f"{path}: added_tokens_decoder is not an object")
  for id, token in decoder.items():
    if not id.isdecimal():
      raise ValueError(f"{path}: added_tokens_decoder has id {id!r:.60}")
    yield path, int(id), token, False
  marks = [
    (path, token)
    for path, values in ((path, config), (os.path.join(folder, MAP), names))
    for token in _marks(path, values)
  ]
  contents = {
    token.get("content") if isinstance(token, dict) else token
    for _, token in marks
  }
  for content, id in _read_json(folder, _ADDED).items():
    yield os.path.join(folder, _ADDED), id, content, content in contents
  for path, token in marks:
    yield path, None, token, True


def _marks(path: str, values: Mapping[str, Any]) -> Iterator[Any]:
  """Yields other special tokens, in the order in which they are added."""
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


# --- writing -----------------------------------------------------------------


def write(
  tokenizer: wordpiece.WordPieceTokenizer,
  folder: str,
  spec: templates.TokenizerSpec,
  max_len: int,
) -> None:
  """Writes vocab.txt, tokenizer_config.json and the files of added tokens.

  Args:
    tokenizer: the tokenizer to write.
    folder: the folder to write into, which exists.
    spec: describes the tokenizer of the model's family.
    max_len: the most tokens that the model takes.
  """
  tokenizer.write_vocabulary(os.path.join(folder, "vocab.txt"))
  config: dict[str, Any] = {
    "tokenizer_class": spec.hf_class,
    "do_lower_case": tokenizer.lower_case,
    "strip_accents": (
      None
      if tokenizer.strip_accents == tokenizer.lower_case
      else tokenizer.strip_accents
    ),
    "tokenize_chinese_chars": True,
    "model_max_length": max_len,
    "max_input_chars_per_word": tokenizer.max_input_chars_per_word,
  }
  if tokenizer.added:
    ids = tokenizer.added_ids
    marks = [t.content for t in tokenizer.added if t.special]
    tokens = {
      tokenizer.id(name): added_tokens.AddedToken(
        name, normalized=False, special=True
      )
      for name in spec.special_tokens.values()
    } | {i: token for token, i in ids.items()}
    config["added_tokens_decoder"] = {
      str(i): dataclasses.asdict(tokens[i]) for i in sorted(tokens)
    }
    config["additional_special_tokens"] = marks
    # Versions of transformers before 4.34 read these two files.
    by_content = {token.content: i for token, i in ids.items()}
    write_json(os.path.join(folder, _ADDED), by_content)
    names = {f"{k}_token": v for k, v in spec.special_tokens.items()}
    write_json(
      os.path.join(folder, MAP),
      names | {"additional_special_tokens": marks},
    )
  write_json(os.path.join(folder, CONFIG), config)


def write_json(path: str, value: Any) -> None:
  """Writes a file as transformers does, with sorted keys."""
  files.write_json(path, value, indent=2, sort_keys=True, ensure_ascii=False)
