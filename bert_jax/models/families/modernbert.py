"""ModernBERT and its kin: Ettin, mmBERT, and the embedding models on them.

Local and full attention take turns, with rotations of other bases; norms come
before the sublayers and have no bias; the feed-forward layers are gated.

Sources: arXiv 2412.13663; huggingface/transformers 5.24, models/modernbert;
AnswerDotAI/ModernBERT, whose names of parameters and settings ("Composer") are
read, too; JHU-CLSP/ettin-encoder-vs-decoder and JHU-CLSP/mmBERT for sizes.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    "encoder/embeddings/word": "model/embeddings/tok_embeddings",
    "encoder/embeddings/norm": "model/embeddings/norm",
    "encoder/final_norm": "model/final_norm",
    "mlm/dense": "head/dense",
    "mlm/norm": "head/norm",
    "task/dense": "head/dense",
    "task/norm": "head/norm",
    "task": "classifier",
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"model/layers/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "attn/Wqkv",
      "attention/key": "attn/Wqkv",
      "attention/value": "attn/Wqkv",
      "attention/out": "attn/Wo",
      "attention_norm": "attn_norm",
      "mlp/gate": "mlp/Wi",
      "mlp/in": "mlp/Wi",
      "mlp/out": "mlp/Wo",
      "mlp_norm": "mlp_norm",
    }.items()
  },
  separator=".",
  prefix="model",
  from_classes=True,
  paths={"mlm/bias": "decoder/bias", "mlm/decoder": "decoder/weight"},
  joined={**family.QKV, **family.GATE_UP},
  leaves=family.TORCH_LEAVES,
  copies=(("decoder.weight", family.WORDS, False),),
  spellings=(
    *family.TORCH_SPELLINGS,
    # Composer.
    (r"^(model\.)?(bert\.)?encoder\.layers\.", "model.layers."),
    (r"^(model\.)?bert\.", "model."),
  ),
)
_SIZES = {k: v for k, v in bert.SIZES.items() if k != "type_vocab_size"}
_TRAINING_KEYS = {
  "embedding_dropout": "dropout_rate",
  "mlp_dropout": "dropout_rate",
  "classifier_dropout": "dropout_rate",
  "attention_dropout": "attention_dropout_rate",
  "initializer_range": "init_stddev",
}
_FULL, _LOCAL = "full_attention", "sliding_attention"
_POOLINGS = {"cls": "first", "mean": "mean"}
# Their flag -> our switch, and its default.
_FLAGS = {
  "norm_bias": ("norm_bias", False),
  "attention_bias": ("attention_bias", False),
  "mlp_bias": ("mlp_in_bias", False),
  "classifier_bias": ("head_bias", False),
  "decoder_bias": ("mlm_bias", True),
  "tie_word_embeddings": ("tied_words", True),
}


# Settings of Composer with an effect -> the value of this encoder.
_COMPOSER = {
  "attention_layer": "rope",
  "bert_layer": "prenorm",
  "embedding_layer": "sans_pos",
  "mlp_layer": "glu",
  "normalization": "layernorm",
  "embed_norm": True,
  "final_norm": True,
  "skip_first_prenorm": True,
  "head_pred_norm": True,
  "rotary_emb_interleaved": False,
  "attn_qkv_bias": False,
  "attn_out_bias": False,
  "mlp_in_bias": False,
  "mlp_out_bias": False,
  "head_pred_bias": False,
}


def _composer(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config with the keys of Composer under those of transformers."""
  norm = config.get("norm_kwargs") or {}
  if odd := sorted(norm.keys() - {"eps", "bias"}):
    raise family.ConvertError(
      f"norm_kwargs has {', '.join(odd)}; this program reads eps and bias"
    )
  names = {
    "norm_eps": norm.get("eps"),
    "norm_bias": norm.get("bias"),
    "hidden_activation": config.get("hidden_act"),
    "classifier_activation": config.get("head_pred_act"),
    "global_rope_theta": config.get("rotary_emb_base"),
    "local_rope_theta": config.get("local_attn_rotary_emb_base"),
    "local_attention": config.get("sliding_window"),
  }
  found = {key: value for key, value in names.items() if value is not None}
  # No local base, and -1 in Composer, mean that of the other layers.
  kept = ("local_rope_theta",)
  return found | {k: v for k, v in config.items() if v is not None or k in kept}


def _layer_types(num_layers: int, period: int) -> list[str]:
  """Returns the type of each layer, of which every `period`-th is full."""
  return [_LOCAL if i % period else _FULL for i in range(num_layers)]


def _read_period(config: Mapping[str, Any], num_layers: int) -> int:
  """Returns the period of the layers with full attention; 1: all of them."""
  types = config.get("layer_types")
  if types is None:
    period = config.get("global_attn_every_n_layers", 3)
    if period == -1:  # Composer's word for no local attention
      return 1
    if isinstance(period, bool) or not isinstance(period, int) or period < 1:
      raise family.ConvertError(
        f"global_attn_every_n_layers is {period!r:.60}; it must be an integer "
        "of 1 or more"
      )
    return period
  for period in range(1, num_layers + 1):
    if types == _layer_types(num_layers, period):
      return period
  raise family.ConvertError(
    f"layer_types is {types!r:.200}; this program reads {num_layers} layers of "
    f"which the first and every n-th one after it are {_FULL}, and the others "
    f"{_LOCAL}"
  )


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads attention, rotations and heads, in all spellings."""
  config = _composer(config)
  full = config.get("global_rope_theta", 160_000.0)
  full = family.rope_theta(config, full, _FULL)
  local = config.get("local_rope_theta", 10_000.0)
  local = family.rope_theta(
    config, full if local in (None, -1) else local, _LOCAL
  )
  period = _read_period(config, model["num_layers"])
  window = config.get("local_attention", 128)
  if period == 1 and window == -1:  # Composer's word for no local attention
    window = 128
  if isinstance(window, bool) or not isinstance(window, int) or window < 2:
    raise family.ConvertError(
      f"local_attention is {window!r:.60}; it must be an integer of 2 or more"
    )
  pooling = config.get("classifier_pooling") or "cls"
  pooling = family.chosen("classifier_pooling", pooling, _POOLINGS)
  found: dict[str, Any] = {
    ours: family.switch(config, theirs, default)
    for theirs, (ours, default) in _FLAGS.items()
  }
  eps = config.get("norm_eps", model["layer_norm_eps"])
  return found | {
    "layer_norm_eps": float(eps),
    "hidden_act": family.activation(config, "hidden_activation", "gelu"),
    "mlp_out_bias": found["mlp_in_bias"],
    "attention_pattern": "full" if period == 1 else "local",
    "full_every": period,
    "local_radius": window // 2,
    "rope_theta": full,
    "local_rope_theta": local,
    "pooling": pooling,
    "head_act": family.activation(config, "classifier_activation", "gelu"),
  }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  """Writes attention and rotations in the spellings of 4.x and of 5.x.

  Other programs require the older keys, and versions 4.x of transformers know
  no others.
  """
  is_local = model.get("attention_pattern", "full") == "local"
  period = model["full_every"] if is_local else 1
  full = float(model["rope_theta"])
  local = float(model.get("local_rope_theta") or full)
  if model.get("mlp_out_bias") != model.get("mlp_in_bias"):
    raise family.ConvertError(
      "model.mlp_in_bias and model.mlp_out_bias differ, but these files have "
      f"one key for both; choose the format {family.OWN}"
    )
  poolings = {ours: theirs for theirs, ours in _POOLINGS.items()}
  found = {theirs: model[ours] for theirs, (ours, _) in _FLAGS.items()}
  return found | {
    "global_attn_every_n_layers": period,
    "layer_types": _layer_types(model["num_layers"], period),
    "local_attention": 2 * model.get("local_radius", 64),
    "global_rope_theta": full,
    "local_rope_theta": local,
    "rope_parameters": {
      _FULL: {"rope_type": "default", "rope_theta": full},
      _LOCAL: {"rope_type": "default", "rope_theta": local},
    },
    "classifier_pooling": poolings[model.get("pooling", "first")],
    "classifier_activation": family.their_activation(
      model["head_act"] or model["hidden_act"]
    ),
    "layer_norm_eps": model["layer_norm_eps"],
  }


# The layers through which every task passes a token or a pooled sequence.
_HEAD = ("dense", "act", "norm", "dropout")
_SWITCHES = {
  "type_vocab_size": 0,
  "norm_bias": False,
  "norm_place": "pre",
  "first_norm": False,
  "positions": "none",
  "attention_positions": "rope",
  "rope_theta": 160_000.0,
  "local_rope_theta": 10_000.0,
  "feed_forward": "glu",
  "attention_pattern": "local",
  "attention_bias": False,
  "mlp_in_bias": False,
  "mlp_out_bias": False,
  "pooler": False,
  "head_act": "gelu_erf",
  "head_bias": False,
  "dropout_places": ("embeddings", "attention", "mlp_inner"),
}
FAMILY = family.Family(
  name="modernbert",
  model_types=("modernbert",),
  hf_class="ModernBert",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      **{key: (None, value) for key, value in _COMPOSER.items()},
      # Rotations of a part of a head, and first layers of another kind.
      **dict.fromkeys(
        (
          "rotary_emb_dim", "local_attn_rotary_emb_dim",
          "rotary_emb_scale_base", "initial_attention_layer",
          "initial_bert_layer", "initial_mlp_layer",
        ),
        (None,),
      ),
    },
    read=frozenset({
      "norm_kwargs", "hidden_act", "head_pred_act", *_SIZES.values(), *_FLAGS,
      "hidden_activation", "norm_eps", "layer_types", "rope_parameters",
      "rope_scaling", "global_rope_theta", "local_rope_theta",
      "rotary_emb_base", "local_attn_rotary_emb_base",
      "global_attn_every_n_layers", "local_attention", "sliding_window",
      "classifier_pooling", "classifier_activation",
    })
    | _TRAINING_KEYS.keys(),
    ignored=frozenset({
      "layer_norm_eps", "position_embedding_type", "deterministic_flash_attn",
      "sparse_prediction", "sparse_pred_ignore_index", "reference_compile",
      "repad_logits_with_grad", "initializer_cutoff_factor",
      # Of Composer: memory, losses, initialisation and dropout.
      "padding", "loss_function", "loss_kwargs", "init_method", "init_std",
      "init_cutoff_factor", "init_small_embedding", "num_initial_layers",
      "unpad_embeddings", "pad_logits", "compile_model", "masked_prediction",
      "use_fa2", "use_sdpa_attn_mask", "deterministic_fa2",
      "allow_embedding_resizing", "attn_out_dropout_prob",
      "attention_probs_dropout_prob", "embed_dropout_prob",
      "mlp_dropout_prob", "head_pred_dropout", "activation_function",
    }),
  ),
  tokenizer=templates.MODERNBERT,
  presets={
    "base": family.preset(22, 768, 12, 1152),
    "large": family.preset(28, 1024, 16, 2624),
    "ettin-17m": family.preset(7, 256, 4, 384),
    "ettin-32m": family.preset(10, 384, 6, 576),
    "ettin-68m": family.preset(19, 512, 8, 768),
    "ettin-150m": family.preset(22, 768, 12, 1152),
    "ettin-400m": family.preset(28, 1024, 16, 2624),
    "ettin-1b": family.preset(28, 1792, 28, 3840),
    "mmbert-small": family.preset(
      22, 384, 6, 1152, vocab_size=256000, local_rope_theta=160_000
    ),
    "mmbert-base": family.preset(
      22, 768, 12, 1152, vocab_size=256000, local_rope_theta=160_000
    ),
  },
  defaults={
    "vocab_size": 50368, "max_len": 8192, "hidden_act": "gelu_erf",
    "layer_norm_eps": 1e-5, "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
  },
  training_keys=_TRAINING_KEYS,
  written={"model_type": "modernbert", "initializer_range": 0.02},
  switches=_SWITCHES,
  act_key="hidden_activation",
  eps_key="norm_eps",
  default_eps=1e-5,
  heads={role: _HEAD for role in ("sequence", "token", "span", "choice")},
  read=_read,
  write=_write,
  free=frozenset({
    *(ours for ours, _ in _FLAGS.values()), "mlp_out_bias",
    "attention_pattern", "full_every", "local_radius", "rope_theta",
    "local_rope_theta", "pooling", "head_act",
  }),
)  # fmt: skip
FAMILIES = (FAMILY,)
