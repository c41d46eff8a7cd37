"""ELECTRA: a generator with a head of masked words, or a discriminator.

Both are BERT with narrow embeddings and without a pooler.

Sources: arXiv 2003.10555; huggingface/transformers 5.24, models/electra.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family
from bert_jax.models.families import roberta

_NAMES = family.Names(
  modules={
    ours: theirs
    for ours, theirs in bert.encoder_modules("electra").items()
    if ours != family.POOLER
  }
  | {
    "encoder/embeddings/projection": "electra/embeddings_project",
    "mlm/dense": "generator_predictions/dense",
    "mlm/norm": "generator_predictions/LayerNorm",
    "mlm": "generator_lm_head",
    "rtd/dense": "discriminator_predictions/dense",
    "rtd": "discriminator_predictions/dense_prediction",
    "task": "classifier",
  },
  separator=".",
  prefix="electra",
  from_classes=True,
  task_heads={
    "sequence": roberta.SEQUENCE_HEAD,
    "choice": {"task/dense": "sequence_summary/summary", "task": "classifier"},
    "span": "qa_outputs",
  },
  leaves=family.TORCH_LEAVES,
  copies=(("generator_lm_head.weight", family.WORDS, False),),
  spellings=family.TORCH_SPELLINGS,
)
_SIZES = bert.SIZES | {"embedding_size": "embedding_size"}
_TRAINING_KEYS = bert.TRAINING_KEYS | {"summary_last_dropout": "dropout_rate"}


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads no projection if the embeddings are as wide as the layers."""
  del config
  is_wide = model["embedding_size"] == model["hidden_size"]
  return {"embedding_size": 0} if is_wide else {}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  width = model.get("embedding_size", 0)
  if width == model["hidden_size"]:
    raise family.ConvertError(
      f"model.embedding_size is {width}, but these files have a projection "
      f"only where it differs from hidden_size; choose the format {family.OWN}"
    )
  return {"embedding_size": width or model["hidden_size"]}


def _preset(layers: int, hidden: int, heads: int, width: int) -> dict[str, int]:
  return family.preset(layers, hidden, heads, embedding_size=width)


FAMILY = family.Family(
  name="electra",
  model_types=("electra",),
  hf_class="Electra",
  pretraining_classes={
    (): "Model",
    ("mlm",): "ForMaskedLM",
    ("rtd",): "ForPreTraining",
  },
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      "position_embedding_type": (None, "absolute"),
      "summary_type": (None, "first"),
      "summary_use_proj": (None, True),
      "summary_activation": (None, "gelu"),
    },
    read=frozenset({*_SIZES.values(), "hidden_act", "layer_norm_eps"})
    | _TRAINING_KEYS.keys(),
  ),
  tokenizer=templates.WORDPIECE,
  presets={
    "small": _preset(12, 256, 4, 128),
    "base": _preset(12, 768, 12, 0),
    "large": _preset(24, 1024, 16, 0),
    "small-generator": _preset(12, 64, 1, 128),
    "base-generator": _preset(12, 256, 4, 768),
    "large-generator": _preset(24, 256, 4, 1024),
  },
  defaults={
    "vocab_size": 30522, "max_len": 512, "type_vocab_size": 2,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-12,
  },
  training_keys=_TRAINING_KEYS,
  written={
    "model_type": "electra",
    "position_embedding_type": "absolute",
    **bert.WRITTEN,
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": "gelu",
  },
  switches={"pooler": False, "head_act": "gelu_erf"},
  heads={
    "sequence": ("dropout", "dense", "gelu_erf", "dropout"),
    "choice": ("dense", "gelu_erf", "dropout"),
    "token": ("dropout",),
    "span": (),
  },
  discriminator=("dense", "hidden_act"),
  read=_read,
  write=_write,
)  # fmt: skip
FAMILIES = (FAMILY,)
