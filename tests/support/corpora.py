"""Made-up text, a vocabulary for it, and what prepared data holds."""

import hashlib
import os
import pathlib
import random

import numpy as np

from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from configs import base

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = "ba do fi gu ka le mo nu pi ra se to".split()


def make_documents(count, seed=0, max_sentences=12):
  """Documents of sentences of words of one to three syllables."""
  rng = random.Random(seed)
  words = [
    "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in "x" * 90
  ]

  def sentence():
    found = rng.choices(words, k=rng.randint(2, 14))
    if rng.random() < 0.1:
      found[0] = "qq"  # in no vocabulary
    return " ".join(found).capitalize() + rng.choice(".!?")

  return [
    [sentence() for _ in range(rng.randint(1, max_sentences))]
    for _ in range(count)
  ]


def write_text(path, documents):
  path.write_text("\n".join("\n".join(d) + "\n" for d in documents))
  return str(path)


def write_vocabulary(path):
  """Whole syllables; words of more than one are several pieces."""
  pieces = [*SPECIALS, ".", "!", "?"]
  pieces += SYLLABLES + ["##" + s for s in SYLLABLES]
  path.write_text("\n".join(pieces) + "\n")
  return str(path)


def make_config(vocab="", **changes):
  """A config of small units; changes by `group.key`, dots as double bars."""
  config = base.get_config()
  config.data.seq_len = 32
  config.data.dupe_factor = 2
  config.data.verify = "never"  # so that readers meet the damage themselves
  config.prepare.vocab = vocab
  config.prepare.unit_bytes = 6_000
  config.prepare.num_workers = 1
  config.prepare.held_out_rate = 0.15
  for key, value in changes.items():
    group, _, name = key.partition("__")
    config[group][name] = value
  return config


def tree(folder):
  """sha256 of every file below a folder, the lock apart."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file() and path.name != ".lock"
  }


def open_split(folder, split):
  """Token store, table and manifest rows of a split."""
  rows = manifests.read_manifest(folder)["shards"][split]
  tokens = os.path.join(folder, "tokens")
  table = indexes.DocumentTable(tokens, split, rows)
  return indexes.TokenStore(folder, split), table


def span(store, start, length):
  tokens, at = store.read_spans(np.array([start]), np.array([length]))
  return tokens[at[0] : at[0] + length].tolist()


def story(num_lines, seed=0):
  """Made-up lines whose words share stems and endings."""
  rng = random.Random(seed)
  stems = ["walk", "talk", "jump", "sing", "Lond", "caf\u00e9", "\u4e2d\u6587"]
  stems += ["".join(rng.choices("abcdefghijklmnop", k=4)) for _ in range(200)]
  ends = ["", "s", "ed", "ing", "er", "on", "'s"]
  return [
    " ".join(
      rng.choice(stems) + rng.choice(ends) for _ in range(rng.randint(3, 9))
    )
    + "."
    for _ in range(num_lines)
  ]
