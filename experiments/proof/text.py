"""Gathers the text that the encoder of this experiment learns from.

  python -m experiments.proof.text --text=novels.txt,reviews.txt,sotu.txt \
    --tasks=DATA/glue,DATA/ner/wnut17 --output=runs/proof/text

The texts have a sentence in each line and a blank line between documents;
`novels.txt:2` takes every second document. The docstrings of Python and of the
installed packages are added, as in the demo. A sentence that shares eight words
in a row with a development or test file of a task is left out, and so is one
that equals a shorter sentence of these files.

Every 100th document is held out. A tenth of the other sentences is written once
more, to doubled.txt, in blocks of one to three that are each followed by a copy
of themselves with some words left out or swapped. A masked word of such a block
stands in the copy, so that heads which match words over a distance pay at once.
Comparing two sentences needs them.
"""

import argparse
from collections.abc import Iterable, Iterator
import json
import os
import pathlib
import random
import re

from bert_jax import demo

# So many words in a row are taken for a copy.
COPIED_WORDS = 8
# Shorter texts, such as names, may occur anywhere.
_LEAST_WORDS = 4
_HELD_OUT_STEP = 100
# Of the blocks, and of the words of a copy.
_DOUBLED_RATE, _DROP_RATE, _SWAP_RATE = 0.1, 0.15, 0.1


def words_of(text: str) -> list[str]:
  """Returns the words of a text, in lower case and without punctuation."""
  return re.findall(r"[a-z0-9]+", text.lower())


def keys_of(words: list[str]) -> Iterator[tuple[str, ...]]:
  """Yields every run of COPIED_WORDS words, or all words if there are fewer."""
  for start in range(max(len(words) - COPIED_WORDS, 0) + 1):
    yield tuple(words[start : start + COPIED_WORDS])


def texts_of(path: pathlib.Path) -> Iterator[str]:
  """Yields the texts of a task's file.

  A .tsv file has a text in each cell; other files have a word in each line, and
  a blank line after each sentence.
  """
  lines = path.read_text(encoding="utf-8-sig").splitlines()
  if path.suffix == ".tsv":
    for line in lines:
      yield from line.split("\t")
    return
  sentence: list[str] = []
  for line in [*lines, ""]:
    if line.strip():
      sentence.append(line.split("\t")[0])
    else:
      yield " ".join(sentence)
      sentence = []


def evaluated_files(folders: Iterable[str]) -> list[pathlib.Path]:
  """Returns the development and test files below the folders of tasks."""
  return [
    path
    for folder in folders
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if re.search(r"(^|[._-])(dev|test)[^/]*$", path.name)
  ]


def evaluated_keys(paths: Iterable[pathlib.Path]) -> set[tuple[str, ...]]:
  """Returns what marks a copy of a text of these files; see `keys_of`."""
  found: set[tuple[str, ...]] = set()
  for path in paths:
    for text in texts_of(path):
      words = words_of(text)
      if len(words) >= _LEAST_WORDS:
        found.update(keys_of(words))
  return found


def is_copy(sentence: str, keys: set[tuple[str, ...]]) -> bool:
  """Returns whether a sentence holds a copy of a text with these keys."""
  return any(key in keys for key in keys_of(words_of(sentence)))


def every(lines: Iterable[str], step: int) -> Iterator[str]:
  """Yields the lines of every `step`-th document, and its blank line."""
  number = 0
  for line in lines:
    if number % step == 0:
      yield line
    number += not line.strip()


def held_out_apart(
  lines: Iterable[str], step: int
) -> tuple[list[str], list[str]]:
  """Returns the lines of all documents but every `step`-th, and of the others.

  Args:
    lines: a sentence each, with a blank line after each document.
    step: the number of documents of which the last is held out.
  """
  parts: tuple[list[str], list[str]] = ([], [])
  number = 0
  for line in lines:
    parts[number % step == step - 1].append(line)
    number += not line.strip()
  return parts


def without_copies(
  lines: Iterable[str], keys: set[tuple[str, ...]]
) -> tuple[list[str], int]:
  """Returns the lines that hold no copy, and the number of those left out."""
  kept, dropped = [], 0
  for line in lines:
    if line.strip() and is_copy(line, keys):
      dropped += 1
    else:
      kept.append(line)
  return kept, dropped


def noised(sentence: str, rng: random.Random) -> str:
  """Returns a sentence with some words left out, and some swapped."""
  words = [word for word in sentence.split() if rng.random() >= _DROP_RATE]
  for i in range(len(words) - 1):
    if rng.random() < _SWAP_RATE:
      words[i], words[i + 1] = words[i + 1], words[i]
  return " ".join(words)


def doubled(lines: Iterable[str], rng: random.Random) -> Iterator[str]:
  """Yields some blocks of sentences, each followed by a noised copy.

  Blocks do not cross documents; a blank line follows each document.

  Args:
    lines: a sentence each, with a blank line after each document.
    rng: the source of randomness.
  """
  block: list[str] = []
  size = 1
  for line in [*lines, ""]:
    if line.strip():
      block.append(line.strip())
    if block and (len(block) == size or not line.strip()):
      if rng.random() < _DOUBLED_RATE:
        copies = [noised(sentence, rng) for sentence in block]
        yield from (text + "\n" for text in [*block, *copies] if text)
      block, size = [], rng.randint(1, 3)
    if not line.strip():
      yield "\n"


def gather(texts: list[str], folders: list[str], output: str) -> None:
  """Writes the texts, and the docstrings, without copies of what is evaluated.

  Args:
    texts: paths of texts; PATH:K means every K-th document of it.
    folders: folders of tasks.
    output: the folder that gets a file for each text, docstrings.txt,
      doubled.txt, held_out.txt and counts.json.
  """
  os.makedirs(output, exist_ok=True)
  keys = evaluated_keys(evaluated_files(folders))
  train, held_out = demo.gather(os.path.join(output, "docstrings"))
  sources = {}
  for text in texts:
    path, _, step = text.partition(":")
    sources[pathlib.Path(path).name] = (path, int(step or 1))
  sources["docstrings.txt"] = (train, 1)
  sources["held_out.txt"] = (held_out, 1)
  counts = {}
  rng = random.Random(0)
  twice: list[str] = []
  apart: list[str] = []
  for name, (source, nth) in sources.items():
    with open(source, encoding="utf-8") as f:
      kept, dropped = without_copies(every(f, nth), keys)
    if name == "held_out.txt":  # the last one
      kept += apart
    else:
      if name != "docstrings.txt":  # whole packages are held out of it
        kept, own = held_out_apart(kept, _HELD_OUT_STEP)
        apart += own
      twice += doubled(kept, rng)
    with open(os.path.join(output, name), "w", encoding="utf-8") as f:
      f.writelines(kept)
    counts[name] = {
      "sentences": sum(bool(line.strip()) for line in kept),
      "words": sum(len(line.split()) for line in kept),
      "left_out": dropped,
    }
  with open(os.path.join(output, "doubled.txt"), "w", encoding="utf-8") as f:
    f.writelines(twice)
  counted = json.dumps(counts, indent=1)
  pathlib.Path(output, "counts.json").write_text(counted + "\n")
  print(counted)


def main(argv: list[str] | None = None) -> None:
  """Gathers the text that the flags name."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--text", required=True, help="files, with commas")
  parser.add_argument("--tasks", required=True, help="folders, with commas")
  parser.add_argument("--output", required=True, help="folder to write")
  args = parser.parse_args(argv)
  gather(args.text.split(","), args.tasks.split(","), args.output)


if __name__ == "__main__":
  main()
