"""The papers after BERT: what reproduces each result, and what it would take.

  python -m experiments.reproduce.later           writes later.md
  python -m experiments.reproduce.later --plan    makes the plans it lacks first

Plans are kept in plans.json, as those of page.py. Numbers are those that the
papers print; every time is a prediction.
"""

import argparse
import json
import math

from configs import mlperf
from experiments.reproduce import page
from experiments.reproduce.page import Row
from experiments.reproduce.page import Work

HERE = page.HERE
NOT_RUN = "not run"


def _train(config, name, *more, data=""):
  """The commands that prepare text and pre-train, for one recipe."""
  folder = data or f"runs/{name}-text"
  first = () if data else (
    f"bert-jax --mode=prepare --config=configs/{config} --input='TEXT/*.txt' "
    f"--output={folder}",
  )  # fmt: skip
  trained = page.command(
    "train", f"configs/{config}", f"runs/{name}", f"--config.data.dir={folder}",
    "--config.model.dtype=bfloat16", *more,
  )  # fmt: skip
  return (*first, trained)


def _glue(name):
  return page.sweep_command(
    "glue", f"runs/{name}", f"tasks={'+'.join(page.GLUE)}", "seeds=5"
  )


def _squad(name):
  return page.sweep_command("squad", f"runs/{name}", "seeds=5")


def _race(name):
  return page.command(
    "train", f"configs/finetune.py:task=race,from=runs/{name}",
    f"runs/race-{name}", "--config.task.dir=RACE",
    "--config.task.eval_splits=validation,test,test_middle,test_high",
    "--config.model.dtype=bfloat16",
  )  # fmt: skip


def _work(topology, config, steps, *more):
  dtype = "--config.model.dtype=bfloat16"
  return Work(topology, (f"--config=configs/{config}", dtype, *more), steps)


def _encoder(paper, name, config, steps, where, numbers):
  """The rows of one encoder: its pre-training, and each of its tables."""
  rows = [
    Row(
      paper, f"pre-training {name}", "", _train(config, name),
      (_work(where, config, steps),), NOT_RUN,
    )
  ]  # fmt: skip
  makers = {"GLUE": _glue, "SQuAD": _squad, "RACE": _race}
  for table, result in numbers.items():
    rows.append(
      Row(paper, f"{table}, {name}", result, (makers[table](name),), (),
          NOT_RUN)
    )  # fmt: skip
  return rows


def _mlperf_rows():
  """MLPerf's BERT on two slices, by the reference convergence points."""
  rows = []
  for where, batch_size in (("v5e:16x16", 4096), ("v5p:2x4x4", 1536)):
    samples = mlperf.POINTS[batch_size][-1]
    config = f"mlperf.py:batch_size={batch_size}"
    rows.append(
      Row(
        "MLPerf 5.0",
        f"masked accuracy 0.72, {batch_size:,} rows a step",
        f"the reference takes {samples:,} samples, mean of 10 to 23 runs",
        (
          page.command(
            "train", f"configs/{config},from=CHECKPOINT",
            f"runs/mlperf-{batch_size}", "--config.data.dir=runs/mlperf-text",
          ),
        ),
        (_work(where, config, math.ceil(samples / batch_size)),),
        "not run; the examples would not be those of the reference, see "
        "`configs/mlperf.py`",
      )
    )  # fmt: skip
  return rows


def rows() -> list[Row]:
  """All rows, a paper after the other."""
  found = _encoder(
    "RoBERTa (arXiv 1907.11692)", "roberta-large", "roberta.py:size=large",
    500_000, "v5e:16x16",
    {
      "GLUE": "dev: MNLI 90.2/90.2, QNLI 94.7, QQP 92.2, RTE 86.6, SST-2 "
      "96.4, MRPC 90.9, CoLA 68.0, STS-B 92.4",
      "SQuAD": "dev EM/F1: 1.1 88.9/94.6, 2.0 86.5/89.4",
      "RACE": "test 83.2, middle 86.5, high 81.3",
    },
  )  # fmt: skip
  found += _encoder(
    "ALBERT (arXiv 1909.11942)", "albert-base", "albert.py:size=base", 125_000,
    "v5e:4x4",
    {
      "SQuAD": "dev F1/EM: 1.1 89.3/82.3, 2.0 80.0/77.1",
      "GLUE": "MNLI 81.6, SST-2 90.3",
      "RACE": "64.0",
    },
  )  # fmt: skip
  found += _encoder(
    "ELECTRA (arXiv 2003.10555)", "electra-small", "electra.py:size=small",
    1_000_000, "v5e:2x2", {"GLUE": "dev average 79.9"},
  )  # fmt: skip
  found += _encoder(
    "ELECTRA (arXiv 2003.10555)", "electra-base", "electra.py:size=base",
    766_000, "v5e:4x4",
    {"GLUE": "dev average 85.1", "SQuAD": "", "RACE": ""},
  )  # fmt: skip
  found += [
    Row(
      "ModernBERT (arXiv 2412.13663)", "pre-training modernbert-base",
      "2 T tokens in three phases",
      _train("modernbert.py:size=base", "modernbert-base"), (), NOT_RUN,
    ),
    Row(
      "ModernBERT (arXiv 2412.13663)", "GLUE, modernbert-base", "average 88.4",
      (_glue("modernbert-base"),), (), NOT_RUN,
    ),
    Row(
      "ModernBERT (arXiv 2412.13663)", "retrieval (BEIR), modernbert-base", "",
      (), (), "not built here: no recipe for MS MARCO, and no run of BEIR",
    ),
    Row(
      "MosaicBERT (arXiv 2312.17482)", "pre-training mosaicbert-base",
      "1.13 hours on 8 A100",
      _train("mosaicbert.py:size=base", "mosaicbert-base"),
      (_work("v5e:2x4", "mosaicbert.py:size=base", 70_000),), NOT_RUN,
    ),
    Row(
      "MosaicBERT (arXiv 2312.17482)", "GLUE, mosaicbert-base",
      "dev average 79.6", (_glue("mosaicbert-base"),), (), NOT_RUN,
    ),
    Row(
      "Cramming (arXiv 2212.14034)", "pre-training crammed",
      "a day on one GPU", _train("cramming.py", "crammed"),
      # Of the full batch; the first 60 % of the steps have fewer rows.
      (_work("v5e:1x1", "cramming.py", 12_000),), NOT_RUN,
    ),
    Row(
      "Cramming (arXiv 2212.14034)", "GLUE, crammed",
      "MNLI 84.1/84.6, QQP 87.5, QNLI 90.2, SST-2 92.0, CoLA 53.3, STS-B 87.4, "
      "MRPC 88.9, RTE 58.5, average 80.7 (median of 5, its model card)",
      (_glue("crammed"),), (), NOT_RUN,
    ),
    *_mlperf_rows(),
  ]  # fmt: skip
  return found


def text(plans) -> str:
  """The page, in Markdown."""
  lines = [
    "# The papers after BERT",
    "",
    "What reproduces each result of RoBERTa, ALBERT, ELECTRA, ModernBERT, "
    "MosaicBERT and cramming, and MLPerf's BERT. **Nothing of this was run.** "
    "Hours will be those of compiled programs, as on [the page of the "
    "paper](README.md); most rows are not planned yet. That page's "
    "placeholders stand here, too; `CHECKPOINT` is "
    "MLPerf's model.ckpt-28252, and `runs/mlperf-text` text that was prepared "
    "with `configs/mlperf.py`. Fine-tuning has BERT's grids, which are not "
    "those of each paper. Results without a number are in the papers' tables "
    "for other sizes only, or were not looked up.",
    "",
    *page.ruler_lines(rows(), plans),
    *page.table_lines(rows(), plans),
    *page.command_lines(rows()),
  ]
  return "\n".join(lines)


def main(argv=None):
  """Makes plans, and the page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--plan", action="store_true", help="make plans first")
  parser.add_argument("--max", type=int, default=math.inf, help="so many plans")
  parser.add_argument("--only", default="", help="plans whose name has this")
  args = parser.parse_args(argv)
  path = HERE / "plans.json"
  plans = json.loads(path.read_text()) if path.exists() else {}
  if args.plan:
    lacking = [w for w in page.missing(plans, rows()) if args.only in w.key]
    page.make_plans(lacking, plans, path, args.max)
  (HERE / "later.md").write_text(text(plans))


if __name__ == "__main__":
  main()
