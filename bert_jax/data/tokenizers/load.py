"""Reads a tokenizer from a folder or a vocabulary file.

tokenizer = load.load_tokenizer("uncased_L-12_H-768_A-12/vocab.txt")
ids = tokenizer.encode("A sentence without [CLS] and [SEP].")
"""

from collections.abc import Iterable, Sequence
import itertools
import json
import pathlib
from typing import Any

from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import hf_tokenizer
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import sentencepiece
from bert_jax.data.tokenizers import wordpiece
from bert_jax.runtime import files


def load_tokenizer(
  path: interface.Path,
  *,
  lower_case: bool | None = None,
  max_input_chars_per_word: int | None = None,
) -> interface.Tokenizer:
  """Reads a tokenizer: a saved directory, a vocab.txt or a .model file.

  Only text, JSON and SentencePiece's own format are read; nothing is
  unpickled and nothing is executed.

  Args:
    path: directory written by `save`, directory of a released checkpoint
      (with vocab.txt, or as Hugging Face writes one: what its files say is
      checked, and added tokens are read), a bare vocabulary file, or a .model
      file.
    lower_case: WordPiece only. None: as saved, else decided by the vocabulary.
    max_input_chars_per_word: WordPiece only. None: as saved, or as the files
      of a Hugging Face directory say, else 200.

  Returns:
    A `WordPieceTokenizer` or a `SentencePieceTokenizer`.

  Raises:
    ValueError: a bad vocabulary, a setting that contradicts it, or a
      vocabulary that was changed after it was saved.
    FileNotFoundError: nothing to read at `path`.
  """
  path = pathlib.Path(path)
  saved: dict[str, Any] = {}
  file = path
  if path.is_dir():
    saved = _read_settings(path / interface.SETTINGS_FILE)
    if not saved and _is_hugging_faces(path):
      return load_hugging_faces(
        path,
        hf_tokenizer.read(path),
        lower_case=lower_case,
        max_input_chars_per_word=max_input_chars_per_word,
      )
    file = _vocabulary_file(path, saved)
  elif not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; wanted a vocab.txt, a .model file or a directory"
      " that holds one"
    )
  files.check_readable(str(file))
  asked = {
    "lower_case": lower_case,
    "max_input_chars_per_word": max_input_chars_per_word,
  }
  settings = _agreed_settings(asked, saved, file)
  tokenizer: interface.Tokenizer
  if file.suffix == ".model":
    tokenizer = sentencepiece.SentencePieceTokenizer(
      file.read_bytes(), source=str(file)
    )
  else:
    tokenizer = wordpiece.WordPieceTokenizer(
      wordpiece.read_pieces(file), source=str(file), **settings
    )
  if saved and saved["fingerprint"] != tokenizer.fingerprint:
    raise ValueError(
      f"{file} is not the vocabulary that {path / interface.SETTINGS_FILE} was"
      f" saved with: fingerprint {tokenizer.fingerprint[:12]}, wanted"
      f" {saved['fingerprint'][:12]}; restore the file, or delete"
      f" {interface.SETTINGS_FILE} if the change was meant"
    )
  return tokenizer


def _agreed_settings(
  asked: dict[str, Any], saved: dict[str, Any], file: pathlib.Path
) -> dict[str, Any]:
  """What is asked for and what was saved, refused where they contradict."""
  asked = {name: value for name, value in asked.items() if value is not None}
  if asked and file.suffix == ".model":
    raise ValueError(
      f"{', '.join(asked)} given for {file}, but a SentencePiece model carries"
      " its own normalisation; leave it unset"
    )
  for name, value in asked.items():
    if saved and saved[name] != value:
      raise ValueError(
        f"{name}={value}, but {file} was saved with {name}={saved[name]} (in"
        f" {interface.SETTINGS_FILE}); leave it unset, or make a new vocabulary"
      )
  names = ("lower_case", "max_input_chars_per_word")
  added = [
    added_tokens.AddedToken(**token) for token in saved.get(wordpiece.ADDED, ())
  ]
  kept = {"added": added} if added else {}
  return {name: saved[name] for name in names if saved} | kept | asked


def _is_hugging_faces(folder: pathlib.Path) -> bool:
  """Whether a folder that `save` did not write is a Hugging Face one."""
  names = (hf_tokenizer.CONFIG, hf_tokenizer.WHOLE)
  return not (folder / sentencepiece.MODEL_FILE).exists() and any(
    (folder / name).exists() for name in names
  )


def load_hugging_faces(
  folder: interface.Path,
  settings: hf_tokenizer.Settings,
  *,
  lower_case: bool | None = None,
  max_input_chars_per_word: int | None = None,
) -> wordpiece.WordPieceTokenizer:
  """Makes the tokenizer of a Hugging Face folder.

  Args:
    folder: with vocab.txt, or a tokenizer.json that holds the vocabulary.
    settings: what its files say.
    lower_case: None: as they say, else decided by the vocabulary.
    max_input_chars_per_word: None: as they say, else 200.

  Raises:
    ValueError: as `load_tokenizer`, or files that disagree.
    FileNotFoundError: it has no vocabulary.
  """
  file = pathlib.Path(folder) / wordpiece.VOCAB_FILE
  whole = pathlib.Path(folder) / interface.SETTINGS_FILE
  pieces = settings.pieces
  if file.exists():
    listed = wordpiece.read_pieces(file)
    if pieces is not None:
      _check_equal(listed, pieces, file, whole)
    pieces = tuple(listed)
  else:
    file = whole
  if pieces is None:
    raise FileNotFoundError(f"{folder} holds no {wordpiece.VOCAB_FILE}")

  def agreed(name, asked):
    said = getattr(settings, name)
    if None not in (asked, said) and asked != said:
      raise ValueError(
        f"{name}={asked}, but the files of {folder} say {said}; leave it "
        "unset, or give that"
      )
    return said if asked is None else asked

  limit = agreed("max_input_chars_per_word", max_input_chars_per_word)
  return wordpiece.WordPieceTokenizer(
    pieces,
    lower_case=agreed("lower_case", lower_case),
    max_input_chars_per_word=(
      wordpiece.MAX_INPUT_CHARS_PER_WORD if limit is None else limit
    ),
    added=_placed(settings.added, pieces, str(folder)),
    source=str(file),
  )


def _check_equal(
  listed: Sequence[str],
  pieces: Sequence[str],
  file: interface.Path,
  whole: interface.Path,
) -> None:
  """Refuses two vocabularies in one folder that differ."""
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
  """Added tokens in the order of their ids, which must leave no hole."""
  ids = {piece: i for i, piece in enumerate(pieces)}
  following = len(pieces)
  placed = []
  for id, token in added:
    known = ids.get(token.content)
    wanted = following if known is None else known
    if id is not None and id != wanted:
      what = (
        f"the next id is {wanted}: ids must follow the vocabulary without a "
        "hole"
        if known is None and id >= len(pieces)
        else f"in the vocabulary that is {pieces[id]!r:.60}"
        if id < len(pieces)
        else f"the vocabulary has it as {known}"
      )
      raise ValueError(
        f"{source}: the added token {token.content!r:.60} has the id {id}, but "
        f"{what}; correct the files"
      )
    following += known is None
    placed.append(token)
  return placed


def _vocabulary_file(
  directory: pathlib.Path, saved: dict[str, Any]
) -> pathlib.Path:
  """The one vocabulary file of a directory."""
  names = [wordpiece.VOCAB_FILE, sentencepiece.MODEL_FILE]
  if saved:
    names = [
      wordpiece.VOCAB_FILE
      if saved["kind"] == "wordpiece"
      else sentencepiece.MODEL_FILE
    ]
  found = [directory / name for name in names if (directory / name).exists()]
  if not found:
    raise FileNotFoundError(f"{directory} holds no {' or '.join(names)}")
  if len(found) > 1:
    raise ValueError(
      f"{directory} holds both {' and '.join(names)}; pass the path of the one"
      " that is meant"
    )
  return found[0]


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  """Reads what `save` wrote; {} when the directory was not written by it."""
  if not path.exists():
    return {}
  try:
    settings = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
  if isinstance(settings, dict) and "model" in settings:
    return {}  # a Hugging Face checkpoint has another file of this name
  wanted = {"kind", "lower_case", "max_input_chars_per_word", "fingerprint"}
  if (
    not isinstance(settings, dict)
    or set(settings) - {wordpiece.ADDED} != wanted
  ):
    raise ValueError(
      f"{path} was not written by Tokenizer.save: wanted the keys"
      f" {', '.join(sorted(wanted))}; delete it to load the vocabulary alone"
    )
  if settings["kind"] not in ("wordpiece", "sentencepiece"):
    raise ValueError(
      f"{path}: kind={settings['kind']!r:.60}; wanted wordpiece or"
      " sentencepiece"
    )
  is_word_piece = settings["kind"] == "wordpiece"
  for name, wanted_type in (
    ("lower_case", bool if is_word_piece else type(None)),
    ("max_input_chars_per_word", int if is_word_piece else type(None)),
    ("fingerprint", str),
  ):
    if type(settings[name]) is not wanted_type:
      raise ValueError(
        f"{path}: {name}={settings[name]!r:.60} is damaged; restore the file,"
        " or delete it to load the vocabulary alone"
      )
  if wordpiece.ADDED in settings:
    try:
      for token in settings[wordpiece.ADDED]:
        added_tokens.AddedToken(**token)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"{path}: {wordpiece.ADDED} is damaged ({error}); restore the file"
      ) from None
  return settings
