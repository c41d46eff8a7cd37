"""BERT's tokenisation once more, slowly: what the fast one is held against.

One character at a time, in the order of the original's rules and without any
of its short cuts or ours. It shares no code with `bert_jax.data.tokenizers`.
"""

import unicodedata


def _is_dropped(char):
  if char in "\t\n\r":
    return False
  return char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf")


def _is_space(char):
  return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_ideograph(char):
  code = ord(char)
  return (
    0x3400 <= code <= 0x4DBF
    or 0x4E00 <= code <= 0x9FFF
    or 0xF900 <= code <= 0xFAFF
    or 0x20000 <= code <= 0x2A6DF
    or 0x2A700 <= code <= 0x2B73F
    or 0x2B740 <= code <= 0x2B81F
    or 0x2B820 <= code <= 0x2CEAF
    or 0x2F800 <= code <= 0x2FA1F
  )


def _is_punctuation(char):
  code = ord(char)
  if 33 <= code <= 47 or 58 <= code <= 64:
    return True
  if 91 <= code <= 96 or 123 <= code <= 126:
    return True
  return unicodedata.category(char)[0] == "P"


def _without_accents(token):
  kept = []
  for char in unicodedata.normalize("NFD", token):
    if unicodedata.category(char) != "Mn":
      kept.append(char)
  return "".join(kept)


def _split_punctuation(token):
  words = []
  begins_word = True
  for char in token:
    if _is_punctuation(char):
      words.append(char)
      begins_word = True
    elif begins_word:
      words.append(char)
      begins_word = False
    else:
      words[-1] += char
  return words


def words_of(text, lower_case):
  """Words and punctuation of a text, before the vocabulary is asked."""
  cleaned = ""
  for char in text:
    if _is_dropped(char):
      continue
    cleaned += " " if _is_space(char) else char
  spaced = ""
  for char in cleaned:
    spaced += f" {char} " if _is_ideograph(char) else char
  words = []
  for token in spaced.strip().split():
    if lower_case:
      token = _without_accents(token.lower())
    words.extend(_split_punctuation(token))
  return " ".join(words).strip().split()


def pieces_of(word, vocabulary, max_chars):
  """Longest piece first; ["[UNK]"] when some part of the word has none."""
  if len(word) > max_chars:
    return ["[UNK]"]
  pieces = []
  start = 0
  while start < len(word):
    for end in range(len(word), start, -1):
      piece = word[start:end] if start == 0 else "##" + word[start:end]
      if piece in vocabulary:
        pieces.append(piece)
        start = end
        break
    else:
      return ["[UNK]"]
  return pieces


def encode(text, vocabulary, lower_case, max_chars=200):
  """Ids of a text; `vocabulary` maps a piece to its id."""
  ids = []
  for word in words_of(text, lower_case):
    for piece in pieces_of(word, vocabulary, max_chars):
      ids.append(vocabulary[piece])
  return ids


def read_vocabulary(path):
  """Maps each stripped line to its number, as the original does."""
  vocabulary = {}
  with open(path, "rb") as file:
    for number, line in enumerate(file):
      vocabulary[line.decode("utf-8").strip()] = number
  return vocabulary
