"""The papers after BERT: what reproduces each result, and what it would take.

  python -m experiments.reproduce.later           writes later.md
  python -m experiments.reproduce.later --plan    makes the plans it lacks first

Plans are kept in plans.json, as those of page.py. Each row says where its
published numbers were read; every time on a TPU is a prediction.
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


def _encoder(paper, name, config, steps, where, pretraining, results):
  """The rows of one encoder: its pre-training, and each of its tables.

  `pretraining` and `results` have what is published, and where it was read.
  """
  published, source = pretraining
  rows = [
    Row(
      paper, f"pre-training {name}", published, _train(config, name),
      (_work(where, config, steps),), NOT_RUN, source,
    )
  ]  # fmt: skip
  makers = {"GLUE": _glue, "SQuAD": _squad, "RACE": _race}
  for table, (published, source) in results.items():
    rows.append(
      Row(paper, f"{table}, {name}", published, (makers[table](name),), (),
          NOT_RUN, source)
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
        f"the reference takes {samples:,} samples, mean of 20 runs",
        (
          page.command(
            "train", f"configs/{config},from=CHECKPOINT",
            f"runs/mlperf-{batch_size}", "--config.data.dir=runs/mlperf-text",
          ),
        ),
        (_work(where, config, math.ceil(samples / batch_size)),),
        "not run; the examples would not be those of the reference, see "
        "`configs/mlperf.py`",
        "mlcommons/logging rcp_checker/training_5.0.0/rcps_bert.json",
      )
    )  # fmt: skip
  return rows


def _electra_rows() -> list[Row]:
  """ELECTRA, small and base; the released models had more training."""
  paper = "ELECTRA (arXiv 2003.10555)"
  both = "arXiv 2003.10555 table 1; google-research/electra README, per task"
  small = _encoder(
    paper, "electra-small", "electra.py:size=small", 1_000_000, "v5e:2x2",
    ("4 days on a V100", "arXiv 2003.10555 table 1"),
    {
      "GLUE": (
        "dev average 79.9; this recipe on OpenWebText: CoLA 56.8, SST-2 88.3, "
        "MRPC 87.4, STS-B 86.8, QQP 88.3, MNLI 78.9, QNLI 87.9, RTE 68.5; the "
        "released small++: CoLA 57.0, SST-2 91.2, MRPC 88.0, STS-B 87.5, QQP "
        "89.0, MNLI 81.3, QNLI 88.4, RTE 66.7",
        both,
      ),
    },
  )  # fmt: skip
  small.append(
    Row(
      paper, "SQuAD, electra-small",
      "dev EM of the released small++: 1.1 75.8, 2.0 70.1", (), (),
      "not built here: the recipe's rows of 128 tokens are too short for it",
      "google-research/electra README",
    )
  )  # fmt: skip
  return small + _encoder(
    paper, "electra-base", "electra.py:size=base", 766_000, "v5e:4x4",
    ("4 days on 16 TPU v3", "arXiv 2003.10555 table 1"),
    {
      "GLUE": (
        "dev average 85.1; the released base++: CoLA 67.7, SST-2 95.1, MRPC "
        "89.5, STS-B 91.2, QQP 91.5, MNLI 88.8, QNLI 93.2, RTE 82.7",
        both,
      ),
      "SQuAD": (
        "dev EM/F1: 1.1 84.5/90.8, 2.0 80.5/83.3; EM of the released base++: "
        "1.1 86.8, 2.0 80.5",
        "arXiv 2003.10555 table 4; google-research/electra README",
      ),
      "RACE": (
        "not confirmed: no figure was found",
        "neither google-research/electra README nor arXiv 2003.10555 tables 1 "
        "to 5 have one",
      ),
    },
  )  # fmt: skip


def _modernbert_rows() -> list[Row]:
  paper, name = "ModernBERT (arXiv 2412.13663)", "modernbert-base"
  return [
    Row(
      paper, f"pre-training {name}",
      "1,719, 250 and 50 billion tokens in 194.2, 39.9 and 11.5 hours on 8 "
      "H100",
      _train("modernbert.py:size=base", name), (), NOT_RUN,
      "arXiv 2412.13663 table 3",
    ),
    Row(
      paper, f"GLUE, {name}",
      "dev CoLA 65.1, SST-2 96.0, MRPC 92.2, STS-B 91.8, QQP 92.1, MNLI 89.1, "
      "QNLI 93.9, RTE 87.4, average 88.4",
      (_glue(name),), (), NOT_RUN, "arXiv 2412.13663 tables 1 and 5",
    ),
    Row(
      paper, f"retrieval (BEIR), {name}",
      "nDCG@10: one vector a text 41.6, ColBERT 51.3", (), (),
      "not built here: no recipe for MS MARCO, and no run of BEIR",
      "arXiv 2412.13663 table 1",
    ),
  ]  # fmt: skip


def _mosaicbert_rows() -> list[Row]:
  paper, name = "MosaicBERT (arXiv 2312.17482)", "mosaicbert-base"
  return [
    Row(
      paper, f"pre-training {name}",
      "on 8 A100 80 GB, GLUE dev average 79.6 after 1.13 hours, 83.2 after 4.6",
      _train("mosaicbert.py:size=base", name),
      (_work("v5e:2x4", "mosaicbert.py:size=base", 70_000),), NOT_RUN,
      "arXiv 2312.17482 abstract; not confirmed: 83.2 after 4.6 hours, of "
      "table 1, was read in one quotation only",
    ),
    Row(
      paper, f"GLUE, {name}",
      "MNLI 84.95, QQP 90.29, QNLI 90.74, SST-2 92.46, CoLA 55.11, STS-B "
      "89.27, MRPC 90.03, RTE 81.36, average 84.28 (70,000 steps, mean of 5 "
      "pre-training seeds)",
      (_glue(name),), (), NOT_RUN, "model card mosaicml/mosaic-bert-base",
    ),
  ]  # fmt: skip


def _cramming_rows() -> list[Row]:
  paper, name = "Cramming (arXiv 2212.14034)", "crammed"
  source = "JonasGeiping/cramming model_card.md"
  return [
    Row(
      paper, f"pre-training {name}", "24 hours on an RTX A6000",
      _train("cramming.py", name),
      # Of the full batch; the first 60 % of the steps have fewer rows.
      (_work("v5e:1x1", "cramming.py", 12_000),), NOT_RUN, source,
    ),
    Row(
      paper, f"GLUE, {name}",
      "dev MNLI 84.1/84.6, QQP 87.5, QNLI 90.2, SST-2 92.0, CoLA 53.3, STS-B "
      "87.4, MRPC 88.9, RTE 58.5, average 80.7 (median of 5, of the best of 5 "
      "pre-trainings)",
      (_glue(name),), (), NOT_RUN, source,
    ),
  ]  # fmt: skip


def rows() -> list[Row]:
  """All rows, a paper after the other."""
  fairseq = "fairseq examples/roberta/README.md"
  albert = "google-research/albert README, V1; arXiv 1909.11942 table 2"
  return [
    *_encoder(
      "RoBERTa (arXiv 1907.11692)", "roberta-large", "roberta.py:size=large",
      500_000, "v5e:16x16",
      (
        "about a day on 1,024 V100 for each 100,000 steps",
        "arXiv 1907.11692 section 5",
      ),
      {
        "GLUE": (
          "dev MNLI 90.2/90.2, QNLI 94.7, QQP 92.2, RTE 86.6, SST-2 96.4, MRPC "
          "90.9, CoLA 68.0, STS-B 92.4",
          f"{fairseq}; arXiv 1907.11692 table 5, mismatched MNLI",
        ),
        "SQuAD": ("dev EM/F1: 1.1 88.9/94.6, 2.0 86.5/89.4", fairseq),
        "RACE": ("test 83.2, middle 86.5, high 81.3", fairseq),
      },
    ),
    *_encoder(
      "ALBERT (arXiv 1909.11942)", "albert-base", "albert.py:size=base",
      125_000, "v5e:4x4",
      ("64 to 512 TPU v3, by size", "arXiv 1909.11942 section 4.1"),
      {
        "SQuAD": ("dev F1/EM: 1.1 89.3/82.3, 2.0 80.0/77.1", albert),
        "GLUE": ("dev MNLI 81.6, SST-2 90.3", albert),
        "RACE": ("dev 64.0", albert),
      },
    ),
    *_electra_rows(),
    *_modernbert_rows(),
    *_mosaicbert_rows(),
    *_cramming_rows(),
    *_mlperf_rows(),
  ]  # fmt: skip


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
    "those of each paper; RoBERTa and ModernBERT also start RTE, MRPC and "
    "STS-B from their model of MNLI. Papers were read in transcriptions of "
    "their text, and what no source confirmed says so.",
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
