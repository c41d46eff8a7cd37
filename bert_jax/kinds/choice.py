"""Choices between several endings of a text (BERT paper, section 4.4)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import classify
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.tasks import own
from bert_jax.tasks import spec

# The score of a choice that an example does not have. It is finite, so that
# rows without examples, which have no choices, give no NaN.
_NO_CHOICE = -1e9


class Choice(task_kind.TaskKind):
  """Chooses one of C pairs of texts; the model scores each pair alone."""

  name = "choice"
  scores = {"accuracy": classify.accuracy}
  forms = {
    "choice": own.Form(
      scores, (2, 0), own.read_choices, columns=("text", "choices")
    )
  }
  num_choices = 4  # the number of choices of SWAG

  loss_settings = ("label_smoothing", "focal_gamma")
  decode_settings = ("temperature",)

  def loss(self, outputs, batch, options=losses.PLAIN):
    num_rows, num_groups = batch["label"].shape
    scores = outputs.reshape(num_rows, num_groups, -1)  # [B, G, C]
    is_choice = None
    if "num_choices" in batch:  # some examples have fewer choices than C
      at = jnp.arange(scores.shape[-1])[None, None]  # [1, 1, C]
      is_choice = at < batch["num_choices"][..., None]
      scores = jnp.where(is_choice, scores, _NO_CHOICE)
    return losses.class_cross_entropy(
      scores, batch["label"], batch["weight"], options, is_choice
    )

  def _features(self, task, examples, tokenizer, seq_len):
    """Makes a sequence of each of the C choices of an example."""
    counts = np.array([len(example.pairs) for example in examples])
    if counts.min() < 2 <= counts.max():
      few, many = examples[counts.argmin()], examples[counts.argmax()]
      raise spec.TaskError(
        f"task {task.name}: example {few.id} has {len(few.pairs)} choices, but"
        f" example {many.id} has {len(many.pairs)}; give each two or more"
      )
    return super()._features(task, examples, tokenizer, seq_len)

  def _decode(self, task, features, outputs, temperature=1.0, **options):
    scores = outputs.reshape(len(features), -1) / temperature
    if features.counts is None:
      return classify.most_likely(scores)
    is_choice = np.arange(scores.shape[1]) < features.counts[:, None]
    found = classify.most_likely(np.where(is_choice, scores, _NO_CHOICE))
    return [
      classify.ClassPrediction(one.label, one.probabilities[:count])
      for one, count in zip(found, features.counts.tolist(), strict=True)
    ]

  def degenerate(self, task, predictions, examples):
    return classify.same_labels(predictions, examples, lambda i: i)

  def row(self, task, prediction):
    return {
      "choice": prediction.label,
      "probabilities": list(prediction.probabilities),
    }

  def mistakes(self, task, examples, predictions):
    return classify.wrong_labels(self, task, examples, predictions)


CHOICE = Choice()


class Answerer(answers.TaskAnswerer):
  """Chooses the text that best goes with the first text."""

  name = "choose"
  kind = CHOICE
  two_texts = True
  fields = record_fields = ("text", "choices")
  listed_field = "choices"
  example = {"text": "A cat", "choices": ["sat on the mat.", "is in France."]}

  def join(self, values: Sequence[Any]) -> dict[str, Any]:
    first, *choices = values
    try:
      if len(choices) == 1:  # a column with all of them
        choices, _ = own.listed(choices[0], "it")
      else:
        texts = ["" if choice is None else choice for choice in choices]
        if all(isinstance(text, str) for text in texts):  # parse says if not
          choices = own.without_rest(texts, "it")
    except spec.TaskError as error:
      raise answers.RecordError(str(error)) from error
    return {"text": first, "choices": choices}

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    text = answers.text_of(record, "text")
    choices = answers.texts_of(record, "choices")
    if not choices:
      raise answers.RecordError("`choices` is empty; give at least one choice")
    return [self.pair(text, choice) for choice in choices]

  def for_transformers(self, inputs):
    return {name: x[:, None] for name, x in inputs.items()}  # [B, C, L]

  def results(
    self, window: answers.Window, outputs: Sequence[answers.Outputs]
  ) -> Iterator[dict]:
    remaining = iter(outputs)
    # Records may have different numbers of choices.
    for examples in (line.examples for line in window.lines if line.examples):
      logits = [next(remaining)["logits"] for _ in examples]
      (best,) = classify.most_likely(
        np.concatenate(logits)[None].astype(np.float64)
        / self._options.get("temperature", 1.0)
      )
      yield self.answer(None, best) | answers.cut_field(*examples)
