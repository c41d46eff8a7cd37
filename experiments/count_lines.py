"""Counts the lines of code of the package: no blanks, comments, docstrings.

  python -m experiments.count_lines                 bert_jax/, by folder
  python -m experiments.count_lines bert_jax tests  several folders

A line counts if it holds a token of code. Lines of a docstring, or of another
string that stands alone as a statement, do not count.
"""

import ast
import collections
import io
import pathlib
import sys
import tokenize

ROOT = pathlib.Path(__file__).parents[1]
_NO_CODE = {
  tokenize.COMMENT,
  tokenize.DEDENT,
  tokenize.ENCODING,
  tokenize.ENDMARKER,
  tokenize.INDENT,
  tokenize.NEWLINE,
  tokenize.NL,
}


def count(source: str) -> int:
  """Returns the number of lines of code in the text of a Python file."""
  prose: set[int] = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      if isinstance(node.value.value, str):
        prose |= set(range(node.lineno, (node.end_lineno or 0) + 1))
  lines: set[int] = set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type not in _NO_CODE:
      lines |= set(range(token.start[0], token.end[0] + 1))
  return len(lines - prose)


def main() -> None:
  for name in sys.argv[1:] or ["bert_jax"]:
    counts: collections.Counter[str] = collections.Counter()
    for path in sorted((ROOT / name).rglob("*.py")):
      folder = str(path.parent.relative_to(ROOT))
      counts[folder] += count(path.read_text(encoding="utf-8"))
    for folder, lines in sorted(counts.items()):
      print(f"{lines:7,}  {folder}")
    print(f"{counts.total():7,}  {name} in all")


if __name__ == "__main__":
  main()
