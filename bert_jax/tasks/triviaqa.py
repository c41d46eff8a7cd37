"""Makes SQuAD files of TriviaQA, to fine-tune on before SQuAD.

  python -m bert_jax.tasks.triviaqa TRIVIAQA OUTPUT.json [--split=train]

TRIVIAQA is the folder of the archive triviaqa-rc, with qa/ and evidence/. As in
the paper, a context is the first 400 tokens of a Wikipedia document, and is
kept if it holds one of the answers to the question. Tokens are what stands
between spaces, which the paper does not say. The answer to learn is the first
place of any of them, as whole words, whatever their case.

Source: BERT paper, section 4.2, footnote; https://aclanthology.org/P17-1147
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import os
import re
import sys
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.tasks import spec
from bert_jax.tasks import tables

_WORD = re.compile(r"\S+")


def first_tokens(text: str, count: int) -> str:
  """Returns a text up to the end of its token number `count`.

  Example:
    >>> first_tokens("one two  three", 2)
    'one two'
  """
  end = 0
  for number, match in enumerate(_WORD.finditer(text)):
    if number == count:
      break
    end = match.end()
  return text[:end]


def find_answer(
  text: str, answers: Sequence[str], most: int = 1
) -> list[tuple[str, int]]:
  """Returns the first places of any of the answers in a text.

  Args:
    text: the text.
    answers: spellings of the answer; empty ones are left out.
    most: the most places to return.

  Returns:
    (the answer as the text spells it, the index of its first character).

  Example:
    >>> find_answer("In Paris, in paris", ["PARIS", "Lutetia"])
    [('Paris', 3)]
  """
  words = sorted({a.strip() for a in answers if a.strip()}, key=len)[::-1]
  if not words:
    return []
  parts = (r"\s+".join(map(re.escape, word.split())) for word in words)
  pattern = re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE)
  found: list[tuple[str, int]] = []
  for match in pattern.finditer(text):
    if len(found) == most:
      break
    found.append((match.group(), match.start()))
  return found


def questions(
  path: str, evidence: str, num_tokens: int
) -> Iterator[tuple[str, dict[str, Any] | None]]:
  """Yields the documents of the questions of a file of TriviaQA.

  Args:
    path: a file such as qa/wikipedia-train.json.
    evidence: the folder evidence/wikipedia.
    num_tokens: the tokens of a context.

  Yields:
    For each document of each question its id, and a paragraph of SQuAD, or
    None if its first tokens hold no answer.

  Raises:
    spec.TaskError: A file is missing or laid out in another way.
  """
  content = tables.read_json(path)
  if not isinstance(content, Mapping) or "Data" not in content:
    raise spec.TaskError(f"{path} is not laid out as TriviaQA: no field Data")
  for question in content["Data"]:
    try:
      id, asked = question["QuestionId"], question["Question"]
      known = question["Answer"]
      answers = [known["Value"], *known.get("Aliases", [])]
      names = [page["Filename"] for page in question["EntityPages"]]
    except (KeyError, TypeError, AttributeError) as error:
      raise spec.TaskError(
        f"{path} is not laid out as TriviaQA: {error!r:.200}; wanted"
        " QuestionId, Question, Answer with Value, and EntityPages with"
        " Filename"
      ) from error
    for name in names:
      key = f"{id}--{name}"
      text = tables.read_text(os.path.join(evidence, name))
      context = first_tokens(text, num_tokens)
      places = find_answer(context, answers)
      if not places:
        yield key, None
        continue
      ((answer, start),) = places
      asked_of = {
        "id": key,
        "question": asked,
        "answers": [{"text": answer, "answer_start": start}],
      }
      yield key, {"context": context, "qas": [asked_of]}


def convert(
  folder: str, output: str, split: str = "train", num_tokens: int = 400
) -> tuple[int, int]:
  """Writes a file of SQuAD 1.1.

  Args:
    folder: the folder with qa/ and evidence/.
    output: the file to write.
    split: "train" or "dev".
    num_tokens: the tokens of a context.

  Returns:
    The number of contexts that were kept, and of all.

  Raises:
    spec.TaskError: A file is missing, or no context holds an answer.
  """
  path = os.path.join(folder, "qa", f"wikipedia-{split}.json")
  if not files.exists(path):
    raise spec.TaskError(
      f"{path} is missing; give the folder of triviaqa-rc, with qa/ and"
      " evidence/"
    )
  files.check_writable(output)
  evidence = os.path.join(folder, "evidence", "wikipedia")
  every = list(questions(path, evidence, num_tokens))
  kept = [paragraph for _, paragraph in every if paragraph]
  if not kept:
    raise spec.TaskError(
      f"{path}: none of {len(every)} documents has an answer in its first"
      f" {num_tokens} tokens"
    )
  article = {"title": f"TriviaQA-Wiki {split}", "paragraphs": kept}
  files.write_json(output, {"version": "1.1", "data": [article]})
  return len(kept), len(every)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("folder", metavar="TRIVIAQA")
  parser.add_argument("output", metavar="OUTPUT.json")
  parser.add_argument("--split", choices=("train", "dev"), default="train")
  parser.add_argument("--num_tokens", type=int, default=400)
  args = parser.parse_args(argv)
  try:
    kept, total = convert(args.folder, args.output, args.split, args.num_tokens)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return 2
  print(f"wrote {args.output}: {kept:,} of {total:,} documents")
  return 0


if __name__ == "__main__":
  sys.exit(main())
