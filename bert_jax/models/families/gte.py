"""GTE: BERT with rotations and gated feed-forward layers.

Its files name the model type "new", which was remote code, or "gte".

Sources: arXiv 2407.19669; huggingface/transformers 5.24, models/gte;
Alibaba-NLP/new-impl.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    "encoder/embeddings/word": "gte/embeddings/word_embeddings",
    "encoder/embeddings/type": "gte/embeddings/token_type_embeddings",
    "encoder/embeddings/norm": "gte/embeddings/LayerNorm",
    family.POOLER: "gte/pooler/dense",
    "mlm/dense": "lm_head/dense",
    "mlm/norm": "lm_head/norm",
    "task": "classifier",
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"gte/encoder/layer/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "attention/qkv_proj",
      "attention/key": "attention/qkv_proj",
      "attention/value": "attention/qkv_proj",
      "attention/out": "attention/o_proj",
      "attention_norm": "attn_ln",
      "mlp/in": "mlp/up_gate_proj",
      "mlp/gate": "mlp/up_gate_proj",
      "mlp/out": "mlp/down_proj",
      "mlp_norm": "mlp_ln",
    }.items()
  },
  separator=".",
  prefix="gte",
  from_classes=True,
  paths={"mlm/bias": "lm_head/decoder/bias"},
  joined={**family.QKV, **family.UP_GATE},
  leaves=family.TORCH_LEAVES,
  copies=(("lm_head.decoder.weight", family.WORDS, False),),
  spellings=(
    *family.TORCH_SPELLINGS,
    (r"^new\.", "gte."),
    (r"^lm_head\.layer_norm\.", "lm_head.norm."),
  ),
)


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  del model
  default = config.get("rope_theta", 160_000.0)
  return {"rope_theta": family.rope_theta(config, default)}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  theta = float(model["rope_theta"])
  return {
    "rope_theta": theta,
    "rope_parameters": {"rope_type": "default", "rope_theta": theta},
  }


FAMILY = family.Family(
  name="gte",
  model_types=("gte", "new"),
  hf_class="Gte",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=bert.SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      "position_embedding_type": (None, "rope"),
      "layer_norm_type": (None, "layer_norm"),
      "logn_attention_scale": (None, False),
      "logn_attention_clip1": (None, False),
      "pack_qkv": (None, True),
    },
    read=frozenset({
      *bert.SIZES.values(), "hidden_act", "layer_norm_eps", "rope_theta",
      "rope_scaling", "rope_parameters",
    })
    | bert.TRAINING_KEYS.keys(),
    ignored=frozenset({
      "use_memory_efficient_attention", "unpad_inputs", "head_dim",
    }),
  ),
  tokenizer=templates.XLM_ROBERTA,
  presets={
    "base": family.preset(12, 768),
  },
  defaults={
    "vocab_size": 250048, "max_len": 8192, "type_vocab_size": 1,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-12,
    "rope_theta": 160_000.0,
  },
  training_keys=bert.TRAINING_KEYS,
  written={
    "model_type": "gte",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
  },
  switches={
    "positions": "none",
    "attention_positions": "rope",
    "rope_theta": 160_000.0,
    "feed_forward": "glu",
    "mlp_in_bias": False,
    "head_act": "gelu_erf",
  },
  remote_code=r"(configuration|modeling)\.New\w+",
  read=_read,
  write=_write,
  free=frozenset({"rope_theta"}),
)  # fmt: skip
FAMILIES = (FAMILY,)
