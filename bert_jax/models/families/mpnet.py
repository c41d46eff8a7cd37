"""MPNet: BERT with a bias for the distance of two tokens, for all layers.

Sources: arXiv 2004.09297; huggingface/transformers 5.24, models/mpnet.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family
from bert_jax.models.families import roberta

_ATTENTION = {
  "attention/query": "attention/attn/q",
  "attention/key": "attention/attn/k",
  "attention/value": "attention/attn/v",
  "attention/out": "attention/attn/o",
  "attention_norm": "attention/LayerNorm",
}
_NAMES = family.Names(
  modules={
    ours: theirs
    for ours, theirs in bert.encoder_modules("mpnet").items()
    if ours != "encoder/embeddings/type"
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"mpnet/encoder/layer/{{}}/{theirs}"
    for ours, theirs in _ATTENTION.items()
  }
  | {
    "encoder/relative": "mpnet/encoder/relative_attention_bias",
    "task": "classifier",
    **roberta.MLM_MODULES,
  },
  separator=".",
  prefix="mpnet",
  from_classes=True,
  task_heads={"sequence": roberta.SEQUENCE_HEAD, "span": "qa_outputs"},
  leaves=family.TORCH_LEAVES,
  copies=roberta.MLM_COPIES,
  spellings=family.TORCH_SPELLINGS,
)
_SIZES = {k: v for k, v in bert.SIZES.items() if k != "type_vocab_size"}
_OFFSET = 2  # the position of padding is always 1 in its code


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  del config
  return {"position_offset": _OFFSET, "max_len": model["max_len"] - _OFFSET}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  return {"max_position_embeddings": model["max_len"] + _OFFSET}


FAMILY = family.Family(
  name="mpnet",
  model_types=("mpnet",),
  hf_class="MPNet",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={"relative_attention_num_buckets": (None, 32)},
    read=frozenset({*_SIZES.values(), "hidden_act", "layer_norm_eps"})
    | bert.TRAINING_KEYS.keys(),
  ),
  tokenizer=templates.MPNET,
  presets={
    "base": family.preset(12, 768),
  },
  defaults={
    "vocab_size": 30527, "max_len": 512, "hidden_act": "gelu_erf",
    "layer_norm_eps": 1e-5,
  },
  training_keys=bert.TRAINING_KEYS,
  written={
    "model_type": "mpnet",
    **bert.WRITTEN,
    "relative_attention_num_buckets": 32,
    "pad_token_id": 1,
  },
  switches={
    "type_vocab_size": 0,
    "position_offset": _OFFSET,
    "attention_positions": "t5",
    "head_act": "gelu_erf",
  },
  heads=roberta.FAMILY.heads,
  read=_read,
  write=_write,
)  # fmt: skip
FAMILIES = (FAMILY,)
