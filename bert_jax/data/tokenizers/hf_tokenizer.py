"""What a Hugging Face folder says about its tokenizer.

Every key that changes ids is honoured, or refused with its name and the value
that would be accepted. Keys that change nothing are listed; of any other key a
warning says that it was not read.

Files: tokenizer_config.json, tokenizer.json, special_tokens_map.json,
added_tokens.json, sentence_bert_config.json.

Where transformers' two tokenizers differ, the fast one is followed, which its
AutoTokenizer gives. One thing differs from the fast tokenizer: where a text
spells one of BERT's five special tokens, it is read as text, as the original
does.
"""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import json
import logging
import os
from typing import Any

from bert_jax.data.tokenizers import added_tokens

_log = logging.getLogger(__name__)

SPECIAL_TOKENS = {
  "pad_token": "[PAD]",
  "unk_token": "[UNK]",
  "cls_token": "[CLS]",
  "sep_token": "[SEP]",
  "mask_token": "[MASK]",
}
CONFIG = "tokenizer_config.json"
WHOLE = "tokenizer.json"
_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_SENTENCES = "sentence_bert_config.json"

# Classes that tokenise as BERT does and give a pair two token types.
CLASSES = tuple(
  name + speed
  for name in ("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
  for speed in ("", "Fast")
) + ("PreTrainedTokenizerFast",)

# Key -> the values that are accepted; any other is refused by name. `None` is
# how these files say that a key is not set.
_ONLY: dict[str, tuple[Any, ...]] = {
  "tokenizer_class": (None, *CLASSES),
  "auto_map": (None, {}),
  "do_basic_tokenize": (None, True),
  "tokenize_chinese_chars": (None, True),
  "clean_text": (None, True),
  "split_special_tokens": (None, False),
  "wordpieces_prefix": (None, "##"),
  "padding_side": (None, "right"),
  "truncation_side": (None, "right"),
  # Of the Japanese tokenizer, which cuts words by a dictionary.
  "do_word_tokenize": (None, True),
  "do_subword_tokenize": (None, True),
  "word_tokenizer_type": (None, "basic"),
  "subword_tokenizer_type": (None, "wordpiece"),
  "mecab_kwargs": (None, {}),
  "sudachi_kwargs": (None, {}),
  "jumanpp_kwargs": (None, {}),
  "spm_file": (None,),
} | {key: (None, name) for key, name in SPECIAL_TOKENS.items()}
# Read below.
_READ = frozenset({
  "do_lower_case", "strip_accents", "never_split", "model_max_length",
  "max_len", "model_input_names", "max_input_chars_per_word", "bos_token",
  "eos_token", "additional_special_tokens", "extra_special_tokens",
  "added_tokens_decoder",
})  # fmt: skip
# They change no id: names, decoding, chat, and how calls pad and cut, which is
# decided by the caller.
_WITHOUT_EFFECT = frozenset({
  "name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file",
  "vocab_file", "full_tokenizer_file", "init_inputs", "__slow_tokenizer",
  "clean_up_tokenization_spaces", "add_prefix_space", "add_special_tokens",
  "chat_template", "max_length", "stride", "truncation", "truncation_strategy",
  "padding", "pad_to_multiple_of", "pad_token_type_id", "pad_token_type",
  "return_tensors", "return_token_type_ids", "return_attention_mask",
  "use_fast", "trust_remote_code", "from_slow", "legacy", "verbose", "errors",
  "processor_class", "backend", "is_local", "local_files_only",
  "transformers_version", "tokenizer_version", "model_specific_special_tokens",
  "fix_mistral_regex", "cache_dir", "revision", "use_auth_token", "token",
  "unk_id", "device_map", "__version__", "pad_token_id", "unk_token_id",
  "cls_token_id", "sep_token_id", "mask_token_id", "bos_token_id",
  "eos_token_id", "vocab_size", "do_split_on_punc",
})  # fmt: skip
_MODEL_INPUT = "token_type_ids"
# A number so large means that no length was set.
_NO_LENGTH = 10**9


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the files of a folder say, all checked.

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


def read(folder: str | os.PathLike[str]) -> Settings:
  """Reads and checks what a folder says about its tokenizer.

  Args:
    folder: it need not hold any of the files.

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
    check_keys(os.path.join(folder, file), found)
  path = os.path.join(folder, CONFIG)
  lower_case = config.get("do_lower_case")
  _check_words(path, config, lower_case)
  limit = config.get("max_input_chars_per_word")
  if limit is not None and type(limit) is not int:
    raise ValueError(f"{path}: max_input_chars_per_word is {limit!r:.100}")
  pieces = None
  if whole:
    own = os.path.join(folder, WHOLE)
    pieces = _pieces_of(own, whole)
    theirs = _check_whole(own, whole)
    lower_case = _agreed(own, "lowercase", lower_case, theirs["lowercase"])
    limit = _agreed(
      own, "max_input_chars_per_word", limit, theirs["max_input_chars_per_word"]
    )
  return Settings(
    lower_case=lower_case,
    max_input_chars_per_word=limit,
    pieces=pieces,
    added=tuple(_added_tokens(folder, config, names, whole)),
    seq_len=_seq_len(folder, config, lower_case),
  )


def _read_json(folder: str, name: str) -> dict[str, Any]:
  """A file that is one JSON object; {} where there is none."""
  path = os.path.join(folder, name)
  if not os.path.exists(path):
    return {}
  try:
    with open(path, encoding="utf-8") as f:
      value = json.load(f)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} is not a JSON object")
  return value


# --- settings ----------------------------------------------------------------


def check_keys(path: str, config: Mapping[str, Any]) -> None:
  """Refuses values that change ids, and warns of keys that are not known.

  Args:
    path: of the file, for messages.
    config: its content.
  """
  for key, accepted in _ONLY.items():
    value = config.get(key)
    if isinstance(value, dict) and "content" in value:
      value = value["content"]
    if value not in accepted:
      raise ValueError(_refusal(path, key, value, accepted))
  _warn_of(path, config.keys() - _ONLY.keys() - _READ - _WITHOUT_EFFECT)


def _warn_of(path: str, unknown: Collection[str]) -> None:
  """Logs the keys of a file that are not known here, if there are any."""
  if unknown:
    _log.warning(
      "%s has keys that are not known here and were not read: %s; check that "
      "they change no token",
      path, ", ".join(sorted(map(str, unknown))),
    )  # fmt: skip


def _refusal(path: str, key: str, value: Any, accepted: tuple[Any, ...]) -> str:
  wanted = ", ".join(json.dumps(x) for x in accepted if x is not None)
  remedy = (
    f"it accepts {wanted}. To use the model by those rules, write that into "
    "the file"
    if wanted
    else "remove the key to use the model without it"
  )
  return (
    f"{path}: {key} is {value!r:.100}, which gives other tokens than this "
    f"program can make; {remedy}"
  )


def _check_words(path: str, config: Mapping[str, Any], lower_case: Any) -> None:
  """Refuses settings that cut a text into other words."""
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
  if kept and not set(map(str, kept)) <= set(SPECIAL_TOKENS.values()):
    raise ValueError(_refusal(path, "never_split", kept, (None, [])))
  inputs = config.get("model_input_names")
  if inputs is not None and _MODEL_INPUT not in inputs:
    raise ValueError(
      f"{path}: model_input_names is {inputs!r:.100}, without {_MODEL_INPUT}, "
      "so that both texts of a pair would have the same type; here they have "
      f"types 0 and 1. Add {_MODEL_INPUT} to accept that"
    )


def _agreed(path: str, key: str, said: Any, theirs: Any) -> Any:
  """One of two values that must be equal where both are given."""
  if said is not None and theirs is not None and said != theirs:
    raise ValueError(
      f"{path} has {key}={theirs}, but {CONFIG} beside it says {said}; "
      "correct one of them"
    )
  return theirs if said is None else said


def _seq_len(
  folder: str, config: Mapping[str, Any], lower_case: bool | None
) -> int | None:
  """The length that the model is meant for.

  That of sentence-transformers comes first: its models are trained at it.
  """
  path = os.path.join(folder, _SENTENCES)
  sentences = _read_json(folder, _SENTENCES)
  _warn_of(path, sentences.keys() - {"max_seq_length", "do_lower_case"})
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
  """The pieces in tokenizer.json, by id; None where it has none."""
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


def _template(types: tuple[int, ...]) -> list[dict[str, Any]]:
  """[CLS] A [SEP], or [CLS] A [SEP] B [SEP], as tokenizer.json writes it."""
  names = ("[CLS]", "A", "[SEP]", "B", "[SEP]")
  return [
    {
      "Sequence" if name in "AB" else "SpecialToken": {
        "id": name, "type_id": type_id
      }
    }
    for name, type_id in zip(names, types, strict=False)
  ]  # fmt: skip


def _check_whole(path: str, whole: Mapping[str, Any]) -> dict[str, Any]:
  """Refuses a tokenizer.json whose rules are not BERT's.

  A file without one of the parts says nothing about it, as some that only
  carry a vocabulary do; where a part is null there is no such step.

  Returns:
    lowercase and max_input_chars_per_word, None where they are not said.
  """
  model = whole["model"]
  checks: list[tuple[str, Any, tuple[Any, ...]]] = [
    ("model.unk_token", model.get("unk_token", "[UNK]"), ("[UNK]",)),
    (
      "model.continuing_subword_prefix",
      model.get("continuing_subword_prefix", "##"),
      ("##",),
    ),
  ]
  limit = model.get("max_input_chars_per_word")
  if limit is not None and type(limit) is not int:
    raise ValueError(
      f"{path}: model.max_input_chars_per_word is {limit!r:.100}"
    )
  lowercase = None
  if "normalizer" in whole:
    normal = whole["normalizer"] or {}
    lowercase = normal.get("lowercase")
    checks += [
      ("normalizer.type", normal.get("type"), ("BertNormalizer",)),
      ("normalizer.clean_text", normal.get("clean_text", True), (True,)),
      (
        "normalizer.handle_chinese_chars",
        normal.get("handle_chinese_chars", True),
        (True,),
      ),
      ("normalizer.lowercase", lowercase, (None, True, False)),
      (
        "normalizer.strip_accents",
        normal.get("strip_accents"),
        (None, lowercase is not False),
      ),
    ]
  if "pre_tokenizer" in whole:
    words = whole["pre_tokenizer"] or {}
    checks.append(("pre_tokenizer.type", words.get("type"),
                   ("BertPreTokenizer",)))  # fmt: skip
  if "post_processor" in whole:
    after = whole["post_processor"] or {}
    kind = after.get("type")
    checks.append(
      ("post_processor.type", kind, ("TemplateProcessing", "BertProcessing"))
    )
    if kind == "TemplateProcessing":
      checks += [
        ("post_processor.single", after.get("single"), (_template((0,) * 3),)),
        (
          "post_processor.pair",
          after.get("pair"),
          (_template((0, 0, 0, 1, 1)),),
        ),
      ]
    elif kind == "BertProcessing":
      checks += [
        (f"post_processor.{name}", list(after.get(name) or [None])[0], (token,))
        for name, token in (("cls", "[CLS]"), ("sep", "[SEP]"))
      ]
  for part in ("truncation", "padding"):
    side = (whole.get(part) or {}).get("direction", "Right")
    checks.append((f"{part}.direction", side, ("Right",)))
  for key, value, accepted in checks:
    if value not in accepted:
      raise ValueError(_refusal(path, key, value, accepted))
  return {"lowercase": lowercase, "max_input_chars_per_word": limit}


# --- added tokens ------------------------------------------------------------


class _Collected:
  """Added tokens by content, from several files that must agree."""

  def __init__(self):
    self._found: dict[str, tuple[int | None, added_tokens.AddedToken, str]] = {}

  def add(
    self, path: str, id: Any, value: Any, defaults: Mapping[str, Any]
  ) -> None:
    """Takes one token; what is known of it already stays.

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
    """Yields all but BERT's five: by id, then those without one in order."""
    rows = [
      (id, token)
      for id, token, _ in self._found.values()
      if token.content not in SPECIAL_TOKENS.values()
    ]
    placed = [(id, token) for id, token in rows if id is not None]
    yield from sorted(placed, key=lambda row: row[0])
    yield from (row for row in rows if row[0] is None)


def _added_tokens(
  folder: str,
  config: Mapping[str, Any],
  names: Mapping[str, Any],
  whole: Mapping[str, Any],
) -> Iterator[tuple[int | None, added_tokens.AddedToken]]:
  """Tokens that the files of a folder add to the vocabulary."""
  of_config = os.path.join(folder, CONFIG)
  of_names = os.path.join(folder, _MAP)
  of_added = os.path.join(folder, _ADDED)
  special = {"special": True, "normalized": False}
  found = _Collected()
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
  """Special tokens beside BERT's five, in the order that they are added in."""
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
