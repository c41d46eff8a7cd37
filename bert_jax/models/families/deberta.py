"""DeBERTa v2 and v3: disentangled attention, and v2's convolution.

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
    "encoder/conv": "deberta/encoder/conv/conv",
    "encoder/conv/norm": "deberta/encoder/conv/LayerNorm",
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
  width = model["hidden_size"] // model["num_heads"]
  if config.get("attention_head_size") not in (None, width):
    raise family.ConvertError(
      f"attention_head_size is {config['attention_head_size']!r:.60}; it must "
      f"be hidden_size divided by num_attention_heads, {width}"
    )
  distance = config.get("max_relative_positions", -1)
  return {
    "relative_distance": distance if distance > 0 else model["max_len"],
    **_read_convolution(config, model["hidden_size"]),
    **({"dropout_places": _PLACES} if config.get("pooler_dropout") else {}),
  }


def _read_convolution(config: Mapping[str, Any], width: int) -> dict[str, Any]:
  """Returns the keys of the convolution; {} for a model without one."""
  size, groups = (
    default if config.get(key) is None else config[key]
    for key, default in (("conv_kernel_size", 0), ("conv_groups", 1))
  )
  if size == 0:
    return {}
  if type(size) is not int or size < 1 or size % 2 == 0:
    raise family.ConvertError(
      f"conv_kernel_size is {size!r:.60}; it must be an odd number, or 0"
    )
  if type(groups) is not int or groups < 1 or width % groups:
    raise family.ConvertError(
      f"conv_groups is {groups!r:.60}; it must divide hidden_size, {width}"
    )
  return {
    "conv_size": size,
    "conv_groups": groups,
    "conv_act": family.activation(config, "conv_act", "tanh"),
  }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  return {
    **_WANTED,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": model["relative_distance"],
    "legacy": True,
    "pooler_dropout": bert.WRITTEN["hidden_dropout_prob"]
    if "head_input" in model.get("dropout_places", ())
    else 0,
    **_write_convolution(model),
  }


def _write_convolution(model: Mapping[str, Any]) -> dict[str, Any]:
  if not model.get("conv_size"):
    return {}
  return {
    "conv_kernel_size": model["conv_size"],
    "conv_groups": model.get("conv_groups", 1),
    "conv_act": family.their_activation(model.get("conv_act", "tanh")),
  }


# With dropout before the inner layer of heads, too; released models lack it.
_PLACES = ("embeddings", "attention", "mlp", "head_input")
# The convolution that the released sizes of DeBERTa-v2 have.
_CONVOLUTION: dict[str, Any] = {"conv_size": 3, "conv_act": "gelu_erf"}
_POOLED = ("input_dropout", "dense", "gelu_erf", "dropout")
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
      "embedding_size": (None,),
    },
    read=frozenset({
      *_SIZES.values(), *_WANTED, "hidden_act", "layer_norm_eps",
      "pos_att_type", "max_relative_positions", "legacy",
      "attention_head_size", "pooler_dropout", "conv_kernel_size",
      "conv_groups", "conv_act",
    })
    | _TRAINING_KEYS.keys(),
    ignored=frozenset({"pooler_hidden_size"}),
  ),
  tokenizer=templates.DEBERTA_V2,
  # Sizes: config.json of microsoft/deberta-v2-xxlarge on the hub, and those of
  # models tuned from microsoft/deberta-v2-xlarge and -v3-xsmall to -large.
  presets={
    "v2-xlarge": family.preset(24, 1536, **_CONVOLUTION),
    "v2-xxlarge": family.preset(48, 1536, **_CONVOLUTION),
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
  free=frozenset({
    "relative_distance", "conv_size", "conv_groups", "conv_act",
  }),
)  # fmt: skip
FAMILIES = (FAMILY,)
