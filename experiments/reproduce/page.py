"""The paper's tables: what reproduces each, and what it would take.

  python -m experiments.reproduce.page           writes README.md
  python -m experiments.reproduce.page --plan    makes the plans it lacks first,
                                                 and those by the older ruler

A plan is compiled for a TPU slice (`--mode=plan`, which needs the extra `tpu`
but no TPU); plans.json beside this file keeps what the page uses of it. Steps
and examples are those of the official data. Every time is a prediction.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path

from bert_jax.configs import base
from bert_jax.sweeps import costs

HERE = Path(__file__).parent

PRETRAINING_SLICE, TASK_SLICE = "v5e:4x4", "v5e:2x2"

# Training examples of the official data.
EXAMPLES = {
  "cola": 8551, "sst2": 67_349, "mrpc": 3668, "stsb": 5749, "qqp": 363_846,
  "mnli": 392_702, "qnli": 104_743, "rte": 2490, "wnli": 635,
  "squad_v1": 87_599, "squad_v2": 130_319, "swag": 73_546, "conll2003": 14_041,
}  # fmt: skip
# Tasks that are planned by one of their kind, or of nearly the same program.
KINDS = {
  "classify": "cola sst2 mrpc qqp mnli qnli rte wnli".split(),
  "regress": ["stsb"],
  "span": ["squad_v1"],
  "span v2": ["squad_v2"],
  "choice": ["swag"],
  "tag": ["conll2003"],
}
PLANNED_AS = {
  "classify": "mrpc", "regress": "mrpc", "span": "squad_v1",
  "span v2": "squad_v2", "choice": "swag", "tag": "conll2003",
}  # fmt: skip
# (batch size, epochs) of each, as configs/finetune.py has them.
RECIPES = {
  "classify": (32, 3), "regress": (32, 3), "span": (32, 3), "span v2": (48, 2),
  "choice": (16, 3),
}  # fmt: skip

# Batch sizes and epochs of experiments/ner/sweep.py, each with three rates.
NER_GRID = tuple(
  (batch, epochs) for batch in (16, 32) for epochs in (2, 3, 4) for _ in "123"
)

# Shapes of the ablation of table 6 -> their names in configs/base.py.
SHAPES = {
  "3 x 768": "L3_H768",
  "6 x 768, 3 heads": "L6_H768_A3",
  "6 x 768": "L6_H768",
  "12 x 768": "base",
  "12 x 1024": "L12_H1024",
  "24 x 1024": "large",
}


@dataclasses.dataclass(frozen=True)
class Work:
  """Training that is planned.

  Attributes:
    topology: TPU slice.
    arguments: of the launcher.
    steps: of it, over all of its repetitions.
  """

  topology: str
  arguments: tuple[str, ...]
  steps: int

  @property
  def key(self) -> str:
    """Its name in plans.json."""
    return " ".join((self.topology, *self.arguments))


@dataclasses.dataclass(frozen=True)
class Row:
  """A result of the paper.

  Attributes:
    table: of the paper.
    what: the rows of it.
    paper: its numbers.
    commands: that reproduce it, from weights or data that an earlier row makes.
    work: what they train, empty = nothing that a plan can tell.
    status: what was run here.
    source: where its numbers were read; "" = in the paper.
  """

  table: str
  what: str
  paper: str
  commands: tuple[str, ...]
  work: tuple[Work, ...]
  status: str = "not run"
  source: str = ""


def pretraining(
  size="base", recipe="pretrain", attention="fused", **settings
) -> tuple[Work, ...]:
  """The two phases of a million steps of 256 rows (appendix A.2)."""
  common = (
    "--config.model.dtype=bfloat16",
    f"--config.model.attention={attention}",
    *(f"--config.{k}={v}" for k, v in settings.items()),
  )
  config = f"--config=configs/{recipe}.py:size={size}"
  second = "--config.data.seq_len=512"
  return (
    Work(PRETRAINING_SLICE, (config, *common), 900_000),
    Work(PRETRAINING_SLICE, (config, *common, second), 100_000),
  )


def finetuning(tasks, repeats, size="base", more=()) -> tuple[Work, ...]:
  """Fine-tuning on tasks, so many times each; NER as its grid has it.

  Args:
    tasks: their names.
    repeats: how often each is trained.
    size: of the encoder.
    more: what else differs in the model.
  """
  found = []
  for kind, names in KINDS.items():
    recipes = NER_GRID if kind == "tag" else (RECIPES[kind],)
    for rows_a_step in sorted({batch for batch, _ in recipes}):
      steps = sum(
        int(EXAMPLES[task] / batch * epochs) * repeats
        for task in names
        if task in tasks
        for batch, epochs in recipes
        if batch == rows_a_step
      )
      if steps:
        arguments = [
          f"--config=configs/finetune.py:task={PLANNED_AS[kind]}",
          "--config.model.dtype=bfloat16",
          *_shape(size),
          *more,
        ]
        if kind == "tag":
          arguments += [
            f"--config.data.batch_size={rows_a_step}",
            "--config.data.seq_len=512",
          ]
        found.append(Work(TASK_SLICE, tuple(arguments), steps))
  return tuple(found)


def _shape(size):
  """What makes the encoder of a config, which is base, one of a size."""
  normal = base.get_config().model
  return [
    f"--config.model.{k}={v}"
    for k, v in base.SIZES[size].items()
    if normal[k] != v
  ]


# Without WNLI, as in the paper.
GLUE = tuple("cola sst2 mrpc stsb qqp mnli qnli rte".split())


def command(mode, config, workdir, *more):
  """A command as it is typed."""
  head = f"bert-jax --mode={mode} --config={config} --workdir={workdir}"
  return " ".join((head, *more))


def prepare_commands(output, *more):
  """Make pre-training data: that of length 512 takes the text of the first."""
  head = "bert-jax --mode=prepare --config=configs/pretrain.py:size=base"
  first = (head, "--input='TEXT/*.txt'", f"--output={output}", *more)
  second = (head, f"--output={output}", "--config.data.seq_len=512", *more)
  return " ".join(first), " ".join(second)


def pretrain_commands(
  name, *more, size="base", recipe="pretrain", attention="fused"
):
  """Those of the two phases; `name` ends in -cased if its text is."""
  first, second = f"runs/{name}-128", f"runs/{name}"
  data = "runs/text" + ("-cased" if name.endswith("-cased") else "")
  config = f"configs/{recipe}.py:size={size}"
  common = (
    f"--config.data.dir={data}",
    "--config.model.dtype=bfloat16",
    f"--config.model.attention={attention}",
    # The paper goes on from the last step, not from the best: keep no best.
    "--config.checkpoint.best_metric=",
    *more,
  )
  return (
    command(
      "train", config, first, "--config.train.total_steps=900000", *common
    ),
    command(
      "train", config, second, "--config.train.total_steps=100000",
      "--config.data.seq_len=512", f"--config.init_from={first}", *common,
    ),
  )  # fmt: skip


def sweep_command(study, weights, *arguments, results=None):
  """That of one of the grids, with its results recorded."""
  text = (f"from={weights}", f"data={study.upper()}", "dtype=bfloat16")
  folder = results or f"runs/{study}-{Path(weights).name}"
  return command(
    "sweep",
    f"experiments/{study}/sweep.py:{','.join(text + arguments)}",
    folder,
    f"--output={folder}/results",
  )


LAYERS = (
  "embeddings", "last", "second_to_last", "concat_last_4", "weighted_last_4",
  "weighted_all",
)  # fmt: skip


def feature_command(weights, *layers):
  """Taggers on frozen hidden states, a row of table 7 each."""
  return " ".join((
    "python -m experiments.feature_ner.run --task=conll2003 --seeds=5",
    f"--data=NER --from={weights}",
    *layers,
  ))  # fmt: skip


def small(*tasks):
  """The status of what was tried with a small encoder, by task."""
  return (
    f"at paper size not run; with MiniLM's encoder: {', '.join(tasks)} "
    "([minilm](../minilm/results.md))"
  )


ABLATED = "mnli+qnli+mrpc+sst2"
TINY = (
  "at paper size not run; with tiny encoders on novels: rte, mrpc, cola, stsb "
  "([ablations](../ablations/table.md))"
)


LTR = "left_to_right"
_CAUSAL = (
  "--config.model.attention_pattern=causal",
  "--config.model.pooling=last",
)


def left_to_right_rows() -> list[Row]:
  """The left-to-right model of table 5, alone and with a BiLSTM."""
  found = []
  papers = (
    "MNLI 82.1, QNLI 84.3, MRPC 77.5, SST-2 92.1, SQuAD F1 77.8",
    "MNLI 82.1, QNLI 84.1, MRPC 75.7, SST-2 91.6, SQuAD F1 84.9",
  )
  for lstm, paper in enumerate(papers):
    name = "ltr-lstm" if lstm else "ltr"
    more = (*_CAUSAL, f"--config.model.head_lstm_layers={lstm}")
    sweeps = tuple(
      sweep_command(study, "runs/ltr", f"tasks={tasks}", "seeds=5",
                    *([f"lstm={lstm}"] if lstm else []),
                    results=f"runs/{study}-{name}")
      for study, tasks in (("glue", ABLATED), ("squad", "squad_v1"))
    )  # fmt: skip
    first = pretrain_commands("ltr", recipe=LTR, attention="plain")
    work = pretraining(recipe=LTR, attention="plain")
    found.append(
      Row(
        "Table 5",
        "left-to-right, no NSP" + (", with a BiLSTM" if lstm else ""),
        paper,
        (*(() if lstm else first), *sweeps),
        (
          *(() if lstm else work),
          *finetuning(ABLATED.split("+"), 20, more=more if lstm else _CAUSAL),
          *finetuning(("squad_v1",), 5, more=more if lstm else _CAUSAL),
        ),
        "not run",
      )
    )
  return found


_UNPLANNED = "not run; no plan, as its number of documents is not known here"


def _triviaqa_rows() -> list[Row]:
  """TriviaQA before SQuAD, and ensembles of seven systems (table 2)."""
  seven = "runs/squad_v1-seven"
  first = "runs/triviaqa-large"
  return [
    Row(
      "Table 2", "SQuAD 1.1, large, ensemble of 7", "EM 85.8, F1 91.8",
      (
        sweep_command("squad", "runs/large", "tasks=squad_v1", "seeds=7",
                      results=seven),
        f"python -m bert_jax.training.ensemble {seven}/seed={{0..6}} "
        f"--output={seven}/ensemble",
      ),
      finetuning(("squad_v1",), 7, "large"),
      "not run; the paper's systems also start from different checkpoints",
    ),
    Row(
      "Table 2", "SQuAD 1.1, large, TriviaQA first, one model and 7",
      "EM 84.2, F1 91.1, test 85.1, 91.8; 7: EM 86.2, F1 92.2, test 87.4, 93.2",
      (
        "python -m bert_jax.tasks.triviaqa TRIVIAQA runs/triviaqa.json",
        command(
          "train", "configs/finetune.py:task=squad_v1,from=runs/large", first,
          "--config.task.files.train=runs/triviaqa.json",
          "--config.task.dir=SQUAD", "--config.model.dtype=bfloat16",
        ),
        sweep_command("squad", first, "tasks=squad_v1", "seeds=7",
                      results="runs/squad_v1-triviaqa"),
        "python -m bert_jax.training.ensemble "
        "runs/squad_v1-triviaqa/seed={0..6} "
        "--output=runs/squad_v1-triviaqa/ensemble",
      ),
      (), _UNPLANNED,
    ),
  ]  # fmt: skip


def rows() -> list[Row]:
  """All of them, those first that others start from."""
  found = [
    Row(
      "Section 3.1", "text: BooksCorpus and English Wikipedia, uncased and "
      "cased", "3,300 M words",
      (
        *prepare_commands("runs/text"),
        *prepare_commands(
          "runs/text-cased", "--config.prepare.lower_case=false"
        ),
      ),
      (),
      "not run; 14 M words of novels: [novels](../novels/README.md)",
    )
  ]  # fmt: skip
  for name in ("base", "large", "base-cased", "large-cased"):
    size = name.removesuffix("-cased")
    found.append(
      Row(
        "Appendix A.2",
        f"pre-training {name}",
        "4 days on 16 TPU chips" if size == "base" else
        "4 days on 64 TPU chips",
        pretrain_commands(name, size=size),
        pretraining(size),
        "at paper size not run; tiny and mini on novels: "
        "[novels](../novels/README.md)" if name == "base" else "not run",
      )
    )  # fmt: skip
  glue = {
    "base": "MNLI 84.6/83.4, QQP 71.2, QNLI 90.5, SST-2 93.5, CoLA 52.1, "
    "STS-B 85.8, MRPC 88.9, RTE 66.4, average 79.6",
    "large": "MNLI 86.7/85.9, QQP 72.1, QNLI 92.7, SST-2 94.9, CoLA 60.5, "
    "STS-B 86.5, MRPC 89.3, RTE 70.1, average 82.1",
  }
  squad = {"base": "EM 80.8, F1 88.5", "large": "EM 84.1, F1 90.9"}
  swag = {"base": "81.6", "large": "86.6, test 86.3"}
  conll = {"base": "F1 96.4, test 92.4", "large": "F1 96.6, test 92.8"}
  for size in ("base", "large"):
    weights = f"runs/{size}"
    found += [
      Row(
        "Table 1", f"GLUE, {size}; all of the paper's are test scores",
        glue[size],
        (sweep_command("glue", weights, f"tasks={'+'.join(GLUE)}", "seeds=5"),),
        finetuning(GLUE, 4 * 5, size),
        small("cola", "sst2", "mrpc", "stsb", "rte"),
      ),
      Row(
        "Table 2", f"SQuAD 1.1, {size}, one model", squad[size],
        (sweep_command("squad", weights, "tasks=squad_v1", "seeds=5",
                       results=f"runs/squad_v1-{size}"),),
        finetuning(("squad_v1",), 5, size), small("squad_v1"),
      ),
      Row(
        "Table 4", f"SWAG, {size}", swag[size],
        (sweep_command("swag", weights, "seeds=5"),),
        finetuning(("swag",), 5, size), small("codah") + ", a task of its kind",
      ),
      Row(
        "Table 7", f"CoNLL-2003 fine-tuned, {size}, cased", conll[size],
        (sweep_command("ner", f"{weights}-cased", "seeds=5"),),
        finetuning(("conll2003",), 5, size),
        small("wnut17") + ", a task of its kind",
      ),
    ]  # fmt: skip
  found += [
    *_triviaqa_rows(),
    Row(
      "Table 3", "SQuAD 2.0, large", "EM 78.7, F1 81.9, test 80.0, 83.1",
      (sweep_command("squad", "runs/large", "tasks=squad_v2", "seeds=5",
                     results="runs/squad_v2-large"),),
      finetuning(("squad_v2",), 5, "large"), small("squad_v2"),
    ),
    Row(
      "Table 5", "base, dev", "MNLI 84.4, QNLI 88.4, MRPC 86.7, SST-2 92.7, "
      "SQuAD F1 88.5",
      (), (), "the runs of tables 1 and 2",
    ),
    Row(
      "Table 5", "no NSP", "MNLI 83.9, QNLI 84.9, MRPC 86.5, SST-2 92.6, "
      "SQuAD F1 87.9",
      (
        *pretrain_commands("no-nsp", "--config.objective=mlm"),
        sweep_command("glue", "runs/no-nsp", f"tasks={ABLATED}", "seeds=5"),
        sweep_command("squad", "runs/no-nsp", "tasks=squad_v1", "seeds=5"),
      ),
      (
        *pretraining(objective="mlm"),
        *finetuning(ABLATED.split("+"), 20), *finetuning(("squad_v1",), 5),
      ),
      TINY,
    ),
    *left_to_right_rows(),
  ]  # fmt: skip
  sizes = {
    "3 x 768": "perplexity 5.84, MNLI 77.9, MRPC 79.8, SST-2 88.4",
    "6 x 768, 3 heads": "perplexity 5.24, MNLI 80.6, MRPC 82.2, SST-2 90.7",
    "6 x 768": "perplexity 4.68, MNLI 81.9, MRPC 84.8, SST-2 91.3",
    "12 x 768": "perplexity 3.99, MNLI 84.4, MRPC 86.7, SST-2 92.9",
    "12 x 1024": "perplexity 3.54, MNLI 85.7, MRPC 86.9, SST-2 93.3",
    "24 x 1024": "perplexity 3.23, MNLI 86.6, MRPC 87.8, SST-2 93.7",
  }
  for shape, paper in sizes.items():
    size = SHAPES[shape]
    trains = size not in ("base", "large")
    found.append(
      Row(
        "Table 6", shape, paper,
        (
          *(pretrain_commands(size, size=size) if trains else ()),
          sweep_command(
            "glue", f"runs/{size}", "tasks=mnli+mrpc+sst2", "seeds=5",
            results=f"runs/glue-size-{size}",
          ),
        ),
        (
          *(pretraining(size) if trains else ()),
          *finetuning(("mnli", "mrpc", "sst2"), 20, size),
        ),
      )
    )  # fmt: skip
  found.append(
    Row(
      "Table 7", "CoNLL-2003 from frozen features, base, cased",
      "F1 embeddings 91.0, last 94.9, second-to-last 95.6, last four joined "
      "96.1 or weighted 95.9, all weighted 95.5",
      (feature_command("runs/base-cased", *LAYERS),),
      (), "not run; a tagger on one host, which no plan is for",
    )
  )  # fmt: skip
  probes = {
    "probe.every_steps": 100_000,
    "probe.dir": "GLUE",
    "probe.finetune": "mnli",
    "probe.max_train_examples": 0,
    "probe.learning_rate": 5e-5,
  }
  probed = [f"--config.{k}={v}" for k, v in probes.items()]
  found.append(
    Row(
      "Figure 5", "base and left-to-right, MNLI dev after so many steps",
      "almost 1.0 more after 1M steps than after 500k; masked LM passes "
      "left-to-right almost at once",
      (
        *pretrain_commands("base-probed", *probed),
        *pretrain_commands(
          "ltr-probed", *probed, recipe=LTR, attention="plain"
        ),
        "python -m experiments.reproduce.figure5 --output=runs/figure5 "
        "masked=runs/base-probed-128,runs/base-probed "
        "left_to_right=runs/ltr-probed-128,runs/ltr-probed",
      ),
      # Without the fine-tuning of the probes.
      (*pretraining(), *pretraining(recipe=LTR, attention="plain")),
      "not run; probes of small encoders: [proof](../proof/README.md)",
    )
  )  # fmt: skip
  # [MASK], the same, a random token.
  masks = {
    "80/10/10": (0.8, 0.1, "MNLI 84.2, NER 95.4, features 94.9"),
    "100/0/0": (1.0, 0.0, "MNLI 84.3, NER 94.9, features 94.0"),
    "80/0/20": (0.8, 0.2, "MNLI 84.1, NER 95.2, features 94.6"),
    "80/20/0": (0.8, 0.0, "MNLI 84.4, NER 95.2, features 94.7"),
    "0/20/80": (0.0, 0.8, "MNLI 83.7, NER 94.8, features 94.6"),
    "0/0/100": (0.0, 1.0, "MNLI 83.6, NER 94.9, features 94.6"),
  }
  for name, (mask, random, paper) in masks.items():
    own = "base" if name == "80/10/10" else f"masks-{name.replace('/', '-')}"
    settings = {
      "data.mask_token_rate": mask,
      "data.random_token_rate": random,
    }
    trains = own != "base"
    changes = [f"--config.{k}={v}" for k, v in settings.items()]
    found.append(
      Row(
        "Table 8", f"masks {name}; NER of uncased encoders here", paper,
        (
          *(pretrain_commands(own, *changes) if trains else ()),
          sweep_command("glue", f"runs/{own}", "tasks=mnli", "seeds=5",
                        results=f"runs/glue-{own}-mnli"),
          sweep_command("ner", f"runs/{own}", "seeds=5"),
          feature_command(f"runs/{own}", "concat_last_4"),
        ),
        # The host masks: the program is the same.
        (
          *(pretraining() if trains else ()),
          *finetuning(("mnli",), 20), *finetuning(("conll2003",), 5),
        ),
        TINY if name in ("80/10/10", "100/0/0") else "not run",
      )
    )  # fmt: skip
  return found


def cost(work, plans):
  """Predicted hours on the slice and chip-hours of some work, or None."""
  hours, chip_hours = 0.0, 0.0
  for one in work:
    plan = plans.get(one.key)
    if plan is None:
      return None
    took = plan["predicted_step_secs"] * one.steps / 3600
    hours += took
    chip_hours += took * plan["num_devices"]
  return hours, chip_hours


def page(plans) -> str:
  """The page, in Markdown."""
  lines = [
    "# The paper's tables",
    "",
    "What reproduces each result of arXiv 1810.04805, on which TPU slice, and "
    "what a plan predicts for it. **Nothing of this was run on a TPU**: hours "
    "are those of compiled programs (`--mode=plan`), of steps alone, without "
    "data, evaluations and checkpoints. A chip-hour times its price is the "
    "cost. Fine-tuning is planned at the maximum length, a sequence a row; "
    "training packs rows and takes less. The second phase of pre-training is a "
    "run of its own here, from the weights of the first: its learning rate "
    "warms up again, where the paper has one schedule over both. Fine-tuning "
    "has every learning rate of the grid with five seeds, in bfloat16.",
    "",
    *ruler_lines(rows(), plans),
    "`TEXT` stands for files of text, a sentence a line (or see "
    "`prepare.format`); `GLUE`, `SQUAD`, `SWAG`, `NER` and `TRIVIAQA` for "
    "folders of the official files. Results are recorded by the sweeps and "
    "shown by `--mode=report --input=RESULTS --output=DIR`. For scores on a "
    "test set, evaluate the run that is best by dev with "
    "`task.predict_splits=test`; the GLUE server takes what `python -m "
    "bert_jax.tasks.submission` makes of it.",
    "",
    *table_lines(rows(), plans),
    *command_lines(rows()),
  ]
  if plans:
    commits = sorted({plan["commit"][:12] for plan in plans.values()})
    lines += [f"Plans were made from commit {', '.join(commits)}.", ""]
  return "\n".join(lines)


def is_older(work: Work, plans) -> bool:
  """Whether the plan of some work is by the ruler that knew no schedules."""
  return work.key in plans and "assumed_mfu" not in plans[work.key]


def ruler_lines(found: list[Row], plans) -> list[str]:
  """What * means in the table of some rows; [] if it has none."""
  if not any(is_older(work, plans) for row in found for work in row.work):
    return []
  return [
    "Hours with * are by the older of [two rulers](../plan/README.md), by "
    "which a kernel takes assumed shares of the chip's peak, and memory limits "
    "nothing else. They were not planned again by the newer one.",
    "",
  ]


def table_lines(found: list[Row], plans) -> list[str]:
  """The table of some rows, with what their plans predict."""
  has_sources = any(row.source for row in found)
  head = ["paper", "result", "there", *(["read in"] if has_sources else [])]
  head += ["slice", "hours, predicted", "chip-hours", "status"]
  lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
  for row in found:
    planned = cost(row.work, plans)
    slices = ", ".join(dict.fromkeys(w.topology for w in row.work))
    hours = ["not planned yet"] * 2 if planned is None else _numbers(planned)
    if planned and any(is_older(work, plans) for work in row.work):
      hours = [f"{x}*" for x in hours]
    if not row.work:
      hours = ["", ""]
    read = [row.source] if has_sources else []
    cells = [row.table, row.what, row.paper, *read, slices, *hours, row.status]
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def command_lines(found: list[Row]) -> list[str]:
  """The commands of some rows, each row under its name."""
  lines = ["", "## Commands", ""]
  for row in found:
    if row.commands:
      lines += [f"{row.table}, {row.what}:", "", "```sh"]
      lines += [_wrap(text) for text in row.commands]
      lines += ["```", ""]
  return lines


def make_plans(work: list[Work], plans, path: Path, most=math.inf) -> None:
  """Makes plans one after the other, and keeps each at once."""
  for i, one in enumerate(work):
    if i >= most:
      break
    print(one.key, flush=True)
    plan = costs.make_plan(one.arguments, one.topology)
    kept = ("predicted_step_secs", "predicted_mfu", "assumed_mfu",
            "num_devices", "commit", "versions", "compile_secs")  # fmt: skip
    plans[one.key] = {name: plan[name] for name in kept}
    path.write_text(json.dumps(plans, indent=1, sort_keys=True) + "\n")


def _numbers(found):
  return [f"{x:,.1f}" if x < 100 else f"{x:,.0f}" for x in found]


def _wrap(text):
  """A command over several lines."""
  lines, line = [], ""
  for word in text.split():
    if line and len(line) + len(word) > 76:
      lines.append(line + " \\")
      line = " "
    line = f"{line} {word}" if line else word
  return "\n".join([*lines, line])


def missing(plans, found: list[Row] | None = None) -> list[Work]:
  """Work of rows whose plan is not made yet, or is older, each program once."""
  work = {one.key: one for row in found or rows() for one in row.work}
  return [
    one for one in work.values() if one.key not in plans or is_older(one, plans)
  ]


def main(argv=None):
  """Makes plans, and the page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--plan", action="store_true", help="make plans first")
  parser.add_argument("--max", type=int, default=math.inf, help="so many plans")
  args = parser.parse_args(argv)
  path = HERE / "plans.json"
  plans = json.loads(path.read_text()) if path.exists() else {}
  make_plans(missing(plans) if args.plan else [], plans, path, args.max)
  (HERE / "README.md").write_text(page(plans))


if __name__ == "__main__":
  main()
