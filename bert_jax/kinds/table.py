"""All kinds, by name: what can be trained, and what can be predicted.

A new kind is a file beside this one, and a line in each table here.
"""

from typing import TYPE_CHECKING, Any

from bert_jax.kinds import answers
from bert_jax.kinds import choice
from bert_jax.kinds import classify
from bert_jax.kinds import embed
from bert_jax.kinds import kind
from bert_jax.kinds import multi_label
from bert_jax.kinds import pretraining
from bert_jax.kinds import regress
from bert_jax.kinds import span
from bert_jax.kinds import tag
from bert_jax.kinds import task_kind
from bert_jax.tasks import own
from bert_jax.tasks import spec

if TYPE_CHECKING:
  from bert_jax import weights

TASK_KINDS: dict[str, task_kind.TaskKind] = {
  one.name: one
  for one in (
    classify.CLASSIFY,
    multi_label.MULTI_LABEL,
    regress.REGRESS,
    choice.CHOICE,
    tag.TAG,
    span.SPAN,
  )
}
KINDS: dict[str, kind.Kind] = {
  one.name: one
  for one in (pretraining.MLM_NSP, pretraining.MLM, *TASK_KINDS.values())
}

# The most special first: what a model is for, unless another is asked for.
ANSWERERS: dict[str, type[answers.Answerer]] = {
  one.name: one
  for one in (
    classify.Answerer,
    multi_label.Answerer,
    regress.Answerer,
    span.Answerer,
    tag.Answerer,
    choice.Answerer,
    pretraining.FillMask,
    embed.Embed,
  )
}

# The forms of own data, by the FORM of task.name=my-FORM.
FORMS: dict[str, own.Form] = {
  name: form for one in TASK_KINDS.values() for name, form in one.forms.items()
}


def get(name: str) -> kind.Kind:
  """Returns the kind of that name.

  Raises:
    ValueError: no kind has this name.
  """
  if name not in KINDS:
    raise ValueError(
      f"objective={name!r} is not known; use one of {', '.join(KINDS)}"
    )
  return KINDS[name]


def of_task(task: spec.Task) -> task_kind.TaskKind:
  """Returns the kind of a task."""
  return TASK_KINDS[task.kind]


def make_task(form: str, **facts: Any) -> spec.Task:
  """Makes the row of a task on own files.

  Args:
    form: a key of FORMS.
    **facts: see `own.make_task`.

  Raises:
    spec.TaskError: there is no such form, or the facts do not fit it.
  """
  if form not in FORMS:
    raise spec.TaskError(
      f"form={form!r} of own data is not known; use one of {', '.join(FORMS)}"
    )
  return own.make_task(FORMS[form], **facts)


def answerers_of(pretrained: "weights.Pretrained") -> list[str]:
  """Returns what a model has the parts for, in the order of ANSWERERS."""
  parts = set(pretrained.params) | set(pretrained.params["encoder"])
  return [
    name
    for name, one in ANSWERERS.items()
    if parts.issuperset(one.needs)
    and pretrained.refused.keys().isdisjoint(one.needs)
    and ("task" not in one.needs or pretrained.kind in (None, one.kind.name))
  ]


def choose_answerer(
  asked: str, pretrained: "weights.Pretrained", name: str
) -> type[answers.Answerer]:
  """Returns the answerer that was asked for, or the one the model is for.

  Args:
    asked: a key of ANSWERERS, or "".
    pretrained: the model.
    name: of the model, for messages.

  Raises:
    answers.PredictError: there is no such answerer, the model cannot do it, or
      nothing says what its head is for.
  """
  there_are = answerers_of(pretrained)
  of_tasks = [key for key, one in ANSWERERS.items() if "task" in one.needs]
  for head, why in pretrained.refused.items():
    wanted = [key for key, one in ANSWERERS.items() if head in one.needs]
    if asked in wanted or (not asked and there_are[0] not in of_tasks):
      raise answers.PredictError(
        f"the head of {name} cannot be used: {why}; there is: "
        f"--config.predict.kind={', '.join(there_are)}"
      )
  if not asked:
    if "task" in pretrained.params and pretrained.kind is None:
      raise answers.PredictError(
        f"{name} does not tell what its head is for; give "
        f"--config.predict.kind, one of {', '.join(there_are)}"
      )
    return ANSWERERS[there_are[0]]
  if asked not in ANSWERERS:
    raise answers.PredictError(
      f"predict.kind={asked!r} is not known; there is: {', '.join(ANSWERERS)}"
    )
  if asked not in there_are:
    parts = [*pretrained.params["encoder"].keys() & {"pooler"}]
    parts += [p for p in ("mlm", "nsp", "task") if p in pretrained.params]
    of_task = f" (of kind {pretrained.kind})" if pretrained.kind else ""
    raise answers.PredictError(
      f"{name} has no head for predict.kind={asked}: on the encoder it has "
      f"{', '.join(parts) or 'nothing'}{of_task}; give one of "
      f"{', '.join(there_are)}, or other weights"
    )
  return ANSWERERS[asked]
