"""DeBERTa v3, and v2 without its convolution: disentangled attention.

Sources: arXiv 2006.03654 and 2111.09543; huggingface/transformers 5.24,
models/deberta_v2; microsoft/DeBERTa.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    ours: theirs
    for ours, theirs in bert.encoder_modules("deberta").items()
    if ours != family.POOLER and not ours.endswith("/position")
  }
  | {
    f"encoder/layer_{{}}/attention/{ours}": (
      f"deberta/encoder/layer/{{}}/attention/self/{ours}_proj"
    )
    for ours in ("query", "key", "value")
  }
  | {
    "encoder/relative": "deberta/encoder/rel_embeddings",
    "encoder/relative/norm": "deberta/encoder/LayerNorm",
    **bert.MLM_MODULES,
    "task/dense": "pooler/dense",
    "task": "classifier",
  },
  separator=".",
  prefix="deberta",
  from_classes=True,
  task_heads={"span": "qa_outputs"},
  leaves=family.TORCH_LEAVES,
  copies=bert.MLM_COPIES,
  spellings=(
    *family.TORCH_SPELLINGS,
    # The head of the authors, which transformers calls not legacy.
    (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
    (r"^lm_predictions\.lm_head\.", "cls.predictions.transform."),
  ),
)
_SIZES = bert.SIZES | {"relative_buckets": "position_buckets"}
_TRAINING_KEYS = {
  "hidden_dropout_prob": "dropout_rate",
  "attention_probs_dropout_prob": "attention_dropout_rate",
  "pooler_dropout": "dropout_rate",
  "cls_dropout": "dropout_rate",
  "initializer_range": "init_stddev",
}
# What the files must say of attention, because the other ways are not known.
_WANTED = {
  "relative_attention": True,
  "share_att_key": True,
  "position_biased_input": False,
  "norm_rel_ebd": "layer_norm",
}


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  for key, wanted in _WANTED.items():
    if config.get(key) != wanted:
      raise family.ConvertError(
        f"{key} is {config.get(key)!r:.60}; this program reads models with "
        f"{wanted!r}, as DeBERTa v3 has it"
      )
  ways = config.get("pos_att_type")
  ways = ways.lower().split("|") if isinstance(ways, str) else ways or []
  if sorted(way.strip() for way in ways) != ["c2p", "p2c"]:
    raise family.ConvertError(
      f"pos_att_type is {ways!r:.60}; this program reads models with both ways,"
      ' "p2c|c2p"'
    )
  distance = config.get("max_relative_positions", -1)
  return {
    "relative_distance": distance if distance > 0 else model["max_len"],
  }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  return {
    **_WANTED,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": model["relative_distance"],
    "legacy": True,
  }


_POOLED = ("dropout", "dense", "gelu_erf", "dropout")
FAMILY = family.Family(
  name="deberta-v2",
  model_types=("deberta-v2",),
  hf_class="DebertaV2",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      "pooler_hidden_act": (None, "gelu"),
      "conv_kernel_size": (None, 0),
      "embedding_size": (None,),
      "attention_head_size": (None,),
    },
    read=frozenset({
      *_SIZES.values(), *_WANTED, "hidden_act", "layer_norm_eps",
      "pos_att_type", "max_relative_positions", "legacy",
    })
    | _TRAINING_KEYS.keys(),
    ignored=frozenset({"pooler_hidden_size", "conv_act"}),
  ),
  tokenizer=templates.DEBERTA_V2,
  presets={
    "v3-xsmall": family.preset(12, 384, 6),
    "v3-small": family.preset(6, 768, 12),
    "v3-base": family.preset(12, 768, 12),
    "v3-large": family.preset(24, 1024, 16),
  },
  defaults={
    "vocab_size": 128100, "max_len": 512, "type_vocab_size": 0,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-7, "relative_buckets": 256,
    "relative_distance": 512,
  },
  training_keys=_TRAINING_KEYS,
  written={
    "model_type": "deberta-v2",
    **bert.WRITTEN,
    "pooler_hidden_act": "gelu",
    "pooler_dropout": 0,
  },
  switches={
    "positions": "none",
    "attention_positions": "disentangled",
    "pooler": False,
  },
  default_eps=1e-7,
  heads={
    "sequence": _POOLED,
    "choice": _POOLED,
    "token": ("dropout",),
    "span": (),
  },
  # Files of DeBERTa-v3 have another head of replaced tokens, which adds the
  # first token to each; it is not read, and this one not written there.
  discriminator=("dense", "hidden_act"),
  read=_read,
  write=_write,
  free=frozenset({"relative_distance"}),
)  # fmt: skip
FAMILIES = (FAMILY,)
