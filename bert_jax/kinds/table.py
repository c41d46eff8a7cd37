"""The tables of all kinds of training and of prediction, by name.

A new kind is a file in this folder and a line in each table here.
"""

from typing import TYPE_CHECKING, Any

from bert_jax import tasks
from bert_jax.kinds import answers
from bert_jax.kinds import choice
from bert_jax.kinds import classify
from bert_jax.kinds import embed
from bert_jax.kinds import kind
from bert_jax.kinds import multi_label
from bert_jax.kinds import pretraining
from bert_jax.kinds import regress
from bert_jax.kinds import rerank
from bert_jax.kinds import sentences
from bert_jax.kinds import span
from bert_jax.kinds import tag
from bert_jax.kinds import task_kind
from bert_jax.models.families.family import PRETRAINING_HEADS
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.weights import task_heads

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
    sentences.CONTRAST,
    sentences.SIMILARITY,
    rerank.RERANK,
  )
}
KINDS: dict[str, kind.Kind] = {
  one.name: one
  for one in (
    pretraining.MLM_NSP,
    pretraining.MLM,
    pretraining.MLM_SOP,
    pretraining.LTR,
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


def add_kind(
  kind: task_kind.TaskKind, answerer: type[answers.Answerer] | None = None
) -> None:
  """Adds a kind of task that is defined outside of this package.

  It can then be trained as `task.name=my-NAME`, where NAME is its name or that
  of one of its `forms`, by the training loop of all other tasks.

  Args:
    kind: an instance of the kind, with a name of its own. Its class attribute
      `head` describes the head to readers of weights.
    answerer: what answers new text with it; None means that only evaluation
      does.

  Raises:
    ValueError: Another kind has this name, or one of its forms.
  """
  replaces = type(TASK_KINDS.get(kind.name)).__qualname__
  if kind.name in KINDS and replaces != type(kind).__qualname__:
    raise ValueError(
      f"there is a kind {kind.name!r} already; give yours another name"
    )
  for form, (owner, _) in FORMS.items():
    if form in kind.forms and owner != kind.name:
      raise ValueError(
        f"the form {form!r} belongs to the kind {owner!r}; give the form of "
        f"{kind.name!r} another name"
      )
  TASK_KINDS[kind.name] = KINDS[kind.name] = kind
  task_heads.HEADS[kind.name] = kind.head
  FORMS.update({form: (kind.name, one) for form, one in kind.forms.items()})
  if answerer is not None:
    # The most specific first.
    others = {k: v for k, v in ANSWERERS.items() if k != answerer.name}
    ANSWERERS.clear()
    ANSWERERS.update({answerer.name: answerer} | others)


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


def of_text(name: str) -> pretraining.Mlm:
  """Returns the kind of pre-training with a name.

  Raises:
    ValueError: No kind of pre-training has this name.
  """
  found = get(name)
  if not isinstance(found, pretraining.Mlm):
    raise ValueError(f"objective={name!r} does not learn from text alone")
  return found


def kind_of_name(name: str) -> task_kind.TaskKind | None:
  """Returns the kind of the task with a name, without reading its files.

  Args:
    name: the value of task.name.

  Returns:
    The kind; None if no task has this name.
  """
  if name.startswith("my-"):
    kind, _ = FORMS.get(name.removeprefix("my-"), ("", None))
  else:
    kind = tasks.TASKS[name].kind if name in tasks.TASKS else ""
  return TASK_KINDS.get(kind)


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
    and (
      not {"task", task_heads.OWN} & set(one.parts)
      or pretrained.kind in (None, one.kind.name)
    )
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
    heads = (*PRETRAINING_HEADS, "task")
    has += [part for part in heads if part in pretrained.params]
    of_task = f" (of kind {pretrained.kind})" if pretrained.kind else ""
    raise answers.PredictError(
      f"{name} has no head for predict.kind={asked}: on the encoder it has "
      f"{', '.join(has) or 'nothing'}{of_task}; give one of "
      f"{', '.join(able)}, or other weights"
    )
  return chosen
