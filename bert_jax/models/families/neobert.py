"""NeoBERT: pre-norm layers with RMS norms, rotations of pairs and SwiGLU.

Sources: arXiv 2502.19587; chandar-lab/NeoBERT, model.py, which is remote code
of its files: transformers has no such class.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    "encoder/embeddings/word": "model/encoder",
    "encoder/final_norm": "model/layer_norm",
    "task/dense": "dense",
    "task": "classifier",
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"model/transformer_encoder/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "qkv",
      "attention/key": "qkv",
      "attention/value": "qkv",
      "attention/out": "wo",
      "attention_norm": "attention_norm",
      "mlp/gate": "ffn/w12",
      "mlp/in": "ffn/w12",
      "mlp/out": "ffn/w3",
      "mlp_norm": "ffn_norm",
    }.items()
  },
  separator=".",
  prefix="model",
  from_classes=True,
  paths={"mlm/bias": "decoder/bias", "mlm/decoder": "decoder/weight"},
  joined={
    **{
      name: family.Part(part.place, part.count, by_head=True)
      for name, part in family.QKV.items()
    },
    **family.GATE_UP,
  },
  leaves=family.TORCH_LEAVES,
)
_SIZES: dict[str, str | tuple[str, ...]] = {
  "vocab_size": "vocab_size",
  "num_layers": "num_hidden_layers",
  "hidden_size": "hidden_size",
  "num_heads": "num_attention_heads",
  "mlp_dim": "intermediate_size",
  "max_len": ("max_length", "max_position_embeddings"),
}
_TRAINING_KEYS = {
  "classifier_dropout": "dropout_rate",
  "dropout": "dropout_rate",
  "decoder_init_range": "init_stddev",
  "embedding_init_range": "init_stddev",
  "initializer_range": "init_stddev",
  "classifier_init_range": "init_stddev",
}


def _width(intermediate: int) -> int:
  """Returns F: two thirds of the setting, rounded up to a multiple of 8."""
  return (int(2 * intermediate / 3) + 7) // 8 * 8


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  del config
  return {"mlp_dim": _width(model["mlp_dim"])}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  width = model["mlp_dim"]
  if width % 8:
    raise family.ConvertError(
      f"model.mlp_dim is {width}, but these files can name multiples of 8 "
      f"only; choose the format {family.OWN}"
    )
  return {"intermediate_size": -(-3 * width // 2)}


FAMILY = family.Family(
  name="neobert",
  model_types=("neobert",),
  hf_class="NeoBERT",
  pretraining_classes={(): "", ("mlm",): "LMHead"},
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": {"swiglu": "silu"}},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      "rms_norm": (None, True),
      "rope": (None, True),
      "ngpt": (None, False),
      "rope_theta": (None, 10_000.0),
    },
    read=frozenset({
      "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads",
      "intermediate_size", "max_length", "max_position_embeddings",
      "hidden_act", "norm_eps",
    })
    | _TRAINING_KEYS.keys(),
    ignored=frozenset({
      "dim_head", "flash_attention", "base_scale", "kwargs",
      "trust_remote_code", "tokenizer_name", "pretrained_model_name_or_path",
    }),
  ),
  tokenizer=templates.WORDPIECE,
  presets={
    "base": family.preset(28, 768, mlp_dim=2048),
  },
  defaults={
    "vocab_size": 30522, "max_len": 4096, "hidden_act": "silu",
    "layer_norm_eps": 1e-5, "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
  },
  training_keys=_TRAINING_KEYS,
  written={"model_type": "neobert", "rms_norm": True, "rope": True},
  switches={
    "type_vocab_size": 0,
    "norm": "rms_norm",
    "norm_place": "pre",
    "embedding_norm": False,
    "positions": "none",
    "attention_positions": "rope_pairs",
    "feed_forward": "glu",
    "attention_bias": False,
    "mlp_in_bias": False,
    "mlp_out_bias": False,
    "pooler": False,
    "mlm_head": "bare",
    "tied_words": False,
    "dropout_places": (),
  },
  eps_key="norm_eps",
  default_eps=1e-6,
  default_act="swiglu",
  heads={
    "sequence": ("dropout", "dense", "tanh", "dropout"),
    "choice": ("dropout", "dense", "tanh", "dropout"),
    "token": ("dropout",),
    "span": (),
  },
  remote_code=r"model\.NeoBERT\w*",
  read=_read,
  write=_write,
)  # fmt: skip
FAMILIES = (FAMILY,)
