"""What a family of encoders is: names, settings and a tokenizer, as data.

The encoder is one module; a family says what others call its parameters, which
of its switches are set, and what stands in the files that come with weights.
Nothing here reads a file or imports jax.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

from bert_jax.data import key_table
from bert_jax.data import templates
from bert_jax.runtime import errors
from bert_jax.runtime import settings

# Ours; in the files of others the same tensors have other names and layouts.
OWN = "bert_jax"
# The paths of a word table and of the bias that scores words have fixed names.
WORDS = "encoder/embeddings/word/embedding"
POOLER = "encoder/pooler"
# Parts that a model may come without, each whole or not at all.
OPTIONAL = (POOLER, "mlm", "nsp", "task")

_LAYER = re.compile(r"encoder/layer_(\d+)/(.+)")


class ConvertError(errors.UserError):
  """Names, shapes or settings do not make a model of a known family."""


@dataclasses.dataclass(frozen=True)
class Names:
  """What one format calls the parameters of a family.

  Attributes:
    modules: our module -> theirs, with "/" between its parts; "{}" in both
      stands for the number of a layer.
    separator: what stands between the parts in the files.
    prefix: the first part of all names of the encoder.
    from_classes: the classes of transformers write such files. A bare encoder
      then has no prefix, and each tensor of the encoder is used, so that one
      that has no place here would be missed.
    span_head: their name of the module "task" of a span; others are in
      `modules`.
    leaves: (regex of our path, their last part, it lies transposed there); the
      first that is found counts. A path that none fits keeps its last part.
    copies: (their name, our path, it lies transposed there) of tensors that
      hold a parameter a second time.
    spellings: (regex of their name, replacement) of older spellings.
  """

  modules: Mapping[str, str]
  separator: str = "/"
  prefix: str = ""
  from_classes: bool = False
  span_head: str = ""
  leaves: tuple[tuple[str, str, bool], ...] = ()
  copies: tuple[tuple[str, str, bool], ...] = ()
  spellings: tuple[tuple[str, str], ...] = ()

  def of(self, path: str, is_span: bool = False) -> tuple[str, bool] | None:
    """Names a parameter.

    Args:
      path: ours, layers unrolled.
      is_span: the head of the task is that of a span.

    Returns:
      Their name, and whether it lies transposed there; None if the family has
      no such parameter.
    """
    module, _, leaf = path.rpartition("/")
    number = ""
    if match := _LAYER.fullmatch(module):
      number, module = match[1], f"encoder/layer_{{}}/{match[2]}"
    is_transposed = False
    if module == "task" and is_span:
      scope = self.span_head
    elif module in self.modules:
      scope = self.modules[module].format(number)
    else:
      return None
    for pattern, name, transposed in self.leaves:
      if re.search(pattern, path):
        leaf, is_transposed = name, transposed
        break
    name = "/".join(filter(None, (scope, leaf)))
    return name.replace("/", self.separator), is_transposed

  def canonical(self, name: str) -> str:
    """Returns a name of theirs with its prefix, and as it is spelled today."""
    if name.split(self.separator, 1)[0] in self._tops:
      name = f"{self.prefix}{self.separator}{name}"
    for pattern, new in self.spellings:
      name = re.sub(pattern, new, name)
    return name

  def is_of_encoder(self, canonical: str) -> bool:
    """Returns whether a name is one of the encoder, its pooler left out."""
    first, _, rest = canonical.partition(self.separator)
    top = rest.split(self.separator, 1)[0]
    pooler = self.modules.get(POOLER, "").split("/")
    return first == self.prefix and top in self._tops - set(pooler)

  def layer_of(self, name: str) -> int | None:
    """Returns the number of the layer that a name of theirs belongs to."""
    match = self._layer.match(name)
    return int(match[1]) if match else None

  @functools.cached_property
  def _tops(self) -> set[str]:
    """What stands behind the prefix."""
    scopes = (scope.split("/") for scope in self.modules.values())
    return {parts[1] for parts in scopes if parts[0] == self.prefix}

  @functools.cached_property
  def _layer(self) -> re.Pattern[str]:
    layered = next((s for s in self.modules.values() if "{}" in s), "/{}")
    start = layered.partition("{}")[0].removeprefix(f"{self.prefix}/")
    prefix, start = (
      re.escape(part.replace("/", self.separator))
      for part in (f"{self.prefix}/", start)
    )
    return re.compile(rf"(?:{prefix})?{start}(\d+){re.escape(self.separator)}")


class _OwnNames(Names):
  """Our own names."""

  def of(self, path: str, is_span: bool = False) -> tuple[str, bool] | None:
    return path, False


OWN_NAMES = _OwnNames({"encoder/layer_{}": "encoder/layer_{}"})
# How the classes of transformers name and lay out a module's parameters.
TORCH_LEAVES = (
  (r"kernel$", "weight", True),
  (r"(scale|embedding)$", "weight", False),
)
TORCH_SPELLINGS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))

# Name of an activation there -> ours; the first of several is written.
TORCH_ACTIVATIONS = {
  "gelu": "gelu_erf",
  "gelu_python": "gelu_erf",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
  "tanh": "tanh",
}

# What config.json may say of any encoder. They are read where weights are read.
CONFIG_KEYS = key_table.KeyTable(
  only={
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "tie_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None, {}),
    "auto_map": (None, {}),
    "adapters": (None, {}),
  },
  read=frozenset({
    "model_type", "architectures", "problem_type", "id2label", "num_labels",
    "_num_labels", "tie_word_embeddings", "tokenizer_class",
    "sbert_ce_default_activation_function", "sentence_transformers",
  }),
  # Names, files, what a call returns, how text is generated, how memory is
  # used.
  ignored=frozenset({
    "_name_or_path", "name_or_path", "transformers_version", "_commit_hash",
    "_attn_implementation", "_attn_implementation_autoset",
    "attn_implementation", "torch_dtype", "dtype", "use_bfloat16",
    "torchscript", "tf_legacy_loss", "return_dict", "use_return_dict",
    "output_attentions", "output_hidden_states", "output_past", "use_cache",
    "chunk_size_feed_forward", "gradient_checkpointing", "finetuning_task",
    "task_specific_params", "label2id", "prefix",
    "cross_attention_hidden_size", "pad_token_id", "bos_token_id",
    "eos_token_id", "sep_token_id", "decoder_start_token_id", "max_length",
    "min_length", "do_sample", "early_stopping", "num_beams", "temperature",
    "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "num_beam_groups", "diversity_penalty",
    "summary_activation", "summary_first_dropout", "summary_last_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "language",
    "model_name", "bert_jax",
  }),
  effect="numbers",
  remedies={
    "pruned_heads": (
      "this program reads no model with pruned heads. Save the model without "
      "pruning"
    ),
    "quantization_config": (
      "this program reads no quantized weights. Save the model with float "
      "weights"
    ),
    "auto_map": (
      "code in the folder itself computes the model, and it is not run here. "
      "Remove the key if the model is one of the family without changes"
    ),
    "adapters": (
      "this program reads no adapters. Merge them into the weights, and save "
      "the model without them"
    ),
  },
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of encoders.

  Attributes:
    name: the value of `model.family`.
    model_types: the values of model_type in config.json.
    hf_class: what the names of its classes in transformers begin with.
    pretraining_classes: the heads of a model without a task, in alphabetical
      order -> how the name of its class goes on.
    names: format -> what it calls the parameters.
    sizes: size of ours -> key of config.json.
    activations: format -> name there -> ours; the first of several is written.
    config_keys: what config.json may say.
    tokenizer: how text becomes tokens.
    presets: name of a size -> values of keys of the config group `model`.
    training_keys: key of config.json -> key of the config group `model` that
      has its place in training here.
    written: what config.json says of every model of the family.
    switches: keys of the config group `model` that make the encoder one of
      this family, and their values.
    lossy_activations: format -> ours -> name there, of activations that have
      no name of their own.
    default_eps: epsilon of the norms where a file does not say it.
  """

  name: str
  model_types: tuple[str, ...]
  hf_class: str
  pretraining_classes: Mapping[tuple[str, ...], str]
  names: Mapping[str, Names]
  sizes: Mapping[str, str]
  activations: Mapping[str, Mapping[str, str]]
  config_keys: key_table.KeyTable
  tokenizer: templates.TokenizerSpec
  presets: Mapping[str, Mapping[str, int]] = dataclasses.field(
    default_factory=dict
  )
  training_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
  written: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  lossy_activations: Mapping[str, Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )
  default_eps: float = 1e-12

  def names_in(self, format: str) -> Names:
    """Returns what a format calls the parameters of this family.

    Raises:
      ConvertError: the family is not stored in this format.
    """
    if format == OWN:
      return OWN_NAMES
    if format not in self.names:
      raise ConvertError(
        f"{self.name} has no names in the format {format}; it has "
        f"{', '.join([*self.names, OWN])}"
      )
    return self.names[format]

  def model_of(self, format: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads our sizes and arithmetic from the settings beside some weights.

    Args:
      format: a key of `names`.
      config: the content of config.json or bert_config.json.

    Returns:
      A dict of keys of the config group `model`: sizes, activation, epsilon
      and switches.

    Raises:
      ConvertError: a key is missing, or it is no encoder that is known here.
    """
    try:
      self.config_keys.check(config)
    except ValueError as error:
      raise ConvertError(str(error)) from None
    model: dict[str, Any] = {}
    for ours, theirs in self.sizes.items():
      value = config.get(theirs)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConvertError(
          f"{theirs} is {value!r}; a size of 1 or more is wanted"
        )
      model[ours] = value
    if model["hidden_size"] % model["num_heads"]:
      raise ConvertError(
        f"hidden_size {model['hidden_size']} cannot be divided into "
        f"{model['num_heads']} heads"
      )
    name = config.get("hidden_act", "gelu")
    known = self.activations[format]
    if not isinstance(name, str) or name not in known:
      raise ConvertError(
        f"hidden_act {name!r} is not one of {', '.join(known)}"
      )
    model["hidden_act"] = known[name]
    eps = config.get("layer_norm_eps", self.default_eps)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or eps <= 0:
      raise ConvertError(
        f"layer_norm_eps is {eps!r}; a number above 0 is wanted"
      )
    return model | {"layer_norm_eps": float(eps)} | dict(self.switches)

  def config_of(self, format: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `model_of` reads: sizes, activation and epsilon.

    Args:
      format: a key of `names`.
      model: keys of the config group `model`.

    Raises:
      ConvertError: the activation has no name there, or a switch is another
        than the family's, which the file could not say.
    """
    read = {*self.sizes, "hidden_act", "layer_norm_eps", "family"}
    for key in model.keys() - read:
      default = settings.KEYS[f"model.{key}"].default
      wanted = self.switches.get(key, default)
      if model[key] != wanted:
        raise ConvertError(
          f"model.{key} is {model[key]!r:.60}, but models of the family "
          f"{self.name} have {wanted!r}; write {OWN}"
        )
    config: dict[str, Any] = {
      theirs: model[ours] for ours, theirs in self.sizes.items()
    }
    act, known = model["hidden_act"], self.activations[format]
    names = {ours: name for name, ours in reversed(list(known.items()))}
    names |= self.lossy_activations.get(format, {})
    if act not in names:
      raise ConvertError(
        f"hidden_act {act!r} has no name there; choose one of "
        f"{', '.join(names)}"
      )
    config["hidden_act"] = names[act]
    return config | {"layer_norm_eps": model["layer_norm_eps"]}
