"""Batches of the texts of many requests, computed by one thread.

While the device computes a batch, the texts of new requests wait. The next
batch takes them in turns, one of each request, until it is full: a request with
few texts does not wait for one with many. A batch is of one predictor; those
that have texts waiting are served in turns, too.
"""

import collections
from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import itertools
import logging
import threading
import time
import weakref

from bert_jax.kinds import answers
from bert_jax.prediction import predict

_log = logging.getLogger(__name__)

# Called with the number of texts and of tokens of a batch, and its seconds.
Report = Callable[[int, int, float], None]


class ClosedError(RuntimeError):
  """The server stops and takes no more texts."""


@dataclasses.dataclass(eq=False)
class _Job:
  """The texts of one request.

  Attributes:
    lines: the texts, as the predictor has parsed them.
    arrival: the number of the request, in the order of arrival.
    answers: the answer to each text; None until it is there.
    next: the first text that no batch has taken.
    future: gets the answers once all are there.
  """

  lines: Sequence[answers.Line]
  arrival: int
  answers: list[dict | None]
  next: int = 0
  future: futures.Future = dataclasses.field(default_factory=futures.Future)


class Batcher:
  """The queue of texts, and the thread that computes them."""

  def __init__(self, batch_tokens: int, report: Report = lambda *_: None):
    """Starts the thread.

    Args:
      batch_tokens: a batch with so many tokens is full.
      report: is told about every batch that was computed.
    """
    self._batch_tokens = batch_tokens
    self._report = report
    self._queues: dict[predict.Predictor, collections.deque[_Job]] = {}
    self._arrivals = itertools.count()
    # The number of the last batch of each predictor that is still in use.
    self._turns: weakref.WeakKeyDictionary[predict.Predictor, int] = (
      weakref.WeakKeyDictionary()
    )
    self._batches = itertools.count()
    self._changed = threading.Condition()
    self._is_closed = False
    self._thread = threading.Thread(target=self._run, name="batcher")
    self._thread.start()

  def submit(
    self, predictor: predict.Predictor, lines: Sequence[answers.Line]
  ) -> futures.Future:
    """Queues texts without errors; returns what will hold their answers.

    Args:
      predictor: what answers them.
      lines: the texts, as `Predictor.parse` yields them.

    Raises:
      ClosedError: The server stops.
    """
    with self._changed:
      if self._is_closed:
        raise ClosedError("the server stops; ask again later")
      job = _Job(lines, next(self._arrivals), [None] * len(lines))
      self._queues.setdefault(predictor, collections.deque()).append(job)
      self._changed.notify()
    return job.future

  def close(self) -> None:
    """Answers what is queued, and ends the thread."""
    with self._changed:
      self._is_closed = True
      self._changed.notify()
    self._thread.join()

  def _run(self) -> None:
    while True:
      with self._changed:
        while not self._queues and not self._is_closed:
          self._changed.wait()
        if not self._queues:
          return
        predictor, batch = self._take()
      if batch:
        self._compute(predictor, batch)
      del predictor, batch  # so that waiting keeps no model alive

  def _take(self) -> tuple[predict.Predictor, list[tuple[_Job, int]]]:
    """Takes the next batch: (request, number of its text) for each text."""
    predictor = min(
      self._queues,
      key=lambda p: (self._turns.get(p, -1), self._queues[p][0].arrival),
    )
    jobs = self._queues.pop(predictor)
    batch: list[tuple[_Job, int]] = []
    tokens = 0
    while jobs and (tokens < self._batch_tokens or not batch):
      job = jobs.popleft()
      if job.future.cancelled():
        continue
      batch.append((job, job.next))
      tokens += predictor.num_tokens(job.lines[job.next])
      job.next += 1
      if job.next < len(job.lines):
        jobs.append(job)
    # Requests that had their turn stand behind the others; the oldest first.
    if jobs:
      self._queues[predictor] = collections.deque(
        sorted(jobs, key=lambda job: job.arrival)
      )
    if batch:
      self._turns[predictor] = next(self._batches)
    return predictor, batch

  def _compute(
    self, predictor: predict.Predictor, batch: Sequence[tuple[_Job, int]]
  ) -> None:
    start = time.perf_counter()
    lines = [job.lines[index] for job, index in batch]
    try:
      found = list(predictor.compute(lines))
    except Exception as error:  # a request fails, and not the server
      if len({job for job, _ in batch}) > 1:  # and not the others beside it
        for one in dict.fromkeys(job for job, _ in batch):
          own = [(job, index) for job, index in batch if job is one]
          self._compute(predictor, own)
        return
      _log.exception("%d texts of a request failed", len(batch))
      self._fail(predictor, batch[0][0], error)
      return
    # First the report: who has an answer finds it counted.
    tokens = sum(map(predictor.num_tokens, lines))
    self._report(len(lines), tokens, time.perf_counter() - start)
    for (job, index), answer in zip(batch, found, strict=True):
      job.answers[index] = answer
    for job in {job for job, _ in batch}:
      if all(answer is not None for answer in job.answers):
        _finish(job)

  def _fail(
    self, predictor: predict.Predictor, failed: _Job, error: Exception
  ) -> None:
    """Hands an error to a request, and forgets the rest of its texts."""
    with self._changed:
      jobs = self._queues.pop(predictor, ())
      if rest := [job for job in jobs if job is not failed]:
        self._queues[predictor] = collections.deque(rest)
    _finish(failed, error)


def _finish(job: _Job, error: Exception | None = None) -> None:
  """Hands the answers, or an error, to the request unless it was cancelled."""
  if not job.future.set_running_or_notify_cancel():
    return
  if error is None:
    job.future.set_result(job.answers)
  else:
    job.future.set_exception(error)
