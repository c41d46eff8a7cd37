"""RoBERTa and the models that differ from it in names alone.

RoBERTa is BERT with one token type, positions that begin at 2, byte-level BPE
and other heads of tasks.

Sources: arXiv 1907.11692; huggingface/transformers 5.24, models/roberta;
facebookresearch/fairseq, models/roberta, whose names of parameters are read,
too.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_LAYER = r"\.layers\.(\d+)\."
# Names of fairseq -> names of transformers.
_FAIRSEQ = (
  (r"^(roberta\.encoder|decoder)\.sentence_encoder\.", "fairseq."),
  (r"^(roberta\.encoder|decoder)\.lm_head\.", "lm_head."),
  (r"^lm_head\.weight$", "lm_head.decoder.weight"),
  *(
    (rf"^fairseq{_LAYER}{old}\.", rf"roberta.encoder.layer.\1.{new}.")
    for old, new in {
      r"self_attn\.q_proj": "attention.self.query",
      r"self_attn\.k_proj": "attention.self.key",
      r"self_attn\.v_proj": "attention.self.value",
      r"self_attn\.out_proj": "attention.output.dense",
      "self_attn_layer_norm": "attention.output.LayerNorm",
      "fc1": "intermediate.dense",
      "fc2": "output.dense",
      "final_layer_norm": "output.LayerNorm",
    }.items()
  ),
  *(
    (rf"^fairseq\.{old}\.", f"roberta.embeddings.{new}.")
    for old, new in {
      "embed_tokens": "word_embeddings",
      "embed_positions": "position_embeddings",
      "(emb_layer_norm|layernorm_embedding)": "LayerNorm",
    }.items()
  ),
)
# The head of masked words, and the names that repeat its decoder.
MLM_MODULES = {
  "mlm/dense": "lm_head/dense",
  "mlm/norm": "lm_head/layer_norm",
  "mlm": "lm_head",
}
MLM_COPIES = (
  ("lm_head.decoder.weight", family.WORDS, False),
  ("lm_head.decoder.bias", "mlm/bias", False),
)
# The head for sequences.
SEQUENCE_HEAD = {
  "task/dense": "classifier/dense",
  "task": "classifier/out_proj",
}
_NAMES = family.Names(
  modules=bert.encoder_modules("roberta")
  | MLM_MODULES
  | {"task": "classifier"},
  separator=".",
  prefix="roberta",
  from_classes=True,
  task_heads={"sequence": SEQUENCE_HEAD, "span": "qa_outputs"},
  leaves=family.TORCH_LEAVES,
  copies=MLM_COPIES,
  spellings=(*family.TORCH_SPELLINGS, *_FAIRSEQ),
  # fairseq has no token types, which is as one type whose vector is 0.
  zeros=("encoder/embeddings/type/embedding",),
)


def _read(
  config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
  """Counts positions from the first one after that of padding."""
  pad = config.get("pad_token_id", 1)
  if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
    raise family.ConvertError(
      f"pad_token_id is {pad!r:.60}; the first position is the number after "
      "it, so it must be an integer of 0 or more"
    )
  max_len = model["max_len"] - pad - 1
  if max_len < 1:
    raise family.ConvertError(
      f"max_position_embeddings is {model['max_len']}, of which pad_token_id="
      f"{pad} leaves no position for a token"
    )
  return {"position_offset": pad + 1, "max_len": max_len}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
  offset = model.get("position_offset", 0)
  if offset < 1:
    raise family.ConvertError(
      "model.position_offset is 0, but these files have a position for "
      f"padding; choose the format {family.OWN}"
    )
  return {
    "max_position_embeddings": model["max_len"] + offset,
    "pad_token_id": offset - 1,
  }


def fairseq_config(args: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
  """Returns the config.json of a model of fairseq.

  Args:
    args: the arguments of its training, which a checkpoint holds.
    vocab_size: V, the rows of the table of words.

  Raises:
    ConvertError: an argument is missing, or is that of another encoder.
  """
  names = {
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_embed_dim": "intermediate_size",
  }
  if missing := [k for k in (*names, "max_positions") if not args.get(k)]:
    raise family.ConvertError(
      f"the arguments of the training lack {', '.join(missing)}; put a "
      "config.json beside the file"
    )
  if args.get("encoder_normalize_before"):
    raise family.ConvertError(
      "encoder_normalize_before is True; this program reads the encoder of "
      "RoBERTa, which normalizes after each residual sum"
    )
  return {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "vocab_size": vocab_size,
    "max_position_embeddings": args["max_positions"] + 2,
    "type_vocab_size": 1,
    "hidden_act": args.get("activation_fn", "gelu"),
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    **{theirs: args[ours] for ours, theirs in names.items()},
  }


FAMILY = family.Family(
  name="roberta",
  model_types=("roberta",),
  hf_class="Roberta",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=bert.SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    only={"position_embedding_type": (None, "absolute")},
    read=frozenset({*bert.SIZES.values(), "hidden_act", "layer_norm_eps"})
    | bert.TRAINING_KEYS.keys(),
  ),
  tokenizer=templates.ROBERTA,
  presets={
    "base": family.preset(12, 768),
    "large": family.preset(24, 1024),
    # distilroberta-base
    "distil": family.preset(6, 768),
  },
  defaults={
    "vocab_size": 50265, "max_len": 512, "type_vocab_size": 1,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-5, "position_offset": 2,
  },
  training_keys=bert.TRAINING_KEYS,
  written={
    "model_type": "roberta",
    "position_embedding_type": "absolute",
    **bert.WRITTEN,
  },
  switches={"head_act": "gelu_erf"},
  heads={
    "sequence": ("dropout", "dense", "tanh", "dropout"),
    "choice": ("pooler", "dropout"),
    "token": ("dropout",),
    "span": (),
  },
  read=_read,
  write=_write,
  free=frozenset({"position_offset"}),
)  # fmt: skip

# Source: arXiv 1911.02116.
XLM_ROBERTA = dataclasses.replace(
  FAMILY,
  name="xlm-roberta",
  model_types=("xlm-roberta",),
  hf_class="XLMRoberta",
  tokenizer=templates.XLM_ROBERTA,
  defaults={**FAMILY.defaults, "vocab_size": 250002},
  written={**FAMILY.written, "model_type": "xlm-roberta"},
)
# Source: arXiv 1911.03894.
CAMEMBERT = dataclasses.replace(
  FAMILY,
  name="camembert",
  model_types=("camembert",),
  hf_class="Camembert",
  tokenizer=templates.CAMEMBERT,
  defaults={**FAMILY.defaults, "vocab_size": 32005},
  written={**FAMILY.written, "model_type": "camembert"},
)
FAMILIES = (FAMILY, XLM_ROBERTA, CAMEMBERT)
