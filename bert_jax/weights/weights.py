"""Folders of weights to our parameters, and back.

  weights = read("bert-base-uncased")   # Hugging Face, Flax, TF1 or a workdir
  params, added, dropped = fit(weights.params, wanted)
  write(weights, "converted", "tf1")

Format       what its folder holds
huggingface  config.json, model.safetensors (or shards and their index)
flax         config.json, flax_model.msgpack
tf1          bert_config.json, bert_model.ckpt.index and .data-*
bert_jax     run.json, checkpoints/STEP/params, vocab/

Nothing is unpickled. What a file says about sizes is compared with the size
of the file before anything is allocated, but for our own checkpoints, which
are compressed.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import datetime
import glob
import json
import logging
import os
import re
import sys
from typing import Any

from flax import serialization
import numpy as np
import safetensors
import safetensors.numpy

from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import hf_tokenizer
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.data.tokenizers import wordpiece
from bert_jax.models import convert
from bert_jax.runtime import checkpoint
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.weights import tf_checkpoint

_log = logging.getLogger(__name__)

_CLASSES = {
  "classify": "BertForSequenceClassification",
  "regress": "BertForSequenceClassification",
  "tag": "BertForTokenClassification",
  "span": "BertForQuestionAnswering",
  "choice": "BertForMultipleChoice",
}
# Labels that transformers makes up where there are none.
_MADE_UP_LABEL = re.compile(r"LABEL_\d+")
_HF_WORD_CHARS = 100  # a longer word is [UNK] there
_SAFETENSORS = "model.safetensors"
_SHARDS = "model.safetensors.index.json"
_MSGPACK = "flax_model.msgpack"
_CKPT = "bert_model.ckpt"
_OURS = "bert_jax"  # key of our own settings in bert_config.json

# Keys of a run's config, beside the shape of the model and data.seq_len, that
# its predictions depend on.
SETTINGS = (
  "model.dtype", "model.attention", "task.name", "task.context",
  "task.max_query_len", "task.doc_stride", "task.n_best",
  "task.max_answer_len", "task.has_null", "task.null_threshold",
)  # fmt: skip


class WeightsError(errors.UserError):
  """Weights are missing, damaged, or do not fit."""


@dataclasses.dataclass
class Pretrained:
  """A model read from a folder, or to be written to one.

  Attributes:
    format: one of `convert.FORMATS`; where it came from.
    model: exactly `convert.MODEL_KEYS`.
    params: nested dict of numpy arrays, our tree with layers unrolled.
    kind: of the task of its head, one of `convert.KINDS`; None: no head, or
      one whose task the folder does not tell.
    labels: of its head, in order; () where they have no names.
    tokenizer: None where the folder has no vocabulary.
    lower_case: whether text is lower-cased; None where nothing says so.
    ignored: names of tensors in the file that have no place in our tree.
    missing: paths of a full encoder that the file does not have.
    seq_len: tokens that a sequence has at most where the model was trained or
      is meant to be used; None where nothing says so.
    settings: values of the keys in SETTINGS that the run used, as far as the
      folder says them.
    refused: head ("mlm", "task") -> why it cannot be used as it is: "mlm" is
      then not among the parameters, "task" is, without a kind.
  """

  format: str
  model: dict[str, Any]
  params: dict[str, Any]
  kind: str | None = None
  labels: tuple[str, ...] = ()
  tokenizer: interface.Tokenizer | None = None
  lower_case: bool | None = None
  ignored: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  seq_len: int | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Turns what goes wrong with a file into a WeightsError that names it."""
  try:
    yield
  except Exception as error:  # readers of other packages, on damaged bytes
    if isinstance(error, FileNotFoundError) and not os.path.exists(path):
      raise WeightsError(f"{path} does not exist") from error
    text = str(error)
    odd = (LookupError, TypeError, AttributeError, RecursionError)
    if isinstance(error, odd) or not text:
      text = f"it is damaged, or laid out in another way: {error!r:.300}"
    text = f"{text:.1000}"
    raise WeightsError(text if path in text else f"{path}: {text}") from error


def _read_json(path: str) -> dict[str, Any]:
  """Reads a file that is one JSON object."""
  with _naming(path), open(path, encoding="utf-8") as f:
    value = json.load(f)
    if not isinstance(value, dict):
      raise ValueError("it is not a JSON object")
    return value


# --- which format ------------------------------------------------------------

_TO_SAFETENSORS = (
  "it holds pytorch_model.bin, a pickle, which can run code and is not read; "
  "make a safetensors file where you trust it: "
  "transformers.AutoModelForPreTraining.from_pretrained(FOLDER)"
  ".save_pretrained(NEW_FOLDER, safe_serialization=True), with the class of "
  "its head"
)


def _workdir(path: str) -> str | None:
  """The workdir that a path names, as a folder or by its run.json."""
  if os.path.basename(path) == "run.json":
    return os.path.dirname(path) or "."
  return path if os.path.exists(os.path.join(path, "run.json")) else None


def _find(path: str) -> tuple[str, str]:
  """Returns the format and the file (for ours: the step) of some weights."""
  if os.path.isdir(path):
    return _find_in(path)
  if workdir := saved_steps.run_of(path):
    saved_steps.choose(workdir, os.path.basename(path))  # lists what there is
  if path.endswith((".safetensors", _SHARDS)):
    return "huggingface", path
  if path.endswith(".msgpack"):
    return "flax", path
  if path.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt.pt")):
    raise WeightsError(f"{path}: {_TO_SAFETENSORS}")
  prefix = re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", path)
  if os.path.exists(prefix + ".index"):
    return "tf1", prefix
  raise WeightsError(
    f"{path} does not exist, or is no file of weights; give a folder or one "
    f"of {_SAFETENSORS}, {_MSGPACK}, {_CKPT}.index, run.json"
  )


def _find_in(folder: str) -> tuple[str, str]:
  """`_find` for a folder."""

  def holds(name):
    return os.path.exists(os.path.join(folder, name))

  if holds("params") and os.path.basename(os.path.abspath(folder)).isdecimal():
    return "bert_jax", os.path.abspath(folder)
  for name, format in (
    (_SAFETENSORS, "huggingface"),
    (_SHARDS, "huggingface"),
    (_MSGPACK, "flax"),
  ):
    if holds(name):
      return format, os.path.join(folder, name)
  tables = sorted(glob.glob(os.path.join(glob.escape(folder), "*.index")))
  if len(tables) > 1:
    raise WeightsError(
      f"{folder} holds {len(tables)} checkpoints; give the path of one, such "
      f"as {tables[-1]}"
    )
  if tables:
    return "tf1", tables[0].removesuffix(".index")
  if holds("pytorch_model.bin") or holds("pytorch_model.bin.index.json"):
    raise WeightsError(f"{folder}: {_TO_SAFETENSORS}")
  names = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
  raise WeightsError(
    f"{folder} holds no weights that are read ({names}); wanted "
    f"{_SAFETENSORS}, {_MSGPACK}, {_CKPT}.index or run.json"
  )


# --- reading tensors ---------------------------------------------------------


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
  """Reads one file, or the shards that an index names."""
  if not path.endswith(".json"):
    with _naming(path), safetensors.safe_open(path, "np") as f:
      return {name: f.get_tensor(name) for name in f.keys()}
  places = _read_json(path).get("weight_map")
  if (
    not isinstance(places, dict)
    or not places
    or not all(isinstance(name, str) for name in places.values())
  ):
    raise WeightsError(f"{path} has no weight_map of tensors and files")
  tensors: dict[str, np.ndarray] = {}
  for name in sorted(set(places.values())):
    if name != os.path.basename(name) or not name.endswith(".safetensors"):
      raise WeightsError(
        f"{path} names {name!r:.100}; a .safetensors file beside it was wanted"
      )
    tensors |= _read_safetensors(os.path.join(os.path.dirname(path), name))
  if absent := sorted(places.keys() - tensors.keys()):
    raise WeightsError(
      f"{path} names {absent[0]:.100}, which none of its files has"
    )
  return tensors


def _check_arrays(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
  for name, array in flat.items():
    if not isinstance(array, np.ndarray):
      raise ValueError(f"{name} is a {type(array).__name__}, not an array")
  return dict(flat)


def _read_msgpack(path: str) -> dict[str, np.ndarray]:
  with _naming(path), open(path, "rb") as f:
    tree = serialization.msgpack_restore(f.read())
    if not isinstance(tree, dict):
      raise ValueError("it is not a tree of parameters")
    if set(tree) == {"params"}:
      tree = tree["params"]
    return _check_arrays(convert.flatten(tree))


def _read_tf1(prefix: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Reads the numbers of a checkpoint, but the optimizer's."""
  try:
    entries = tf_checkpoint.read_index(prefix)
    unread = tuple(
      name
      for name, entry in entries.items()
      if name.endswith(("/adam_m", "/adam_v"))
      or entry.type == tf_checkpoint.TEXT
    )
    names = [name for name in entries if name not in set(unread)]
    return tf_checkpoint.read(prefix, names), unread
  except tf_checkpoint.BundleError as error:
    raise WeightsError(str(error)) from error


def _read_orbax(step: str) -> dict[str, np.ndarray]:
  with _naming(step):
    tree = checkpoint.read_params(step)
    return convert.unstack(_check_arrays(convert.flatten(tree)))


# --- reading settings --------------------------------------------------------


@dataclasses.dataclass
class _Settings:
  """What a folder says about its weights, beside the weights."""

  model: dict[str, Any]
  kind: Callable[[int, bool], str | None]  # (K, head of spans) -> kind
  labels: tuple[str, ...]
  tokenizer: interface.Tokenizer | None
  lower_case: bool | None
  seq_len: int | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tied: bool = True  # the head of masked words shares the word table
  # K -> why the head of its task cannot be used; "" where it can.
  refused_task: Callable[[int], str] = lambda num_labels: ""


def _labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of labels in order of their ids; () where none were given."""
  names = config.get("id2label") or {}
  if not isinstance(names, dict):
    raise ValueError("id2label is not an object of ids and names")
  by_id = {int(i): str(name) for i, name in names.items()}
  if sorted(by_id) != list(range(len(by_id))):
    raise ValueError(f"id2label has ids {sorted(by_id)}; wanted 0, 1, 2, ..")
  for key in ("num_labels", "_num_labels"):
    count = config.get(key)
    if names and count is not None and count != len(by_id):
      raise ValueError(
        f"{key} is {count!r:.60}, but id2label names {len(by_id)} labels; "
        "correct one of them"
      )
  labels = tuple(by_id[i] for i in range(len(by_id)))
  return () if all(map(_MADE_UP_LABEL.fullmatch, labels)) else labels


def _hf_kind(
  config: Mapping[str, Any], num_labels: int, is_span: bool
) -> str | None:
  """The kind of task that the classes in config.json are for."""
  if is_span:
    return "span"
  problem = config.get("problem_type")
  for name in config.get("architectures") or ():
    name = str(name).removeprefix("Flax").removeprefix("TF")
    if name == _CLASSES["classify"]:
      if num_labels == 1 and problem in (None, "regression"):
        return "regress"
      is_single = problem in (None, "single_label_classification")
      return "classify" if is_single else None
    for kind in ("tag", "choice"):
      if name == _CLASSES[kind]:
        return kind
  return None


def _refused_problem(config: Mapping[str, Any], num_labels: int) -> str:
  """Why the head of a classification cannot be used; "" where it can.

  Args:
    config: of config.json, whose problem_type tells what the outputs mean.
    num_labels: outputs of the head, K.
  """
  problem = config.get("problem_type")
  if problem in (None, "single_label_classification") or (
    problem == "regression" and num_labels == 1
  ):
    return ""
  return (
    f"problem_type is {problem!r:.60} with {num_labels} outputs; a head here "
    "gives one label of several, or one number"
  )


def _read_hf_settings(file: str) -> _Settings:
  folder = os.path.dirname(file)
  path = os.path.join(folder, "config.json")
  config = _read_json(path)
  with _naming(path):
    model = convert.model_of("huggingface", config)
    labels = _labels_of(config)
    hf_tokenizer.check_keys(
      path, {"tokenizer_class": config.get("tokenizer_class")}
    )
  _say_what_differs(path, config)
  adapter = os.path.join(folder, "adapter_config.json")
  if os.path.exists(adapter):
    raise WeightsError(
      f"{adapter} stands beside the weights, so transformers would put an "
      "adapter into the model; merge it there (merge_and_unload), or remove "
      "the file"
    )
  with _naming(folder):
    says = hf_tokenizer.read(folder)
    tokenizer = _hf_tokenizer(folder, says)
  seq_len = says.seq_len
  return _Settings(
    model=model,
    kind=lambda num_labels, is_span: _hf_kind(config, num_labels, is_span),
    labels=labels,
    tokenizer=tokenizer,
    lower_case=tokenizer.lower_case if tokenizer else says.lower_case,
    # A length that is not shorter than max_len limits nothing.
    seq_len=seq_len if seq_len and seq_len < model["max_len"] else None,
    tied=config.get("tie_word_embeddings") is not False,
    refused_task=lambda num_labels: _refused_problem(config, num_labels),
  )


def _say_what_differs(path: str, config: Mapping[str, Any]) -> None:
  """Logs keys that are not known, and those that training here sets itself."""
  if unknown := convert.unknown_keys(config):
    _log.warning(
      "%s has keys that are not known here and were not read: %s; check that "
      "they change no number",
      path, ", ".join(unknown),
    )  # fmt: skip
  if activation := convert.output_activation(config):
    _log.warning(
      "%s says that sentence-transformers puts the outputs of the head through "
      "%s; this program does not: a regression gives the raw output (the "
      "logit), a classification the softmax",
      path, activation,
    )  # fmt: skip
  usual = {"init_stddev": 0.02}
  for theirs, ours in convert.TRAINING_KEYS.items():
    value = config.get(theirs)
    if value not in (None, usual.get(ours, 0.1)):
      _log.info(
        "%s has %s=%s; training here takes --config.model.%s",
        path, theirs, value, ours,
      )  # fmt: skip


def _hf_tokenizer(
  folder: str, says: hf_tokenizer.Settings
) -> interface.Tokenizer | None:
  """The tokenizer of a folder; None where that has no vocabulary."""
  if says.pieces is None and not os.path.exists(
    os.path.join(folder, "vocab.txt")
  ):
    return None
  if says.max_input_chars_per_word is None:
    says = dataclasses.replace(says, max_input_chars_per_word=_HF_WORD_CHARS)
  return load.load_hugging_faces(folder, says)


def _read_tf1_settings(prefix: str) -> _Settings:
  folder = os.path.dirname(prefix)
  path = os.path.join(folder, "bert_config.json")
  if not os.path.exists(path):
    raise WeightsError(
      f"{path} does not exist; put the bert_config.json that the model was "
      "trained with beside its checkpoint"
    )
  config = _read_json(path)
  with _naming(path):
    model = convert.model_of("tf1", config)
    ours = dict(config.get(_OURS, {}))
    for key, kind_of in (
      ("lower_case", bool),
      ("max_input_chars_per_word", int),
    ):
      if key in ours and type(ours[key]) is not kind_of:
        raise ValueError(f"{_OURS}.{key} is {ours[key]!r:.100}")
    act = ours.get("hidden_act", model["hidden_act"])
    if convert.config_of("tf1", model | {"hidden_act": act})["hidden_act"] != (
      config.get("hidden_act", "gelu")
    ):
      raise ValueError(
        f"hidden_act is {config['hidden_act']!r}, but {_OURS}.hidden_act is "
        f"{act!r}; make them agree"
      )
    model["hidden_act"] = act
    labels = tuple(map(str, ours.get("labels", ())))
    seq_len = _length_of(ours)
  tokenizer = None
  vocab = os.path.join(folder, "vocab.txt")
  if os.path.exists(vocab):
    with _naming(vocab):
      tokenizer = load.load_tokenizer(
        vocab,
        lower_case=ours.get("lower_case"),
        max_input_chars_per_word=ours.get("max_input_chars_per_word"),
      )

  def kind(num_labels, is_span):
    if "kind" in ours:
      return ours["kind"]
    # run_classifier.py has one output a class; other programs use its names.
    return "span" if is_span else "classify" if num_labels > 1 else None

  return _Settings(
    model=model,
    kind=kind,
    labels=labels,
    tokenizer=tokenizer,
    lower_case=tokenizer.lower_case if tokenizer else ours.get("lower_case"),
    seq_len=seq_len,
  )


def _length_of(settings: Mapping[str, Any]) -> int | None:
  """`seq_len` of settings of ours; None where they do not say."""
  length = settings.get("seq_len")
  if length is not None and (type(length) is not int or length < 3):
    raise ValueError(f"seq_len is {length!r:.100}; wanted 3 or more")
  return length


def _read_own_settings(step: str) -> _Settings:
  workdir = os.path.dirname(os.path.dirname(step))
  path = os.path.join(workdir, "run.json")
  with _naming(path):
    run = runs.read_run(workdir)
    config = run["config"]
    model = {key: config["model"][key] for key in convert.MODEL_KEYS}
    task = run.get("task") or {}
    labels = tuple(map(str, task.get("labels") or ()))
    objective = config.get("objective")
    default = objective if objective in convert.KINDS else None
    data = config.get("data") or {}
    seq_len = _length_of(data)
    flat = settings.flatten(config)
    own = {key: flat[key] for key in SETTINGS if key in flat}
  tokenizer = None
  for folder in filter(None, (workdir, data.get("dir"))):
    vocab = os.path.join(folder, "vocab")
    if os.path.isdir(vocab):
      with _naming(vocab):
        tokenizer = load.load_tokenizer(vocab)
      break
  return _Settings(
    model=model,
    kind=lambda num_labels, is_span: task.get("kind", default),
    labels=labels,
    tokenizer=tokenizer,
    lower_case=tokenizer.lower_case if tokenizer else None,
    seq_len=seq_len,
    settings=own,
  )


# Format -> what reads the settings; what reads the tensors, and gives with them
# the names of those it left unread.
_READERS: dict[str, tuple[Callable, Callable]] = {
  "huggingface": (_read_hf_settings, lambda f: (_read_safetensors(f), ())),
  "flax": (_read_hf_settings, lambda f: (_read_msgpack(f), ())),
  "tf1": (_read_tf1_settings, _read_tf1),
  "bert_jax": (_read_own_settings, lambda f: (_read_orbax(f), ())),
}


def read(path: str | os.PathLike[str], checkpoint: str = "") -> Pretrained:
  """Reads a model.

  Args:
    path: a folder (its content tells the format), a file of weights in one,
      or a step of a workdir (WORKDIR/best/STEP).
    checkpoint: of a workdir the step, as for `saved_steps.choose`.

  Returns:
    The model; see `Pretrained` for what may be left over or missing.

  Raises:
    WeightsError: no weights, damaged ones, or not those of a BERT.
    files.FilesError: the file is a FIFO or device.
  """
  path = os.fspath(path)
  try:
    if workdir := _workdir(path):
      return saved_steps.read(
        workdir, checkpoint, lambda step: _read("bert_jax", step)
      )[1]
    if checkpoint:
      raise WeightsError(
        f"--checkpoint={checkpoint}: {path} is not the workdir of a run; leave "
        "--checkpoint out"
      )
    return _read(*_find(path))
  except (saved_steps.StepError, runs.RunError) as error:
    raise WeightsError(str(error)) from error


def _read(format: str, file: str) -> Pretrained:
  """Reads what `_find` found."""
  files.check_readable(file)
  read_settings, read_tensors = _READERS[format]
  settings = read_settings(file)
  tensors, unread = read_tensors(file)
  with _naming(file):
    found = convert.to_ours(format, tensors, settings.model, tied=settings.tied)
    bias = found.params.get("task/bias")
    kind, labels = None, ()
    refused = {}
    if found.untied:
      refused["mlm"] = (
        f"its decoder {found.untied} is not tied to the word table "
        f"(tie_word_embeddings is {settings.tied}); the head of masked words "
        "here always is"
      )
    if bias is not None:
      kind = settings.kind(bias.size, bool(found.is_span))
      if kind is None and (why := settings.refused_task(bias.size)):
        refused["task"] = why
      # Of an unknown kind they are kept for whoever names it.
      named = kind in ("classify", "tag", None)
      labels = settings.labels if named else ()
    pretrained = Pretrained(
      format=format,
      model=settings.model,
      params=convert.nest(found.params),
      kind=kind,
      labels=labels,
      tokenizer=settings.tokenizer,
      lower_case=settings.lower_case,
      ignored=found.ignored + unread,
      missing=found.missing,
      seq_len=settings.seq_len,
      settings=settings.settings,
      refused=refused,
    )
    _check_task(pretrained)
    _check_vocabulary(pretrained)
  for head, why in refused.items():
    _log.warning("%s: its head %r cannot be used: %s", file, head, why)
  if format in ("huggingface", "flax"):
    unused = [n for n in found.ignored if not n.endswith(convert.BUFFERS)]
    if unused:
      _log.warning(
        "%s: there is no place here for its tensors %.1000s; what they do in "
        "their model is not done", file, ", ".join(unused),
      )  # fmt: skip
  return pretrained


# --- writing -----------------------------------------------------------------


def _check_task(pretrained: Pretrained) -> None:
  """Checks the head against its kind and its labels."""
  kind, labels = pretrained.kind, pretrained.labels
  if kind is None:
    return
  if kind not in convert.KINDS:
    raise WeightsError(
      f"kind {kind!r:.100} is not one of {', '.join(convert.KINDS)}"
    )
  if "task" not in pretrained.params:
    raise WeightsError(f"kind is {kind}, but there is no head of a task")
  K = pretrained.params["task"]["bias"].size
  wanted = {"regress": 1, "choice": 1, "span": 2}.get(kind, len(labels) or K)
  if wanted != K:
    raise WeightsError(
      f"the head has {K} outputs, but a {kind} task with labels "
      f"{list(labels)} has {wanted}"
    )


def _check_vocabulary(pretrained: Pretrained) -> None:
  tokenizer, rows = pretrained.tokenizer, pretrained.model["vocab_size"]
  if tokenizer is not None and tokenizer.vocab_size > rows:
    raise WeightsError(
      f"its vocabulary has {tokenizer.vocab_size} pieces, but the word table "
      f"{rows} rows; they belong to different models"
    )


def _write_json(path: str, value: Any) -> None:
  text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
  files.write_text(path, text + "\n")


def _word_piece(pretrained: Pretrained, format: str) -> Any:
  """Its tokenizer, which must be one that the format has; None: it has none."""
  tokenizer = pretrained.tokenizer
  if tokenizer is None or tokenizer.kind == "wordpiece":
    return tokenizer
  raise WeightsError(
    f"a {tokenizer.kind} vocabulary cannot be written as {format}, which has "
    "WordPiece; set tokenizer to None, or write bert_jax"
  )


def _write_hf_tokenizer(
  tokenizer: wordpiece.WordPieceTokenizer, folder: str, max_len: int
) -> None:
  """Writes vocab.txt, tokenizer_config.json and, if there are any, the rest.

  Args:
    tokenizer: which to write.
    folder: where to.
    max_len: tokens of a sequence, at most.
  """
  tokenizer.write_pieces(os.path.join(folder, "vocab.txt"))
  config: dict[str, Any] = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": tokenizer.lower_case,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "model_max_length": max_len,
    "max_input_chars_per_word": tokenizer.max_input_chars_per_word,
  }
  if tokenizer.added:
    ids = tokenizer.added_ids()
    marks = [t.content for t in tokenizer.added if t.special]
    usual = {
      tokenizer.id(name): added_tokens.AddedToken(
        name, normalized=False, special=True
      )
      for name in interface.SPECIAL_TOKENS
    }
    tokens = usual | {i: token for token, i in ids.items()}
    config["added_tokens_decoder"] = {
      str(i): dataclasses.asdict(tokens[i]) for i in sorted(tokens)
    }
    config["additional_special_tokens"] = marks
    # Where versions of transformers before 4.34 look for them.
    by_content = {token.content: i for token, i in ids.items()}
    _write_json(os.path.join(folder, "added_tokens.json"), by_content)
    names = dict(hf_tokenizer.SPECIAL_TOKENS)
    _write_json(
      os.path.join(folder, "special_tokens_map.json"),
      names | {"additional_special_tokens": marks},
    )
  _write_json(os.path.join(folder, hf_tokenizer.CONFIG), config)


def _architecture(pretrained: Pretrained) -> str:
  """The class of transformers that has the same heads."""
  if pretrained.kind is not None:
    return _CLASSES[pretrained.kind]
  heads = {"mlm", "nsp"} & pretrained.params.keys()
  return {
    frozenset(): "BertModel",
    frozenset({"mlm"}): "BertForMaskedLM",
    frozenset({"nsp"}): "BertForNextSentencePrediction",
    frozenset({"mlm", "nsp"}): "BertForPreTraining",
  }[frozenset(heads)]


def _write_hf_settings(pretrained: Pretrained, folder: str) -> None:
  """Writes config.json and the tokenizer's files."""
  tokenizer = _word_piece(pretrained, "huggingface")
  config = convert.config_of("huggingface", pretrained.model) | {
    "architectures": [_architecture(pretrained)],
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "pad_token_id": tokenizer.pad_id if tokenizer else 0,
    "torch_dtype": _dtype_name(pretrained.params),
  }
  if pretrained.kind in ("classify", "regress", "tag"):
    K = pretrained.params["task"]["bias"].size
    labels = pretrained.labels or [f"LABEL_{i}" for i in range(K)]
    config["id2label"] = {str(i): name for i, name in enumerate(labels)}
    config["label2id"] = {name: i for i, name in enumerate(labels)}
  if pretrained.kind in ("classify", "regress"):
    config["problem_type"] = (
      "regression"
      if pretrained.kind == "regress"
      else "single_label_classification"
    )
  _write_json(os.path.join(folder, "config.json"), config)
  if tokenizer:
    # Not seq_len: transformers cuts text at this length without a word.
    _write_hf_tokenizer(tokenizer, folder, pretrained.model["max_len"])


def _dtype_name(params: Mapping[str, Any]) -> str:
  """The dtype of all the parameters, float32 where they differ."""
  names = {array.dtype.name for array in convert.flatten(params).values()}
  return names.pop() if len(names) == 1 else "float32"


def _write_huggingface(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  _write_hf_settings(pretrained, folder)
  safetensors.numpy.save_file(
    tensors, os.path.join(folder, _SAFETENSORS), metadata={"format": "pt"}
  )


def _write_flax(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  _write_hf_settings(pretrained, folder)
  content = serialization.msgpack_serialize(convert.nest(tensors))
  files.write_bytes(os.path.join(folder, _MSGPACK), content)


def _write_tf1(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  """Writes the original's files; what it has no key for goes under ours."""
  tokenizer = _word_piece(pretrained, "tf1")
  if tokenizer and tokenizer.added:
    names = ", ".join(token.content for token in tokenizer.added)
    raise WeightsError(
      f"the vocabulary has added tokens ({names:.200}), which the original's "
      "vocab.txt cannot hold: it would cut them into pieces; write "
      "huggingface, flax or bert_jax"
    )
  model = pretrained.model
  config = convert.config_of("tf1", model) | {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
  }
  ours: dict[str, Any] = {"hidden_act": model["hidden_act"]}
  if pretrained.seq_len:
    ours["seq_len"] = pretrained.seq_len
  if pretrained.kind is not None:
    ours |= {"kind": pretrained.kind, "labels": list(pretrained.labels)}
  if tokenizer:
    ours["lower_case"] = tokenizer.lower_case
    ours["max_input_chars_per_word"] = tokenizer.max_input_chars_per_word
    tokenizer.write_pieces(os.path.join(folder, "vocab.txt"))
  elif pretrained.lower_case is not None:
    ours["lower_case"] = pretrained.lower_case
  _write_json(os.path.join(folder, "bert_config.json"), config | {_OURS: ours})
  tf_checkpoint.write(os.path.join(folder, _CKPT), tensors)


def _write_bert_jax(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  """Writes a workdir with one checkpoint, of step 0."""
  kind = pretrained.kind
  model = pretrained.model | {
    "dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
    "init_stddev": 0.02,
    "dtype": "float32",
    "param_dtype": _dtype_name(pretrained.params),
    "scan_layers": False,
    "remat": "none",
    "attention": "plain",
  }
  config: dict[str, Any] = {"model": model, "data": {"dir": None}}
  if pretrained.seq_len:
    config["data"]["seq_len"] = pretrained.seq_len
  for key, value in pretrained.settings.items():
    group, _, name = key.partition(".")
    config.setdefault(group, {})[name] = value
  has_both = {"mlm", "nsp"} <= pretrained.params.keys()
  objective = "task" if kind else "mlm_nsp" if has_both else None
  commit, dirty = runs.commit()
  run = {
    "config": config | {"objective": objective},
    "data_hash": "",  # no examples yet
    "task": {"kind": kind, "labels": list(pretrained.labels)} if kind else None,
    "converted_from": pretrained.format,
    "checksums_since": 0,
    "commit": commit,
    "dirty": dirty,
    "argv": ["bert-jax", *sys.argv[1:]],
    "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
  }
  if pretrained.tokenizer:
    pretrained.tokenizer.save(os.path.join(folder, "vocab"))
  checkpoint.write_params(folder, convert.nest(tensors))
  runs.write_run(folder, run)


_WRITERS = {
  "huggingface": _write_huggingface,
  "flax": _write_flax,
  "tf1": _write_tf1,
  "bert_jax": _write_bert_jax,
}


def _check_empty(folder: str) -> None:
  """Raises WeightsError where a folder cannot be made, or holds something."""
  if os.path.exists(folder) and (
    not os.path.isdir(folder) or os.listdir(folder)
  ):
    raise WeightsError(
      f"{folder} exists and is not an empty folder; give a new one"
    )


def write(
  pretrained: Pretrained, folder: str | os.PathLike[str], format: str
) -> None:
  """Writes a model: whole, or not at all.

  Args:
    pretrained: what to write; its `format`, `ignored` and `missing` are not.
    folder: to make; it may exist where it is empty.
    format: one of `convert.FORMATS`.

  Raises:
    WeightsError: the folder is not empty, or the model is not one that the
      format can hold.
  """
  if format not in _WRITERS:
    raise WeightsError(f"format {format!r} is not one of {', '.join(_WRITERS)}")
  if set(pretrained.model) != set(convert.MODEL_KEYS):
    raise WeightsError(
      f"model has keys {', '.join(sorted(pretrained.model))}; wanted "
      f"{', '.join(sorted(convert.MODEL_KEYS))}"
    )
  folder = os.fspath(folder)
  if format == "bert_jax":
    checkpoint.check_path(folder)
  if "task" in pretrained.params and pretrained.kind is None:
    if why := pretrained.refused.get("task"):
      raise WeightsError(
        f"the head of the model cannot be written: {why}; give "
        "--config.convert.drop_head=True to leave it out"
      )
    raise WeightsError(
      "the model has the head of a task, and does not say of what kind; give "
      f"--config.convert.kind, one of {', '.join(convert.KINDS)}, or "
      "--config.convert.drop_head=True"
    )
  with _naming(folder):
    tensors = convert.from_ours(
      format,
      convert.flatten(pretrained.params),
      pretrained.model,
      pretrained.kind,
    )
    _check_task(pretrained)
    _check_vocabulary(pretrained)
    _check_empty(folder)
    with files.whole_folder(folder) as temporary:
      _WRITERS[format](pretrained, tensors, temporary)


# --- fitting -----------------------------------------------------------------


def _misfit(
  path: str, given: Mapping[str, Any], model: Mapping[str, Any]
) -> WeightsError:
  """The error for a parameter of another shape; says what to change."""
  shapes = [list(tree[path].shape) for tree in (given, model)]
  ours, theirs = convert.sizes_of(given), convert.sizes_of(model)
  if path.startswith("task/"):
    how = (
      f"its head has {shapes[0][-1]} outputs, the task {shapes[1][-1]}: to "
      "train a fresh one, take it out by --mode=convert "
      "--config.convert.drop_head=True"
    )
  else:
    how = "set " + ", ".join(
      f"model.{key}={size} (it is {theirs[key]})"
      for key, size in ours.items()
      if theirs.get(key, size) != size
    )
  return WeightsError(
    f"{path} has shape {shapes[0]} in the weights, but {shapes[1]} in the "
    f"model; {how}"
  )


def fit(
  params: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
  """Lays weights out as a model wants them.

  Args:
    params: nested, layers unrolled: `Pretrained.params`.
    wanted: nested; leaves with .shape and .dtype, such as
      jax.ShapeDtypeStruct. Layers unrolled or scanned.

  Returns:
    A tree like `wanted` of arrays of its dtypes, None where the weights have
    nothing; the paths of these; the paths of weights that the model has no
    place for.

  Raises:
    WeightsError: a shape or the number of layers differs.
  """
  given, model = convert.flatten(params), convert.flatten(wanted)
  layers, wanted_layers = convert.num_layers(given), convert.num_layers(model)
  if layers and wanted_layers and layers != wanted_layers:
    raise WeightsError(
      f"the weights have {layers} layers, the model {wanted_layers}; set "
      f"model.num_layers={layers}"
    )
  if any(path.startswith("encoder/layers/") for path in model):
    given = convert.stack(given)
  merged: dict[str, np.ndarray | None] = {}
  for path, leaf in model.items():
    array = given.get(path)
    if array is not None and array.shape != tuple(leaf.shape):
      raise _misfit(path, given, model)
    merged[path] = None if array is None else array.astype(leaf.dtype)
  added = tuple(path for path, array in merged.items() if array is None)
  dropped = tuple(path for path in given if path not in model)
  return convert.nest(merged), added, dropped
