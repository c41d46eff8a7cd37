"""The base of a family of encoders: names, settings and a tokenizer, as data.

The encoder is one module. A family holds the names that other programs give its
parameters, the values of its switches, and the content of the files that come
with weights. Nothing here reads a file or imports jax.
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

# Our own format.
OWN = "bert_jax"
# The paths of the word table and of the pooler.
WORDS = "encoder/embeddings/word/embedding"
POOLER = "encoder/pooler"
# Parts that a model may lack; each is whole or missing.
OPTIONAL = (POOLER, "mlm", "nsp", "task")

_LAYER = re.compile(r"encoder/layer_(\d+)/(.+)")


class ConvertError(errors.UserError):
  """The names, shapes or settings do not fit a model of a known family."""


@dataclasses.dataclass(frozen=True)
class Names:
  """The names of the parameters of a family in one format.

  "Their" names are those of the format.

  Attributes:
    modules: our module -> theirs, with "/" between its parts; "{}" in both
      stands for the number of a layer.
    separator: the text between the parts in the files.
    prefix: the first part of all names of the encoder.
    from_classes: whether the classes of transformers write such files. A bare
      encoder then has no prefix, and its outputs depend on every tensor of the
      encoder, so that none may be ignored.
    task_heads: kind of task -> their name of the module "task"; other kinds
      have the name in `modules`.
    leaves: (regex of our path, their last part, whether it is transposed
      there); the first match counts. A path without a match keeps its last
      part.
    copies: (their name, our path, whether it is transposed there) for tensors
      that repeat a parameter.
    spellings: (regex of their name, replacement) for older spellings.
  """

  modules: Mapping[str, str]
  separator: str = "/"
  prefix: str = ""
  from_classes: bool = False
  task_heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
  leaves: tuple[tuple[str, str, bool], ...] = ()
  copies: tuple[tuple[str, str, bool], ...] = ()
  spellings: tuple[tuple[str, str], ...] = ()

  def of(self, path: str, kind: str | None = None) -> tuple[str, bool] | None:
    """Names a parameter.

    Args:
      path: our path, with unrolled layers.
      kind: the kind of the task of the head; None if it is unknown.

    Returns:
      Their name, and whether the format has the array transposed; None if the
      family has no such parameter.
    """
    module, _, leaf = path.rpartition("/")
    number = ""
    if match := _LAYER.fullmatch(module):
      number, module = match[1], f"encoder/layer_{{}}/{match[2]}"
    is_transposed = False
    scope = self.modules.get(module)
    if module == "task":
      scope = self.task_heads.get(kind or "", scope)
    if scope is None:
      return None
    for pattern, name, transposed in self.leaves:
      if re.search(pattern, path):
        leaf, is_transposed = name, transposed
        break
    name = "/".join(filter(None, (scope.format(number), leaf)))
    return name.replace("/", self.separator), is_transposed

  def canonical(self, name: str) -> str:
    """Returns a name of theirs with its prefix and in its newest spelling."""
    if name.split(self.separator, 1)[0] in self._tops:
      name = f"{self.prefix}{self.separator}{name}"
    for pattern, new in self.spellings:
      name = re.sub(pattern, new, name)
    return name

  def is_of_encoder(self, canonical: str) -> bool:
    """Returns whether a name belongs to the encoder, but not to its pooler."""
    first, _, rest = canonical.partition(self.separator)
    top = rest.split(self.separator, 1)[0]
    pooler = self.modules.get(POOLER, "").split("/")
    return first == self.prefix and top in self._tops - set(pooler)

  def layer_of(self, name: str) -> int | None:
    """Returns the layer that a name of theirs belongs to; None if no layer."""
    match = self._layer.match(name)
    return int(match[1]) if match else None

  @functools.cached_property
  def _tops(self) -> set[str]:
    """The second parts of the names that begin with the prefix."""
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
  """The names of our own format."""

  def of(self, path: str, kind: str | None = None) -> tuple[str, bool] | None:
    return path, False


OWN_NAMES = _OwnNames({"encoder/layer_{}": "encoder/layer_{}"})
# The names and the layout of parameters in the classes of transformers.
TORCH_LEAVES = (
  (r"kernel$", "weight", True),
  (r"(scale|embedding)$", "weight", False),
)
TORCH_SPELLINGS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))

# Their name of an activation -> ours. Of several, the first is written.
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

# The keys that config.json may have for any encoder.
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
  # Keys about names, files, the results of a call, text generation and memory.
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
      "code in the folder defines the model, and this program does not run it. "
      "Remove the key if the model is an unchanged member of the family"
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
    hf_class: the first part of the names of its classes in transformers.
    pretraining_classes: the heads of a model without a task, in alphabetical
      order -> the rest of the name of its class.
    names: format -> the names of the parameters.
    sizes: our size -> key of config.json.
    activations: format -> their name -> ours. Of several, the first is written.
    config_keys: the keys that config.json may have.
    tokenizer: the tokenizer of the family.
    presets: name of a size -> values of keys of the config group `model`.
    training_keys: key of config.json -> key of the config group `model` that
      has the same role in training here.
    written: the keys that config.json has for every model of the family.
    switches: the keys of the config group `model` that make the encoder one of
      this family, and their values.
    lossy_activations: format -> our name -> their name, for activations that
      share a name with another.
    default_eps: the epsilon of the norms if a file has none.
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
    """Returns the names of the parameters of this family in a format.

    Raises:
      ConvertError: the family is not stored in this format.
    """
    if format == OWN:
      return OWN_NAMES
    if format not in self.names:
      raise ConvertError(
        f"the family {self.name} has no format {format}; choose one of "
        f"{', '.join([*self.names, OWN])}"
      )
    return self.names[format]

  def model_of(self, format: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads our sizes and arithmetic from the settings beside weights.

    Args:
      format: a key of `names`.
      config: the content of config.json or bert_config.json.

    Returns:
      A dict of keys of the config group `model`: sizes, activation, epsilon
      and switches.

    Raises:
      ConvertError: a key is missing, or the settings are not those of an
        encoder that is known here.
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
          f"{theirs} is {value!r}; it must be an integer of 1 or more"
        )
      model[ours] = value
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
        f"layer_norm_eps is {eps!r}; it must be a number above 0"
      )
    return model | {"layer_norm_eps": float(eps)} | dict(self.switches)

  def config_of(self, format: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that `model_of` reads: sizes, activation, epsilon.

    Args:
      format: a key of `names`.
      model: keys of the config group `model`.

    Raises:
      ConvertError: the format has no name for the activation, or a switch
        differs from that of the family, which the file cannot express.
    """
    read = {*self.sizes, "hidden_act", "layer_norm_eps", "family"}
    for key in model.keys() - read:
      default = settings.KEYS[f"model.{key}"].default
      wanted = self.switches.get(key, default)
      if model[key] != wanted:
        raise ConvertError(
          f"model.{key} is {model[key]!r:.60}, but models of the family "
          f"{self.name} have {wanted!r}; choose the format {OWN}"
        )
    config: dict[str, Any] = {
      theirs: model[ours] for ours, theirs in self.sizes.items()
    }
    act, known = model["hidden_act"], self.activations[format]
    names = {ours: name for name, ours in reversed(list(known.items()))}
    names |= self.lossy_activations.get(format, {})
    if act not in names:
      raise ConvertError(
        f"the format {format} has no name for model.hidden_act={act!r}; choose "
        f"one of {', '.join(names)}"
      )
    config["hidden_act"] = names[act]
    return config | {"layer_norm_eps": model["layer_norm_eps"]}
