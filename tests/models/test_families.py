"""A family is one file: a toy family is read and written both ways."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.models import config as model_config
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.models.families import bert
from bert_jax.models.families import family

MODEL = {
  "vocab_size": 20, "num_layers": 2, "hidden_size": 8, "num_heads": 2,
  "mlp_dim": 16, "max_len": 12, "type_vocab_size": 2, "hidden_act": "gelu_erf",
  "layer_norm_eps": 1e-5,
}  # fmt: skip

# All that makes a family: other names, another prefix, other keys.
TOY = dataclasses.replace(
  bert.FAMILY,
  name="toy",
  model_types=("toy",),
  hf_class="Toy",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  sizes=bert.FAMILY.sizes | {"mlp_dim": "hidden_dim"},
  config_keys=bert.FAMILY.config_keys.extended(read=frozenset({"hidden_dim"})),
  written={"model_type": "toy"},
  names={
    "huggingface": family.Names(
      modules={
        "encoder/embeddings/word": "toy/words",
        "encoder/embeddings/position": "toy/places",
        "encoder/embeddings/type": "toy/types",
        "encoder/embeddings/norm": "toy/first_norm",
        "mlm/dense": "lm_head/dense",
        "mlm/norm": "lm_head/layer_norm",
        "mlm": "lm_head",
        "task": "classifier",
      }
      | {
        f"encoder/layer_{{}}/{ours}": f"toy/blocks/{{}}/{theirs}"
        for ours, theirs in {
          "attention/query": "q",
          "attention/key": "k",
          "attention/value": "v",
          "attention/out": "o",
          "attention_norm": "norm1",
          "mlp/in": "up",
          "mlp/out": "down",
          "mlp_norm": "norm2",
        }.items()
      },
      separator=".",
      prefix="toy",
      from_classes=True,
      task_heads={"span": "qa_outputs"},
      leaves=family.TORCH_LEAVES,
      copies=(("lm_head.decoder.weight", family.WORDS, False),),
    )
  },
)


@pytest.fixture
def toy(monkeypatch):
  monkeypatch.setitem(families.FAMILIES, "toy", TOY)


def make(*heads_kept):
  rng = np.random.default_rng(0)
  flat = {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in heads.param_shapes(MODEL, 3).items()
    if path.startswith(("encoder/", *heads_kept)) and "pooler" not in path
  }
  return weights.Pretrained(
    format="bert_jax",
    family="toy",
    model=dict(MODEL),
    params=param_trees.nest(flat),
    kind="classify" if "task/" in heads_kept else None,
    labels=("a", "b", "c") if "task/" in heads_kept else (),
  )


@pytest.mark.parametrize("kept", [(), ("mlm/",), ("task/",)])
def test_a_family_is_read_and_written_both_ways(toy, tmp_path, kept):
  given = make(*kept)
  weights.write(given, tmp_path / "theirs", "huggingface")
  theirs = weights.read(tmp_path / "theirs")
  weights.write(theirs, tmp_path / "ours", "bert_jax")
  ours = weights.read(tmp_path / "ours")
  want = param_trees.flatten(given.params)
  for got in (theirs, ours):
    assert got.family == "toy" and got.shape == given.shape
    assert got.kind == given.kind and got.labels == given.labels
    flat = param_trees.flatten(got.params)
    assert flat.keys() == want.keys()
    for path, array in want.items():
      np.testing.assert_array_equal(flat[path], array)


def test_a_family_without_a_format_says_so(toy, tmp_path):
  with pytest.raises(weights.WeightsError, match=r"toy has no format tf1"):
    weights.write(make(), tmp_path / "x", "tf1")


def test_weights_are_of_the_family_whose_prefix_their_names_have(toy):
  assert families.family_of("toy").name == "toy"
  assert families.family_of(None, ["toy.words.weight"]).name == "toy"
  assert families.family_of(None, ["bert/pooler/dense/bias"]).name == "bert"
  assert families.family_of(None).name == "bert"
  wanted = "'t5', .* bert, roberta, .*, toy"
  with pytest.raises(families.ConvertError, match=wanted):
    families.family_of("t5")
  with pytest.raises(families.ConvertError, match="'xlnet'.*last token.*reads"):
    families.family_of("xlnet")


def test_a_switch_that_a_familys_files_cannot_say_is_refused():
  odd = dataclasses.replace(TOY, switches={"norm": "toy_norm"})
  odd.config_of("huggingface", MODEL | {"norm": "toy_norm"})
  for one, key in ((odd, "norm"), (TOY, "positions")):
    model = MODEL | dict(one.switches) | {key: "another"}
    with pytest.raises(family.ConvertError, match=rf"model\.{key} .*'another'"):
      one.config_of("huggingface", model)


COMPOSER = {
  "model_type": "modernbert", "vocab_size": 20, "num_hidden_layers": 3,
  "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16,
  "max_position_embeddings": 12,
}  # fmt: skip


def test_settings_of_composer_have_their_effect():
  modernbert = families.get_family("modernbert")
  model = modernbert.model_of(
    "huggingface",
    COMPOSER
    | {
      "norm_kwargs": {"eps": 1e-6, "bias": True},
      "hidden_act": "silu",
      "head_pred_act": "relu",
      "rotary_emb_base": 5000.0,
      "local_attn_rotary_emb_base": -1,
      "sliding_window": -1,
      "global_attn_every_n_layers": -1,
    },
  )
  wanted = {
    "layer_norm_eps": 1e-6, "norm_bias": True, "hidden_act": "silu",
    "head_act": "relu", "rope_theta": 5000.0, "local_rope_theta": 5000.0,
    "attention_pattern": "full",
  }  # fmt: skip
  assert {key: model[key] for key in wanted} == wanted
  written = modernbert.config_of("huggingface", model)
  assert modernbert.model_of("huggingface", written) == model


@pytest.mark.parametrize(
  "odd",
  [
    {"normalization": "rmsnorm"},
    {"norm_kwargs": {"scale": 2}},
    {"rotary_emb_dim": 4},
    {"sliding_window": -1, "global_attn_every_n_layers": 3},
    {"attn_qkv_bias": True},
  ],
)
def test_settings_of_composer_without_a_switch_here_are_refused(odd):
  modernbert = families.get_family("modernbert")
  with pytest.raises(families.ConvertError):
    modernbert.model_of("huggingface", COMPOSER | odd)


@pytest.mark.parametrize(
  ("name", "module", "cls"),
  [
    ("nomic_bert", "modeling_hf_nomic_bert", "NomicBertModel"),
    ("gte", "modeling", "NewModel"),
    ("eurobert", "modeling_eurobert", "EuroBertForMaskedLM"),
    ("neobert", "model", "NeoBERT"),
    ("mosaic_bert", "bert_layers", "BertForMaskedLM"),
  ],
)
def test_known_classes_of_remote_code_are_read_and_others_refused(
  name, module, cls
):
  given = families.get_family(name)
  sizes = {
    key if isinstance(key, str) else key[0]: 8 for key in given.sizes.values()
  }
  for auto_map in (f"{module}.{cls}", f"some-one/v1.5--{module}.{cls}"):
    config = sizes | {"auto_map": {"AutoModel": auto_map}}
    assert given.model_of("huggingface", config)["num_layers"] == 8
    model_type = given.model_types[-1]
    assert families.family_of(model_type, (), config["auto_map"]) is given
  assert families.family_of("bert").name == "bert"
  for odd in (f"{module}.Other", f"x.{cls}", ["a.B", None]):
    with pytest.raises(families.ConvertError, match="auto_map"):
      given.model_of("huggingface", sizes | {"auto_map": {"AutoModel": odd}})


@pytest.mark.parametrize(
  ("name", "key", "value"),
  [
    ("eurobert", "num_key_value_heads", 3),
    ("eurobert", "num_key_value_heads", 0),
    ("eurobert", "num_key_value_heads", "2"),
    ("deberta-v2", "conv_kernel_size", 4),
    ("deberta-v2", "conv_groups", 3),
    ("deberta-v2", "conv_act", "mish"),
    ("deberta-v2", "attention_head_size", 64),
  ],
)
def test_heads_and_convolutions_that_cannot_be_are_refused(name, key, value):
  given = families.get_family(name)
  config = COMPOSER | {
    "type_vocab_size": 0, "position_buckets": 4, "relative_attention": True,
    "share_att_key": True, "position_biased_input": False,
    "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p",
    "conv_kernel_size": 3,
  }  # fmt: skip
  if name == "eurobert":
    config = dict(COMPOSER)
  given.model_of("huggingface", config)
  with pytest.raises(families.ConvertError, match=key):
    given.model_of("huggingface", config | {key: value})


def test_dropout_before_debertas_heads_is_that_of_the_file():
  deberta = families.get_family("deberta-v2")
  config = COMPOSER | {
    "type_vocab_size": 0, "position_buckets": 4, "relative_attention": True,
    "share_att_key": True, "position_biased_input": False,
    "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p",
  }  # fmt: skip
  for rate, has in ((None, False), (0, False), (0.1, True)):
    model = deberta.model_of("huggingface", config | {"pooler_dropout": rate})
    places = model.get("dropout_places", ())
    assert ("head_input" in places) == has
    written = deberta.config_of("huggingface", model)
    assert bool(written["pooler_dropout"]) == has
    # One step of dropout with each, or two.
    head = heads.TaskHead(
      model_config.ModelConfig(**MODEL | {"dropout_places": places or ()}),
      2,
      deberta.heads["sequence"],
    )
    rows = np.zeros((1, 8), np.float32)
    drop = mock.Mock(side_effect=lambda x: x)
    head.init_with_output(jax.random.key(0), rows, None, drop)
    assert drop.call_count == 1 + has


def test_the_older_key_of_eurobert_says_how_it_pools():
  eurobert = families.get_family("eurobert")
  config = COMPOSER | {"model_type": "eurobert", "clf_pooling": "mean"}
  assert eurobert.model_of("huggingface", config)["pooling"] == "mean"
  config |= {"classifier_pooling": "bos"}
  assert eurobert.model_of("huggingface", config)["pooling"] == "first"
