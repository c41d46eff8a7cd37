"""The main job on the English text that every CPython carries, start to end.

Vocabulary, examples, pre-training, evaluation on held-out documents, a few
masks filled in held-out sentences, the loss curve; all by the launcher's own
commands, which are printed so that they can be typed again.
"""

import argparse
import json
import os
import pydoc_data.topics
import re
import shutil
import subprocess
import sys
import time

from bert_jax.data import corpus
from configs import demo

COMMAND = os.path.relpath(
  os.path.join(os.path.dirname(sys.executable), "bert-jax")
)


def help_pages() -> list[str]:
  """Python's help pages as plain paragraphs: no ruled lines, no tables."""
  pages = []
  for _, page in sorted(pydoc_data.topics.topics.items()):
    lines = []
    for line in page.splitlines():
      marks = len(re.findall(r"[^\w\s]", line))
      if re.search(r"[-=*^~]{4,}|\|.*\|", line) or marks * 3 > len(line):
        line = ""  # a rule, a row of a table, a drawing
      lines.append(line.strip())
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    if len(text.split()) > 30:
      pages.append(text)
  return pages


def launch(*args: str) -> None:
  """Runs the launcher, showing the command."""
  print(f"\n$ {COMMAND} " + " ".join(args), flush=True)
  done = subprocess.run((sys.executable, "-m", "bert_jax.main", *args))
  if done.returncode:
    sys.exit(f"The demo stopped: status {done.returncode}; see above.")


def held_out_sentences(config, text: str, count: int) -> list[dict]:
  """Sentences of documents that training never saw, a word masked in each."""
  lines = []
  units = corpus.list_units([text], "paragraphs", config.prepare.unit_bytes)
  for unit in units:
    for document in corpus.read_documents(unit, "paragraphs", "", "en"):
      if corpus.is_held_out(
        document, config.prepare.held_out_rate, config.prepare.held_out_seed
      ):
        good = [
          s for s in document if re.fullmatch(r"[A-Z][\w ,'()]{50,90}\.", s)
        ]
        for sentence in good[:1]:
          words = sentence.split()
          plain = [i for i, w in enumerate(words) if w.isalpha() and w[3:]]
          middle = plain[len(plain) // 2]
          answer, words[middle] = words[middle], "[MASK]"
          lines.append({"text": " ".join(words), "answer": answer})
  return lines[:count]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", default="runs/demo")
  run = parser.parse_args().workdir
  start = time.monotonic()
  text, data = f"{run}/text.txt", f"{run}/data"
  if os.path.exists(text):  # a demo before this one
    shutil.rmtree(run)
  os.makedirs(run, exist_ok=True)
  with open(text, "w", encoding="utf-8") as f:
    f.write("\n\n\n".join(help_pages()) + "\n")
  config = demo.get_config()
  flags = ("--config=configs/demo.py", f"--config.data.dir={data}")
  launch("--mode=prepare", *flags, f"--input={text}", f"--output={data}")
  launch("--mode=train", *flags, f"--workdir={run}")
  launch("--mode=evaluate", f"--workdir={run}")
  questions, answers = f"{run}/masks.jsonl", f"{run}/filled.jsonl"
  asked = held_out_sentences(config, text, 4)
  with open(questions, "w", encoding="utf-8") as f:
    f.writelines(json.dumps(line) + "\n" for line in asked)
  launch(
    "--mode=predict",
    f"--workdir={run}",
    f"--input={questions}",
    f"--output={answers}",
  )
  with open(answers, encoding="utf-8") as f:
    filled = [json.loads(line)["masks"] for line in f]
  for question, masks in zip(asked, filled, strict=True):
    best = ", ".join(f"{m['token']} {m['score']:.2f}" for m in masks[0])
    print(f"  {question['text']}\n    was {question['answer']!r}; {best}")
  subprocess.run(
    (sys.executable, "experiments/curves.py", run, f"--output={run}/loss.png"),
    check=True,
  )
  with open(f"{run}/evaluation.json", encoding="utf-8") as f:
    result = json.load(f)
  accuracy = result["eval/mlm_accuracy"]
  baseline = result["eval/most_frequent_token_accuracy"]
  print(
    f"\nDone in {time.monotonic() - start:.0f} s. On held-out pages the model"
    f" names {100 * accuracy:.1f} % of the masked tokens; always naming the"
    f" most frequent one gets {100 * baseline:.1f} %.\n"
    f"  {run}/loss.png          the loss, beside a model of frequencies alone\n"
    f"  {run}/metrics.jsonl     every number; tensorboard --logdir {run}\n"
    f"  {run}/checkpoints       the model; {data}/vocab its vocabulary\n"
    "Next: your own text, one sentence a line, blank lines between documents:\n"
    f"  {COMMAND} --mode=prepare --config=configs/pretrain.py:size=tiny"
    " --input=TEXT --output=DATA\n"
    f"  {COMMAND} --mode=train --config=configs/pretrain.py:size=tiny"
    " --config.data.dir=DATA --workdir=RUN"
  )
  if accuracy < 2 * baseline:
    sys.exit("That is less than twice as good: something is wrong.")


if __name__ == "__main__":
  main()
