"""MosaicBERT: BERT with ALiBi instead of positions, and gated layers.

Its files name the model type "bert" and, in auto_map, the classes of remote
code, by which they are told apart from BERT's. This program writes the model
type "mosaic_bert".

Sources: arXiv 2312.17482; mosaicml/examples, examples/bert/src/bert_layers.py,
which is remote code of its files: transformers has no such class.
"""

from bert_jax.data import templates
from bert_jax.models.families import bert
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    ours: theirs
    for ours, theirs in bert.encoder_modules("bert").items()
    if ours != "encoder/embeddings/position"
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"bert/encoder/layer/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "attention/self/Wqkv",
      "attention/key": "attention/self/Wqkv",
      "attention/value": "attention/self/Wqkv",
      "mlp/gate": "mlp/gated_layers",
      "mlp/in": "mlp/gated_layers",
      "mlp/out": "mlp/wo",
      "mlp_norm": "mlp/layernorm",
    }.items()
  }
  | {
    "mlm/dense": bert.MLM_MODULES["mlm/dense"],
    "mlm/norm": bert.MLM_MODULES["mlm/norm"],
    "task": "classifier",
  },
  separator=".",
  prefix="bert",
  from_classes=True,
  paths={"mlm/bias": "cls/predictions/decoder/bias"},
  joined={**family.QKV, **family.GATE_UP},
  leaves=family.TORCH_LEAVES,
  copies=(("cls.predictions.decoder.weight", family.WORDS, False),),
  spellings=family.TORCH_SPELLINGS,
)
FAMILY = family.Family(
  name="mosaic_bert",
  model_types=("mosaic_bert", "bert"),
  hf_class="Bert",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=bert.FAMILY.sizes,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=bert.FAMILY.config_keys.extended(
    ignored=frozenset({"alibi_starting_size", "attention_probs_dropout_prob"}),
  ),
  tokenizer=templates.WORDPIECE,
  presets={name: bert.PRESETS[name] for name in ("base", "large")},
  defaults={
    "vocab_size": 30528, "max_len": 512, "type_vocab_size": 2,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-12,
  },
  remote_code=r"(configuration_bert|bert_layers)\.Bert\w+",
  training_keys=bert.FAMILY.training_keys,
  written={**bert.FAMILY.written, "model_type": "mosaic_bert"},
  switches={
    "positions": "none",
    "attention_positions": "alibi",
    "feed_forward": "glu",
    "mlp_in_bias": False,
    "dropout_places": ("embeddings", "attention", "mlp_inner"),
  },
)  # fmt: skip
FAMILIES = (FAMILY,)
