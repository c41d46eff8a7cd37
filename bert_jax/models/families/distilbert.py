"""DistilBERT: BERT with fewer layers, without token types and pooler.

Sources: arXiv 1910.01108; huggingface/transformers 5.24, models/distilbert.
"""

from bert_jax.data import templates
from bert_jax.models.families import family

_NAMES = family.Names(
  modules={
    "encoder/embeddings/word": "distilbert/embeddings/word_embeddings",
    "encoder/embeddings/position": "distilbert/embeddings/position_embeddings",
    "encoder/embeddings/norm": "distilbert/embeddings/LayerNorm",
    "mlm/dense": "vocab_transform",
    "mlm/norm": "vocab_layer_norm",
    "mlm": "vocab_projector",
    "task": "classifier",
  }
  | {
    f"encoder/layer_{{}}/{ours}": f"distilbert/transformer/layer/{{}}/{theirs}"
    for ours, theirs in {
      "attention/query": "attention/q_lin",
      "attention/key": "attention/k_lin",
      "attention/value": "attention/v_lin",
      "attention/out": "attention/out_lin",
      "attention_norm": "sa_layer_norm",
      "mlp/in": "ffn/lin1",
      "mlp/out": "ffn/lin2",
      "mlp_norm": "output_layer_norm",
    }.items()
  },
  separator=".",
  prefix="distilbert",
  from_classes=True,
  task_heads={
    "sequence": {"task/dense": "pre_classifier", "task": "classifier"},
    "choice": {"task/dense": "pre_classifier", "task": "classifier"},
    "span": "qa_outputs",
  },
  leaves=family.TORCH_LEAVES,
  copies=(("vocab_projector.weight", family.WORDS, False),),
  spellings=family.TORCH_SPELLINGS,
)
_SIZES: dict[str, str | tuple[str, ...]] = {
  "vocab_size": "vocab_size",
  "num_layers": ("n_layers", "num_hidden_layers"),
  "hidden_size": ("dim", "hidden_size"),
  "num_heads": ("n_heads", "num_attention_heads"),
  "mlp_dim": "hidden_dim",
  "max_len": "max_position_embeddings",
}
_TRAINING_KEYS = {
  "dropout": "dropout_rate",
  "qa_dropout": "dropout_rate",
  "seq_classif_dropout": "dropout_rate",
  "attention_dropout": "attention_dropout_rate",
  "initializer_range": "init_stddev",
}
FAMILY = family.Family(
  name="distilbert",
  model_types=("distilbert",),
  hf_class="DistilBert",
  pretraining_classes={(): "Model", ("mlm",): "ForMaskedLM"},
  names={"huggingface": _NAMES},
  sizes=_SIZES,
  activations={"huggingface": family.TORCH_ACTIVATIONS},
  config_keys=family.CONFIG_KEYS.extended(
    read=frozenset({
      "vocab_size", "n_layers", "num_hidden_layers", "dim", "hidden_size",
      "n_heads", "num_attention_heads", "hidden_dim",
      "max_position_embeddings", "activation",
    })
    | _TRAINING_KEYS.keys(),
    # It says how positions are initialised; files hold all of them.
    ignored=frozenset({"sinusoidal_pos_embds", "tie_weights_"}),
  ),
  tokenizer=templates.DISTILBERT,
  presets={
    "base": family.preset(6, 768),
  },
  defaults={
    "vocab_size": 30522, "max_len": 512, "hidden_act": "gelu_erf",
    "layer_norm_eps": 1e-12,
  },
  training_keys=_TRAINING_KEYS,
  written={
    "model_type": "distilbert",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
    "sinusoidal_pos_embds": False,
  },
  switches={
    "type_vocab_size": 0,
    "pooler": False,
    "dropout_places": ("embeddings", "mlp"),
  },
  act_key="activation",
  eps_key="",
  heads={
    "sequence": ("dense", "relu", "dropout"),
    "choice": ("dense", "relu", "dropout"),
    "token": ("dropout",),
    "span": ("dropout",),
  },
)  # fmt: skip
FAMILIES = (FAMILY,)
