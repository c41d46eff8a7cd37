"""Tests of duplicates.py: documents that repeat others are left out."""

import json
import random

import numpy as np
import pytest

from bert_jax.data import prepare
from tests.support import corpora


def words_of(rng, count=200):
  return [f"w{rng.randrange(400)}" for _ in range(count)]


def as_document(words):
  return "\n".join(
    " ".join(words[i : i + 10]) for i in range(0, len(words), 10)
  )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """Twelve documents, a copy in capitals, and one with a changed word."""
  rng = random.Random(0)
  documents = [words_of(rng) for _ in range(12)]
  near = [*documents[3]]
  near[30] = "w999"
  folder = tmp_path_factory.mktemp("duplicates")
  lines = [as_document(x) for x in documents]
  lines.insert(7, lines[2].upper().replace("\n", " \n"))
  lines.append(as_document(near))
  (folder / "text.txt").write_text("\n\n".join(lines) + "\n")
  vocab = [*corpora.SPECIALS, *(f"w{i}" for i in range(1000))]
  (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
  return folder


def prepared(text, folder, kind, **values):
  config = corpora.make_config(
    str(text / "vocab.txt"),
    prepare__duplicates=kind,
    prepare__held_out_rate=0.0,
    data__pairing="documents",
    data__dupe_factor=1,
    **values,
  )
  prepare.prepare(config, [str(text / "text.txt")], str(folder))
  return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
  ("kind", "dropped"), [("keep", 0), ("drop_equal", 1), ("drop_near", 2)]
)
def test_the_first_of_each_kind_is_kept(text, tmp_path, kind, dropped):
  if kind == "drop_near":
    pytest.importorskip("datasketch")
  manifest = prepared(text, tmp_path / "one", kind)
  assert manifest["totals"]["train"]["documents"] == 14 - dropped
  assert manifest.get("dropped_documents", 0) == dropped
  assert manifest["settings"].get("duplicates", "keep") == kind
  if kind == "keep":
    return
  # However the text is cut into units, the same documents stay.
  many = prepared(text, tmp_path / "many", kind, prepare__unit_bytes=900)
  assert len(many["inputs"]) > 3
  counts = [
    np.load(tmp_path / name / "tokens" / "train.counts.npy")
    for name in ("one", "many")
  ]
  np.testing.assert_array_equal(*counts)


def test_another_choice_needs_another_folder(text, tmp_path):
  prepared(text, tmp_path / "data", "drop_equal")
  with pytest.raises(ValueError, match="duplicates"):
    prepared(text, tmp_path / "data", "keep")
