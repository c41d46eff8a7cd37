"""Chooses the text of each example: sentence pairs, or full sentences.

This is arithmetic on sentence boundaries; no token is read. A document of n
sentences is a list of n + 1 token positions, its boundaries: sentence i spans
boundaries[i] to boundaries[i + 1].
"""

from bisect import bisect_left
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
import random

# (a_start, b_start, a_length, b_length, is_random), in tokens.
Example = tuple[int, int, int, int, int]


def make_pairs(
  boundaries: Sequence[int],
  max_tokens: int,
  short_seq_rate: float,
  rng: random.Random,
  random_document: Callable[[], Sequence[int]],
  keep_all: bool = False,
) -> Iterator[Example]:
  """Cuts one document into sentence pairs, as the original code does.

  Whole sentences are gathered up to a target length. A random number of them
  becomes segment A, and the rest becomes segment B. With probability 1/2, and
  always if a single sentence was gathered, segment B is text from another
  document instead, and the rest is used for the next example.

  A pair that is longer than a row loses tokens, as in the original code. With
  `keep_all` its last sentence is left to the next example instead, or is cut,
  so that every token of the document is in one example.

  Args:
    boundaries: the boundaries of the document.
    max_tokens: the most tokens of both segments together, without [CLS] and
      [SEP].
    short_seq_rate: the probability that the target for this document is a
      random shorter length.
    rng: the source of randomness.
    random_document: draws the boundaries of a document for random text.
    keep_all: whether no token may be lost. All sentences must then be shorter
      than `max_tokens`.

  Yields:
    Examples; is_random is 1 if B does not follow A.

  Source: google-research/bert create_pretraining_data.py:223-335.
  """
  target = max_tokens
  if rng.random() < short_seq_rate:
    target = rng.randint(2, max_tokens)
  if keep_all:
    boundaries = list(boundaries)  # sentences will be cut
  num_sentences = len(boundaries) - 1
  draw = rng.random
  i = 0
  while i < num_sentences:
    # As many whole sentences as reach the target, or all that are left.
    end = min(
      bisect_left(boundaries, boundaries[i] + target, i + 1), num_sentences
    )
    if keep_all and boundaries[end] - boundaries[i] > max_tokens:
      if end - i > 2:
        end -= 1
      else:  # two sentences: the rest of the second becomes a sentence
        assert isinstance(boundaries, list)
        boundaries.insert(end, boundaries[i] + max_tokens)
        num_sentences += 1
    a_end = i + 1
    if end - i >= 2:
      a_end = i + 1 + int(draw() * (end - i - 1))
    a_start, a_length = boundaries[i], boundaries[a_end] - boundaries[i]
    if end - i == 1 or draw() < 0.5:
      other = random_document()
      start = int(draw() * (len(other) - 1))
      b_start = int(other[start])
      stop = bisect_left(other, b_start + target - a_length, start + 1)
      b_length = int(other[min(stop, len(other) - 1)]) - b_start
      is_random = 1
      end = a_end
      if keep_all:  # only random text is cut
        b_length = min(b_length, max_tokens - a_length)
    else:
      b_start, is_random = boundaries[a_end], 0
      b_length = boundaries[end] - b_start
    if a_length + b_length > max_tokens:
      a_start, a_length, b_start, b_length = truncate_pair(
        a_start, a_length, b_start, b_length, max_tokens, rng
      )
    yield a_start, b_start, a_length, b_length, is_random
    i = end


def ordered_pairs(
  boundaries: Sequence[int],
  max_tokens: int,
  short_seq_rate: float,
  rng: random.Random,
) -> Iterator[Example]:
  """Cuts one document into pairs of consecutive segments, half of them swapped.

  Whole sentences are gathered as in `make_pairs`, and as many as fit into a
  row. A single sentence is cut in its middle; one of a single token is left
  out.

  Args:
    boundaries: the boundaries of the document.
    max_tokens: the most tokens of both segments together.
    short_seq_rate: the probability that the target for this document is a
      random shorter length.
    rng: the source of randomness.

  Yields:
    Examples; is_random is 1 if the segments are swapped.

  Source: arXiv:1909.11942, section 3.1; google-research/albert
  create_pretraining_data.py.
  """
  target = max_tokens
  if rng.random() < short_seq_rate:
    target = rng.randint(2, max_tokens)
  num_sentences = len(boundaries) - 1
  i = 0
  while i < num_sentences:
    start = boundaries[i]
    end = min(bisect_left(boundaries, start + target, i + 1), num_sentences)
    if end - i > 1 and boundaries[end] - start > max_tokens:
      end -= 1
    stop = min(boundaries[end], start + max_tokens)
    middle = start + (stop - start) // 2
    if end - i > 1:
      middle = boundaries[i + 1 + int(rng.random() * (end - i - 1))]
    i = end
    if start < middle < stop:
      a, b = (start, middle - start), (middle, stop - middle)
      is_swapped = rng.random() < 0.5
      first, second = (b, a) if is_swapped else (a, b)
      yield first[0], second[0], first[1], second[1], int(is_swapped)


def truncate_pair(
  a_start: int,
  a_length: int,
  b_start: int,
  b_length: int,
  max_tokens: int,
  rng: random.Random,
) -> tuple[int, int, int, int]:
  """Drops tokens from the longer segment until both segments fit.

  Each dropped token comes from the front or the back of its segment with equal
  probability; if both are equally long, B loses a token.

  Args:
    a_start: the first token of A.
    a_length: the number of tokens of A.
    b_start: the first token of B.
    b_length: the number of tokens of B.
    max_tokens: the most tokens of both segments together.
    rng: the source of randomness.

  Returns:
    (a_start, a_length, b_start, b_length) of the truncated segments.

  Source: google-research/bert create_pretraining_data.py:418-433.
  """
  surplus = a_length + b_length - max_tokens
  if surplus <= 0:
    return a_start, a_length, b_start, b_length
  if a_length > b_length:
    from_a = min(surplus, a_length - b_length)
    from_b = 0
  else:
    from_a = 0
    from_b = min(surplus, b_length - a_length)
  rest = surplus - from_a - from_b  # now equally long: B first, in turns
  from_b += rest - rest // 2
  from_a += rest // 2
  # How many of the dropped tokens come from the front: as many heads as coins.
  front_a = rng.getrandbits(from_a).bit_count() if from_a else 0
  front_b = rng.getrandbits(from_b).bit_count() if from_b else 0
  return (
    a_start + front_a,
    a_length - from_a,
    b_start + front_b,
    b_length - from_b,
  )


def full_sentences(
  starts: Sequence[int], document_starts: frozenset[int], max_tokens: int
) -> Iterator[Example]:
  """Packs running text into rows of whole sentences, without NSP.

  A row may cross the end of a document, where the token store holds a [SEP]. A
  sentence that is too long for a row is split, so no token is lost.

  Args:
    starts: the first token of every sentence of a shard, and the end of the
      last sentence.
    document_starts: those of `starts` that begin a document, and the end.
    max_tokens: the most tokens of a row, without [CLS] and the last [SEP].

  Yields:
    Examples with an empty segment B.

  Source: FULL-SENTENCES of arXiv:1907.11692, section 4.2.
  """
  start, end = starts[0], starts[-1]
  while start < end:
    stop = starts[bisect_right(starts, start + max_tokens) - 1]
    if stop <= start:  # the sentence alone is too long
      stop = min(start + max_tokens, end)
      stop += stop + 1 in document_starts  # take along the [SEP] left over
    yield start, 0, stop - start - (stop in document_starts), 0, 0
    start = stop
