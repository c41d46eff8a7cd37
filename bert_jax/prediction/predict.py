"""Predicts with a trained model: reads and writes one JSON object a line.

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

An `id` is copied to the answer. If a tagger was trained with
task.context=document, neighboring lines with the same `document` are read as
one document. The answer to a line that cannot be used is {"error": ...}.

A CSV, TSV, Parquet or Arrow file, or a JSON array, has the columns of the
training, or columns with these names; the answers keep all of its columns.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import logging
from typing import Any

import jax
import numpy as np

from bert_jax import weights
from bert_jax.data import task_batches
from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.models import layers
from bert_jax.models import params as param_trees
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig
from bert_jax.prediction import records
from bert_jax.prediction import settings as predict_settings
from bert_jax.prediction import tables
from bert_jax.runtime import bars
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime import traces
from bert_jax.runtime.settings import Config
from bert_jax.tasks import features as task_features

_log = logging.getLogger(__name__)

# Row lengths besides the longest that the model takes. They are few, since the
# model is compiled for each. Shorter rows would gain nothing, since several
# short texts share a row.
_ROW_LENGTHS = (128, 256)
# A window, which is read before it is computed and written, has at most this
# many lines, or tokens for this many batches.
_WINDOW_LINES = 4096
_WINDOW_BATCHES = 32
# Lines of one document, which are computed together and so held in memory.
_DOCUMENT_LINES = 65536

# Row lengths of a server, besides the longest. Few texts, which cannot share a
# row of 128 tokens, then do not wait for empty positions.
_SERVING_LENGTHS = (32, *_ROW_LENGTHS)
# Shares of the positions of a row that a server's programs fill in: they are
# compiled before the first request, so there may not be many.
_SERVING_MASK_RATES = (1 / 8, 1.0)

# Batches of a window, each with its outputs, which may still be computed.
_Launched = list[tuple[task_batches.PackedBatch, Any]]


def _row_lengths(
  model: ModelConfig, seq_len: int, wanted: Sequence[int] = _ROW_LENGTHS
) -> tuple[int, ...]:
  """Returns the row lengths for sequences of up to `seq_len` tokens.

  Args:
    model: the configuration of the model.
    seq_len: the most tokens of a sequence.
    wanted: lengths besides the longest that the model takes.
  """
  longest = model.max_len
  program = programs.program_of(model)
  if not program.takes_bias:  # a kernel takes multiples of its unit alone
    longest = -(-longest // program.row_unit) * program.row_unit
  shorter = tuple(n for n in wanted if n < longest)
  lengths = (*shorter, longest)
  return tuple(
    n for n in lengths if n <= min(m for m in lengths if m >= seq_len)
  )


def _model_config(
  config: Config, pretrained: weights.Pretrained, found: Mapping[str, Any]
) -> ModelConfig:
  """Returns the shape of some weights with the arithmetic that is asked for.

  Args:
    config: the whole configuration.
    pretrained: the weights.
    found: the settings, as `predict_settings.read` returns them.
  """
  arithmetic = {
    "dtype": found.get("model.dtype", "float32"),
    "attention": found.get("model.attention", "plain"),
    # Nothing is dropped, and some programs of attention have no dropout.
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
  }
  return ModelConfig.from_config(
    config.model.to_dict() | pretrained.shape | arithmetic
  )


class Predictor:
  """Answers records with a trained model.

  Attributes:
    kind: what the model predicts, a key of table.ANSWERERS.
    tokenizer: the vocabulary of the model.
    num_cut: how many records had texts that were too long, and were cut.
  """

  def __init__(
    self,
    pretrained: weights.Pretrained,
    config: Config,
    name: str,
    given: Sequence[str] | None = None,
    *,
    as_arrays: bool = False,
    serves: bool = False,
    shared: dict[str, Any] | None = None,
  ):
    """Puts a model onto the devices.

    The settings that the run of the weights was evaluated with, such as its
    sequence length, are used here too, so that both give the same answers.

    Args:
      pretrained: the model, with its vocabulary.
      config: the whole configuration, as of configs/predict.py. Groups
        `predict` and `mesh` are read, and the keys of weights.SETTINGS.
      name: the name of the model, for messages.
      given: the keys of the config that the user sets; see
        `predict_settings.read`.
      as_arrays: see `answers.Context`.
      serves: whether to compute few texts at a time with little padding, in
        shapes that `compile_all` knows.
      shared: path -> array on the devices, for parameters that another
        predictor of this model put there. New ones are added.

    Raises:
      ValueError: The model lacks a part, or a setting is out of range.
    """
    own = dict(pretrained.settings)
    if pretrained.seq_len:
      longest = pretrained.model["max_len"]
      own["data.seq_len"] = min(pretrained.seq_len, longest)
    settings.check(config)
    found = predict_settings.read(config, own, given)
    if pretrained.tokenizer is None:
      raise answers.PredictError(
        f"{name} has no vocabulary; put its vocab.txt into that folder"
      )
    model = _model_config(config, pretrained, found)
    make = table.choose_answerer(config.predict.kind, pretrained, name)
    self.kind = make.name
    seq_len = found.get("data.seq_len", model.max_len)
    if not 5 <= seq_len <= model.max_len:
      raise answers.PredictError(
        f"predict.seq_len={seq_len}; the model takes 5 to {model.max_len}"
      )
    self.tokenizer = pretrained.tokenizer
    self._batch_tokens = config.predict.batch_tokens
    self._answerer = make(
      answers.Context(
        config.predict, found, seq_len, model, self.tokenizer, pretrained, name,
        as_arrays,
      )
    )  # fmt: skip
    self._row_lengths = _row_lengths(
      model, seq_len, _SERVING_LENGTHS if serves else _ROW_LENGTHS
    )
    self._serves = serves
    for length in self._row_lengths:
      programs.check(model, length)
    self._mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp,
                                    config.mesh.tensor)  # fmt: skip
    self._place = sharding.batch_sharding(self._mesh)
    self._multiple = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
    fills_masks = "mask" in self._answerer.levels.values()
    self._mask_rates = _SERVING_MASK_RATES if fills_masks else (0.0,)
    self._params = self._put_params(
      pretrained.params,
      config.mesh.rules,
      name,
      {} if shared is None else shared,
    )
    self._step = traces.Program(self._answerer.step, self._facts())
    self._seq_len, self._max_len = seq_len, model.max_len
    self.num_cut = 0
    # What the features of the kind cut so far: their number, and the last Cut.
    self._num_parts_cut = 0
    self._cut: task_features.Cut | None = None

  @classmethod
  def load(
    cls,
    path: str,
    config: Config,
    checkpoint: str = "",
    given: Sequence[str] | None = None,
  ) -> "Predictor":
    """Reads a model and puts it onto the devices.

    Args:
      path: a path that weights.read accepts: a Hugging Face or Flax directory,
        a TF1 checkpoint or a workdir.
      config: the whole configuration; see `__init__`.
      checkpoint: the step of a workdir, as for `saved_steps.choose`.
      given: see `__init__`.

    Raises:
      ValueError: There is no model, or it cannot predict what the config asks.
    """
    settings.check(config)  # before gigabytes are read
    predict_settings.read(config)
    return cls(weights.read(path, checkpoint), config, path, given)

  def _put_params(
    self, given: Any, rules: Any, name: str, shared: dict[str, Any]
  ) -> Any:
    """Returns the parameters on the mesh, with zeros for unused heads."""
    wanted = param_trees.nest(self._shapes())
    model = self._answerer.context.model
    params, added, _ = weights.fit(given, wanted, model, copy=False)
    kind = self._answerer.kind
    if missing := [path for path in added if kind.needs(path, model)]:
      raise answers.PredictError(f"{name} has no {', '.join(missing)}")
    places = param_trees.flatten(
      sharding.state_sharding(wanted, self._mesh, rules)
    )
    flat = param_trees.flatten(params)
    for path, leaf in param_trees.flatten(wanted).items():
      there = shared.get(path)
      if there is None or there.shape != leaf.shape or path in added:
        value = (
          np.zeros(leaf.shape, leaf.dtype) if path in added else flat[path]
        )
        there = jax.device_put(value, places[path])
        if path not in added:
          shared[path] = there
      flat[path] = there
    return param_trees.nest(flat)

  def _shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of each parameter, by its path."""

    def trace():
      with layers.shapes_only():
        return param_trees.flatten(jax.eval_shape(self._answerer.init_params))

    facts = self._facts()
    return trace() if facts is None else traces.shapes(facts, trace)

  def _facts(self) -> dict[str, Any] | None:
    """Returns all that the model and its outputs depend on but the weights.

    Returns:
      The facts, for `traces`; None if code of another package has a part in it.
    """
    context = self._answerer.context
    pretrained = context.pretrained
    if not traces.of_package(self._answerer, self._answerer.kind):
      return None
    return {
      "answerer": f"{type(self._answerer).__module__}.{self.kind}",
      "predict": context.predict.to_dict(),
      "settings": dict(context.settings),
      "seq_len": context.seq_len,
      "model": dataclasses.asdict(context.model),
      "as_arrays": context.as_arrays,
      "head": (pretrained.kind, pretrained.labels, pretrained.sentence),
      "given": {
        path: list(array.shape)
        for path, array in param_trees.flatten(pretrained.params).items()
      },
      "vocab_size": self.tokenizer.vocab_size,
      "pad_id": self.tokenizer.pad_id,
      "mesh": str(self._mesh),
    }

  def __call__(self, given: Iterable[Mapping[str, Any]]) -> Iterator[dict]:
    """Answers records in their order, a few thousand at a time.

    Args:
      given: records with the fields of the kind; see the table at the top.

    Yields:
      The prediction for each record, or {"error": ...}.
    """
    return self.run(
      (f"record {i}", record) for i, record in enumerate(given, 1)
    )

  def run(
    self, numbered: Iterable[tuple[str, Any]], *, are_rows: bool = False
  ) -> Iterator[dict]:
    """Answers records that have names, some of which may hold an error.

    Args:
      numbered: (the name of the record in errors, the record or a RecordError).
      are_rows: whether the records are rows of a table; see
        `Answerer.record_of`.

    Yields:
      The prediction for each record, or {"error": ...}.
    """
    return self.compute(self.parse(numbered, are_rows=are_rows))

  def parse(
    self, numbered: Iterable[tuple[str, Any]], *, are_rows: bool = False
  ) -> Iterator[answers.Line]:
    """Reads records and turns their texts into tokens; see `run`."""
    for name, record in numbered:
      yield _parse(self._answerer, name, record, are_rows)

  def num_tokens(self, line: answers.Line) -> int:
    """Returns the approximate number of tokens of a line that was parsed."""
    return sum(map(self._answerer.size, line.examples))

  @property
  def answerer(self) -> answers.Answerer:
    """What turns records into tokens and outputs into answers."""
    return self._answerer

  @property
  def params(self) -> Any:
    """The parameters on the devices, as `answerer.step` takes them."""
    return self._params

  def compute(self, lines: Iterable[answers.Line]) -> Iterator[dict]:
    """Answers lines that `parse` has read, as `run` does."""
    computing = None
    limit = _WINDOW_BATCHES * self._batch_tokens
    for window in _windows(self._answerer, lines, limit):
      launched = window, self._launch(window)
      if computing:  # the previous window, while the device computes this one
        yield from self._finish(*computing)
      computing = launched
    if computing:
      yield from self._finish(*computing)

  def shapes(self) -> list[tuple[int, int, int]]:
    """Returns B, L and P of every batch that a server may compute."""
    return [
      (num_rows, row_len, slots)
      for row_len in self._row_lengths
      for num_rows in task_batches.row_counts(
        row_len, self._batch_tokens, self._multiple
      )
      for slots in task_batches.mask_slots(row_len, self._mask_rates)
    ]

  def compile_all(self, goes_on: Callable[[], bool] = lambda: True) -> int:
    """Compiles the program for each of `shapes`; returns how many.

    Each program also runs once, so that no request is the first to wait for
    memory or for a thread to start.

    Args:
      goes_on: is asked before each program; False ends the work.
    """
    count = 0
    for shape in self.shapes():
      if not goes_on():
        break
      batch = task_batches.empty_batch(*shape, self.tokenizer.pad_id)
      with jax.set_mesh(self._mesh):
        on_device = sharding.put_global_batch(batch, self._place)
        jax.block_until_ready(self._step(self._params, on_device))
      count += 1
    return count

  def _launch(self, window: answers.Window) -> _Launched:
    """Starts the computation of a window without waiting for its outputs."""
    if not window.examples:
      return []
    window.features = self._answerer.features(window.examples)
    cut = window.features.cut
    if cut is not None and cut.num_cut:
      self._num_parts_cut += cut.num_cut
      self._cut = cut
    launched = []
    with jax.set_mesh(self._mesh):
      for packed in task_batches.pack_batches(
        window.features,
        self._row_lengths,
        self._batch_tokens,
        self._multiple,
        self.tokenizer,
        fills_rows=self._serves,
        mask_rates=self._mask_rates if self._serves else (),
      ):
        batch = sharding.put_global_batch(packed.batch, self._place)
        launched.append((packed, self._step(self._params, batch)))
    return launched

  def _finish(
    self,
    window: answers.Window,
    launched: _Launched,
  ) -> Iterator[dict]:
    """Waits for the outputs of a window and yields its answers."""
    results: Iterator[dict] = iter(())
    if launched:
      outputs: list[answers.Outputs] = [{}] * len(window.features)
      for packed, on_device in launched:
        arrays = jax.device_get(on_device)
        for unit, output in packed.split(arrays, self._answerer.levels):
          _check_finite(output)
          outputs[unit] = output
      results = self._answerer.results(window, outputs)
    for line in window.lines:
      answer = {"error": line.error} if line.error else next(results)
      self.num_cut += bool(answer.get("truncated"))
      yield line.kept | answer

  def describe_cut(self, total: int) -> str:
    """Returns how many texts were cut and what to change, or "".

    Args:
      total: the number of records.
    """
    limit = f"predict.seq_len={self._seq_len}"
    if (cut := self._cut) is not None:
      is_row = cut.limit == "data.seq_len"
      return (
        f"{self._num_parts_cut:,} {cut.what} in {total:,} records are longer "
        f"than {limit if is_row else f'{cut.limit}={cut.value}'} and were cut; "
        f"{'shorten them' if is_row else cut.advice(self._max_len)}"
      )
    if not self.num_cut:
      return ""
    advice = (
      f"give --config.predict.seq_len, up to {self._max_len}, if the model was "
      "trained on longer texts"
      if self._seq_len < self._max_len
      else "the model takes no more; split the texts"
    )
    return (
      f"{self.num_cut:,} of {total:,} lines ({self.num_cut / total:.1%}) are "
      f"longer than {limit} and were cut; their answers have truncated; "
      f"{advice}"
    )


def _windows(
  answerer: answers.Answerer, parsed: Iterable[answers.Line], limit: int
) -> Iterator[answers.Window]:
  """Groups lines into windows.

  Args:
    answerer: says which lines belong together.
    parsed: the lines.
    limit: a window with so many tokens is full.
  """
  lines: list[answers.Line] = []
  size = 0
  groups = (
    _documents(parsed) if answerer.in_documents else ([x] for x in parsed)
  )
  for group in groups:
    lines += group
    size += sum(answerer.size(e) for line in group for e in line.examples)
    if len(lines) >= _WINDOW_LINES or size >= limit:
      yield answers.Window(lines)
      lines, size = [], 0
  if lines:
    yield answers.Window(lines)


def _parse(
  answerer: answers.Answerer, name: str, record: Any, is_row: bool
) -> answers.Line:
  kept = {}
  try:
    if isinstance(record, answers.RecordError):
      raise record
    if not isinstance(record, Mapping):
      raise answers.RecordError(f"it is {record!r:.60}; wanted a JSON object")
    kept = {"id": record["id"]} if "id" in record and not is_row else {}
    record = answerer.record_of(record, is_table=is_row)
    return answers.Line(name, kept, answerer.parse(record))
  except answers.RecordError as error:
    return answers.Line(name, kept, [], f"{name}: {error}")


def _documents(lines: Iterable[answers.Line]) -> Iterator[list[answers.Line]]:
  """Groups lines that must be computed together, since they are one document.

  A group also has the lines in error between those of its document. If a
  document is too long, all of its lines become errors.
  """
  group: list[answers.Line] = []
  document = None
  is_too_long = False
  for line in lines:
    number = line.examples[0].document if line.examples else document
    if number != document:
      if group:
        yield group
      group, document, is_too_long = [], number, False
    if is_too_long or document is None:
      yield [_refuse(line) if is_too_long else line]
      continue
    group.append(line)
    if len(group) > _DOCUMENT_LINES:
      is_too_long = True
      # If this line is in error, the document may have ended before it.
      yield list(map(_refuse, group)) if line.examples else group
      group = []
  if group:
    yield group


def _refuse(line: answers.Line) -> answers.Line:
  """Returns a line of a document that is too long, as an error."""
  error = line.error or (
    f"{line.name}: its document has more than {_DOCUMENT_LINES} lines, which "
    "would be computed together; give its parts different names in `document`"
  )
  return answers.Line(line.name, line.kept, [], error)


def _check_finite(output: answers.Outputs) -> None:
  for name, array in output.items():
    if not np.isfinite(array).all():
      raise answers.PredictError(
        f"the model's {name} are not finite numbers: its training diverged, or "
        "its weights are damaged; use an earlier checkpoint"
      )


def _load(
  path: str, config: Config, checkpoint: str, given: Sequence[str] | None
) -> Predictor:
  """Loads the predictor of a command, whose settings all have an effect."""
  predictor = Predictor.load(path, config, checkpoint, given)
  how = config.predict.get("long_texts")
  if how and not predictor.answerer.reads_long_texts:
    raise answers.PredictError(
      f"predict.long_texts={how} has no effect on predict.kind="
      f"{predictor.kind}; leave it out"
    )
  return predictor


def predict(
  config: Config,
  workdir: str,
  source: str | list[bytes],
  target: str,
  checkpoint: str = "",
  given: Sequence[str] | None = None,
) -> tuple[int, int]:
  """Answers a file of JSON lines, or of rows with columns, by such a file.

  Args:
    config: the whole configuration; see `Predictor`.
    workdir: the workdir of the run, unless predict.model names a model.
    source: a file of JSON objects or a table, "-" or "" for standard input, or
      the lines themselves.
    target: the file to write, which appears only when it is complete; "-" or ""
      for standard output.
    checkpoint: the step of a workdir, as for `saved_steps.choose`.
    given: the keys of the config that the user sets; see
      `predict_settings.read`.

  Returns:
    The number of lines, and the number of lines that could not be used.

  Raises:
    ValueError: There is no model, or it cannot predict what the config asks.
  """
  path = config.predict.model or workdir
  if not path:
    raise answers.PredictError(
      "give --workdir=RUN, or --config=predict:from=DIR"
    )
  if records.is_one_file(source, target):
    raise answers.PredictError(
      f"--output={target} is the input; name another file"
    )
  tables.check_target(source, target)
  total = failed = 0
  if tables.is_table(source):
    assert isinstance(source, str)
    table_in = tables.Table(source)
    with tables.writing(table_in, target) as write:
      predictor = _load(path, config, checkpoint, given)
      watched = bars.track(table_in.numbered(), "predict", None)
      for result in predictor.run(watched, are_rows=True):
        total += 1
        failed += "error" in result
        write(result)
  else:
    with (
      records.reading(source) as (lines, size),
      records.writing(target) as out,
    ):
      predictor = _load(path, config, checkpoint, given)
      watched = bars.track(lines, "predict", size, size=len)
      for result in predictor.run(records.parse_lines(watched)):
        total += 1
        failed += "error" in result
        out.write(records.to_line(result))
      out.flush()
  if cut := predictor.describe_cut(total):
    _log.warning("%s", cut)
  if failed:
    _log.warning(
      "%d of %d lines could not be used; see their error", failed, total
    )
  return total, failed
