"""Writes docs/config.md, the page of all configuration keys, from their rows.

python -m experiments.config_page
"""

import pathlib

from bert_jax.runtime import settings

PATH = pathlib.Path(__file__).parents[1] / "docs" / "config.md"
_HEAD = """\
# Configuration keys

Every key of a config file, which `--config.GROUP.KEY=VALUE` changes. This page
is made from the rows of `bert_jax/runtime/settings.py` by
`python -m experiments.config_page`.

Who may choose a value:

* **run**: a run keeps the value. A resumed run with another value is refused.
* **weights**: as *run*; if a run starts from weights, they decide it.
* **session**: a resumed run may give another value.
* **host**: also, the processes of one job may differ in it.
"""


def bounds(key: settings.Key) -> str:
  """Returns the values that a key may have, as the page shows them."""
  if key.choices:
    return ", ".join(f"`{choice}`" for choice in key.choices)
  if key.least is None:
    return ""
  return f"{key.least:,} to {key.most:,}"


def entry(key: settings.Key) -> str:
  """Returns the lines about a key."""
  default = "not set" if key.default is None else f"`{key.default!r}`"
  if len(default) > 60:
    default = "see the file"
  facts = [key.type.__name__, f"default {default}", bounds(key), key.scope]
  if key.since != settings.FIRST_VERSION:
    facts.append(f"since {key.since}")
  return (
    f"**`{key.name}`** ({'; '.join(filter(None, facts))})  \n{key.meaning}\n"
  )


def page() -> str:
  """Returns the text of the page."""
  parts, group = [_HEAD, "## The whole run\n"], ""
  for key in settings.KEYS.values():
    if key.name.count(".") and key.name.split(".")[0] != group:
      group = key.name.split(".")[0]
      parts.append(f"## {group}\n\n{settings.meaning_of_group(group)}\n")
    parts.append(entry(key))
  return "\n".join(parts)


if __name__ == "__main__":
  PATH.parent.mkdir(exist_ok=True)
  PATH.write_text(page(), encoding="utf-8")
