"""Counts the texts whose token ids differ from those of transformers.

  python -m experiments.families.ids --data=../shared/data

Every line of every text under the folder, every text in its JSON files, and
random Unicode go through each kind of tokenizer. The vocabularies are learned
from the first lines of corpus/reviews.txt; that of BERT is the released one.
Writes experiments/families/ids.json and, from it, a section of
docs/reference/families.md. Needs transformers. `--every=10` takes every tenth
text of each file; `--kinds=bert+roberta` runs some.

The spelling of a special token in a text is left out: it is text here, and a
token there (docs/reference/weights.md).
"""

import argparse
from collections.abc import Iterator
import json
import pathlib
import random
import re
import sys
import tempfile
from typing import Any

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from experiments.families import table
from tests.support import tokenizer_folders as folders

COUNTS = pathlib.Path(__file__).with_name("ids.json")
KINDS = (
  "bert", "roberta", "modernbert", "mpnet", "xlm_roberta", "camembert",
  "albert", "deberta_v2", "xlnet",
)  # fmt: skip
NUM_RANDOM = 20_000
_CHUNK = 5_000
_SPECIAL = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]|</?\w+>", re.I)


def texts_of(path: pathlib.Path) -> Iterator[str]:
  """Yields the texts of a file: its lines, or the texts in its JSON."""
  content = path.read_text(encoding="utf-8")
  if path.suffix == ".json":
    try:
      yield from _strings(json.loads(content))
      return
    except ValueError:
      pass  # a JSON object a line
  yield from content.split("\n")


def _strings(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _strings(item)


def random_texts(count: int) -> Iterator[str]:
  """Yields texts of random characters, without halves of surrogate pairs."""
  rng = random.Random(0)
  ranges = [(32, 127), (32, 0x250), (0x250, 0xD7FF), (0xE000, 0x1FFFF)]
  for _ in range(count):
    size = rng.randint(1, 16)
    yield "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(size))


def all_texts(data: pathlib.Path, every: int) -> dict[str, list[str]]:
  """Returns folder -> its texts, and "random Unicode"."""
  found: dict[str, list[str]] = {}
  for path in sorted(data.rglob("*")):
    name = path.relative_to(data).parts[0]
    if path.is_file() and name != "vocab" and path.parent != data:
      kept = list(texts_of(path))[::every]
      found.setdefault(name, []).extend(
        text for text in kept if text and not _SPECIAL.search(text)
      )
  odd = [t for t in random_texts(NUM_RANDOM) if not _SPECIAL.search(t)]
  return found | {"random Unicode": odd}


def make_pair(
  kind: str, data: pathlib.Path, folder: pathlib.Path
) -> tuple[interface.Tokenizer, Any]:
  """Returns our tokenizer and that of transformers for a kind."""
  import transformers

  lines = (data / "corpus" / "reviews.txt").read_text().split("\n")[:5000]
  if kind in folders.UNIGRAM:
    folders.write_unigram(folder, kind, lines, 4000)
    name = folders.UNIGRAM[kind][0]
  elif kind == "roberta":
    folders.write_bpe(folder, lines, 4000)
    name = "RobertaTokenizer"
  elif kind == "modernbert":
    folders.write_modernbert(folder, lines, 4000)
    name = "PreTrainedTokenizerFast"
  else:
    folder.mkdir(exist_ok=True)
    pieces = (data / "vocab" / "bert-base-uncased" / "vocab.txt").read_text()
    name = "BertTokenizer"
    if kind == "mpnet":
      name = "MPNetTokenizer"
      own = "<s>\n<pad>\n</s>\n<unk>\n"
      pieces = own + pieces.rstrip("\n") + "\n<mask>\n"
    (folder / "vocab.txt").write_text(pieces)
    config = {"tokenizer_class": name, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
  theirs = getattr(transformers, name).from_pretrained(folder)
  return load.load_tokenizer(folder), theirs


def compare(
  ours: interface.Tokenizer, theirs: Any, texts: list[str]
) -> tuple[int, int, str]:
  """Returns the number of tokens and of texts that differ, and the first."""
  tokens, differing, first = 0, 0, ""
  for start in range(0, len(texts), _CHUNK):
    chunk = texts[start : start + _CHUNK]
    want = theirs(chunk, add_special_tokens=False)["input_ids"]
    for text, a, b in zip(chunk, ours.encode_batch(chunk), want, strict=True):
      tokens += len(b)
      if list(a) != list(b):
        differing += 1
        first = first or text
  return tokens, differing, first


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m experiments.families.ids")
  parser.add_argument("--data", type=pathlib.Path, default="../shared/data")
  parser.add_argument("--every", type=int, default=1)
  parser.add_argument("--kinds", default="+".join(KINDS))
  args = parser.parse_args(argv)
  if not (args.data / "corpus" / "reviews.txt").exists():
    parser.error(f"--data={args.data} has no corpus/reviews.txt")
  texts = all_texts(args.data, args.every)
  known = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
  for kind in args.kinds.split("+"):
    with tempfile.TemporaryDirectory() as name:
      ours, theirs = make_pair(kind, args.data, pathlib.Path(name) / "x")
      known[kind] = {"every": args.every, "counts": {}}
      for source, found in texts.items():
        tokens, differing, first = compare(ours, theirs, found)
        known[kind]["counts"][source] = [len(found), tokens, differing]
        if differing:
          print(f"{kind}, {source}: {differing} differ, such as {first!r:.200}")
    print(kind, known[kind], flush=True)
    COUNTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    table.write_page()
  rows = [row for kind in known.values() for row in kind["counts"].values()]
  return int(any(differing for _, _, differing in rows))


if __name__ == "__main__":
  sys.exit(main())
