"""One of several endings of a text, each scored alone (BERT paper, 4.4)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import classify
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.tasks import own
from bert_jax.tasks import spec


def choice_scores(outputs: jax.Array, num_groups: int) -> jax.Array:
  """[B, S, 1] scores of sequences -> [B, G, C] of the choices of a question."""
  return outputs.reshape(outputs.shape[0], num_groups, -1)


class Choice(task_kind.TaskKind):
  """Which of C pairs of texts fits."""

  name = "choice"
  scores = {"accuracy": classify.accuracy}
  forms = {
    "choice": own.Form("choice", (3, 0), ("accuracy",), own.read_choices)
  }
  num_choices = 4  # as SWAG has

  def loss(self, outputs, batch):
    scores = choice_scores(outputs, batch["label"].shape[1])
    return losses.cross_entropy(scores, batch["label"], batch["weight"])

  def _features(self, task, examples, tokenizer, seq_len):
    """A sequence for each of the C choices of an example."""
    num_choices = len(examples[0].pairs)
    for example in examples:
      if len(example.pairs) != num_choices:
        raise spec.TaskError(
          f"task {task.name}: example {example.id} has {len(example.pairs)}"
          f" choices, example {examples[0].id} has {num_choices}; the number"
          " must be the same for all"
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
  """Which of some texts goes best with the first."""

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
    end = 0  # records may have different numbers of choices
    for _, count in window.entries:
      if isinstance(count, answers.RecordError):
        continue
      start, end = end, end + count
      logits = [output["logits"] for output in outputs[start:end]]
      (best,) = classify.most_likely(
        np.concatenate(logits)[None].astype(np.float64)
      )
      cut = any(example.truncated for example in window.examples[start:end])
      yield self.answer(None, best) | ({"truncated": True} if cut else {})
