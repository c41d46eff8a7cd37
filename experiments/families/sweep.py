"""Fine-tuning on GLUE by the settings that each family's authors published.

  bert-jax sweep --workdir=runs/roberta-glue \
    --config=experiments/families/sweep.py:family=roberta,from=WEIGHTS,data=DATA

WEIGHTS as for configs/finetune.py; DATA has a folder a task, as GLUE comes.
`mnli=RUN` names a model that was fine-tuned on MNLI: RTE, MRPC and STS-B start
from it instead, as RoBERTa's and ModernBERT's authors did. In ELECTRA, whose
sizes small and base have the recipe "electra" and whose size large has
"electra-large", the learning rate falls from layer to layer.

Sources: facebookresearch/fairseq, examples/roberta/README.glue.md;
google-research/electra, configure_finetuning.py; AnswerDotAI/ModernBERT, issues
196 and 225.
"""

import dataclasses

from bert_jax.configs import base
from bert_jax.sweeps import sweep

TASKS = "cola+sst2+mrpc+stsb+qqp+mnli+qnli+rte"
_FROM_MNLI = ("rte", "mrpc", "stsb")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The settings of a family.

  Attributes:
    rates: learning rates to choose from, for tasks that are not in `by_task`.
    sizes: batch sizes to choose from.
    epochs: passes over the data, for tasks that are not in `by_task`.
    by_task: task -> (learning rates, epochs).
    optim: values of keys of the group `optim`.
    both_orders: tasks that learn each pair in both orders.
  """

  rates: tuple[float, ...]
  sizes: tuple[int, ...]
  epochs: float
  optim: dict[str, float]
  by_task: dict[str, tuple[tuple[float, ...], float]]
  both_orders: tuple[str, ...] = ()


def _electra(rate: float, layer_decay: float) -> Recipe:
  return Recipe(
    rates=(rate,),
    sizes=(32,),
    epochs=3.0,
    optim={
      "warmup_rate": 0.1, "weight_decay": 0.0, "layer_decay": layer_decay,
    },
    by_task={"rte": ((rate,), 10.0), "stsb": ((rate,), 10.0)},
    both_orders=("mrpc", "stsb"),
  )  # fmt: skip


RECIPES = {
  "roberta": Recipe(
    rates=(1e-5, 2e-5),
    sizes=(16, 32),
    epochs=10.0,
    optim={"warmup_rate": 0.06, "weight_decay": 0.1, "b2": 0.98},
    by_task={},
  ),
  "electra": _electra(1e-4, 0.8),
  "electra-large": _electra(5e-5, 0.9),
  "modernbert": Recipe(
    rates=(5e-5,),
    sizes=(64,),
    epochs=3.0,
    optim={"warmup_rate": 0.1},
    by_task={
      "cola": ((8e-5,), 5.0),
      "qnli": ((8e-5,), 2.0),
      "sst2": ((8e-5,), 2.0),
      "stsb": ((8e-5,), 10.0),
      "mnli": ((5e-5,), 1.0),
      "mrpc": ((5e-5,), 10.0),
      "qqp": ((5e-5,), 10.0),
      "rte": ((5e-5,), 3.0),
    },
  ),
}


def get_config(text=None):
  """Arguments: family, from, mnli, data, tasks, seeds."""
  args = base.arguments(
    text,
    family="roberta",
    mnli="",
    data="data/glue",
    tasks=TASKS,
    seeds=1,
    **{"from": ""},
  )
  if args.family not in RECIPES:
    raise ValueError(
      f"family={args.family} has no recipe; use one of {', '.join(RECIPES)}"
    )
  recipe, trials = RECIPES[args.family], []
  for task in args.tasks.split("+"):
    rates, epochs = recipe.by_task.get(task, (recipe.rates, recipe.epochs))
    start = args["from"]
    if args.mnli and task in _FROM_MNLI:
      start = args.mnli
    for rate in rates:
      for size in recipe.sizes:
        for seed in range(args.seeds):
          changes = {
            "task.dir": args.data,
            "optim.learning_rate": rate,
            "data.batch_size": size,
            "train.num_epochs": epochs,
            "seed": seed,
          } | {f"optim.{key}": value for key, value in recipe.optim.items()}
          if task in recipe.both_orders:
            changes["task.both_orders"] = True
          config = f"configs/finetune.py:task={task},from={start}"
          trials.append(sweep.trial(config, changes))
  return sweep.make(trials)
