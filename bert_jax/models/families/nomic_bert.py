"""Nomic BERT: BERT with rotations, gated feed-forward layers and few biases.

Sources: arXiv 2402.01613; huggingface/transformers 5.24, models/nomic_bert;
nomic-ai/contrastors, whose settings are read, too.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    "encoder/embeddings/word": "nomic_bert/embeddings/word_embeddings",
    "encoder/embeddings/type": "nomic_bert/embeddings/token_type_embeddings",
    "encoder/embeddings/norm": "nomic_bert/emb_ln",
    family.POOLER: "nomic_bert/pooler/dense",
    "mlm/dense": "cls/predictions/transform/dense",
    "mlm/norm": "cls/predictions/transform/layer_norm",
    "task": "classifier",
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"nomic_bert/encoder/layers/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "attn/Wqkv",
      "attention/key": "attn/Wqkv",
      "attention/value": "attn/Wqkv",
      "attention/out": "attn/out_proj",
      "attention_norm": "norm1",
      "mlp/in": "mlp/fc11",
      "mlp/gate": "mlp/fc12",
      "mlp/out": "mlp/fc2",
      "mlp_norm": "norm2",
    }.items()
  },
  separator=".",
  prefix="nomic_bert",
  from_classes=True,
  paths={"mlm/bias": "cls/predictions/bias"},
  joined=family.QKV,
  leaves=family.TORCH_LEAVES,
  copies=bert.MLM_COPIES,
  spellings=(*family.TORCH_SPELLINGS, (r"^bert\.", "nomic_bert.")),
)
_SIZES: dict[str, str | tuple[str, ...]] = {
  "vocab_size": "vocab_size",
  "num_layers": ("num_hidden_layers", "n_layer"),
  "hidden_size": ("hidden_size", "n_embd"),
  "num_heads": ("num_attention_heads", "n_head"),
  "mlp_dim": ("intermediate_size", "n_inner"),
  "max_len": ("max_position_embeddings", "n_positions"),
  "type_vocab_size": "type_vocab_size",
}
_TRAINING_KEYS = {
  "hidden_dropout_prob": "dropout_rate",
  "resid_pdrop": "dropout_rate",
  "embd_pdrop": "dropout_rate",
  "attention_probs_dropout_prob": "attention_dropout_rate",
  "attn_pdrop": "attention_dropout_rate",
  "classifier_dropout": "dropout_rate",
  "initializer_range": "init_stddev",
}
_GATED = {"swiglu": "silu", "geglu": "gelu_erf"}


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  del model
  default = config.get("rotary_emb_base", 1000.0)
  found: dict[str, Any] = {"rope_theta": family.rope_theta(config, default)}
  if "layer_norm_epsilon" in config and "layer_norm_eps" not in config:
    found["layer_norm_eps"] = float(config["layer_norm_epsilon"])
  # The older key names the activation with its gate.
  if "hidden_act" not in config and "activation_function" in config:
    name = config["activation_function"]
    found["hidden_act"] = family.chosen("activation_function", name, _GATED)
  return found


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  """Writes the keys of transformers, and those of the authors' code."""
  theta = float(model["rope_theta"])
  gated = {ours: name for name, ours in _GATED.items()}
  found = {
    "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    "rotary_emb_base": theta,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "layer_norm_epsilon": model["layer_norm_eps"],
    "n_layer": model["num_layers"],
    "n_embd": model["hidden_size"],
    "n_head": model["num_heads"],
    "n_inner": model["mlp_dim"],
    "n_positions": model["max_len"],
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "prenorm": False,
    "use_rms_norm": False,
  }
  if model["hidden_act"] in gated:
    found["activation_function"] = gated[model["hidden_act"]]
  return found


FAMILY = family.Family(
  name="nomic_bert",
  model_types=("nomic_bert",),
  hf_class="NomicBert",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      "rotary_emb_fraction": (None, 1.0),
      "rotary_emb_interleaved": (None, False),
      "rotary_emb_scale_base": (None,),
      "rotary_scaling_factor": (None,),
      "qkv_proj_bias": (None, False),
      "mlp_fc1_bias": (None, False),
      "mlp_fc2_bias": (None, False),
      "prenorm": (None, False),
      "use_rms_norm": (None, False),
      "parallel_block": (None, False),
      "causal": (None, False),
      "scale_attn_by_inverse_layer_idx": (None, False),
      "scale_attn_weights": (None, True),
      "num_experts": (None, 0),
      "moe_every_n_layers": (None, 0, -1),
    },
    read=frozenset({
      "vocab_size", "type_vocab_size", "num_hidden_layers", "n_layer",
      "hidden_size", "n_embd", "num_attention_heads", "n_head",
      "intermediate_size", "n_inner", "max_position_embeddings", "n_positions",
      "hidden_act", "activation_function", "layer_norm_eps",
      "layer_norm_epsilon", "rope_parameters", "rope_scaling",
      "rotary_emb_base",
    })
    | _TRAINING_KEYS.keys(),
    # Which kernels its code runs, and sizes that follow from others.
    ignored=frozenset({
      "dense_seq_output", "fused_bias_fc", "fused_dropout_add_ln",
      "last_layer_subset", "pad_vocab_size_multiple", "use_flash_attn",
      "use_xentropy", "max_trained_positions", "reorder_and_upcast_attn",
      "head_dim", "layer_types", "parallel_block_tied_norm",
    }),
  ),
  tokenizer=templates.WORDPIECE,
  presets={
    "base": family.preset(12, 768),
  },
  defaults={
    "vocab_size": 30528, "max_len": 2048, "type_vocab_size": 2,
    "hidden_act": "silu", "layer_norm_eps": 1e-12, "rope_theta": 10_000.0,
    "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
  },
  training_keys=_TRAINING_KEYS,
  written={
    "model_type": "nomic_bert",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
  },
  switches={
    "positions": "none",
    "attention_positions": "rope",
    "rope_theta": 1000.0,
    "feed_forward": "glu",
    "attention_bias": False,
    "mlp_in_bias": False,
    "mlp_out_bias": False,
  },
  default_act="silu",
  remote_code=r"(configuration|modeling)_hf_nomic_bert\.NomicBert\w*",
  read=_read,
  write=_write,
  free=frozenset({"rope_theta"}),
)  # fmt: skip
FAMILIES = (FAMILY,)
