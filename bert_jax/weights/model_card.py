"""The model card of a converted run: what it is, how it was made, its scores.

A Hugging Face folder gets README.md with the record of its run, and a
tokenizer.json, which the library `tokenizers` reads by itself.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

import bert_jax
from bert_jax.data.tokenizers import hf_pipeline
from bert_jax.data.tokenizers import wordpiece
from bert_jax.models import families
from bert_jax.runtime import files
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.weights import task_heads
from bert_jax.weights.pretrained import Pretrained

CARD = "README.md"
# Class of transformers, without the family -> pipeline_tag of the hub.
_TAGS = {
  "ForSequenceClassification": "text-classification",
  "ForTokenClassification": "token-classification",
  "ForQuestionAnswering": "question-answering",
  "ForMultipleChoice": "multiple-choice",
}
# Keys of the recipe that the card shows.
_RECIPE = (
  "task.name", "objective", "data.seq_len", "data.batch_size",
  "train.num_epochs", "train.total_steps", "optim.name", "optim.learning_rate",
  "optim.warmup_rate", "optim.weight_decay", "seed",
)  # fmt: skip


def write(
  pretrained: Pretrained, source: str, folder: str, average_last: int = 0
) -> list[str]:
  """Adds README.md and tokenizer.json to a Hugging Face folder.

  Args:
    pretrained: the model that the folder holds.
    source: where it was read from. If it is a run, the card has its record.
    folder: the folder, which is whole.
    average_last: of how many steps the weights are the mean; 0 = of one alone.

  Returns:
    The names of the files that were added; files that are there stay.
  """
  added = []
  path = os.path.join(folder, CARD)
  if not files.exists(path):
    name = os.path.basename(folder)
    files.write_text(path, text_of(pretrained, source, name, average_last))
    added.append(CARD)
  if write_tokenizer(pretrained, folder):
    added.append("tokenizer.json")
  return added


def write_tokenizer(pretrained: Pretrained, folder: str) -> bool:
  """Writes tokenizer.json for a WordPiece vocabulary; returns whether it did.

  Args:
    pretrained: the model, which has the vocabulary.
    folder: the folder; a file that is there stays.
  """
  tokenizer = pretrained.tokenizer
  path = os.path.join(folder, "tokenizer.json")
  if not isinstance(tokenizer, wordpiece.WordPieceTokenizer):
    return False
  if files.exists(path):
    return False
  spec = families.get_family(pretrained.family).tokenizer.of_wordpiece()
  rules = hf_pipeline.rules_of_wordpiece(tokenizer, spec)
  files.write_json(path, rules, indent=2, ensure_ascii=False)
  return True


def text_of(
  pretrained: Pretrained, source: str, name: str, average_last: int = 0
) -> str:
  """Returns the text of a model card.

  Args:
    pretrained: the model.
    source: where it was read from.
    name: the title.
    average_last: of how many steps the weights are the mean; 0 = of one alone.
  """
  run = runs.read_run(source) if source and runs.exists(source) else {}
  head: dict[str, Any] = {"library_name": "transformers", "tags": ["bert_jax"]}
  if "mlm" in pretrained.params and pretrained.kind is None:
    head["pipeline_tag"] = "fill-mask"
  elif task_head := task_heads.HEADS.get(pretrained.kind or ""):
    if task_head.hf_class in _TAGS:
      head["pipeline_tag"] = _TAGS[task_head.hf_class]
  base = run.get("init_from_source") or pretrained.source
  if base:
    head["base_model"] = base.removeprefix("hub://").partition("@")[0]
  lines = ["---", *_yaml(head), "---", "", f"# {name}", ""]
  sizes = pretrained.model
  lines += [
    f"A model of the family `{pretrained.family}` with {sizes['num_layers']} "
    f"layers of width {sizes['hidden_size']}, written by bert_jax "
    f"{bert_jax.__version__}.",
    "",
  ]
  if pretrained.kind:
    lines += [f"Its head is for the task `{pretrained.kind}`.", ""]
  if pretrained.labels:
    listed = ", ".join(f"`{label}`" for label in pretrained.labels)
    lines += [f"Labels: {listed}.", ""]
  if run:
    lines += _score_lines(source, average_last)
    lines += _record(run)
  return "\n".join(lines).rstrip() + "\n"


def _yaml(values: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a front matter; JSON is YAML."""
  return [
    f"{key}: {json.dumps(value, ensure_ascii=False)}"
    for key, value in values.items()
  ]


def _score_lines(workdir: str, average_last: int) -> list[str]:
  """Returns the lines about the scores of the weights that were read."""
  lines = ["## Scores", ""]
  if not files.exists(os.path.join(workdir, "metrics.jsonl")):
    return []
  if average_last:
    return [
      *lines,
      f"None: these weights are the mean of the {average_last} newest steps of "
      "the run, which evaluated single steps.",
      "",
    ]
  chosen = saved_steps.choose(workdir)
  if scores := _scores(workdir, chosen.step):
    lines += ["| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value:.6g} |" for name, value in scores.items()]
    lines += ["", f"They are those of step {chosen.step}, whose weights these "
              "are.", ""]  # fmt: skip
  else:
    lines += [f"None: the run did not evaluate step {chosen.step}, whose "
              "weights these are.", ""]  # fmt: skip
  return lines


def _scores(workdir: str, step: int) -> dict[str, float]:
  """Returns the metrics eval/NAME that the log of a run has of a step."""
  return metrics_log.scores_at(metrics_log.read_metrics(workdir), step)


def _record(run: Mapping[str, Any]) -> list[str]:
  """Returns the lines about the run: recipe, data and code."""
  flat = settings.flatten(run.get("config") or {})
  recipe = {
    f"`{key}`": flat[key] for key in _RECIPE if flat.get(key) not in (None, "")
  }
  names = {"code": "commit", "data": "data_hash", "started": "started"}
  record = {
    name: f"`{run[key]}`" for name, key in names.items() if run.get(key)
  }
  return [*_table("Recipe", "key", recipe), *_table("Record", "of", record)]


def _table(title: str, first: str, rows: Mapping[str, Any]) -> list[str]:
  """Returns a section with a table of two columns; [] without rows."""
  if not rows:
    return []
  lines = [f"## {title}", "", f"| {first} | value |", "|---|---|"]
  return [*lines, *(f"| {k} | {v} |" for k, v in rows.items()), ""]
