"""Reads and writes tokenizers that the `tokenizers` package runs.

A Hugging Face folder has a tokenizer.json, which holds all rules, or only the
vocabulary, to which the class of the tokenizer adds the rules (`layouts`).
Other files may add tokens and change rules: tokenizer_config.json,
special_tokens_map.json and added_tokens.json. Every key that changes token ids
is applied, or refused by name.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os
from typing import Any

from bert_jax.data import key_table
from bert_jax.data import templates
from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import hf_tokenizer
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import layouts
from bert_jax.data.tokenizers import pipeline
from bert_jax.data.tokenizers import wordpiece
from bert_jax.runtime import files

# Switches of the classes that build their rules from a vocabulary.
_SWITCHES = frozenset({
  "add_prefix_space", "do_lower_case", "keep_accents", "remove_space",
  "split_by_punct", "strip_accents", "tokenize_chinese_chars",
})  # fmt: skip
_KEYS = key_table.KeyTable(
  only={
    "auto_map": (None, {}),
    "split_special_tokens": (None, False),
    "truncation_side": (None, "right"),
    "sp_model_kwargs": (None, {}),
    "remove_space": (None, True),
    "clean_text": (None, True),
    "wordpieces_prefix": (None, "##"),
    "tokenize_chinese_chars": (None, True),
    "vocab_type": (None, "spm"),
    "fix_mistral_regex": (None, False),
  },
  read=frozenset({
    "tokenizer_class", "model_max_length", "max_len", "model_input_names",
    "additional_special_tokens", "extra_special_tokens", "padding_side",
    "added_tokens_decoder", "add_bos_token", "add_eos_token",
    *(f"{role}_token" for role in pipeline.ROLES), *_SWITCHES,
  }),
  ignored=hf_tokenizer.IGNORED
  | frozenset({
    "trim_offsets", "sp_model_file", "merges_file", "spm_file", "mask_token_id",
    "use_default_system_prompt", "spaces_between_special_tokens",
    "additional_special_tokens_ids", "unk_index", "never_split",
  }),
  effect="tokens",
  advice=". To use the model by those rules, write that value into the file",
)  # fmt: skip
# Files of vocabularies that are not read, and what they are.
_OTHERS = {
  "tokenizer.model": "SentencePiece BPE or tiktoken",
  "tekken.json": "Mistral's tokenizer",
  "bpe.codes": "fastBPE",
  "dict.txt": "a dictionary of fairseq",
  "source.spm": "SentencePiece of a translator",
}
_MODEL_TYPES = ("BPE", "Unigram", "WordPiece", "WordLevel")
_TYPES = "token_type_ids"


def class_of(folder: str) -> str:
  """Returns the tokenizer class that a folder names, without "Fast", or ""."""
  for name in (hf_tokenizer.CONFIG, "config.json"):
    found = files.read_json(os.path.join(folder, name), default={})
    if isinstance(said := found.get("tokenizer_class"), str):
      return said.removesuffix("Fast")
  return ""


def spec_of(
  folder: str, spec: templates.TokenizerSpec | None = None
) -> templates.TokenizerSpec | None:
  """Returns the spec of the tokenizer in a folder.

  The class that the folder names decides, then the family of the model, then
  the model_type in config.json.

  Args:
    folder: a Hugging Face folder.
    spec: the tokenizer of the model's family; None if that is not known.

  Returns:
    None if none is known.
  """
  general = {"PreTrainedTokenizer", "TokenizersBackend", ""}
  said = class_of(folder)
  known = [spec, *templates.SPECS] if spec else [*templates.SPECS]
  if said not in general:
    for row in known:
      if said in {name.removesuffix("Fast") for name in row.hf_classes}:
        return row
  if spec is not None:
    return spec
  config = files.read_json(os.path.join(folder, "config.json"), default={})
  for row in templates.SPECS:
    if config.get("model_type") in row.model_types:
      return row
  return None


def is_pipeline(
  folder: str, spec: templates.TokenizerSpec | None = None
) -> bool:
  """Returns whether a folder has a tokenizer that this module reads.

  Others are WordPiece with BERT's special tokens.

  Args:
    folder: a Hugging Face folder.
    spec: the tokenizer of the model's family; None if that is not known.
  """
  row = spec_of(folder, spec)
  whole = hf_tokenizer.whole_of(folder)
  if whole:
    if pipeline.model_type(whole) != "WordPiece":
      return True
    return row is not None and row.special_tokens["mask"] != "[MASK]"
  if row is not None and row.kind == "pipeline":
    return True
  names = [*_OTHERS, *_names_of_vocabularies()]
  return not files.exists(os.path.join(folder, "vocab.txt")) and any(
    files.exists(os.path.join(folder, name)) for name in names
  )


def _names_of_vocabularies() -> list[str]:
  names = [n for row in layouts.LAYOUTS.values() for n in row.file_names]
  return [name for name in dict.fromkeys(names) if name != "vocab.txt"]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the files of a folder say about its tokenizer.

  Attributes:
    tokenizer: None if the folder has no vocabulary.
    seq_len: the length of sequences that the model is meant for, in tokens;
      None if the folder does not say it.
  """

  tokenizer: pipeline.PipelineTokenizer | None
  seq_len: int | None


def read(folder: str, spec: templates.TokenizerSpec | None = None) -> Settings:
  """Reads the tokenizer of a folder.

  Args:
    folder: a Hugging Face folder.
    spec: the tokenizer of the model's family; None if that is not known.

  Raises:
    ValueError: a file is damaged or has a value that is not accepted; the
      message names the file, the key and the accepted values.
  """
  row = spec_of(folder, spec)
  path = os.path.join(folder, hf_tokenizer.CONFIG)
  config = files.read_json(path, default={})
  map_path = os.path.join(folder, hf_tokenizer.MAP)
  names = files.read_json(map_path, default={})
  _check_keys(path, config, row)
  _check_keys(map_path, names, row)
  seq_len = hf_tokenizer.seq_len_of(folder, config, None)
  whole = hf_tokenizer.whole_of(folder)
  if whole:
    source = os.path.join(folder, interface.SETTINGS_FILE)
    rules = _checked(source, whole, config, path)
  else:
    found = _built(folder, row, path, config)
    if found is None:
      return Settings(None, seq_len)
    source, rules = found
  rules, named = _with_tokens(folder, config, names, rules, row, source)
  template, named = _template_of(source, rules, named, row)
  _check_ends(path, config, template)
  inputs = config.get("model_input_names")
  if (inputs is not None and _TYPES not in inputs) or (
    row and not row.has_types
  ):
    template = template.without_types()
  said = class_of(folder)
  content = pipeline.Pipeline(
    rules,
    named,
    template,
    said or (row.hf_class if row else "PreTrainedTokenizerFast"),
  )
  return Settings(pipeline.PipelineTokenizer(content, source=source), seq_len)


# --- keys --------------------------------------------------------------------


def _check_keys(
  path: str, config: Mapping[str, Any], row: templates.TokenizerSpec | None
) -> None:
  """Refuses values that would change token ids, and logs unknown keys."""
  sides = row.padding_sides if row else ("right",)
  keys = _KEYS.extended({"padding_side": (None, *sides)})
  keys.check_file(path, config)
  for key in (
    "do_lower_case", "add_prefix_space", "keep_accents", "strip_accents",
  ):  # fmt: skip
    if type(config.get(key)) not in (bool, type(None)):
      raise ValueError(
        f"{path}: {key} is {config[key]!r:.60}; wanted true or false"
      )


def _check_ends(
  path: str, config: Mapping[str, Any], template: templates.Template
) -> None:
  """Refuses switches that say other special tokens than the template."""
  before, _, after = template.around(is_pair=False)
  for key, roles in (("add_bos_token", before), ("add_eos_token", after)):
    said = config.get(key)
    if said is not None and bool(said) != bool(roles):
      raise ValueError(
        f"{path}: {key} is {said!r:.60}, but the form of sequences in "
        f"{interface.SETTINGS_FILE} has {'a' if roles else 'no'} special token "
        f"there; make them agree"
      )


# --- rules -------------------------------------------------------------------


def _built(
  folder: str,
  row: templates.TokenizerSpec | None,
  path: str,
  config: Mapping[str, Any],
) -> tuple[str, dict[str, Any]] | None:
  """Returns the path of the vocabulary and its rules; None if there is none."""
  layout = layouts.LAYOUTS.get(row.layout) if row else None
  file = layout.find(folder) if layout else None
  if layout is None or file is None:
    there = [
      name
      for name in (*_names_of_vocabularies(), *_OTHERS, "vocab.txt")
      if files.exists(os.path.join(folder, name))
    ]
    if not there:
      return None
    kind = f", which is {_OTHERS[there[0]]}" if there[0] in _OTHERS else ""
    said = class_of(folder)
    known = [r.hf_class for r in templates.SPECS if r.layout]
    raise ValueError(
      f"{folder} holds {there[0]}{kind}, and tokenizer_class is "
      f"{said or 'not given'}; without a tokenizer.json this program reads "
      f"{', '.join(known)}. Save the tokenizer with transformers, which writes "
      "tokenizer.json, or name its class in tokenizer_config.json"
    )
  asked = {key: config.get(key) for key in layout.switches}
  switches = {
    key: default if asked[key] is None else asked[key]
    for key, default in layout.switches.items()
  }
  for key in sorted(_SWITCHES - switches.keys()):
    if config.get(key) not in (None, False, _KEYS.only.get(key, (None,))[-1]):
      raise ValueError(
        f"{path}: {key} is {config[key]!r:.60}, which a {row and row.hf_class} "
        "does not have; remove the key"
      )
  return file, layout.build(file, switches)


def _checked(
  source: str, whole: dict[str, Any], config: Mapping[str, Any], path: str
) -> dict[str, Any]:
  """Returns the rules of a tokenizer.json with the switches of a config.

  Raises:
    ValueError: a rule cannot be followed, or contradicts the config.
  """
  kind = pipeline.model_type(whole)
  if kind not in _MODEL_TYPES:
    raise ValueError(
      f"{source}: model.type is {kind!r:.60}; wanted one of "
      f"{', '.join(_MODEL_TYPES)}"
    )
  if (whole["model"] or {}).get("dropout"):
    raise ValueError(
      f"{source}: model.dropout is {whole['model']['dropout']!r:.60}, so that "
      "a text has random ids; set it to null"
    )
  for part in ("truncation", "padding"):
    side = (whole.get(part) or {}).get("direction", "Right")
    if side != "Right" and part == "truncation":
      raise ValueError(
        f"{source}: {part}.direction is {side!r:.60}; wanted Right"
      )
  rules = json.loads(json.dumps(whole)) | {"truncation": None, "padding": None}
  cutters = [*pipeline.steps(rules.get("pre_tokenizer"))]
  normalizers = [*pipeline.steps(rules.get("normalizer"))]
  prefix = config.get("add_prefix_space")
  for step in cutters if prefix is not None else ():
    if step.get("type") == "ByteLevel":
      step["add_prefix_space"] = prefix
    elif step.get("type") == "Metaspace":
      has = step.get("prepend_scheme", "always") != "never"
      if has != prefix:
        raise ValueError(
          f"{path}: add_prefix_space is {prefix}, but {source} has "
          f"prepend_scheme {step.get('prepend_scheme')!r:.60}; make them agree"
        )
  types = {step.get("type") for step in (*normalizers, *cutters)}
  bert = next((s for s in normalizers if s.get("type") == "BertNormalizer"), {})
  lowers = "Lowercase" in types or bert.get("lowercase", False)
  strips = bert.get("strip_accents")
  if strips is None:  # as it lower-cases
    strips = "StripAccents" in types or bert.get("lowercase", False)
  for key, has in (
    ("do_lower_case", lowers),
    ("split_by_punct", "Punctuation" in types),
    ("keep_accents", not strips),
    ("strip_accents", strips),
  ):
    if config.get(key) is not None and config[key] != has:
      raise ValueError(
        f"{path}: {key} is {config[key]}, but the rules in {source} do "
        f"{'' if has else 'not '}have that effect; make them agree"
      )
  return rules


def _content_of(value: Any) -> str | None:
  """Returns the spelling of a token that a file gives as text or object."""
  if isinstance(value, dict):
    value = value.get("content")
  return value if isinstance(value, str) else None


def _with_tokens(
  folder: str,
  config: Mapping[str, Any],
  names: Mapping[str, Any],
  rules: Mapping[str, Any],
  row: templates.TokenizerSpec | None,
  source: str,
) -> tuple[dict[str, Any], dict[str, str]]:
  """Adds the tokens that the files of a folder name.

  Returns:
    The rules with all added tokens; and role -> special token.
  """
  object_of = pipeline.build(rules, source)
  ids = object_of.get_vocab(with_added_tokens=True)
  named, flags = {}, {}
  for role in pipeline.ROLES:
    key = f"{role}_token"
    given = config.get(key)
    given = names.get(key) if given is None else given
    token = _content_of(given)
    if token is None and given is not None:
      raise ValueError(f"{folder}: {key} is {given!r:.60}; wanted a token")
    if token is None and row is not None:
      token = row.special_tokens.get(role)
      # A class adds the tokens that its vocabulary lacks.
      is_added = row.layout and not hf_tokenizer.whole_of(folder)
      token = token if token in ids or is_added else None
    if token:
      named[role] = token
      flags[role] = given if isinstance(given, dict) else {}
  added = [dict(token) for token in rules.get("added_tokens") or ()]
  listed = {token.get("content") for token in added}
  mentioned = hf_tokenizer.added_tokens_of(
    folder, _without_listed(folder, config, added), names, {}, {}
  )
  in_roles = {named[role]: role for role in named}
  rows = [
    (id, token)
    for id, token in mentioned
    if token.content not in listed and token.content not in in_roles
  ]
  decoder = {
    token.content: (id, token)
    for id, token in mentioned
    if token.content in in_roles
  }
  for token, role in in_roles.items():
    if token not in listed:
      id, found = decoder.get(token, (None, None))
      lstrip = role == "mask" and bool(row and row.mask_lstrip)
      rows.append((id, _special_token(token, flags[role], found, lstrip)))
  known = set(ids)
  rows.sort(key=lambda pair: (pair[0] is None, pair[0] or 0))
  following = max(ids.values(), default=-1) + 1
  for id, new in rows:
    wanted = ids.get(new.content, following)
    if id is not None and id != wanted:
      raise ValueError(
        f"{folder}: the added token {new.content!r:.60} has the id {id}, "
        f"which should be {wanted}: a piece keeps its id, and other ids follow "
        "the vocabulary without a hole; correct the files"
      )
    following += new.content not in known
    added.append({"id": wanted, **dataclasses.asdict(new)})
  added.sort(key=lambda token: token["id"])
  return {**rules, "added_tokens": added}, named


def _without_listed(
  folder: str, config: Mapping[str, Any], listed: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
  """Returns a config without the added tokens that tokenizer.json lists.

  Raises:
    ValueError: the two files give a token other ids.
  """
  ids = {token.get("content"): token.get("id") for token in listed}
  decoder = config.get("added_tokens_decoder") or {}
  if not isinstance(decoder, dict):
    return dict(config)  # the reader of added tokens refuses it
  rest = {}
  for id, token in decoder.items():
    content = _content_of(token)
    if content not in ids:
      rest[id] = token
    elif str(ids[content]) != id:
      raise ValueError(
        f"{folder}: the added token {content!r:.60} has the id {id} in "
        f"{hf_tokenizer.CONFIG} and {ids[content]} in "
        f"{interface.SETTINGS_FILE}; correct one of them"
      )
  return {**config, "added_tokens_decoder": rest}


def _special_token(
  content: str,
  flags: Mapping[str, Any],
  found: added_tokens.AddedToken | None,
  lstrip: bool,
) -> added_tokens.AddedToken:
  """Returns the added token of a role, with the flags that a file gives it."""
  given = {
    key: bool(flags[key])
    for key in ("lstrip", "rstrip", "single_word", "normalized")
    if key in flags
  }
  if found is not None and not given:
    return dataclasses.replace(found, special=True)
  defaults = {"lstrip": lstrip, "normalized": False}
  return added_tokens.AddedToken(content, special=True, **(defaults | given))


# --- the form of sequences ---------------------------------------------------


def _template_of(
  source: str,
  rules: dict[str, Any],
  named: Mapping[str, str],
  row: templates.TokenizerSpec | None,
) -> tuple[templates.Template, dict[str, str]]:
  """Reads the form of sequences; rules without one get that of the spec.

  Returns:
    The template, and role -> special token with the tokens that only the
    template names.
  """
  found = [
    step
    for step in pipeline.steps(rules.get("post_processor"))
    if step.get("type") not in ("ByteLevel", "Sequence")
  ]
  if len(found) > 1:
    raise ValueError(
      f"{source}: post_processor has {len(found)} steps that add special "
      "tokens; wanted one"
    )
  names = dict(named)
  if found:
    return _read_template(source, found[0], names), names
  if row is None:
    none = templates.Template((("A", 0),), (("A", 0), ("B", 1)))
    return none, names
  ids = pipeline.build(rules, source).get_vocab(with_added_tokens=True)
  lost = [
    n for n, _ in row.template.pair if n not in (*names, *templates.TEXTS)
  ]
  if lost:
    raise ValueError(
      f"{source} has no {lost[0]}_token, which sequences of a {row.hf_class} "
      "contain; name it in tokenizer_config.json"
    )
  rules["post_processor"] = pipeline.post_processor_of(row.template, names, ids)
  return row.template, names


def _read_template(
  source: str, step: Mapping[str, Any], names: dict[str, str]
) -> templates.Template:
  """Reads the step that adds special tokens; adds their names to `names`."""

  def name_of(token: str) -> str:
    for role in ("cls", "sep", "bos", "eos", "pad", "mask", "unk"):
      if names.get(role) == token:
        return role
    name = f"token_{len(names)}"
    names[name] = token
    return name

  def parts_of(parts: Iterable[Any]) -> tuple[tuple[str, int], ...]:
    result = []
    for part in parts:
      [(kind, value)] = part.items()
      is_text = kind == "Sequence"
      name = value["id"] if is_text else name_of(value["id"])
      result.append((name, int(value["type_id"])))
    return tuple(result)

  kind = step.get("type")
  try:
    if kind == "TemplateProcessing":
      for token in step.get("special_tokens", {}).values():
        if len(token["ids"]) != 1:
          raise ValueError(f"{token['id']!r:.60} stands for several tokens")
      return templates.Template(
        parts_of(step["single"]), parts_of(step["pair"])
      )
    if kind in ("RobertaProcessing", "BertProcessing"):
      cls, sep = (name_of(step[key][0]) for key in ("cls", "sep"))
      single = ((cls, 0), ("A", 0), (sep, 0))
      if kind == "BertProcessing":
        return templates.Template(single, (*single, ("B", 1), (sep, 1)))
      pair = (*single, (sep, 0), ("B", 0), (sep, 0))
      return templates.Template(single, pair)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(
      f"{source}: post_processor is damaged: {error!r:.200}"
    ) from None
  raise ValueError(
    f"{source}: post_processor.type is {kind!r:.60}; wanted "
    "TemplateProcessing, RobertaProcessing or BertProcessing"
  )


# --- writing -----------------------------------------------------------------


def rules_of_wordpiece(
  tokenizer: wordpiece.WordPieceTokenizer,
  spec: templates.TokenizerSpec = templates.WORDPIECE,
) -> dict[str, Any]:
  """Returns BERT's own tokenizer as a tokenizer.json holds it.

  Args:
    tokenizer: the tokenizer.
    spec: describes the tokenizer of the model's family.
  """
  named = spec.special_tokens
  ids = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
  beyond = {token.content for token in tokenizer.added} - tokenizer.words
  tokens = pipeline.added_tokens_of(named, ids, mask_lstrip=False)
  tokens += [
    {"id": id, **dataclasses.asdict(token)}
    for token, id in tokenizer.added_ids.items()
    if token.content not in named.values()
  ]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": sorted(tokens, key=lambda token: token["id"]),
    "normalizer": {
      "type": "BertNormalizer",
      "clean_text": True,
      "handle_chinese_chars": True,
      "strip_accents": tokenizer.strip_accents,
      "lowercase": tokenizer.lower_case,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": pipeline.post_processor_of(
      tokenizer.template, named, ids
    ),
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
      "type": "WordPiece",
      "unk_token": named["unk"],
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": tokenizer.max_input_chars_per_word,
      "vocab": {word: i for word, i in ids.items() if word not in beyond},
    },
  }


def write(
  tokenizer: pipeline.PipelineTokenizer, folder: str, max_len: int
) -> None:
  """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

  Args:
    tokenizer: the tokenizer.
    folder: the folder to write into, which exists.
    max_len: the most tokens that the model takes.
  """
  content = tokenizer.pipeline
  named = {
    f"{role}_token": token
    for role, token in content.special_tokens.items()
    if role in pipeline.ROLES
  }
  types = {t for _, t in content.template.single + content.template.pair}
  inputs = ["input_ids", "attention_mask"]
  if types != {0}:
    inputs.insert(1, _TYPES)
  prefix = next(
    (
      step["add_prefix_space"]
      for step in pipeline.steps(content.rules.get("pre_tokenizer"))
      if step.get("type") == "ByteLevel" and "add_prefix_space" in step
    ),
    None,
  )
  config = {
    "tokenizer_class": content.hf_class,
    "model_max_length": max_len,
    "model_input_names": inputs,
    **named,
  }
  if prefix is not None:
    config["add_prefix_space"] = prefix
  roles = set(content.special_tokens.values())
  tokens = content.rules.get("added_tokens") or ()
  config["added_tokens_decoder"] = {
    str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokens
  }
  config["additional_special_tokens"] = [
    t["content"] for t in tokens if t["special"] and t["content"] not in roles
  ]
  for name, value in (
    (interface.SETTINGS_FILE, content.rules),
    (hf_tokenizer.CONFIG, config),
    (hf_tokenizer.MAP, named),
  ):
    path = os.path.join(folder, name)
    files.write_json(path, value, indent=2, ensure_ascii=False)
