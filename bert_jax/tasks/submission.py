"""What the GLUE server takes: a zip of the predictions for its test sets.

  python -m bert_jax.tasks.submission --output=glue.zip RUN [RUN ...]

zips what `--mode=evaluate` wrote of the test splits into the workdirs RUN.

Source: https://gluebenchmark.com/faq
"""

import argparse
from collections.abc import Mapping, Sequence
import io
import os
import sys
from typing import Any
import zipfile

from bert_jax.runtime import files
from bert_jax.tasks import spec
from bert_jax.tasks import tables

# What the server wants, and how many rows the test sets have.
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


def zip_runs(
  path: str, workdirs: Sequence[str], *, partial: bool = False
) -> list[str]:
  """Writes the zip of eleven TSVs that the GLUE server scores.

  Args:
    path: of the zip.
    workdirs: of fine-tuned models; their folders predictions/ are read.
    partial: allow files to be missing or short, for a look at the format; the
      server takes only all of them.

  Returns:
    The names of the files in it.

  Raises:
    spec.TaskError: a file is missing, has another number of rows than its
      test set, or is in two workdirs.
  """
  texts: dict[str, str] = {}
  for workdir in workdirs:
    for name in GLUE_ROWS:
      source = os.path.join(workdir, "predictions", name)
      if not os.path.exists(source):
        continue
      if name in texts:
        raise spec.TaskError(f"{name} is in {workdir} and in another; drop one")
      texts[name] = tables.read_text(source)
  _write_zip(path, texts, partial)
  return sorted(texts)


def _write_zip(path: str, texts: Mapping[str, str], partial: bool) -> None:
  if not partial:
    _check_complete(texts)
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
    for name in GLUE_ROWS:
      if name in texts:
        # A fixed date, so that equal predictions give equal bytes.
        archive.writestr(zipfile.ZipInfo(name), texts[name])
  files.write_bytes(path, content.getvalue())


def _check_complete(texts: Mapping[str, str]) -> None:
  missing = [name for name in GLUE_ROWS if name not in texts]
  if missing:
    raise spec.TaskError(
      f"GLUE wants eleven files; missing: {', '.join(missing)}. MNLI's model"
      " predicts MNLI-m, MNLI-mm and AX"
    )
  for name, wanted in GLUE_ROWS.items():
    found = texts[name].count("\n") - 1
    if found != wanted:
      raise spec.TaskError(
        f"{name}: {found} predictions, wanted {wanted}; predict the whole test"
        " split (max_examples=0)"
      )


def glue_tsv(
  task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
) -> str:
  """A file for the GLUE server: index and prediction.

  Labels are spelled as in the task's own files: words for the inference
  tasks, 0 and 1 for the others; scores lie between 0 and 5.

  Args:
    task: a row of glue.ROWS.
    examples: of a test split, in any order.
    predictions: one an example.
  """
  numbers = _numbers([example.id for example in examples])
  rows = sorted(zip(numbers, predictions, strict=True), key=lambda r: r[0])
  out = io.StringIO()
  out.write("index\tprediction\n")
  for number, prediction in rows:
    if isinstance(prediction, float):
      text = f"{min(max(prediction, 0.0), 5.0):.3f}"
    else:
      text = task.labels[prediction.label]
    out.write(f"{number}\t{text}\n")
  return out.getvalue()


def _numbers(ids: Sequence[str]) -> list[int]:
  """The row that each example has in its file."""
  if all(id.isdecimal() for id in ids):
    numbers = [int(id) for id in ids]
    if sorted(numbers) == list(range(len(ids))):
      return numbers
  return list(range(len(ids)))


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("workdirs", nargs="+", metavar="RUN")
  parser.add_argument("--output", required=True, help="the zip to write")
  parser.add_argument(
    "--partial", action="store_true", help="also with files missing or short"
  )
  args = parser.parse_args(argv)
  try:
    names = zip_runs(args.output, args.workdirs, partial=args.partial)
  except spec.TaskError as error:
    print(error, file=sys.stderr)
    return 2
  print(f"wrote {args.output}: {', '.join(names)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
