"""Cuts a text into documents as long as those of Wikipedia.

Chapters of novels fill rows of 512 tokens; articles of Wikipedia mostly end
before. Sentences stay in order, only where a document ends is drawn: after the
first sentence that reaches a length from a log-normal distribution with a
median of 80 words and sigma 1.8 (mean about 400), seeded.

The two numbers were fitted so that examples (pairs of 512, original recipe)
have the lengths that are published of BERT's on Wikipedia: 16.3 M examples,
mean 256 tokens (so half of a padded row is empty), quartiles 84, 204 and 484,
5 % shorter than 36, 23.4 % as long as the row. packing.py prints how far the
examples of a text cut in this way are from that.

Source: github.com/graphcore/examples, tutorials/blogs_code/packedBERT/
histograms.py, the counts behind figure 1 of Krell et al., arXiv:2107.02027.

  python experiments/bench/wikipedia.py --input=novels.txt --output=wiki.txt
"""

import argparse
from collections.abc import Iterable, Iterator
import math
import random

MEDIAN_WORDS, SIGMA = 80, 1.8


def cut(sentences: Iterable[str], seed: int = 0) -> Iterator[list[str]]:
  """Yields documents, lists of sentences; the last may be shorter than drawn.

  Args:
    sentences: of the whole text.
    seed: of the lengths.
  """
  rng = random.Random(seed)
  document: list[str] = []
  num_words, wanted = 0, _draw(rng)
  for sentence in sentences:
    document.append(sentence)
    num_words += len(sentence.split())
    if num_words >= wanted:
      yield document
      document, num_words, wanted = [], 0, _draw(rng)
  if document:
    yield document


def _draw(rng: random.Random) -> float:
  return MEDIAN_WORDS * math.exp(rng.gauss(0, SIGMA))


def write(source: str, target: str, seed: int = 0) -> int:
  """Cuts a file of one sentence a line into another; returns its documents."""
  count = 0
  with (
    open(source, encoding="utf-8") as lines,
    open(target, "w", encoding="utf-8") as f,
  ):
    for document in cut((x for x in map(str.strip, lines) if x), seed):
      f.write("\n".join(document) + "\n\n")
      count += 1
  return count


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--input", required=True, help="one sentence a line")
  parser.add_argument("--output", required=True, help="with a blank line too")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  print(
    f"{args.output}: {write(args.input, args.output, args.seed):,} documents"
  )


if __name__ == "__main__":
  main()
