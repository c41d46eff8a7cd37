"""Tests of conversion.py and of BERT: names and layouts by hand, refusals."""

import ml_dtypes
import numpy as np
import pytest

from bert_jax.models import config as model_config
from bert_jax.models import conversion
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import layers
from bert_jax.models import params as param_trees
from bert_jax.models.families import bert
from tests.support import layer_stacks
from tests.support.bert_shapes import bert_shapes

MODEL = {
  "vocab_size": 13,
  "num_layers": 2,
  "hidden_size": 6,
  "num_heads": 2,
  "mlp_dim": 10,
  "max_len": 7,
  "type_vocab_size": 2,
  "hidden_act": "gelu_erf",
  "layer_norm_eps": 1e-7,
}
# Written down by hand: every parameter outside of the layers, and of one layer.
NAMES = {
  "encoder/embeddings/word/embedding": (
    "bert.embeddings.word_embeddings.weight",
    "bert/embeddings/word_embeddings/embedding",
    "bert/embeddings/word_embeddings",
  ),
  "encoder/embeddings/position/embedding": (
    "bert.embeddings.position_embeddings.weight",
    "bert/embeddings/position_embeddings/embedding",
    "bert/embeddings/position_embeddings",
  ),
  "encoder/embeddings/type/embedding": (
    "bert.embeddings.token_type_embeddings.weight",
    "bert/embeddings/token_type_embeddings/embedding",
    "bert/embeddings/token_type_embeddings",
  ),
  "encoder/embeddings/norm/scale": (
    "bert.embeddings.LayerNorm.weight",
    "bert/embeddings/LayerNorm/scale",
    "bert/embeddings/LayerNorm/gamma",
  ),
  "encoder/embeddings/norm/bias": (
    "bert.embeddings.LayerNorm.bias",
    "bert/embeddings/LayerNorm/bias",
    "bert/embeddings/LayerNorm/beta",
  ),
  "encoder/layer_1/attention/query/kernel": (
    "bert.encoder.layer.1.attention.self.query.weight",
    "bert/encoder/layer/1/attention/self/query/kernel",
    "bert/encoder/layer_1/attention/self/query/kernel",
  ),
  "encoder/layer_1/attention/key/bias": (
    "bert.encoder.layer.1.attention.self.key.bias",
    "bert/encoder/layer/1/attention/self/key/bias",
    "bert/encoder/layer_1/attention/self/key/bias",
  ),
  "encoder/layer_1/attention/value/kernel": (
    "bert.encoder.layer.1.attention.self.value.weight",
    "bert/encoder/layer/1/attention/self/value/kernel",
    "bert/encoder/layer_1/attention/self/value/kernel",
  ),
  "encoder/layer_1/attention/out/kernel": (
    "bert.encoder.layer.1.attention.output.dense.weight",
    "bert/encoder/layer/1/attention/output/dense/kernel",
    "bert/encoder/layer_1/attention/output/dense/kernel",
  ),
  "encoder/layer_1/attention_norm/scale": (
    "bert.encoder.layer.1.attention.output.LayerNorm.weight",
    "bert/encoder/layer/1/attention/output/LayerNorm/scale",
    "bert/encoder/layer_1/attention/output/LayerNorm/gamma",
  ),
  "encoder/layer_1/mlp/in/kernel": (
    "bert.encoder.layer.1.intermediate.dense.weight",
    "bert/encoder/layer/1/intermediate/dense/kernel",
    "bert/encoder/layer_1/intermediate/dense/kernel",
  ),
  "encoder/layer_1/mlp/out/bias": (
    "bert.encoder.layer.1.output.dense.bias",
    "bert/encoder/layer/1/output/dense/bias",
    "bert/encoder/layer_1/output/dense/bias",
  ),
  "encoder/layer_1/mlp_norm/bias": (
    "bert.encoder.layer.1.output.LayerNorm.bias",
    "bert/encoder/layer/1/output/LayerNorm/bias",
    "bert/encoder/layer_1/output/LayerNorm/beta",
  ),
  "encoder/pooler/kernel": (
    "bert.pooler.dense.weight",
    "bert/pooler/dense/kernel",
    "bert/pooler/dense/kernel",
  ),
  "mlm/dense/kernel": (
    "cls.predictions.transform.dense.weight",
    "cls/predictions/transform/dense/kernel",
    "cls/predictions/transform/dense/kernel",
  ),
  "mlm/norm/scale": (
    "cls.predictions.transform.LayerNorm.weight",
    "cls/predictions/transform/LayerNorm/scale",
    "cls/predictions/transform/LayerNorm/gamma",
  ),
  "mlm/norm/bias": (
    "cls.predictions.transform.LayerNorm.bias",
    "cls/predictions/transform/LayerNorm/bias",
    "cls/predictions/transform/LayerNorm/beta",
  ),
  "mlm/bias": (
    "cls.predictions.bias",
    "cls/predictions/bias",
    "cls/predictions/output_bias",
  ),
  "nsp/kernel": (
    "cls.seq_relationship.weight",
    "cls/seq_relationship/kernel",
    "cls/seq_relationship/output_weights",
  ),
  "nsp/bias": (
    "cls.seq_relationship.bias",
    "cls/seq_relationship/bias",
    "cls/seq_relationship/output_bias",
  ),
  "task/kernel": ("classifier.weight", "classifier/kernel", "output_weights"),
  "task/bias": ("classifier.bias", "classifier/bias", "output_bias"),
}
SPAN_NAMES = {
  "task/kernel": (
    "qa_outputs.weight",
    "qa_outputs/kernel",
    "cls/squad/output_weights",
  ),
  "task/bias": ("qa_outputs.bias", "qa_outputs/bias", "cls/squad/output_bias"),
}
OTHERS = ("huggingface", "flax", "tf1")
# Paths, in the order of `OTHERS`, that lie transposed there.
TRANSPOSED = {
  "huggingface": lambda path: path.endswith("kernel"),
  "flax": lambda path: False,
  "tf1": lambda path: path in ("nsp/kernel", "task/kernel"),
}


def make_params(num_labels=3, dtype=np.float32, without=()):
  rng = np.random.default_rng(0)
  return {
    path: rng.normal(size=shape).astype(dtype)
    for path, shape in heads.param_shapes(MODEL, num_labels).items()
    if not path.startswith(tuple(without))
  }


def assert_same(got, want):
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert got[name].dtype == array.dtype, name
    assert got[name].shape == array.shape, name
    assert got[name].tobytes() == array.tobytes(), name


def to_ours(*args, **kwargs):
  return conversion.to_ours(bert.FAMILY, *args, **kwargs)


def from_ours(*args):
  return conversion.from_ours(bert.FAMILY, *args)


def hf(**options):
  return from_ours("huggingface", make_params(**options), MODEL, "classify")


@pytest.mark.parametrize("format", OTHERS)
def test_names_are_those_of_the_other_implementations(format):
  column = OTHERS.index(format)
  for names, kind in ((NAMES, "classify"), (SPAN_NAMES, "span")):
    for path, theirs in names.items():
      name, is_transposed = bert.FAMILY.names[format].of(path, kind)
      assert name == theirs[column]
      assert is_transposed == TRANSPOSED[format](path)


@pytest.mark.parametrize("format", OTHERS)
def test_no_two_parameters_share_a_name(format):
  for kind in ("classify", "span"):
    paths = list(heads.param_shapes(MODEL, 2))
    names = {bert.FAMILY.names[format].of(path, kind)[0] for path in paths}
    assert len(names) == len(paths)


def test_the_shapes_are_those_of_the_model():
  model = MODEL | {
    "vocab_size": 32, "num_layers": 2, "hidden_size": 8, "num_heads": 2,
    "mlp_dim": 16, "max_len": 12,
  }  # fmt: skip
  shapes = heads.param_shapes(model, 3)
  assert shapes.pop("task/kernel") == (8, 3)
  assert shapes.pop("task/bias") == (3,)
  assert shapes == param_trees.flatten(bert_shapes(False))


def test_a_heads_columns_are_the_rows_of_a_transposed_kernel():
  params = make_params()
  tensors = from_ours("huggingface", params, MODEL, "classify")
  D, H = 6, 3
  query = tensors["bert.encoder.layer.0.attention.self.query.weight"]
  ours = params["encoder/layer_0/attention/query/kernel"]
  out = tensors["bert.encoder.layer.0.attention.output.dense.weight"]
  our_out = params["encoder/layer_0/attention/out/kernel"]
  assert query.shape == out.shape == (D, D)
  for n in range(2):
    for h in range(H):
      np.testing.assert_array_equal(query[n * H + h], ours[:, n, h])
      np.testing.assert_array_equal(out[:, n * H + h], our_out[n, h])


@pytest.mark.parametrize("format", families.FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
  ("kind", "num_labels"), [("classify", 3), ("span", 2), ("choice", 1)]
)
def test_a_round_trip_keeps_every_bit(format, dtype, kind, num_labels):
  params = make_params(num_labels, dtype)
  tensors = from_ours(format, params, MODEL, kind)
  found = to_ours(format, tensors, MODEL)
  assert_same(found.params, params)
  assert found.ignored == found.missing == ()
  if format != "bert_jax":
    assert found.kind == ("span" if kind == "span" else None)
  assert_same(
    from_ours(format, found.params, MODEL, kind),
    tensors,
  )


@pytest.mark.parametrize("format", families.FORMATS)
@pytest.mark.parametrize(
  "without",
  [
    ("task",),
    ("mlm", "nsp"),
    ("encoder/pooler", "nsp"),
    ("encoder/pooler", "mlm", "nsp", "task"),
  ],
)
def test_parts_may_be_missing(format, without):
  params = make_params(without=without)
  kind = None if "task" in without else "classify"
  tensors = from_ours(format, params, MODEL, kind)
  found = to_ours(format, tensors, MODEL)
  assert_same(found.params, params)
  assert found.ignored == ()
  has_pooler = "encoder/pooler" not in without
  pooler = ("encoder/pooler/kernel", "encoder/pooler/bias")
  assert found.missing == (() if has_pooler else pooler)


def test_a_bare_encoder_has_names_without_prefix():
  params = make_params(without=("mlm", "nsp", "task"))
  tensors = from_ours("huggingface", params, MODEL, None)
  assert "pooler.dense.weight" in tensors
  assert not [name for name in tensors if name.startswith("bert.")]
  assert_same(
    to_ours("huggingface", tensors, MODEL).params,
    params,
  )


@pytest.mark.parametrize("format", ["huggingface", "flax", "tf1"])
def test_the_prefix_of_the_encoder_may_be_missing(format):
  params = make_params()
  tensors = from_ours(format, params, MODEL, "classify")
  bare = {
    name.removeprefix("bert.").removeprefix("bert/"): array
    for name, array in tensors.items()
  }
  assert bare.keys() != tensors.keys()
  assert_same(to_ours(format, bare, MODEL).params, params)


def test_gamma_and_beta_are_old_names_of_weight_and_bias():
  params = make_params()
  old = {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): array
    for name, array in hf().items()
  }
  assert "bert.embeddings.LayerNorm.gamma" in old
  assert_same(to_ours("huggingface", old, MODEL).params, params)


def test_what_is_not_used_is_named():
  tensors = hf() | {
    "bert.embeddings.position_ids": np.arange(7)[None],
    "something.else": np.zeros(3, np.float32),
  }
  found = to_ours("huggingface", tensors, MODEL)
  assert found.ignored == ("bert.embeddings.position_ids", "something.else")


def test_the_optimizers_slots_and_the_step_are_not_used():
  tensors = from_ours("tf1", make_params(), MODEL, "classify")
  name = "bert/pooler/dense/kernel/adam_m"
  extra = {"global_step": np.int64(3), name: np.zeros((6, 6), np.float32)}
  found = to_ours("tf1", tensors | extra, MODEL)
  assert sorted(found.ignored) == sorted(extra)


def test_a_tied_decoder_is_no_parameter_of_its_own():
  params, tensors = make_params(), hf()
  word = tensors["bert.embeddings.word_embeddings.weight"]
  bias = tensors["cls.predictions.bias"]
  tied = {
    "cls.predictions.decoder.weight": word.copy(),
    "cls.predictions.decoder.bias": bias.copy(),
  }
  found = to_ours("huggingface", tensors | tied, MODEL)
  assert_same(found.params, params)
  assert found.ignored == ()
  alone = tensors | {"cls.predictions.decoder.bias": bias}
  del alone["cls.predictions.bias"]
  found = to_ours("huggingface", alone, MODEL)
  assert_same(found.params, params)
  assert found.ignored == ()


def test_an_untied_decoder_leaves_its_head_out():
  tensors = hf()
  other = tensors["bert.embeddings.word_embeddings.weight"] + 1
  tensors["cls.predictions.decoder.weight"] = other
  found = to_ours("huggingface", tensors, MODEL)
  assert not [path for path in found.params if path.startswith("mlm/")]
  assert "nsp/kernel" in found.params
  assert set(found.ignored) == {
    name for name in tensors if name.startswith("cls.predictions.")
  }
  flax = from_ours("flax", make_params(), MODEL, "classify")
  flax["cls/predictions/decoder/kernel"] = other.T
  found = to_ours("flax", flax, MODEL)
  assert not [path for path in found.params if path.startswith("mlm/")]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"),
      "there is no bert.encoder.layer.1.output.dense.bias",
    ),
    (
      lambda t: [t.pop(k) for k in list(t) if ".layer.1.output.dense." in k],
      r"there is no \S+\.dense\.weight, \S+\.dense\.bias; a Bert",
    ),
    (
      lambda t: t.update(
        {f"bert.encoder.layer.1.extra{i}.weight": np.zeros(2) for i in range(9)}
      ),
      r"extra0\.weight, .* and 1 more are parts of the encoder",
    ),
    (lambda t: t.pop("classifier.weight"), "there is no classifier.weight"),
    (lambda t: t.pop("cls.seq_relationship.bias"), "no cls.seq_relationship"),
    (
      lambda t: t.update({"pooler.dense.bias": np.zeros(6, np.float32)}),
      "name the same parameter",
    ),
    (
      lambda t: t.update({"bert.pooler.dense.bias": np.zeros(5, np.float32)}),
      r"has shape \[5\], .* should be \[6\]",
    ),
    (
      lambda t: t.update({"bert.pooler.dense.bias": np.zeros(6, np.int32)}),
      "is int32; weights must be one of bfloat16",
    ),
    (
      lambda t: t.update({"qa_outputs.bias": np.zeros(2, np.float32)}),
      "several heads of tasks",
    ),
    (
      lambda t: t.update({"classifier.bias": np.float32(1)}),
      "classifier.weight has shape",
    ),
    (
      lambda t: t.update({"encoder.layer.2.x": np.zeros(2, np.float32)}),
      "belongs to layer 2, .*have 2 layers",
    ),
  ],
)
def test_what_is_not_a_whole_model_is_refused(change, message):
  tensors = hf()
  change(tensors)
  with pytest.raises(families.ConvertError, match=message):
    to_ours("huggingface", tensors, MODEL)


def test_a_claim_of_a_billion_layers_costs_nothing():
  model = MODEL | {"num_layers": 10**9}
  with pytest.raises(families.ConvertError, match="1000000000 layers, but"):
    to_ours("huggingface", hf(), model)


def test_parameters_that_no_model_has_are_not_written():
  params = make_params() | {"encoder/extra/bias": np.zeros(2, np.float32)}
  with pytest.raises(families.ConvertError, match="encoder/extra/bias"):
    from_ours("tf1", params, MODEL, "classify")


def test_stacking_is_that_of_the_model():
  flat = make_params()
  tree = param_trees.nest(flat)
  assert param_trees.flatten(tree) == flat
  stacked = param_trees.stack(flat)
  theirs = {
    path: np.asarray(x)
    for path, x in param_trees.flatten(layer_stacks.stack_layers(tree)).items()
  }
  assert_same(stacked, theirs)
  assert_same(param_trees.unstack(stacked), flat)
  assert param_trees.num_layers(flat) == param_trees.num_layers(stacked) == 2


def test_layers_are_stacked_by_number_not_by_name():
  flat = {f"encoder/layer_{i}/mlp_norm/bias": np.full(1, i) for i in range(11)}
  stacked = param_trees.stack(dict(sorted(flat.items())))
  want = np.arange(11)[:, None]
  np.testing.assert_array_equal(stacked["encoder/layers/mlp_norm/bias"], want)


@pytest.mark.parametrize(
  ("format", "act", "theirs"),
  [
    ("huggingface", "gelu_erf", "gelu"),
    ("huggingface", "gelu_tanh", "gelu_new"),
    ("huggingface", "silu", "silu"),
    ("tf1", "gelu_tanh", "gelu"),
    ("tf1", "relu", "relu"),
  ],
)
def test_settings_come_back(format, act, theirs):
  model = MODEL | {"hidden_act": act}
  config = bert.FAMILY.config_of(format, model)
  assert config["hidden_act"] == theirs
  assert config["num_hidden_layers"] == 2
  assert config["intermediate_size"] == 10
  assert config["max_position_embeddings"] == 7
  assert bert.FAMILY.model_of(format, config) == model
  assert tuple(model) == model_config.MODEL_KEYS


def test_every_activation_of_the_model_has_a_name_there():
  for act in layers.ACTIVATIONS:
    for format in ("huggingface", "tf1"):
      model = MODEL | {"hidden_act": act}
      assert bert.FAMILY.config_of(format, model)["hidden_act"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"vocab_size": True}, "vocab_size is True"),
    ({"num_hidden_layers": None}, "num_hidden_layers is None"),
    ({"hidden_act": "mish"}, "hidden_act 'mish' is not one of gelu"),
    ({"hidden_act": ["gelu"]}, "is not one of gelu"),
    ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
    ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12'"),
  ],
)
def test_settings_of_other_models_are_refused(change, message):
  config = bert.FAMILY.config_of("huggingface", MODEL) | change
  with pytest.raises(families.ConvertError, match=message):
    bert.FAMILY.model_of("huggingface", config)
