"""The base of a family of encoders: names, settings and a tokenizer, as data.

The encoder is one module. A family holds the names that other programs give its
parameters, the values of its switches, and the content of the files that come
with weights. Nothing here reads a file or imports jax.
"""

from collections.abc import Callable, Mapping
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
# The heads of pre-training, by the names of their parameters.
PRETRAINING_HEADS = ("mlm", "nsp", "rtd")
# Parts that a model may lack; each is whole or missing.
OPTIONAL = (POOLER, *PRETRAINING_HEADS, "task")
# The roles of heads that read one vector of each sequence; see `Family.heads`.
SEQUENCE_ROLES = ("sequence", "choice")

_LAYER = re.compile(r"encoder/layer_(\d+)/(.+)")


class ConvertError(errors.UserError):
  """The names, shapes or settings do not fit a model of a known family."""


# Values of switches that no format but a run of this program can hold.
_ONLY_OURS = {"attention_pattern": "causal", "pooling": "last"}


@dataclasses.dataclass(frozen=True)
class Part:
  """One of several equal parts of the output axis of an array.

  Attributes:
    place: the number of the part, from 0 on.
    count: how many parts the array has.
    by_head: whether the parts lie one after the other within each attention
      head, and not for all heads together.
  """

  place: int
  count: int
  by_head: bool = False


WHOLE = Part(0, 1)
# Query, key and value in one array; the gate of a GLU before the other half.
QKV = {
  f"encoder/layer_{{}}/attention/{name}": Part(i, 3)
  for i, name in enumerate(("query", "key", "value"))
}
GATE_UP = {
  f"encoder/layer_{{}}/mlp/{name}": Part(i, 2)
  for i, name in enumerate(("gate", "in"))
}
UP_GATE = {
  f"encoder/layer_{{}}/mlp/{name}": Part(i, 2)
  for i, name in enumerate(("in", "gate"))
}


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
    task_heads: role of a head of a task -> their name of the module "task", or
      our module -> theirs for all of its modules; other roles have the names in
      `modules`. The roles are the keys of `Family.heads`.
    paths: our path -> their name with all of its parts, for parameters that
      have another name than their module and leaf give.
    joined: our module -> which part it is of an array of theirs that several
      modules share.
    leaves: (regex of our path, their last part, whether it is transposed
      there); the first match counts. A path without a match keeps its last
      part.
    copies: (their name, our path, whether it is transposed there) for tensors
      that repeat a parameter.
    spellings: (regex of their name, replacement) for older spellings.
    zeros: our paths that files may lack because all values are 0.
  """

  modules: Mapping[str, str]
  separator: str = "/"
  prefix: str = ""
  from_classes: bool = False
  task_heads: Mapping[str, str | Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )
  paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
  joined: Mapping[str, Part] = dataclasses.field(default_factory=dict)
  leaves: tuple[tuple[str, str, bool], ...] = ()
  copies: tuple[tuple[str, str, bool], ...] = ()
  spellings: tuple[tuple[str, str], ...] = ()
  zeros: tuple[str, ...] = ()

  def of(self, path: str, role: str | None = None) -> tuple[str, bool] | None:
    """Names a parameter.

    Args:
      path: our path, with unrolled layers.
      role: the role of the head of the task; None if it is unknown.

    Returns:
      Their name, and whether the format has the array transposed; None if the
      family has no such parameter.
    """
    if path in self.paths:
      return self.paths[path].replace("/", self.separator), False
    module, _, leaf = path.rpartition("/")
    number, module = _split_layer(module)
    scope = self.modules.get(module)
    if module.partition("/")[0] == "task":
      names = self.task_heads.get(role or "", {})
      names = {"task": names} if isinstance(names, str) else names
      scope = names.get(module, scope)
    if scope is None:
      return None
    is_transposed = False
    for pattern, name, transposed in self.leaves:
      if re.search(pattern, path):
        leaf, is_transposed = name, transposed
        break
    name = "/".join(filter(None, (scope.format(number), leaf)))
    return name.replace("/", self.separator), is_transposed

  def part_of(self, path: str) -> "Part":
    """Returns which part of their array a parameter is."""
    _, module = _split_layer(path.rpartition("/")[0])
    return self.joined.get(module, WHOLE)

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


def _split_layer(module: str) -> tuple[str, str]:
  """Returns the number of a layer, or "", and the module with "{}" for it."""
  if match := _LAYER.fullmatch(module):
    return match[1], f"encoder/layer_{{}}/{match[2]}"
  return "", module


class _OwnNames(Names):
  """The names of our own format."""

  def of(self, path: str, role: str | None = None) -> tuple[str, bool] | None:
    return path, False


OWN_NAMES = _OwnNames({"encoder/layer_{}": "encoder/layer_{}"})
# The names and the layout of parameters in the classes of transformers.
TORCH_LEAVES = (
  (r"kernel$", "weight", True),
  (r"(scale|embedding)$", "weight", False),
)
TORCH_SPELLINGS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))

# What BERT does to a vector before the last dense layer of the head of a task;
# see `heads.TaskHead`. Source: google-research/bert run_classifier.py:590-616,
# run_squad.py:557-600.
BERT_HEADS: Mapping[str, tuple[str, ...]] = {
  "sequence": ("pooler", "dropout"),
  "choice": ("pooler", "dropout"),
  "token": ("dropout",),
  "span": (),
}


def preset(
  num_layers: int,
  hidden_size: int,
  num_heads: int = 0,
  mlp_dim: int = 0,
  **more: Any,
) -> dict[str, Any]:
  """Returns the keys of the config group `model` for a size.

  Args:
    num_layers: the number of layers.
    hidden_size: D.
    num_heads: N; 0 = heads of 64.
    mlp_dim: F; 0 = 4 D.
    **more: other keys.
  """
  return {
    "num_layers": num_layers,
    "hidden_size": hidden_size,
    "num_heads": num_heads or hidden_size // 64,
    "mlp_dim": mlp_dim or 4 * hidden_size,
    **more,
  }


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
    "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
    "unk_token_id", "decoder_start_token_id", "max_length",
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
    sizes: our size -> key of config.json, or several, of which the first is
      written.
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
    act_key: the key of the activation in config.json.
    eps_key: the key of the epsilon in config.json; "" if all models of the
      family have `default_eps`.
    defaults: values of keys of the config group `model` that all presets share.
    discriminator: the steps of a head that says of each token whether it was
      replaced, as in `heads`; () if the family has no such head.
    default_act: their name of the activation if a file has none.
    heads: role of the head of a task -> the steps before its last dense layer;
      see `heads.TaskHead`. The roles are "sequence", "token", "span" and
      "choice".
    read: (config.json, what `model_of` has read) -> more keys of the config
      group `model`, which replace those of `switches`; None: there are none.
    write: the inverse: (keys of the config group `model`) -> more keys of
      config.json, which replace those that `config_of` has written.
    free: the keys of the config group `model` that `read` and `write` know.
    remote_code: a regex of "MODULE.CLASS" for classes that files name in
      auto_map and that compute what this program does; "" if there are none.
  """

  name: str
  model_types: tuple[str, ...]
  hf_class: str
  pretraining_classes: Mapping[tuple[str, ...], str]
  names: Mapping[str, Names]
  sizes: Mapping[str, str | tuple[str, ...]]
  activations: Mapping[str, Mapping[str, str]]
  config_keys: key_table.KeyTable
  tokenizer: templates.TokenizerSpec
  presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  training_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
  written: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  lossy_activations: Mapping[str, Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )
  default_eps: float = 1e-12
  act_key: str = "hidden_act"
  eps_key: str = "layer_norm_eps"
  default_act: str = "gelu"
  heads: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=lambda: BERT_HEADS
  )
  read: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None
  write: Callable[[Mapping[str, Any]], Any] | None = None
  free: frozenset[str] = frozenset()
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  discriminator: tuple[str, ...] = ()
  remote_code: str = ""

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

  @property
  def shared_head(self) -> tuple[str, ...]:
    """The modules of the head of masked words that heads of tasks begin with.

    Transformers gives both the same names, so that a new head starts from the
    pre-trained one.
    """
    modules = self.names["huggingface"].modules
    return tuple(
      part
      for part in ("dense", "norm")
      if modules.get(f"task/{part}")
      and modules.get(f"task/{part}") == modules.get(f"mlm/{part}")
    )

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
      code = (
        {"auto_map": None} if self.knows_code(config.get("auto_map")) else {}
      )
      self.config_keys.check({**config, **code})
    except ValueError as error:
      raise ConvertError(str(error)) from None
    model: dict[str, Any] = {}
    for ours, theirs in self.sizes.items():
      keys = (theirs,) if isinstance(theirs, str) else theirs
      key = next((key for key in keys if config.get(key) is not None), keys[0])
      model[ours] = _size(key, config.get(key), ours == "type_vocab_size")
    name = config.get(self.act_key, self.default_act)
    known = self.activations[format]
    if not isinstance(name, str) or name not in known:
      raise ConvertError(
        f"{self.act_key} {name!r} is not one of {', '.join(known)}"
      )
    model["hidden_act"] = known[name]
    eps = config.get(self.eps_key, self.default_eps)  # no file has the key ""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or eps <= 0:
      raise ConvertError(
        f"{self.eps_key} is {eps!r}; it must be a number above 0"
      )
    model = model | {"layer_norm_eps": float(eps)} | dict(self.switches)
    return model | (self.read(config, model) if self.read else {})

  def knows_code(self, auto_map: Any) -> bool:
    """Returns whether remote code computes what this program does.

    Args:
      auto_map: the value in config.json, an object of names of classes.
    """
    # A class of another model of the hub is OWNER/NAME--MODULE.CLASS.
    known = re.compile(rf"([\w.-]+/[\w.-]+--)?({self.remote_code})")
    if not self.remote_code or not isinstance(auto_map, dict):
      return False
    return all(known.fullmatch(str(name)) for name in auto_map.values())

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
    read |= {"dropout_places", *self.free}
    for key, value in _ONLY_OURS.items():
      if model.get(key) == value:
        raise ConvertError(
          f"model.{key} is {value!r}, which no other program's model of the "
          f"family {self.name} has; choose the format {OWN}"
        )
    for key in model.keys() - read:
      default = settings.KEYS[f"model.{key}"].default
      wanted = self.switches.get(key, default)
      if model[key] != wanted:
        raise ConvertError(
          f"model.{key} is {model[key]!r:.60}, but models of the family "
          f"{self.name} have {wanted!r}; choose the format {OWN}"
        )
    config: dict[str, Any] = {
      theirs if isinstance(theirs, str) else theirs[0]: model[ours]
      for ours, theirs in self.sizes.items()
    }
    act, known = model["hidden_act"], self.activations[format]
    names = {ours: name for name, ours in reversed(list(known.items()))}
    names |= self.lossy_activations.get(format, {})
    if act not in names:
      raise ConvertError(
        f"the format {format} has no name for model.hidden_act={act!r}; choose "
        f"one of {', '.join(names)}"
      )
    config[self.act_key] = names[act]
    eps = model["layer_norm_eps"]
    if self.eps_key:
      config[self.eps_key] = eps
    elif eps != self.default_eps:
      raise ConvertError(
        f"model.layer_norm_eps is {eps}, but models of the family {self.name} "
        f"have {self.default_eps}; choose the format {OWN}"
      )
    return config | (self.write(model) if self.write else {})


def _size(key: str, value: Any, may_be_0: bool) -> int:
  """Returns a size in config.json; raises ConvertError for another value."""
  least = 0 if may_be_0 else 1
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ConvertError(
      f"{key} is {value!r}; it must be an integer of {least} or more"
    )
  return value


def rope_theta(
  config: Mapping[str, Any], default: float, layer_type: str = ""
) -> float:
  """Returns the base of the rotations that the newer key of a file says.

  Args:
    config: the content of config.json.
    default: the base if the file does not say it.
    layer_type: the type of the layers, if the file has one base for each.

  Raises:
    ConvertError: the rotations are scaled, or of a part of a head.
  """
  for name in ("rope_parameters", "rope_scaling"):
    found = config.get(name) or {}
    if layer_type and layer_type in found:
      found = found[layer_type] or {}
    kind = found.get("rope_type", found.get("type", "default"))
    share = found.get("partial_rotary_factor", 1.0)
    if kind not in (None, "default") or share != 1.0:
      raise ConvertError(
        f"{name} is {dict(found)!r:.100}; this program reads rotations of "
        'whole heads without scaling, {"rope_type": "default"}'
      )
    if "rope_theta" in found:
      return float(found["rope_theta"])
  return float(default)


def switch(config: Mapping[str, Any], key: str, default: bool) -> bool:
  """Returns a flag in config.json; raises ConvertError for another value."""
  value = config.get(key)
  value = default if value is None else value
  if not isinstance(value, bool):
    raise ConvertError(f"{key} is {value!r:.60}; it must be true or false")
  return value


def chosen(key: str, value: Any, choices: Mapping[str, str]) -> str:
  """Returns our name of a value in config.json.

  Args:
    key: the key in config.json.
    value: its value.
    choices: their name -> ours.

  Raises:
    ConvertError: `choices` does not have the value.
  """
  if not isinstance(value, str) or value not in choices:
    raise ConvertError(
      f"{key} is {value!r:.60}; it must be one of {', '.join(choices)}"
    )
  return choices[value]


def activation(config: Mapping[str, Any], key: str, default: str) -> str:
  """Returns our name of an activation in config.json.

  Raises:
    ConvertError: the activation is not known.
  """
  name = config.get(key, default)
  if name not in TORCH_ACTIVATIONS:
    raise ConvertError(
      f"{key} {name!r} is not one of {', '.join(TORCH_ACTIVATIONS)}"
    )
  return TORCH_ACTIVATIONS[name]


def their_activation(ours: str) -> str:
  """Returns the name of an activation in config.json."""
  names = {ours: name for name, ours in reversed(TORCH_ACTIVATIONS.items())}
  return names[ours]
