"""Reads a tokenizer from a folder or a vocabulary file.

tokenizer = load.load_tokenizer("uncased_L-12_H-768_A-12/vocab.txt")
ids = tokenizer.encode("A sentence without [CLS] and [SEP].")
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
import json
import pathlib
from typing import Any

from bert_jax.data import templates
from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import hf_pipeline
from bert_jax.data.tokenizers import hf_tokenizer
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import pipeline
from bert_jax.data.tokenizers import sentencepiece
from bert_jax.data.tokenizers import wordpiece
from bert_jax.runtime import files
from bert_jax.runtime import hub

KINDS: Mapping[str, type[interface.Tokenizer]] = {
  kind.kind: kind
  for kind in (
    wordpiece.WordPieceTokenizer,
    sentencepiece.SentencePieceTokenizer,
    pipeline.PipelineTokenizer,
  )
}
# Value of `prepare.vocab_kind` -> the class that learns it.
LEARNED: Mapping[str, type[interface.Tokenizer]] = {
  "wordpiece": wordpiece.WordPieceTokenizer,
  "sentencepiece": sentencepiece.SentencePieceTokenizer,
  "byte_bpe": pipeline.PipelineTokenizer,
}
# Setting of a vocabulary -> None, which means that it is not given.
_SETTINGS: Mapping[str, Any] = dict.fromkeys(
  wordpiece.WordPieceTokenizer.settings
)
_HF_WORD_CHARS = 100  # a longer word becomes [UNK] in transformers
_REMEDY = "leave it unset, or make a new vocabulary"


def load_tokenizer(
  path: interface.Path,
  *,
  lower_case: bool | None = None,
  max_input_chars_per_word: int | None = None,
  strip_accents: bool | None = None,
) -> interface.Tokenizer:
  """Reads a tokenizer: a directory, a vocab.txt, a .model or tokenizer.json.

  Only text, JSON and SentencePiece's own format are read; nothing is
  unpickled and nothing is executed.

  Args:
    path: the name of a model of the hub, see `runtime.hub`; a directory
      written by `save`; the directory of a released checkpoint,
      with a vocab.txt or in Hugging Face's layout, whose settings are checked
      and applied; a vocabulary file; or a .model file. The files of a
      directory decide its kind.
    lower_case: for WordPiece only. None means the saved value, or else what the
      vocabulary suggests.
    max_input_chars_per_word: for WordPiece only. None means the saved value,
      or that of a Hugging Face directory, or else 200.
    strip_accents: for the vocab.txt of WordPiece only. None means the saved
      value, or else that of `lower_case`.

  Returns:
    A `WordPieceTokenizer`, a `SentencePieceTokenizer`, or a
    `PipelineTokenizer`, which the `tokenizers` package runs.

  Raises:
    ValueError: the vocabulary is damaged or was changed after it was saved, or
      a setting contradicts it.
    FileNotFoundError: there is no vocabulary at `path`.
  """
  path = _local(path)
  if path.is_file() and path.name in _HF_FILES:
    files.check_readable(str(path))
    path = path.parent
  asked = {
    "lower_case": lower_case,
    "max_input_chars_per_word": max_input_chars_per_word,
  }
  if not path.is_dir():
    if not path.exists():
      raise FileNotFoundError(
        f"{path} does not exist; wanted a vocab.txt, a .model file or a"
        " directory that holds one"
      )
    return _load_file(path, path, {}, asked, strip_accents)
  saved = _read_settings(path / interface.SETTINGS_FILE)
  if saved or not _is_hugging_faces(path):
    file = _vocabulary_file(path, saved)
    return _load_file(file, path, saved, asked, strip_accents)
  if hf_pipeline.is_pipeline(str(path)):
    return _load_pipeline(
      path, asked | {wordpiece.STRIP_ACCENTS: strip_accents}
    )
  found = load_hugging_faces(path, hf_tokenizer.read(path), asked)
  if strip_accents not in (None, found.strip_accents):
    raise ValueError(
      f"strip_accents={strip_accents}, but the tokenizer of {path} has "
      f"{found.strip_accents}; leave it unset, or give its vocab.txt alone"
    )
  return found


def _load_file(
  file: pathlib.Path,
  path: pathlib.Path,
  saved: Mapping[str, Any],
  asked: Mapping[str, Any],
  strip_accents: bool | None,
) -> interface.Tokenizer:
  """Reads a vocabulary file with the settings that were saved beside it.

  Args:
    file: the vocabulary.
    path: the folder that holds it, or the file, as it was given.
    saved: the content of tokenizer.json; {} if the folder lacks it.
    asked: the settings of the caller; None means not given.
    strip_accents: the setting of the caller, or None.

  Raises:
    ValueError: as in `load_tokenizer`.
  """
  files.check_readable(str(file))
  kind = next(
    (k for k in KINDS.values() if k.file_name.endswith(file.suffix or "/")),
    wordpiece.WordPieceTokenizer,
  )
  settings_file = path / interface.SETTINGS_FILE
  settings = hf_tokenizer.agreed(asked, saved, str(settings_file), _REMEDY)
  if settings and not kind.settings:
    raise ValueError(
      f"{', '.join(settings)} given for {file}, but a {kind.kind} vocabulary"
      " defines its own normalisation; leave it unset"
    )
  if wordpiece.ADDED in saved:
    settings["added"] = _added_tokens(saved)
  settings |= _strip_accents(saved, strip_accents, kind, str(path))
  tokenizer = kind.read(file, **settings)
  if saved and saved["fingerprint"] != tokenizer.fingerprint:
    raise ValueError(
      f"{file} is not the vocabulary that {settings_file} was"
      f" saved with: fingerprint {tokenizer.fingerprint[:12]}, wanted"
      f" {saved['fingerprint'][:12]}; restore the file, or delete"
      f" {interface.SETTINGS_FILE} if the change was meant"
    )
  return tokenizer


# The files by which a Hugging Face folder is known, and that may be named in
# its place.
_HF_FILES = (
  interface.SETTINGS_FILE, hf_tokenizer.CONFIG, "vocab.json", "spiece.model",
  "sentencepiece.bpe.model", "spm.model",
)  # fmt: skip


def _local(path: interface.Path) -> pathlib.Path:
  """Returns a path on this machine; models of the hub are downloaded."""
  if hub.is_name(str(path)):
    return pathlib.Path(hub.fetch(str(path), needs_weights=False).folder)
  return pathlib.Path(files.local(str(path)))


def is_pipeline(path: str) -> bool:
  """Returns whether a path names a tokenizer with rules of its own."""
  folder = _local(path)
  if folder.is_file() and folder.name in _HF_FILES:
    folder = folder.parent
  if not folder.is_dir():
    return False
  saved = _read_settings(folder / interface.SETTINGS_FILE)
  if saved:
    return saved["kind"] == pipeline.PipelineTokenizer.kind
  return _is_hugging_faces(folder) and hf_pipeline.is_pipeline(str(folder))


def _load_pipeline(
  folder: pathlib.Path, asked: Mapping[str, Any]
) -> pipeline.PipelineTokenizer:
  """Reads a folder whose tokenizer the `tokenizers` package runs."""
  given = [name for name, value in asked.items() if value is not None]
  if given:
    raise ValueError(
      f"{', '.join(given)} given for {folder}, but its files define their own "
      "rules; leave it unset"
    )
  tokenizer = hf_pipeline.read(str(folder)).tokenizer
  if tokenizer is None:
    raise FileNotFoundError(f"{folder} holds no vocabulary")
  return tokenizer


def read_folder(
  folder: str, spec: templates.TokenizerSpec
) -> tuple[interface.Tokenizer | None, int | None, bool | None]:
  """Reads the tokenizer of a Hugging Face folder of a known family.

  Args:
    folder: the folder.
    spec: the tokenizer of the family, which says what the files leave out.

  Returns:
    The tokenizer, or None if the folder has no vocabulary; the length that the
    model is meant for, or None; and whether text is lower-cased, or None.

  Raises:
    ValueError: a file is damaged or has a value that is not accepted.
  """
  if hf_pipeline.is_pipeline(folder, spec):
    found = hf_pipeline.read(folder, spec)
    return found.tokenizer, found.seq_len, None
  said = hf_tokenizer.read(folder, spec.of_wordpiece())
  has_file = (pathlib.Path(folder) / "vocab.txt").exists()
  if said.pieces is None and not has_file:
    return None, said.seq_len, said.lower_case
  if said.max_input_chars_per_word is None:
    said = dataclasses.replace(said, max_input_chars_per_word=_HF_WORD_CHARS)
  tokenizer = load_hugging_faces(folder, said)
  if not spec.has_types:
    tokenizer.template = tokenizer.template.without_types()
  return tokenizer, said.seq_len, tokenizer.lower_case


def write_folder(
  tokenizer: interface.Tokenizer,
  folder: str,
  spec: templates.TokenizerSpec,
  max_len: int,
) -> None:
  """Writes the files that `read_folder` reads, and transformers, too.

  Args:
    tokenizer: a WordPiece tokenizer, or one that the `tokenizers` package runs.
    folder: the folder to write into, which exists.
    spec: the tokenizer of the model's family.
    max_len: the most tokens that the model takes.
  """
  if isinstance(tokenizer, pipeline.PipelineTokenizer):
    hf_pipeline.write(tokenizer, folder, max_len)
  elif isinstance(tokenizer, wordpiece.WordPieceTokenizer):
    hf_tokenizer.write(tokenizer, folder, spec.of_wordpiece(), max_len)
  else:
    raise TypeError(f"a {tokenizer.kind} tokenizer has no files of this kind")


def _strip_accents(
  saved: Mapping[str, Any],
  asked: bool | None,
  kind: type[interface.Tokenizer],
  path: str,
) -> dict[str, bool]:
  """Returns the setting strip_accents of a vocabulary, {} if it has none.

  Args:
    saved: the content of tokenizer.json; {} if the folder lacks it.
    asked: the setting that the caller asks for, or None.
    kind: the class of the tokenizer.
    path: the vocabulary, for the error.

  Raises:
    ValueError: the vocabulary was saved with another value, or cannot have one.
  """
  name = wordpiece.STRIP_ACCENTS
  there = saved.get(name, saved.get("lower_case"))
  if asked is not None and not kind.settings:
    raise ValueError(
      f"{name}={asked}, but {path} defines its own normalisation; {_REMEDY}"
    )
  if asked is not None and saved and asked != there:
    raise ValueError(
      f"{name}={asked}, but {path} was saved with {there}; {_REMEDY}"
    )
  if asked is None:
    return {name: saved[name]} if name in saved else {}
  return {name: asked}


def _added_tokens(saved: Mapping[str, Any]) -> list[added_tokens.AddedToken]:
  return [added_tokens.AddedToken(**t) for t in saved.get(wordpiece.ADDED, ())]


def _is_hugging_faces(folder: pathlib.Path) -> bool:
  """Returns whether a folder that `save` did not write is Hugging Face's."""
  model = sentencepiece.SentencePieceTokenizer.file_name
  return not (folder / model).exists() and any(
    (folder / name).exists() for name in _HF_FILES
  )


def load_hugging_faces(
  folder: interface.Path,
  settings: hf_tokenizer.Settings,
  asked: Mapping[str, Any] = _SETTINGS,
) -> wordpiece.WordPieceTokenizer:
  """Makes the tokenizer of a Hugging Face folder.

  Args:
    folder: has a vocab.txt, or a tokenizer.json that holds the vocabulary.
    settings: the settings in its files.
    asked: settings of the caller, which must not contradict the files; None
      means not given.

  Raises:
    ValueError: as in `load_tokenizer`, or two files disagree.
    FileNotFoundError: the folder has no vocabulary.
  """
  file = pathlib.Path(folder) / wordpiece.WordPieceTokenizer.file_name
  whole = pathlib.Path(folder) / interface.SETTINGS_FILE
  pieces = settings.pieces
  if file.exists():
    listed = wordpiece.read_pieces(file)
    if pieces is not None:
      _check_equal(listed, pieces, file, whole)
    pieces = tuple(listed)
  elif pieces is None:
    raise FileNotFoundError(f"{folder} holds no {file.name}")
  else:
    file = whole
  said = {name: getattr(settings, name) for name in _SETTINGS}
  return wordpiece.WordPieceTokenizer(
    pieces,
    added=_placed(settings.added, pieces, str(folder)),
    source=str(file),
    strip_accents=settings.strip_accents,
    **hf_tokenizer.agreed(asked, said, f"the tokenizer of {folder}", _REMEDY),
  )


def _check_equal(
  listed: Sequence[str],
  pieces: Sequence[str],
  file: interface.Path,
  whole: interface.Path,
) -> None:
  """Raises ValueError if two vocabularies in one folder differ."""
  for i, (one, other) in enumerate(itertools.zip_longest(listed, pieces)):
    if one is None or other is None or one != wordpiece.piece_of_line(other):
      raise ValueError(
        f"{file} and {whole} differ: id {i} is {one!r:.60} in one and "
        f"{other!r:.60} in the other; remove the file that is not the model's"
      )


def _placed(
  added: Iterable[tuple[int | None, added_tokens.AddedToken]],
  pieces: Sequence[str],
  source: str,
) -> list[added_tokens.AddedToken]:
  """Returns added tokens in the order of their ids.

  Raises:
    ValueError: an id is not that of the piece, or leaves a gap.
  """
  ids = {piece: i for i, piece in enumerate(pieces)}
  following = len(pieces)
  placed = []
  for id, token in added:
    known = ids.get(token.content)
    wanted = following if known is None else known
    if id is not None and id != wanted:
      there = f" is {pieces[id]!r:.60} and" if id < len(pieces) else ""
      raise ValueError(
        f"{source}: the added token {token.content!r:.60} has the id {id}, "
        f"which{there} should be {wanted}: a piece keeps its id, and other ids "
        "follow the vocabulary without a hole; correct the files"
      )
    following += known is None
    placed.append(token)
  return placed


def _vocabulary_file(
  directory: pathlib.Path, saved: Mapping[str, Any]
) -> pathlib.Path:
  """Returns the one vocabulary file of a directory."""
  kinds = [KINDS[saved["kind"]]] if saved else KINDS.values()
  names = [kind.file_name for kind in kinds]
  found = [directory / name for name in names if (directory / name).exists()]
  if not found:
    raise FileNotFoundError(f"{directory} holds no {' or '.join(names)}")
  if len(found) > 1:
    raise ValueError(
      f"{directory} holds both {' and '.join(names)}; pass the path of the one"
      " to use"
    )
  return found[0]


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  """Reads the file that `save` wrote; {} if `save` did not write the folder."""
  if not path.exists():
    return {}
  try:
    settings = json.loads(path.read_bytes())
    if isinstance(settings, dict) and "model" in settings:
      return {}  # a Hugging Face folder has another file of this name
    problem = _problem_of(settings)
  except (TypeError, ValueError, RecursionError) as error:
    problem = str(error)
  if problem:
    raise ValueError(
      f"{path} was not written by Tokenizer.save: {problem}; restore the file,"
      " or delete it to load the vocabulary alone"
    )
  return settings


def _problem_of(settings: Any) -> str:
  """Returns what is wrong with the content of a saved tokenizer.json, or "".

  Raises:
    TypeError, ValueError: an added token is damaged.
  """
  keys = {"kind", *_SETTINGS, "fingerprint"}
  optional = {wordpiece.ADDED, wordpiece.STRIP_ACCENTS}
  if not isinstance(settings, dict) or {*settings} - optional != keys:
    return f"wanted the keys {', '.join(sorted(keys))}"
  if settings["kind"] not in [*KINDS]:
    return f"kind={settings['kind']!r:.60}; wanted {' or '.join(KINDS)}"
  kind = KINDS[settings["kind"]]
  types = dict.fromkeys(keys, str) | dict.fromkeys(_SETTINGS, type(None))
  for name, wanted in {**types, **kind.settings}.items():
    if type(settings[name]) is not wanted:
      return f"{name}={settings[name]!r:.60} is damaged"
  if type(settings.get(wordpiece.STRIP_ACCENTS, False)) is not bool:
    return f"{wordpiece.STRIP_ACCENTS} is damaged"
  _added_tokens(settings)
  return ""
