"""A trained model on new text: one JSON object a line in, one a line out.

predictor = Predictor.load("bert-base-uncased", config)
for answer in predictor([{"text": "Paris is the [MASK] of France."}]):
  print(answer["masks"][0])

kind       a line in                     a line out
fill-mask  text, with [MASK]             masks: for each the best tokens
embed      text, text_b or not           tokens, pooled, mean, layers, concat
classify   text, text_b or not           label, scores
multi_label text, text_b or not          labels, scores
regress    text, text_b or not           score
answer     question, context             answer, start, end, score
tag        words, or text to split       words, labels
choose     text, choices                 choice, scores

An `id` is copied. Where a tagger was trained with task.context=document,
neighbouring lines with the same `document` are one document. What cannot be
used becomes {"error": ...} in its place.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import logging
import os
from typing import Any

import jax
import numpy as np

from bert_jax import weights
from bert_jax.data import task_batches
from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig
from bert_jax.prediction import records
from bert_jax.prediction import settings as predict_settings
from bert_jax.runtime import bars
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config

_log = logging.getLogger(__name__)

# Lengths of rows, beside the model's longest: few, since each is a program to
# compile. Shorter ones would gain nothing: several short texts share a row.
_ROW_LENGTHS = (128, 256)
# What is read before it is computed and written: so many lines, or batches.
_WINDOW_LINES = 4096
_WINDOW_BATCHES = 32
# Lines of one document, which are computed together and so held in memory.
_DOCUMENT_LINES = 65536

# Batches of a window, each with its outputs, which may still be computed.
_Launched = list[tuple[task_batches.PackedBatch, Any]]


def _row_lengths(model: ModelConfig, seq_len: int) -> tuple[int, ...]:
  """Lengths of the rows that sequences of a length are packed into."""
  longest = model.max_len
  program = programs.program_of(model)
  if not program.takes_bias:  # a kernel takes multiples of its unit alone
    longest = -(-longest // program.row_unit) * program.row_unit
  shorter = tuple(n for n in _ROW_LENGTHS if n < longest)
  lengths = (*shorter, longest)
  return tuple(
    n for n in lengths if n <= min(m for m in lengths if m >= seq_len)
  )


class Predictor:
  """A model that answers records.

  Attributes:
    kind: what it predicts, a key of table.ANSWERERS.
    tokenizer: its vocabulary.
  """

  def __init__(
    self,
    pretrained: weights.Pretrained,
    config: Config,
    name: str,
    given: Sequence[str] | None = None,
  ):
    """Puts a model onto the devices.

    What the run of the weights was evaluated with, such as its length and how
    it answers questions, is used here, too, so that both give one answer.

    Args:
      pretrained: the model, with its vocabulary.
      config: the whole configuration, as of configs/predict.py. Groups
        `predict` and `mesh` are read, and the keys of weights.SETTINGS.
      name: of the model, for messages.
      given: keys of the config that the user named, the more important first,
        which win over what the run says; None = those of weights.SETTINGS that
        are not None.

    Raises:
      ValueError: the model lacks a part, or a setting cannot be.
    """
    own = dict(pretrained.settings)
    if pretrained.seq_len:
      longest = pretrained.model["max_len"]
      own["data.seq_len"] = min(pretrained.seq_len, longest)
    settings.check(config)
    asked = predict_settings.read(config, own, given)
    if pretrained.tokenizer is None:
      raise answers.PredictError(
        f"{name} has no vocabulary; put its vocab.txt there"
      )
    arithmetic: dict[str, Any] = {
      name: predict_settings.value_of([f"model.{name}"], config, own, given)
      or default
      for name, default in (("dtype", "float32"), ("attention", "plain"))
    }
    # Nothing is dropped, and some programs of attention have no dropout.
    arithmetic |= {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    model = ModelConfig.from_config(
      config.model.to_dict() | pretrained.shape | arithmetic
    )
    make = table.choose_answerer(asked.kind, pretrained, name)
    self.kind = make.name
    seq_len = asked.seq_len or model.max_len
    if not 5 <= seq_len <= model.max_len:
      raise answers.PredictError(
        f"predict.seq_len={seq_len}; the model takes 5 to {model.max_len}"
      )
    self.tokenizer = pretrained.tokenizer
    self._batch_tokens = asked.predict["batch_tokens"]
    self._answerer = make(
      answers.Context(asked, seq_len, model, self.tokenizer, pretrained, name)
    )
    self._row_lengths = _row_lengths(model, seq_len)
    for length in self._row_lengths:
      programs.check(model, length)
    self._mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp,
                                    config.mesh.tensor)  # fmt: skip
    self._place = sharding.batch_sharding(self._mesh)
    self._params = self._put_params(pretrained.params, config.mesh.rules, name)
    self._step = jax.jit(self._answerer.step)

  @classmethod
  def load(
    cls,
    path: str,
    config: Config,
    checkpoint: str = "",
    given: Sequence[str] | None = None,
  ) -> "Predictor":
    """Reads a model.

    Args:
      path: what weights.read takes: a Hugging Face or Flax directory, a TF1
        checkpoint or a workdir.
      config: the whole configuration; see `__init__`.
      checkpoint: of a workdir the step, as for `saved_steps.choose`.
      given: see `__init__`.

    Raises:
      ValueError: there is no model, or it cannot do what is asked.
    """
    settings.check(config)  # before gigabytes are read
    predict_settings.read(config)
    return cls(weights.read(path, checkpoint), config, path, given)

  def _put_params(self, given: Any, rules: Any, name: str) -> Any:
    """The parameters of the model on the mesh; zeros for heads not used."""
    wanted = jax.eval_shape(self._answerer.init_params)
    params, added, _ = weights.fit(given, wanted)
    if missing := [path for path in added if self._answerer.kind.needs(path)]:
      raise answers.PredictError(f"{name} has no {', '.join(missing)}")
    filled = jax.tree.map(
      lambda leaf, x: np.zeros(leaf.shape, leaf.dtype) if x is None else x,
      wanted,
      params,
    )
    return jax.device_put(
      filled, sharding.state_sharding(wanted, self._mesh, rules)
    )

  def __call__(self, given: Iterable[Mapping[str, Any]]) -> Iterator[dict]:
    """Answers records, in their order, some thousand at a time.

    Args:
      given: with the fields of the kind; see the table at the top.

    Yields:
      For each what was predicted, or {"error": ...}.
    """
    return self.run(
      (f"record {i}", record) for i, record in enumerate(given, 1)
    )

  def run(self, numbered: Iterable[tuple[str, Any]]) -> Iterator[dict]:
    """The same for records with names, some of which are already wrong.

    Args:
      numbered: (what to call it in an error, record or RecordError).
    """
    computing = None
    for window in self._windows(numbered):
      launched = window, self._launch(window)
      if computing:  # the one before; this one is computed meanwhile
        yield from self._finish(*computing)
      computing = launched
    if computing:
      yield from self._finish(*computing)

  def _windows(
    self, numbered: Iterable[tuple[str, Any]]
  ) -> Iterator[answers.Window]:
    """Parses records and groups them.

    What is read in one document is computed in one window, with the lines in
    error that stand between its lines.
    """
    limit = _WINDOW_BATCHES * self._batch_tokens
    window = answers.Window([], [])
    names: list[str] = []  # of the lines of the window
    begin = 0  # line of the window at which its last document begins
    refused = None  # the document that was refused for its length

    def is_full():
      return len(window.entries) >= _WINDOW_LINES or window.size >= limit

    for name, record in numbered:
      kept: dict[str, Any] = {}
      examples: list[Any] = []
      found: int | answers.RecordError
      try:
        if isinstance(record, answers.RecordError):
          raise record
        if not isinstance(record, Mapping):
          raise answers.RecordError(
            f"it is {record!r:.60}; wanted a JSON object"
          )
        kept = {"id": record["id"]} if "id" in record else {}
        examples = self._answerer.parse(record)
      except answers.RecordError as error:
        found = answers.RecordError(f"{name}: {error}")
      else:
        found = len(examples)
      if self._answerer.in_documents and examples:
        document = examples[0].document
        if document == refused:
          examples, found = [], _too_long(name)
        elif not window.examples or document != window.examples[-1].document:
          if is_full():
            yield window
            window, names = answers.Window([], []), []
          begin = len(window.entries)
      names.append(name)
      window.entries.append((kept, found))
      window.examples += examples
      window.size += sum(map(self._answerer.size, examples))
      # The next line may belong to the same document.
      is_open = self._answerer.in_documents and bool(window.examples)
      if is_open and len(window.entries) - begin > _DOCUMENT_LINES:
        refused = window.examples[-1].document
        if examples:  # else the document may have ended before this line
          _refuse_document(window, names, refused)
      elif is_open or not is_full():
        continue
      yield window
      window, names = answers.Window([], []), []
    if window.entries:
      yield window

  def _launch(self, window: answers.Window) -> _Launched:
    """Starts to compute a window; the results come later."""
    if not window.examples:
      return []
    window.features = self._answerer.features(window.examples)
    launched = []
    with jax.set_mesh(self._mesh):
      for packed in task_batches.pack_batches(
        window.features,
        self._row_lengths,
        self._batch_tokens,
        self._mesh.shape["data"] * self._mesh.shape["fsdp"],
        self.tokenizer,
      ):
        batch = sharding.put_global_batch(packed.batch, self._place)
        launched.append((packed, self._step(self._params, batch)))
    return launched

  def _finish(
    self,
    window: answers.Window,
    launched: _Launched,
  ) -> Iterator[dict]:
    """Waits for a window, and writes its records."""
    results: Iterator[dict] = iter(())
    if launched:
      outputs: list[answers.Outputs] = [{}] * len(window.features)
      for packed, on_device in launched:
        arrays = jax.device_get(on_device)
        for unit, output in packed.split(arrays, self._answerer.levels):
          _check_finite(output)
          outputs[unit] = output
      results = self._answerer.results(window, outputs)
    for kept, found in window.entries:
      if isinstance(found, answers.RecordError):
        yield kept | {"error": str(found)}
      else:
        yield kept | next(results)


def _too_long(name: str) -> answers.RecordError:
  return answers.RecordError(
    f"{name}: its document has more than {_DOCUMENT_LINES} lines, which would "
    "be computed together; give its parts other names in `document`"
  )


def _refuse_document(
  window: answers.Window, names: Sequence[str], document: Any
) -> None:
  """Makes the lines of the last document of a window lines in error.

  Args:
    window: whose last examples are of this document, one a line.
    names: of the lines of the window, for their errors.
    document: as the examples have it.
  """
  line = len(window.entries)
  while window.examples and window.examples[-1].document == document:
    line -= 1
    kept, found = window.entries[line]
    if not isinstance(found, answers.RecordError):
      window.entries[line] = kept, _too_long(names[line])
      window.examples.pop()


def _check_finite(output: answers.Outputs) -> None:
  for name, array in output.items():
    if not np.isfinite(array).all():
      raise answers.PredictError(
        f"the model's {name} are not finite numbers: its training diverged, or "
        "its weights are damaged; use an earlier checkpoint"
      )


def predict(
  config: Config,
  workdir: str,
  source: str,
  target: str,
  checkpoint: str = "",
  given: Sequence[str] | None = None,
) -> tuple[int, int]:
  """Reads JSON lines, writes JSON lines.

  Args:
    config: the whole configuration; see `Predictor`.
    workdir: of the run, unless predict.model names a model.
    source: a file of JSON objects; "-" or "" = standard input.
    target: the file to write, whole or not at all; "-" or "" = standard
      output.
    checkpoint: of a workdir the step, as for `saved_steps.choose`.
    given: keys of the config that the user named; see `Predictor`.

  Returns:
    How many lines there were, and how many could not be used.

  Raises:
    ValueError: no model, or it cannot do what is asked.
  """
  path = config.predict.model or workdir
  if not path:
    raise answers.PredictError(
      "give --workdir=RUN, or --config=configs/predict.py:from=DIR"
    )
  if "-" not in (source, target) and records.is_one_file(source, target):
    raise answers.PredictError(
      f"--output={target} is the input; name another file"
    )
  total = failed = 0
  with records.reading(source) as lines, records.writing(target) as out:
    predictor = Predictor.load(path, config, checkpoint, given)
    size = os.path.getsize(source) if os.path.isfile(source) else None
    watched = bars.track(lines, "predict", size, size=len)
    for result in predictor.run(records.parse_lines(watched)):
      total += 1
      failed += "error" in result
      out.write(records.to_line(result))
    out.flush()
  if failed:
    _log.warning(
      "%d of %d lines could not be used; see their error", failed, total
    )
  return total, failed
