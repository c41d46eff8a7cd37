"""ALBERT: BERT whose layers share parameters, with narrow embeddings.

Its second objective asks whether two segments are in their order ("sop"), where
BERT's asks whether they follow one another. The head is the same, and so are
the labels: 0 stands for the order of the text.

Sources: arXiv 1909.11942; huggingface/transformers 5.24, models/albert.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_GROUP = "albert/encoder/albert_layer_groups/{}/albert_layers/0"
_NAMES = family.Names(
  modules={
    "encoder/embeddings/word": "albert/embeddings/word_embeddings",
    "encoder/embeddings/position": "albert/embeddings/position_embeddings",
    "encoder/embeddings/type": "albert/embeddings/token_type_embeddings",
    "encoder/embeddings/norm": "albert/embeddings/LayerNorm",
    "encoder/embeddings/projection": (
      "albert/encoder/embedding_hidden_mapping_in"
    ),
    family.POOLER: "albert/pooler",
    "mlm/dense": "predictions/dense",
    "mlm/norm": "predictions/LayerNorm",
    "mlm": "predictions",
    "nsp": "sop_classifier/classifier",
    "task": "classifier",
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"{_GROUP}/{theirs}"
    for ours, theirs in {
      "attention/query": "attention/query",
      "attention/key": "attention/key",
      "attention/value": "attention/value",
      "attention/out": "attention/dense",
      "attention_norm": "attention/LayerNorm",
      "mlp/in": "ffn",
      "mlp/out": "ffn_output",
      "mlp_norm": "full_layer_layer_norm",
    }.items()
  },
  separator=".",
  prefix="albert",
  from_classes=True,
  task_heads={"span": "qa_outputs"},
  leaves=family.TORCH_LEAVES,
  copies=(
    ("predictions.decoder.weight", family.WORDS, False),
    ("predictions.decoder.bias", "mlm/bias", False),
  ),
  spellings=family.TORCH_SPELLINGS,
)
_SIZES = bert.SIZES | {
  "embedding_size": "embedding_size",
  "layer_groups": "num_hidden_groups",
}
_TRAINING_KEYS = {
  "hidden_dropout_prob": "dropout_rate",
  "attention_probs_dropout_prob": "attention_dropout_rate",
  "classifier_dropout_prob": "dropout_rate",
  "initializer_range": "init_stddev",
}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  """Writes files that say that every layer is a group of its own."""
  if not model.get("embedding_size"):
    raise family.ConvertError(
      "model.embedding_size is 0, but the embeddings of an ALBERT always have "
      f"a projection; choose the format {family.OWN}"
    )
  groups = model.get("layer_groups") or model["num_layers"]
  return {"num_hidden_groups": groups, "inner_group_num": 1}


FAMILY = family.Family(
  name="albert",
  model_types=("albert",),
  hf_class="Albert",
  pretraining_classes={
    (): "Model",
    ("mlm",): "ForMaskedLM",
    ("nsp",): "ForPreTraining",
    ("mlm", "nsp"): "ForPreTraining",
  },
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      "position_embedding_type": (None, "absolute"),
      "inner_group_num": (None, 1),
    },
    read=frozenset({*_SIZES.values(), "hidden_act", "layer_norm_eps"})
    | _TRAINING_KEYS.keys(),
    ignored=frozenset({
      "down_scale_factor", "gap_size", "net_structure_type",
      "num_memory_blocks", "layers_to_keep", "eos_token_ids",
    }),
  ),
  tokenizer=templates.ALBERT,
  presets={
    "base": family.preset(12, 768, 12),
    "large": family.preset(24, 1024, 16),
    "xlarge": family.preset(24, 2048, 16),
    "xxlarge": family.preset(12, 4096, 64),
  },
  defaults={
    "vocab_size": 30000, "max_len": 512, "type_vocab_size": 2,
    "hidden_act": "gelu_tanh", "layer_norm_eps": 1e-12, "embedding_size": 128,
    "layer_groups": 1,
  },
  training_keys=_TRAINING_KEYS,
  written={
    "model_type": "albert",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
    "initializer_range": 0.02,
  },
  switches={"dropout_places": ("embeddings", "attention")},
  default_act="gelu_new",
  write=_write,
)  # fmt: skip
FAMILIES = (FAMILY,)
