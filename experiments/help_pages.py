"""Python's own help pages: English text that every CPython carries."""

import pydoc_data.topics
import re


def pages() -> list[str]:
  """Returns the pages as plain paragraphs, without ruled lines and tables."""
  found = []
  for _, page in sorted(pydoc_data.topics.topics.items()):
    lines = []
    for line in page.splitlines():
      marks = len(re.findall(r"[^\w\s]", line))
      if re.search(r"[-=*^~]{4,}|\|.*\|", line) or marks * 3 > len(line):
        line = ""  # a rule, a row of a table, a drawing
      lines.append(line.strip())
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    if len(text.split()) > 30:
      found.append(text)
  return found
