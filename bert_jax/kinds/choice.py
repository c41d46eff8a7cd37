"""Choices between several endings of a text (BERT paper, section 4.4)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import classify
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.tasks import own
from bert_jax.tasks import spec


class Choice(task_kind.TaskKind):
  """Chooses one of C pairs of texts; the model scores each pair alone."""

  name = "choice"
  scores = {"accuracy": classify.accuracy}
  forms = {"choice": own.Form(scores, (3, 0), own.read_choices)}
  num_choices = 4  # the number of choices of SWAG

  def loss(self, outputs, batch):
    num_rows, num_groups = batch["label"].shape
    scores = outputs.reshape(num_rows, num_groups, -1)  # [B, G, C]
    return losses.cross_entropy(scores, batch["label"], batch["weight"])

  def _features(self, task, examples, tokenizer, seq_len):
    """Makes a sequence of each of the C choices of an example."""
    num_choices = len(examples[0].pairs)
    for example in examples:
      if len(example.pairs) != num_choices:
        raise spec.TaskError(
          f"task {task.name}: example {example.id} has {len(example.pairs)}"
          f" choices, but example {examples[0].id} has {num_choices}; all must"
          " have the same number"
        )
    return super()._features(task, examples, tokenizer, seq_len)

  def _decode(self, task, features, outputs, **options):
    return classify.most_likely(outputs.reshape(len(features), -1))

  def row(self, task, prediction):
    return {
      "choice": prediction.label,
      "probabilities": list(prediction.probabilities),
    }


CHOICE = Choice()


class Answerer(answers.TaskAnswerer):
  """Chooses the text that best goes with the first text."""

  name = "choose"
  kind = CHOICE
  two_texts = True

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    text = answers.text_of(record, "text")
    choices = answers.texts_of(record, "choices")
    if not choices:
      raise answers.RecordError("`choices` is empty; give at least one choice")
    return [self.pair(text, choice) for choice in choices]

  def results(
    self, window: answers.Window, outputs: Sequence[answers.Outputs]
  ) -> Iterator[dict]:
    remaining = iter(outputs)
    # Records may have different numbers of choices.
    for examples in (line.examples for line in window.lines if line.examples):
      logits = [next(remaining)["logits"] for _ in examples]
      (best,) = classify.most_likely(
        np.concatenate(logits)[None].astype(np.float64)
      )
      yield self.answer(None, best) | answers.cut_field(*examples)
