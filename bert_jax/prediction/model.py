"""A loaded model, with a method for each kind of prediction.

model = bert_jax.load("RUN")
for text, answer in zip(texts, model.classify(texts)):
  print(text, answer.label, answer.scores)

A method takes texts and returns one answer for each, in their order. The values
are those of `bert-jax predict`, which computes with the same code.
"""

import collections
from collections.abc import Mapping, Sequence
import contextlib
import os
import threading
from typing import Any

from bert_jax import weights
from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.models import encoder
from bert_jax.models.config import ModelConfig
from bert_jax.prediction import predict
from bert_jax.prediction import results
from bert_jax.prediction import settings as predict_settings
from bert_jax.runtime import config_files
from bert_jax.runtime import settings

# Kind of prediction -> the method of `Model`.
METHODS = {name: name.replace("-", "_") for name in results.RESULTS}

Texts = Sequence[str]

# So many sets of options keep what they need on the devices, compiled.
_MOST_PREDICTORS = 16


class InputTypeError(answers.PredictError, TypeError):
  """An argument has a type that the method does not take."""


class Model:
  """A model on the devices, which answers texts.

  Several kinds of prediction share one copy of the weights. What a kind needs
  beside them is made, and compiled, when it is first asked for. Methods may be
  called from several threads; calls of one kind are computed one by one, so
  that one call with many texts is faster than many calls with one text.

  Attributes:
    name: the folder or the name of the model.
    kinds: the kinds of prediction that it has the parts for, the most specific
      first.
    pretrained: the weights on the host, with the vocabulary.
  """

  def __init__(
    self,
    pretrained: weights.Pretrained,
    name: str,
    changes: Mapping[str, Any] | None = None,
    *,
    serves: bool = False,
  ):
    """Prepares a model; nothing is compiled yet.

    Args:
      pretrained: the weights, as `weights.read` returns them.
      name: the name of the model, for messages.
      changes: keys of the config and their values, such as
        {"predict.seq_len": 256}; docs/config.md lists the keys.
      serves: see `predict.Predictor`.

    Raises:
      ValueError: A key is not known, or a value is out of range.
    """
    self.name = name
    self.pretrained = pretrained
    self.kinds = tuple(table.answerers_of(pretrained))
    self._config, self._given = _config_with(changes or {})
    self._serves = serves
    self._shared: dict[str, Any] = {}
    # Those that were asked last stand at the end.
    self._predictors: collections.OrderedDict[
      Any, tuple[predict.Predictor, threading.Lock]
    ] = collections.OrderedDict()
    self._lock = threading.Lock()
    self._making = threading.Lock()

  def __repr__(self) -> str:
    return f"{type(self).__name__}({self.name!r}, kinds={list(self.kinds)})"

  # --- one method for each kind of prediction ---

  def fill_mask(
    self, texts: Texts, *, top_k: int = 5
  ) -> list[results.FilledMasks]:
    """Returns the best tokens for every [MASK] of each text.

    Args:
      texts: texts with [MASK] at each gap.
      top_k: the number of tokens for each gap.

    Raises:
      answers.PredictError: The model has no head of masked words, or a text
        has no [MASK] or is too long.
    """
    return self._ask("fill-mask", {"text": _texts(texts)}, top_k=top_k)

  def embed(
    self,
    texts: Texts,
    texts_b: Texts | None = None,
    *,
    fields: Sequence[str] = ("tokens", "pooled", "mean", "layers"),
    layers: Sequence[int] = (-1,),
    long_texts: str | None = None,
  ) -> list[results.Embedding]:
    """Returns the vectors of each text, or of each pair of texts.

    Args:
      texts: the texts.
      texts_b: the second text of each pair; None for single texts.
      fields: which attributes of the answers are computed; the rest is None.
        Without "layers", much less is copied from the device.
      layers: which layers; 0 = the embeddings, 1 = the first layer, -1 = the
        last.
      long_texts: what is read of a text that is longer than a row: "cut" or
        "first" for its start; "mean" or "max" for all of it, in windows, whose
        vectors are pooled so, and which have no tokens and layers. None means
        the setting of the model, which is "cut" by default.

    Raises:
      answers.PredictError: A field or a layer does not exist, or an argument
        cannot be used.
    """
    return self._ask(
      "embed",
      _pairs(texts, texts_b),
      fields=tuple(_texts(fields, "fields")),
      layers=tuple(_sequence(layers, "layers")),
      **({} if long_texts is None else {"long_texts": long_texts}),
    )

  def classify(
    self, texts: Texts, texts_b: Texts | None = None
  ) -> list[results.Classification]:
    """Returns the label of each text, or of each pair of texts.

    Args:
      texts: the texts.
      texts_b: the second text of each pair; None for single texts.

    Raises:
      answers.PredictError: The model has no such head, or an argument cannot
        be used.
    """
    return self._ask("classify", _pairs(texts, texts_b))

  def multi_label(
    self, texts: Texts, texts_b: Texts | None = None
  ) -> list[results.Labels]:
    """Returns the labels of each text or pair, any number; see `classify`."""
    return self._ask("multi_label", _pairs(texts, texts_b))

  def regress(
    self, texts: Texts, texts_b: Texts | None = None
  ) -> list[results.Regression]:
    """Returns the score of each text or pair; see `classify`."""
    return self._ask("regress", _pairs(texts, texts_b))

  def answer(
    self, questions: Texts, contexts: Texts | str
  ) -> list[results.Answer]:
    """Returns the part of a context that answers each question.

    Args:
      questions: the questions.
      contexts: the text that each question is about, or one text for all.

    Raises:
      answers.PredictError: The model has no such head, or an argument cannot
        be used.
    """
    asked = _texts(questions, "questions")
    if isinstance(contexts, str):
      contexts = [contexts] * len(asked)
    return self._ask(
      "answer", {"question": asked, "context": _texts(contexts, "contexts")}
    )

  def tag(self, texts: Sequence[str | Sequence[str]]) -> list[results.Tags]:
    """Returns the tags of the words of each text.

    Args:
      texts: texts, which are split into words as the words of the training
        were, or lists of words.

    Raises:
      answers.PredictError: The model has no such head, or an argument cannot
        be used.
    """
    records = [
      {"text": one} if isinstance(one, str) else {"words": _listed(one)}
      for one in _sequence(texts, "texts")
    ]
    return self.ask("tag", records)

  def choose(
    self, texts: Texts, choices: Sequence[Sequence[str]]
  ) -> list[results.Choice]:
    """Returns which of some texts goes best with each text.

    Args:
      texts: the texts.
      choices: for each text the texts to choose from, one or more.

    Raises:
      answers.PredictError: The model has no such head, or an argument cannot
        be used.
    """
    listed = [_listed(one) for one in _sequence(choices, "choices")]
    return self._ask("choose", {"text": _texts(texts), "choices": listed})

  # --- what they have in common ---

  def _ask(
    self, kind: str, columns: Mapping[str, Sequence[Any]], **options: Any
  ) -> list[Any]:
    """Answers the rows of some columns; see `ask`."""
    (first, values), *others = columns.items()
    for name, more in others:
      if len(more) != len(values):
        raise answers.PredictError(
          f"there are {len(more)} of `{name}` for {len(values)} of `{first}`; "
          "give one for each"
        )
    rows = zip(*columns.values(), strict=True)
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    return self.ask(kind, records, **options)

  def ask(
    self, kind: str, records: Sequence[Mapping[str, Any]], **options: Any
  ) -> list[Any]:
    """Answers records, such as the lines that `bert-jax predict` reads.

    Args:
      kind: the kind of prediction, one of `kinds`.
      records: the fields of each record; see prediction/predict.py.
      **options: keys of the config group `predict`.

    Returns:
      An answer for each record, of the class in `results.RESULTS`; a dict if
      the kind is one of another package.

    Raises:
      answers.PredictError: The model has no such head, or a record cannot be
        used; the message names it. Nothing is computed then.
    """
    if not records:
      raise answers.PredictError("there are no texts; give one or more")
    self.check_kind(kind)
    answerer = table.ANSWERERS[kind]
    program = answerer.program_options(options, self.pretrained)
    predictor, lock = self.predictor(kind, **program)
    with lock:
      named = ((f"text {i}", record) for i, record in enumerate(records))
      lines = list(predictor.parse(named))
      if wrong := next((line.error for line in lines if line.error), ""):
        raise answers.PredictError(wrong)
      found = list(predictor.compute(lines))
    found = [answerer.narrow(answer, options) for answer in found]
    if kind not in results.RESULTS:
      return found
    return [results.RESULTS[kind].of(answer) for answer in found]

  def serving_predictor(self, kind: str) -> predict.Predictor:
    """Returns what answers one kind on a server.

    Args:
      kind: the kind of prediction, one of `kinds`.

    Raises:
      answers.PredictError: The model cannot do it.
    """
    *others, last = table.ANSWERERS[kind].serving_options(
      self.pretrained, self._config.predict
    )
    for options in others:
      with contextlib.suppress(answers.PredictError):
        return self.predictor(kind, **options)[0]
    return self.predictor(kind, **last)[0]

  def predictor(
    self, kind: str, **options: Any
  ) -> tuple[predict.Predictor, threading.Lock]:
    """Returns what answers one kind, and the lock to hold while it does.

    The last few sets of options are kept, with their programs.

    Args:
      kind: the kind of prediction, one of `kinds`.
      **options: keys of the config group `predict`; lists stand for tuples.

    Raises:
      answers.PredictError: The model has no such head, or an option has a type
        that no key takes.
    """
    self.check_kind(kind)
    options = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in options.items()
    }
    for name, value in options.items():
      try:
        hash(value)
      except TypeError as error:
        raise InputTypeError(
          f"{name} is {value!r:.60}; give a number, text or a list of them"
        ) from error
    key = (kind, *sorted(options.items()))
    if found := self._kept(key):
      return found
    # One is made at a time, so that they share their parameters; those that are
    # there answer meanwhile.
    with self._making:
      if found := self._kept(key):
        return found
      made = self._make(kind, options), threading.Lock()
      with self._lock:
        self._predictors[key] = made
        if len(self._predictors) > _MOST_PREDICTORS:
          self._predictors.popitem(last=False)
      return made

  def _kept(self, key: Any) -> tuple[predict.Predictor, threading.Lock] | None:
    with self._lock:
      if found := self._predictors.get(key):
        self._predictors.move_to_end(key)
      return found

  def _make(self, kind: str, options: Mapping[str, Any]) -> predict.Predictor:
    config = self._config.copy_and_resolve_references()
    try:
      config.predict.update({"kind": kind, **options})
    except TypeError as error:
      raise InputTypeError(str(error)) from error
    return predict.Predictor(
      self.pretrained,
      config,
      self.name,
      (*self._given, *(f"predict.{name}" for name in options)),
      as_arrays=True,
      serves=self._serves,
      shared=self._shared,
    )

  def check_kind(self, kind: str) -> None:
    """Raises PredictError if the model cannot do a kind of prediction."""
    if kind in self.kinds:
      return
    refused = "".join(
      f" (its head {head!r} cannot be used: {why})"
      for head, why in self.pretrained.refused.items()
    )
    named = METHODS.get(kind, kind)
    raise answers.PredictError(
      f"{self.name} has no head for {named}; it has those for "
      f"{', '.join(METHODS.get(name, name) for name in self.kinds)}{refused}"
    )

  def encoder(self, **changes: Any) -> tuple[encoder.Encoder, dict[str, Any]]:
    """Returns the encoder as a Flax module, with its parameters.

    Args:
      **changes: keys of the config group `model`, such as dtype="bfloat16".
        Dropout is off unless `dropout_rate` and `attention_dropout_rate` are
        given.

    Returns:
      The module and its variables, to call as
      `module.apply(variables, input_ids, input_mask, segment_ids)`.
    """
    plain = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    group = self._config.model.to_dict() | {"dtype": None, "attention": None}
    known = {k: v for k, v in group.items() if v is not None}
    base = {"dtype": "float32", "attention": "plain"}
    config = ModelConfig.from_config(
      known | base | self.pretrained.shape | plain | changes
    )
    return encoder.Encoder(config), {
      "params": self.pretrained.params["encoder"]
    }


def load(
  path: str | os.PathLike[str],
  settings: Mapping[str, Any] | None = None,
  *,
  checkpoint: str = "",
) -> Model:
  """Loads a trained model, to be used from Python.

  Args:
    path: the workdir of a run; a Hugging Face or Flax folder; the name of a
      model of the Hugging Face hub; or an original TensorFlow checkpoint.
    settings: keys of the config and their values, such as
      {"predict.seq_len": 256}; docs/config.md lists the keys. What is not given
      is as in the run of the weights.
    checkpoint: the step of a workdir: "best", "newest" or its number. "" means
      the best if the run keeps one, else the newest.

  Returns:
    The model. Its methods compile when they are first called.

  Raises:
    ValueError: There is no model, it is damaged, or a setting is wrong.

  Example:
    model = bert_jax.load("RUN")
    model.embed(["Paris is in France."])[0].mean
  """
  _config_with(settings or {})  # before gigabytes are read
  path = os.fspath(path)
  return Model(weights.read(path, checkpoint), path, settings)


def _config_with(
  changes: Mapping[str, Any],
) -> tuple[settings.Config, tuple[str, ...]]:
  """Returns the config of predictions with changes, and the keys that are set.

  Raises:
    ValueError: A key is not known, or a value is out of range.
  """
  config = config_files.load("predict")
  set_keys(config, changes)
  asked = sorted(changes, key=lambda key: not key.startswith("predict."))
  return config, (*asked, *predict_settings.asked_in(config))


def set_keys(config: Any, changes: Mapping[str, Any]) -> None:
  """Sets keys of a config, and checks it.

  Args:
    config: the whole configuration, which is changed.
    changes: dotted names of keys -> their values; lists stand for tuples.

  Raises:
    answers.PredictError: A key is not known, or its value is out of range.
  """
  for name, value in changes.items():
    if name not in settings.KEYS:
      raise answers.PredictError(settings.unknown(name))
    if problem := settings.KEYS[name].problem(value):
      raise answers.PredictError(problem)
  settings.set_keys(config, changes)
  settings.check(config)


# --- arguments ---


def _sequence(given: Any, name: str) -> Sequence[Any]:
  """Returns an argument that must be a list or the like."""
  if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__"):
    raise InputTypeError(
      f"{name} is {given!r:.60}; give a list, such as [{'text'!r}]"
    )
  return list(given)


def _texts(given: Any, name: str = "texts") -> list[Any]:
  return list(_sequence(given, name))


def _listed(given: Any) -> Any:
  """Returns a list; anything else as it is, for the message about it."""
  return list(given) if isinstance(given, list | tuple) else given


def _pairs(texts: Any, texts_b: Any) -> dict[str, list[Any]]:
  columns = {"text": _texts(texts)}
  if texts_b is not None:
    columns["text_b"] = _texts(texts_b, "texts_b")
  return columns
