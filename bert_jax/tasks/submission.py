"""Writes the predictions for GLUE or SuperGLUE as their servers take them.

  python -m bert_jax.tasks.submission --output=glue.zip RUN [RUN ...]

zips the predictions for the test splits that `bert-jax evaluate` wrote into the
workdirs RUN; with --benchmark=superglue, those of SuperGLUE.

Source: https://gluebenchmark.com/faq, https://super.gluebenchmark.com/faq
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import io
import json
import os
import sys
from typing import Any
import zipfile

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.tasks import spec
from bert_jax.tasks import tables

# The files that the server takes -> the number of examples of each test set.
GLUE_ROWS = {
  "CoLA.tsv": 1063,
  "SST-2.tsv": 1821,
  "MRPC.tsv": 1725,
  "STS-B.tsv": 1379,
  "QQP.tsv": 390965,
  "MNLI-m.tsv": 9796,
  "MNLI-mm.tsv": 9847,
  "QNLI.tsv": 5463,
  "RTE.tsv": 3000,
  "WNLI.tsv": 146,
  "AX.tsv": 1104,
}
# The same of SuperGLUE; of MultiRC the number of answers, of ReCoRD of queries.
# Source: the card of huggingface.co/datasets/aps/super_glue.
SUPERGLUE_ROWS = {
  "BoolQ.jsonl": 3245,
  "CB.jsonl": 250,
  "COPA.jsonl": 500,
  "MultiRC.jsonl": 9693,
  "ReCoRD.jsonl": 10000,
  "RTE.jsonl": 3000,
  "WiC.jsonl": 1400,
  "WSC.jsonl": 146,
  "AX-b.jsonl": 1104,
  "AX-g.jsonl": 356,
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """The files that the server of a benchmark takes.

  Attributes:
    name: the name of the benchmark.
    rows: the name of a file -> the number of its predictions.
    advice: which model predicts the files that are most often missing.
  """

  name: str
  rows: Mapping[str, int]
  advice: str


BENCHMARKS = {
  "glue": Benchmark(
    "GLUE", GLUE_ROWS, "The model of MNLI predicts MNLI-m, MNLI-mm and AX"
  ),
  "superglue": Benchmark(
    "SuperGLUE",
    SUPERGLUE_ROWS,
    "The model of superglue_rte predicts RTE, AX-b and AX-g",
  ),
}


def zip_runs(
  path: str,
  workdirs: Sequence[str],
  *,
  partial: bool = False,
  benchmark: str = "glue",
) -> list[str]:
  """Writes the zip of files that the server of a benchmark scores.

  Args:
    path: the zip to write.
    workdirs: the workdirs of fine-tuned models, whose folders predictions/ are
      read.
    partial: whether files may be missing or short, to look at the format. The
      server takes only complete zips.
    benchmark: a key of BENCHMARKS.

  Returns:
    The names of the files in the zip.

  Raises:
    spec.TaskError: A file is missing, is in two workdirs, or has another number
      of rows than its test set.
  """
  wanted = BENCHMARKS[benchmark]
  texts: dict[str, str] = {}
  for workdir in workdirs:
    for name in wanted.rows:
      source = os.path.join(workdir, "predictions", name)
      if not files.exists(source):
        continue
      if name in texts:
        raise spec.TaskError(
          f"{name} is in {workdir} and in another workdir; leave one out"
        )
      texts[name] = tables.read_text(source)
  if not partial:
    _check_complete(wanted, texts)
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
    for name in filter(texts.get, wanted.rows):
      # A fixed date, so that equal predictions give equal bytes.
      archive.writestr(zipfile.ZipInfo(name), texts[name])
  files.write_bytes(path, content.getvalue())
  return sorted(texts)


def _check_complete(benchmark: Benchmark, texts: Mapping[str, str]) -> None:
  missing = [name for name in benchmark.rows if name not in texts]
  if missing:
    raise spec.TaskError(
      f"{benchmark.name} takes {len(benchmark.rows)} files; missing:"
      f" {', '.join(missing)}. {benchmark.advice}"
    )
  for name, wanted in benchmark.rows.items():
    found = _count(name, texts[name])
    if found != wanted:
      raise spec.TaskError(
        f"{name}: {found} predictions, wanted {wanted}; predict the whole test"
        " split (max_examples=0)"
      )


def _count(name: str, text: str) -> int:
  """Returns the number of predictions in a file."""
  lines = text.splitlines()
  if not name.endswith(".jsonl"):
    return len(lines) - 1  # without the header
  return sum(
    len(question["answers"])
    for line in lines
    for question in json.loads(line)
    .get("passage", {"questions": [{"answers": [0]}]})
    .get("questions")
  )


def glue_tsv(
  task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
) -> str:
  """Returns the content of a file for the GLUE server: index and prediction.

  Labels are spelled as in the files of the task: words for the inference tasks,
  0 and 1 for the others. Scores are clipped to the range from 0 to 5.

  Args:
    task: an entry of glue.ROWS.
    examples: the examples of a test split, in any order.
    predictions: one prediction for each example.
  """
  numbers = [int(e.id) if e.id.isdecimal() else -1 for e in examples]
  places = list(range(len(examples)))
  if sorted(numbers) != places:  # The ids are not the rows of the file.
    numbers = places
  out = io.StringIO()
  out.write("index\tprediction\n")
  for number, prediction in sorted(
    zip(numbers, predictions, strict=True), key=lambda pair: pair[0]
  ):
    if isinstance(prediction, float):
      text = f"{min(max(prediction, 0.0), 5.0):.3f}"
    else:
      text = task.labels[prediction.label]
    out.write(f"{number}\t{text}\n")
  return out.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("workdirs", nargs="+", metavar="RUN")
  parser.add_argument("--output", required=True, help="the zip to write")
  parser.add_argument(
    "--benchmark", choices=sorted(BENCHMARKS), default="glue",
    help="whose files to zip (default glue)",
  )  # fmt: skip
  parser.add_argument(
    "--partial", action="store_true", help="allow missing and short files"
  )
  args = parser.parse_args(argv)
  try:
    names = zip_runs(
      args.output,
      args.workdirs,
      partial=args.partial,
      benchmark=args.benchmark,
    )
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return 2
  print(f"wrote {args.output}: {', '.join(names)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
