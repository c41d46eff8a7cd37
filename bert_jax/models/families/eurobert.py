"""EuroBERT: a Llama that sees both sides.

Sources: arXiv 2503.05500; huggingface/transformers 5.24, models/eurobert.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    "encoder/embeddings/word": "model/embed_tokens",
    "encoder/final_norm": "model/norm",
    "task/dense": "dense",
    "task": "classifier",
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"model/layers/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "self_attn/q_proj",
      "attention/key": "self_attn/k_proj",
      "attention/value": "self_attn/v_proj",
      "attention/out": "self_attn/o_proj",
      "attention_norm": "input_layernorm",
      "mlp/gate": "mlp/gate_proj",
      "mlp/in": "mlp/up_proj",
      "mlp/out": "mlp/down_proj",
      "mlp_norm": "post_attention_layernorm",
    }.items()
  },
  separator=".",
  prefix="model",
  from_classes=True,
  paths={"mlm/bias": "lm_head/bias", "mlm/decoder": "lm_head/weight"},
  leaves=family.TORCH_LEAVES,
  copies=(("lm_head.weight", family.WORDS, False),),
)
_SIZES = {k: v for k, v in bert.SIZES.items() if k != "type_vocab_size"}
_TRAINING_KEYS = {
  "attention_dropout": "attention_dropout_rate",
  "classifier_dropout": "dropout_rate",
  "initializer_range": "init_stddev",
}
_POOLINGS = {"late": "late", "bos": "first", "mean": "mean"}


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  heads, given = model["num_heads"], config.get("num_key_value_heads")
  shared = heads if given is None else given
  is_count = isinstance(shared, int) and not isinstance(shared, bool)
  if not is_count or shared < 1 or heads % shared:
    raise family.ConvertError(
      f"num_key_value_heads is {given!r:.60}; it must divide "
      f"num_attention_heads, {heads}"
    )
  width = config.get("head_dim")
  if width not in (None, model["hidden_size"] // model["num_heads"]):
    raise family.ConvertError(
      f"head_dim is {width!r:.60}; it must be hidden_size divided by "
      "num_attention_heads"
    )
  older = config.get("clf_pooling") or "late"
  pooling = config.get("classifier_pooling") or older
  pooling = family.chosen("classifier_pooling", pooling, _POOLINGS)
  has_bias = family.switch(config, "mlp_bias", False)
  default = config.get("rope_theta", 10_000.0)
  return {
    "num_kv_heads": 0 if shared == heads else shared,
    "rope_theta": family.rope_theta(config, default),
    "attention_bias": family.switch(config, "attention_bias", False),
    "mlp_in_bias": has_bias,
    "mlp_out_bias": has_bias,
    "mlm_bias": has_bias,
    "tied_words": family.switch(config, "tie_word_embeddings", False),
    "pooling": pooling,
  }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  biases = {model[k] for k in ("mlp_in_bias", "mlp_out_bias", "mlm_bias")}
  if len(biases) > 1:
    raise family.ConvertError(
      "model.mlp_in_bias, mlp_out_bias and mlm_bias differ, but these files "
      f"have one key for all; choose the format {family.OWN}"
    )
  theta = float(model["rope_theta"])
  poolings = {ours: theirs for theirs, ours in _POOLINGS.items()}
  return {
    "rope_theta": theta,
    "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    "num_key_value_heads": model.get("num_kv_heads", 0) or model["num_heads"],
    "head_dim": model["hidden_size"] // model["num_heads"],
    "attention_bias": model["attention_bias"],
    "mlp_bias": biases.pop(),
    "tie_word_embeddings": model["tied_words"],
    "classifier_pooling": poolings[model["pooling"]],
  }


_SWITCHES = {
  "type_vocab_size": 0,
  "norm": "rms_norm",
  "norm_place": "pre",
  "embedding_norm": False,
  "positions": "none",
  "attention_positions": "rope",
  "feed_forward": "glu",
  "attention_bias": False,
  "mlp_in_bias": False,
  "mlp_out_bias": False,
  "pooler": False,
  "pooling": "late",
  "mlm_head": "bare",
  "mlm_bias": False,
  "tied_words": False,
  "dropout_places": (),
}
FAMILY = family.Family(
  name="eurobert",
  model_types=("eurobert",),
  hf_class="EuroBert",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    read=frozenset({
      *_SIZES.values(), "hidden_act", "rms_norm_eps", "num_key_value_heads",
      "head_dim", "rope_theta", "rope_parameters", "rope_scaling",
      "attention_bias", "mlp_bias", "classifier_pooling", "clf_pooling",
    })
    | _TRAINING_KEYS.keys(),
    ignored=frozenset({
      "mask_token", "pad_token", "bos_token", "eos_token", "pretraining_tp",
      "hidden_dropout",
    }),
  ),
  tokenizer=templates.EUROBERT,
  # Sizes: config.json of EuroBERT/EuroBERT-210m and -2.1B on the hub, and
  # table 3 of the paper. Untied, 610m has 755,625,600 parameters and 2.1b
  # 2,403,092,736.
  presets={
    "210m": family.preset(12, 768),
    "610m": family.preset(26, 1152, 18, 4096, num_kv_heads=6),
    "2.1b": family.preset(32, 2304, 18, 6144, num_kv_heads=6),
  },
  defaults={
    "vocab_size": 128256, "max_len": 8192, "hidden_act": "silu",
    "layer_norm_eps": 1e-5, "rope_theta": 250_000.0, "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
  },
  training_keys=_TRAINING_KEYS,
  written={"model_type": "eurobert", "initializer_range": 0.02},
  switches=_SWITCHES,
  eps_key="rms_norm_eps",
  default_eps=1e-5,
  default_act="silu",
  heads={
    "sequence": ("dense", "gelu_erf"),
    "choice": ("dense", "gelu_erf"),
    "token": (),
    "span": (),
  },
  remote_code=r"(configuration|modeling)_eurobert\.EuroBert\w+",
  read=_read,
  write=_write,
  free=frozenset({
    "rope_theta", "attention_bias", "mlp_in_bias", "mlp_out_bias", "mlm_bias",
    "tied_words", "pooling", "num_kv_heads",
  }),
)  # fmt: skip
FAMILIES = (FAMILY,)
