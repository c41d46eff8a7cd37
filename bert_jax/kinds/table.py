"""The tables of all kinds of training and of prediction, by name.

A new kind is a file in this folder and a line in each table here.
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
  for one in (
    pretraining.MLM_NSP,
    pretraining.MLM,
    pretraining.MLM_SOP,
    pretraining.DISTILL,
    pretraining.RTD,
    *TASK_KINDS.values(),
  )
}

# The most specific first: a model is used for the first that it has a head for,
# unless the user asks for another.
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

# FORM of task.name=my-FORM -> the kind and the form of own data.
FORMS: dict[str, tuple[str, own.Form]] = {
  name: (kind, form)
  for kind, one in TASK_KINDS.items()
  for name, form in one.forms.items()
}


def get(name: str) -> kind.Kind:
  """Returns the kind with a name.

  Raises:
    ValueError: No kind has this name.
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
  """Makes a task on own files.

  Args:
    form: a key of FORMS.
    **facts: see `own.make_task`.

  Raises:
    spec.TaskError: There is no such form, or the facts do not fit it.
  """
  if form not in FORMS:
    raise spec.TaskError(
      f"form={form!r} is not known; the forms of a data set of your own are "
      f"{', '.join(FORMS)}"
    )
  return own.make_task(*FORMS[form], **facts)


def answerers_of(pretrained: "weights.Pretrained") -> list[str]:
  """Returns the kinds of prediction that a model can do, as in ANSWERERS."""
  has = set(pretrained.params) | set(pretrained.params["encoder"])
  return [
    name
    for name, one in ANSWERERS.items()
    if has.issuperset(one.parts)
    and pretrained.refused.keys().isdisjoint(one.parts)
    and ("task" not in one.parts or pretrained.kind in (None, one.kind.name))
  ]


def choose_answerer(
  asked: str, pretrained: "weights.Pretrained", name: str
) -> type[answers.Answerer]:
  """Returns the answerer that the user asks for, or else the most specific one.

  Args:
    asked: a key of ANSWERERS, or "".
    pretrained: the model.
    name: the name of the model, for messages.

  Raises:
    answers.PredictError: There is no such answerer, the model cannot be used
      for it, or the kind of the model's head is not known.
  """
  if asked and asked not in ANSWERERS:
    raise answers.PredictError(
      f"predict.kind={asked!r} is not known; use one of {', '.join(ANSWERERS)}"
    )
  able = answerers_of(pretrained)
  chosen = ANSWERERS[asked or able[0]]
  for head, why in pretrained.refused.items():
    if head in chosen.parts or (not asked and "task" not in chosen.parts):
      raise answers.PredictError(
        f"the head of {name} cannot be used: {why}; without it the model can "
        f"be used with --config.predict.kind={', '.join(able)}"
      )
  if not asked and "task" in pretrained.params and pretrained.kind is None:
    raise answers.PredictError(
      f"{name} does not tell what its head is for; give "
      f"--config.predict.kind, one of {', '.join(able)}"
    )
  if asked and asked not in able:
    has = [*pretrained.params["encoder"].keys() & {"pooler"}]
    has += [
      part for part in ("mlm", "nsp", "task") if part in pretrained.params
    ]
    of_task = f" (of kind {pretrained.kind})" if pretrained.kind else ""
    raise answers.PredictError(
      f"{name} has no head for predict.kind={asked}: on the encoder it has "
      f"{', '.join(has) or 'nothing'}{of_task}; give one of "
      f"{', '.join(able)}, or other weights"
    )
  return chosen
