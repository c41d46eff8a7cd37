"""BERT: the names of its parameters, its settings, tokenizer and sizes.

Formats:
  huggingface  the state dict of transformers' PyTorch classes
  flax         the parameters of its Flax classes
  tf1          the variables of the original

Source: google-research/bert modeling.py, run_pretraining.py:240-304,
  run_classifier.py:590-616, run_squad.py:546-567
"""

from bert_jax.data import templates
from bert_jax.models.families import family


def encoder_modules(prefix: str) -> dict[str, str]:
  """Returns our modules of an encoder -> the scopes in the original.

  Args:
    prefix: the first part of the scopes.
  """
  modules = {
    "encoder/embeddings/word": "embeddings/word_embeddings",
    "encoder/embeddings/position": "embeddings/position_embeddings",
    "encoder/embeddings/type": "embeddings/token_type_embeddings",
    "encoder/embeddings/norm": "embeddings/LayerNorm",
    family.POOLER: "pooler/dense",
  } | {
    f"encoder/layer_{{}}/{ours}": f"encoder/layer/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "attention/self/query",
      "attention/key": "attention/self/key",
      "attention/value": "attention/self/value",
      "attention/out": "attention/output/dense",
      "attention_norm": "attention/output/LayerNorm",
      "mlp/in": "intermediate/dense",
      "mlp/out": "output/dense",
      "mlp_norm": "output/LayerNorm",
    }.items()
  }
  return {ours: f"{prefix}/{theirs}" for ours, theirs in modules.items()}


# The head of masked words, and the names that repeat its decoder.
MLM_MODULES = {
  "mlm/dense": "cls/predictions/transform/dense",
  "mlm/norm": "cls/predictions/transform/LayerNorm",
  "mlm": "cls/predictions",
}
MLM_COPIES = (
  ("cls.predictions.decoder.weight", family.WORDS, False),
  ("cls.predictions.decoder.bias", "mlm/bias", False),
)
# The other formats follow the scopes of the original.
_MODULES = (
  encoder_modules("bert")
  | MLM_MODULES
  | {
    "nsp": "cls/seq_relationship",
    "task": "classifier",
  }
)
_NAMES = {
  "huggingface": family.Names(
    modules=_MODULES,
    separator=".",
    prefix="bert",
    from_classes=True,
    task_heads={"span": "qa_outputs"},
    leaves=family.TORCH_LEAVES,
    copies=MLM_COPIES,
    spellings=family.TORCH_SPELLINGS,
  ),
  "flax": family.Names(
    modules=_MODULES,
    prefix="bert",
    from_classes=True,
    task_heads={"span": "qa_outputs"},
    copies=(("cls/predictions/decoder/kernel", family.WORDS, True),),
  ),
  "tf1": family.Names(
    modules={
      ours: theirs.replace("layer/{}", "layer_{}")
      for ours, theirs in _MODULES.items()
    }
    | {"task": ""},
    prefix="bert",
    task_heads={"span": "cls/squad"},
    leaves=(
      (r"^(nsp|task)/kernel$", "output_weights", True),
      (r"^(nsp|task|mlm)/bias$", "output_bias", False),
      (r"norm/scale$", "gamma", False),
      (r"norm/bias$", "beta", False),
      (r"embedding$", "", False),
    ),
  ),
}


# "tiny" to "medium" and every "L_H" are the 24 small models of arXiv:1908.08962
# (table 1); "base" and "large" are those of the paper (section 3).
PRESETS = (
  {
    "tiny": family.preset(2, 128),
    "mini": family.preset(4, 256),
    "small": family.preset(4, 512),
    "medium": family.preset(8, 512),
    "base": family.preset(12, 768),
    "large": family.preset(24, 1024),
  }
  | {
    f"L{layers}_H{hidden}": family.preset(layers, hidden)
    for layers in (2, 4, 6, 8, 10, 12)
    for hidden in (128, 256, 512, 768)
  }
  | {
    # The rest of the paper's size ablation (table 6).
    "L3_H768": family.preset(3, 768),
    "L6_H768_A3": family.preset(6, 768, num_heads=3),
    "L12_H1024": family.preset(12, 1024),
    # 1.3 billion parameters.
    "L24_H2048": family.preset(24, 2048),
  }
)

SIZES = {
  "vocab_size": "vocab_size",
  "num_layers": "num_hidden_layers",
  "hidden_size": "hidden_size",
  "num_heads": "num_attention_heads",
  "mlp_dim": "intermediate_size",
  "max_len": "max_position_embeddings",
  "type_vocab_size": "type_vocab_size",
}
# These keys are settings of a training here, and these values are written.
TRAINING_KEYS = {
  "hidden_dropout_prob": "dropout_rate",
  "attention_probs_dropout_prob": "attention_dropout_rate",
  "classifier_dropout": "dropout_rate",
  "initializer_range": "init_stddev",
}
WRITTEN = {
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.1,
  "initializer_range": 0.02,
}

FAMILY = family.Family(
  name="bert",
  model_types=("bert",),
  hf_class="Bert",
  pretraining_classes={
    (): "Model",
    ("mlm",): "ForMaskedLM",
    ("nsp",): "ForNextSentencePrediction",
    ("mlm", "nsp"): "ForPreTraining",
  },
  names=_NAMES,
  sizes=SIZES,
  activations={
    "huggingface": family.TORCH_ACTIVATIONS,
    "flax": family.TORCH_ACTIVATIONS,
    # Its "gelu" meant the error function before February 2019, and tanh since.
    "tf1": {
      "gelu": "gelu_tanh",
      "relu": "relu",
      "silu": "silu",
      "tanh": "tanh",
    },
  },
  lossy_activations={"tf1": {"gelu_erf": "gelu"}},
  config_keys=family.CONFIG_KEYS.extended(
    only={
      "position_embedding_type": (None, "absolute"),
      "embedding_size": (None,),
    },
    read=frozenset({*SIZES.values(), "hidden_act", "layer_norm_eps"})
    | TRAINING_KEYS.keys(),
    ignored=frozenset({
      "directionality", "pooler_fc_size", "pooler_num_attention_heads",
      "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
    }),
    remedies={
      "embedding_size": (
        "this program reads no BERT whose embeddings have another width than "
        "hidden_size. Remove the key if the word table is that wide"
      )
    },
  ),
  tokenizer=templates.WORDPIECE,
  presets=PRESETS,
  training_keys=TRAINING_KEYS,
  written={
    "model_type": "bert",
    "position_embedding_type": "absolute",
    **WRITTEN,
  },
)  # fmt: skip
FAMILIES = (FAMILY,)
