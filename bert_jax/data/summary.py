"""What prepared data tells about its text, and what to change."""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import load
from bert_jax.data.tokenizers import word_rules
from bert_jax.runtime import files

# The shares above which a remark is made. Pairs of ordinary text lose some
# tokens of the last sentence of each, and half of the pairs are random.
_MOST_CUT = 0.15
_MOST_LONG = 0.05
_MOST_RANDOM = 0.75
_MOST_UNKNOWN = 0.02
_MOST_IDEOGRAPHS = 0.2
# Chinese tokens of a word, on average; words of Chinese text have about 1.6
# characters.
_SHORTEST_WORDS, _LONGEST_WORDS = 1.02, 4.0
# A learned vocabulary is padded to a multiple of this, the width of the tiles
# of a TPU and of the matrix units of most chips.
VOCAB_MULTIPLE = 128


def model_vocab_size(folder: str) -> int:
  """Returns the rows of the word table of a model for prepared data.

  Args:
    folder: DATA.
  """
  size = manifests.read_manifest(folder)["vocab_size"]
  path = os.path.join(folder, "vocab", "settings.json")
  # Only a vocabulary that was learned there is recorded with its settings.
  is_learned = files.exists(path) and "vocab_size" in records.read_json(path)
  return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE if is_learned else size


def has_held_out(folder: str) -> bool:
  """Returns whether prepared data has text to evaluate on.

  Args:
    folder: DATA.
  """
  totals = manifests.read_manifest(folder)["totals"]
  return totals["validation"]["documents"] > 0


def whole_word_problem(folder: str) -> str:
  """Returns why whole words of prepared data cannot be masked, or "".

  WordPiece sets every Chinese character apart, so that it is a word of its own,
  and masking whole words would be masking single pieces. Other vocabularies see
  a word in all that has no space in it, which would seldom fit the tokens to
  predict. A segmenter says where words begin.

  Args:
    folder: DATA.
  """
  manifest = manifests.read_manifest(folder)
  if segmenter := manifest["settings"].get("segmenter"):
    if not manifests.has_form(manifest, {"words": manifests.WORDS}):
      raise records.DataError(
        f"{folder}/manifest.json is damaged: it has no counts of words; put a "
        "copy back, or prepare the data again"
      )
    return _segmenter_problem(folder, str(segmenter), manifest["words"])
  tokenizer = load.load_tokenizer(os.path.join(folder, "vocab"))
  path = os.path.join(folder, "tokens", "train.counts.npy")
  counts = records.read_array(path, np.int64, 1)
  chinese = [
    word_rules.has_ideograph(tokenizer.token(i)) for i in range(len(counts))
  ]
  share = counts[chinese].sum() / max(counts.sum(), 1)
  if share <= _MOST_IDEOGRAPHS:
    return ""
  return (
    f"data.whole_word=True, but {100 * share:.1f} % of the tokens of {folder} "
    "are Chinese, and nothing says where their words begin; prepare the text "
    "again with --config.prepare.segmenter=jieba (or with a list of words), or "
    "set --config.data.whole_word=False"
  )


def _segmenter_problem(
  folder: str, segmenter: str, words: Mapping[str, int]
) -> str:
  """Returns why the words of a segmenter cannot be those of the text, or "".

  Args:
    folder: DATA.
    segmenter: the segmenter, as recorded.
    words: the counts of Chinese tokens and of those that continue a word.
  """
  total, joined = words["chinese_tokens"], words["joined_tokens"]
  length = total / max(total - joined, 1)
  if not total or _SHORTEST_WORDS <= length <= _LONGEST_WORDS:
    return ""
  return (
    f"data.whole_word=True, but the words of {folder} have {length:.2f} "
    f"Chinese tokens on average by prepare.segmenter={segmenter:.20}, which "
    "does not fit the text; prepare it again with "
    "--config.prepare.segmenter=jieba or with a list of its words, or set "
    "--config.data.whole_word=False"
  )


def cut_share(
  tokens: Mapping[str, Any], examples: Mapping[str, Any], dupe_factor: int
) -> float | None:
  """Returns the share of the text that no example holds, over all passes.

  Args:
    tokens: the totals of a split in the manifest of the tokens.
    examples: the totals of that split in the manifest of the examples.
    dupe_factor: the number of passes.

  Returns:
    The share; None if an older release made the examples, which did not count.
  """
  if "cut_tokens" not in examples:
    return None
  return examples["cut_tokens"] / max(tokens["tokens"] * dupe_factor, 1)


def remarks(data: Any, folder: str) -> list[str]:
  """Returns what is unusual about the training text, with what to change.

  Args:
    data: the `data` group of a config, which says which examples are meant.
    folder: DATA, which has these examples.
  """
  store = manifests.read_manifest(folder)
  name = records.examples_name(data)
  target = records.examples_folder(folder, name)
  if not files.exists(os.path.join(target, "manifest.json")):
    return []
  tokens = store["totals"]["train"]
  examples = manifests.read_manifest(target)["totals"]["train"]
  num_tokens = max(tokens["tokens"], 1)
  found = []
  cut = cut_share(tokens, examples, data.dupe_factor)
  if cut is not None and cut > _MOST_CUT:
    found.append(
      f"{100 * cut:.1f} % of the text is in no example, because pairs of "
      f"sentences are cut to data.seq_len={data.seq_len}; use a longer row, or "
      "--config.data.pairing=full_sentences with --config.objective=mlm, which "
      "loses none"
    )
  num_long = examples.get("long_tokens", 0)
  if num_long > _MOST_LONG * num_tokens:
    advice = "; a larger --config.data.seq_len keeps them whole"
    if store["settings"].get("format") == "sentences":
      advice = (
        ". If a line is a paragraph, prepare the text with "
        "--config.prepare.format=paragraphs, which also needs a blank line "
        "between paragraphs and two between documents"
      )
    found.append(
      f"{100 * num_long / num_tokens:.1f} % of the text is in lines or "
      f"sentences that are longer than a row of {data.seq_len} and were divided"
      f"{advice}"
    )
  num_examples = max(examples["examples"], 1)
  random = examples.get("random_next", 0) / num_examples
  if data.pairing == "pairs" and random > _MOST_RANDOM:
    found.append(
      f"{100 * random:.1f} % of the pairs are random text, because most "
      f"documents are short ({tokens['sentences'] / tokens['documents']:.1f} "
      "sentences on average), so that next-sentence prediction learns little; "
      "use --config.data.pairing=full_sentences with --config.objective=mlm, "
      "or give text with several sentences in a document"
    )
  unknown = tokens["unknown"] / num_tokens
  if unknown > _MOST_UNKNOWN:
    found.append(
      f"{100 * unknown:.1f} % of the tokens are unknown to the vocabulary; "
      "give one that fits the text, or learn one with a larger "
      "prepare.vocab_size and prepare.alphabet_size"
    )
  return found
