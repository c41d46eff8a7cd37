"""The demo: pre-trains a small encoder on the docstrings of packages.

It gathers the text, prepares it, trains and evaluates, draws the curves, and
fills masks in sentences that training never saw. Every step is a command of the
launcher, which is printed so that it can be typed again.
"""

from collections.abc import Iterable, Iterator
from concurrent import futures
import hashlib
import inspect
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import time

from bert_jax.runtime import errors
from bert_jax.runtime import files

_log = logging.getLogger(__name__)

# Share of the text, by whole packages, that is held out of training.
HELD_OUT_RATE = 0.03
# A held-out sentence that shares this many words in a row with the text of
# training is left out, since it may be a copy.
_COPIED_WORDS = 8
_OWN_SENTENCES = (
  "If the file does not [MASK], an error is raised.",
  "The number of [MASK] to draw from the distribution.",
)
_NUM_SHOWN = 10


class DemoError(errors.UserError):
  """The demo cannot go on."""

  exit_status = errors.FAILED


def sentences_of(docstring: str) -> Iterator[str]:
  """Yields the sentences of a docstring, without examples, tables and rules.

  Markup of reStructuredText is removed. A block of lines counts as text if it
  ends like a sentence and holds few signs.
  """
  for block in _blocks(inspect.cleandoc(docstring)):
    text = re.sub(r":\w+(?::\w+)?:`~?([^`<]*?)(?: <[^`]*>)?`", r"\1", block)
    text = re.sub(r"\s+", " ", re.sub(r"[`*]+", "", text)).strip()
    # An argument of Google's style, as in "x: the array."
    text = re.sub(r"^\w+(?: \([^)]*\))?: ", "", text)
    signs = len(re.findall(r"[^\w\s.,;'()-]", text))
    if not re.search(r"[a-z)]\.$", text) or signs * 15 > len(text):
      continue
    for sentence in re.split(r"(?<=[a-z)]\.) (?=[A-Z])", text):
      if len(sentence.split()) > 3:
        yield sentence


def _blocks(text: str) -> Iterator[str]:
  """Yields the paragraphs of a text, each as one line.

  A paragraph ends at an empty line, at a line that is indented less, and where
  a line that ends a sentence or a heading is followed by an indented one.
  """
  block: list[str] = []
  before = 0
  for line in [*text.splitlines(), ""]:
    stripped = line.strip()
    indent = len(line) - len(stripped)
    is_code = stripped.startswith((">>>", "...", "..", "|", "+-", "==", "--"))
    ends = indent < before or (
      indent > before and block and not re.search(r"[\w,]$", block[-1])
    )
    if block and (ends or is_code or not stripped or " : " in block[-1]):
      yield " ".join(block)
      block = []
    if stripped and not is_code:
      block.append(stripped)
    before = indent


# A string that begins a line is the docstring of what stands above it.
_DOCSTRING = re.compile(
  r"""^[ \t]*[rRuU]?(\"{3}|'{3})(.*?)\1""", re.MULTILINE | re.DOTALL
)


def _docstrings(path: str) -> list[str]:
  """Returns the sentences of all docstrings of a Python file, in order."""
  source = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
  texts = (found[2] for found in _DOCSTRING.finditer(source))
  return [s for text in texts for s in sentences_of(text)]


def _sources() -> dict[str, list[str]]:
  """Returns the Python files of Python's library and of installed packages.

  Returns:
    Name of a package or module -> its files, without its tests.
  """
  folders = [
    path
    for key in ("stdlib", "purelib")
    for path in sorted(pathlib.Path(sysconfig.get_path(key)).iterdir())
    if path.name not in ("site-packages", "test", "idlelib", "lib2to3")
  ]
  found = {}
  for folder in folders:
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]
    kept = [
      str(path)
      for path in paths
      if path.suffix == ".py"
      and not {"test", "tests"} & set(path.relative_to(folder.parent).parts)
    ]
    if kept:
      found[folder.stem] = kept
  return found


def gather(folder: str) -> tuple[str, str]:
  """Writes the docstrings of Python and of packages, one sentence a line.

  A sentence is written once. A package is a document. Some packages are held
  out, and of these every sentence that has a near copy in the rest is dropped.

  Returns:
    The paths of the text to train on and of the held-out text.
  """
  seen: set[str] = set()
  texts: dict[str, list[str]] = {}
  with futures.ProcessPoolExecutor() as pool:
    for name, paths in _sources().items():
      rows = pool.map(_docstrings, paths, chunksize=32)
      new = dict.fromkeys(s for row in rows for s in row if s not in seen)
      seen.update(new)
      texts[name] = list(new)
  held_out = _choose_held_out(texts)
  kept = {name: text for name, text in texts.items() if name not in held_out}
  checked = _without_copies([texts[name] for name in held_out], kept.values())
  os.makedirs(folder, exist_ok=True)
  paths = []
  for split, documents in (("train", kept.values()), ("held_out", checked)):
    path = os.path.join(folder, f"{split}.txt")
    with open(path, "w", encoding="utf-8") as f:
      for document in documents:
        f.writelines(sentence + "\n" for sentence in document)
        f.write("\n")
    paths.append(path)
  words = sum(len(s.split()) for text in kept.values() for s in text)
  _log.info(
    "%d sentences of %d packages, %.1f million words; held out: %s",
    len(seen), len(texts), words / 1e6, ", ".join(held_out),
  )  # fmt: skip
  return paths[0], paths[1]


def _choose_held_out(texts: dict[str, list[str]]) -> list[str]:
  """Returns packages that together hold about HELD_OUT_RATE of the text."""
  sizes = {name: sum(map(len, text)) for name, text in texts.items()}
  left = HELD_OUT_RATE * sum(sizes.values())
  chosen = []
  for name in sorted(
    sizes, key=lambda name: hashlib.sha256(name.encode()).digest()
  ):
    if sizes[name] <= left:
      chosen.append(name)
      left -= sizes[name]
  return chosen


def _without_copies(
  held_out: list[list[str]], others: Iterable[list[str]]
) -> list[list[str]]:
  """Returns held-out sentences with no _COPIED_WORDS words from the others."""

  def runs(sentence: str) -> set[int]:
    words = re.findall(r"\w+", sentence.lower())
    ends = range(_COPIED_WORDS, max(len(words), _COPIED_WORDS) + 1)
    return {hash(tuple(words[end - _COPIED_WORDS : end])) for end in ends}

  wanted = {run for text in held_out for s in text for run in runs(s)}
  copied: set[int] = set()
  for text in others:
    for sentence in text:
      copied |= wanted & runs(sentence)
  return [[s for s in text if not copied & runs(s)] for text in held_out]


def _launch(*args: str) -> None:
  """Runs the launcher in a process of its own, and shows the command."""
  print("\n$ bert-jax " + " ".join(args), flush=True)
  done = subprocess.run((sys.executable, "-m", "bert_jax.main", *args))
  if done.returncode:
    raise DemoError(
      f"the demo stopped, because bert-jax {args[0]} ended with status "
      f"{done.returncode}; its error is above"
    )


def masked(path: str, count: int) -> list[dict[str, str]]:
  """Returns sentences of a file, with a word replaced by [MASK] in each."""
  with open(path, encoding="utf-8") as f:
    good = [
      line.strip()
      for line in f
      if re.fullmatch(r"[A-Z][\w ,']{40,75}\.\n", line)
    ]
  records = []
  for sentence in good[:: max(len(good) // count, 1)][:count]:
    words = sentence.split()
    plain = [i for i, word in enumerate(words) if word.isalpha() and word[3:]]
    if plain:
      middle = plain[len(plain) // 2]
      answer, words[middle] = words[middle], "[MASK]"
      records.append({"text": " ".join(words), "answer": answer})
  return records


def run(workdir: str) -> None:
  """Runs the demo.

  Args:
    workdir: the folder to write to; a demo that is there already is removed.

  Raises:
    DemoError: A command failed, the folder holds something else, or the model
      is not clearly better than naming the most frequent token.
  """
  if files.is_remote(workdir):
    raise errors.UserError(
      f"--workdir={workdir}: the demo writes to a folder of this machine; give "
      "one"
    )
  start = time.monotonic()
  text, data = os.path.join(workdir, "text"), os.path.join(workdir, "data")
  ours = os.path.join(workdir, ".demo")  # marks the folder of a demo
  if os.path.exists(ours):
    shutil.rmtree(workdir)
  elif os.path.isdir(workdir) and os.listdir(workdir):
    raise errors.UserError(
      f"{workdir} is not empty and was not made by this demo; delete it, or "
      "give another --workdir"
    )
  os.makedirs(workdir, exist_ok=True)
  pathlib.Path(ours).touch()
  train, held_out = gather(text)
  config = ("--config=demo", f"--config.data.dir={data}")
  _launch(
    "prepare", *config, f"--config.prepare.held_out_input={held_out}",
    f"--input={train}", f"--output={data}",
  )  # fmt: skip
  _launch("train", *config, f"--workdir={workdir}")
  _launch("evaluate", f"--workdir={workdir}")
  questions, answers = f"{workdir}/masks.jsonl", f"{workdir}/filled.jsonl"
  asked = masked(held_out, _NUM_SHOWN)
  asked += [{"text": text, "answer": ""} for text in _OWN_SENTENCES]
  with open(questions, "w", encoding="utf-8") as f:
    f.writelines(json.dumps(record) + "\n" for record in asked)
  _launch(
    "predict", f"--workdir={workdir}", f"--input={questions}",
    f"--output={answers}",
  )  # fmt: skip
  with open(answers, encoding="utf-8") as f:
    filled = [json.loads(line)["masks"][0] for line in f]
  for record, tokens in zip(asked, filled, strict=True):
    best = ", ".join(f"{m['token']} {m['score']:.2f}" for m in tokens)
    was = f"was {record['answer']}; " if record["answer"] else ""
    print(f"  {record['text']}\n      {was}{best}")
  _launch("report", f"--input={workdir}")
  with open(f"{workdir}/evaluation.json", encoding="utf-8") as f:
    result = json.load(f)
  accuracy = result["eval/mlm_accuracy"]
  baseline = result["eval/most_frequent_token_accuracy"]
  print(
    textwrap.dedent(f"""
    Done in {time.monotonic() - start:.0f} s. In packages that it never saw, the
    model names {100 * accuracy:.1f} % of the masked tokens; always naming the
    most frequent token gets {100 * baseline:.1f} %.
      {workdir}/report.html     the curves
      {workdir}/metrics.jsonl   every number; tensorboard --logdir {workdir}
    Ask it yourself:
      bert-jax predict --workdir={workdir} --text="Returns a new [MASK] object."
    Train on your own text, documents with blank lines between them:
      bert-jax prepare --config=pretrain:size=tiny --input=TEXT --output=DATA
      bert-jax train --config=pretrain:size=tiny --config.data.dir=DATA \\
        --workdir=RUN""")
  )
  if accuracy < 2 * baseline:
    raise DemoError("that is less than twice as good: something is wrong")
