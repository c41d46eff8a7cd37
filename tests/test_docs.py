"""What the documents say is there: commands, flags, files, make targets."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

from absl import flags
import pytest

from bert_jax.runtime import settings

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = [
  README,
  *sorted((ROOT / "docs").rglob("*.md")),
  *sorted((ROOT / "experiments").rglob("README.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text()

# Programs of other people; only that the shell can read the line is checked.
OTHERS = {"cat", "cd", "cp", "echo", "export", "git", "gzip", "gunzip", "head"}
OTHERS |= {"jq", "ls", "mkdir", "printf", "source", "tail", "tensorboard"}
OTHERS |= {"docker", "gcloud", "kubectl", "curl", "kill"}
PYTHONS = {"python", "python3", ".venv/bin/python"}
PACKAGE_RUNNERS = {"bert-jax", ".venv/bin/bert-jax"}
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def tracked_files() -> list[pathlib.Path]:
  """Returns the files that git tracks or would add, skipping the test if none.

  A copy that is no git checkout (an unpacked archive) has nothing to list.
  """
  command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
  listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
  if listing.returncode:
    pytest.skip("not a git checkout")
  names = listing.stdout.decode().split("\0")
  return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def shell_lines(text: str) -> list[str]:
  """Returns the commands of the sh blocks of a Markdown text, one a line."""
  fenced = re.compile(r"^ *```(?:sh|bash|shell)\n(.*?)^ *```", re.M | re.S)
  blocks = fenced.findall(text)
  joined = "\n".join(blocks).replace("\\\n", " ")
  lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
  return [line for line in lines if line and not line.startswith("#")]


def commands_of(line: str) -> list[list[str]]:
  """Splits a line of shell at pipes and the like into argument lists.

  Variables set before a command, and where its output goes, are left out.
  """
  lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
  lexer.whitespace_split, lexer.commenters = True, "#"
  commands, redirected = [[]], False
  for word in lexer:
    if set(word) <= set("<>&") and set(word) & set("<>"):
      redirected = True
    elif set(word) <= set("|&;()"):
      commands.append([])
    elif redirected:
      redirected = False
    elif commands[-1] or not ASSIGNMENT.match(word):
      commands[-1].append(word)
  return [command for command in commands if command]


def make_targets() -> dict[str, str]:
  """Returns the targets of the Makefile and what it says about each."""
  found = re.findall(r"^([a-z][a-z-]*):[^=\n]*?(?:## *(.*))?$", MAKEFILE, re.M)
  return dict(found)


def parse_launcher_flags(arguments: list[str]) -> None:
  """Parses the arguments as the launcher does; raises what it would raise."""
  from bert_jax import main

  argv = ["bert-jax", *arguments]
  values = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", argv)  # where config_flags looks for overrides
    patch.chdir(ROOT)
    main.define_flags(values)
    main.parse(values, argv)


def check_command(words: list[str]) -> None:
  """Raises if a command of the documents could not start."""
  program, *rest = words
  if program in PACKAGE_RUNNERS:
    parse_launcher_flags(rest)
  elif program == "make":
    targets = [w for w in rest if not ASSIGNMENT.match(w) and w[0] != "-"]
    for target in targets:
      if target not in make_targets():
        raise ValueError(f"make has no target {target}")
  elif program in PYTHONS and rest[:2] == ["-m", "bert_jax.main"]:
    parse_launcher_flags(rest[2:])
  elif program in PYTHONS and rest[:1] == ["-m"]:
    if rest[1] in ("pip", "pytest", "venv"):
      return
    path = ROOT / rest[1].replace(".", "/")
    if not (path.with_suffix(".py").exists() or path.is_dir()):
      raise ValueError(f"there is no module {rest[1]}")
  elif program in PYTHONS and rest:
    if rest[0] != "-c" and not (ROOT / rest[0]).exists():
      raise ValueError(f"there is no file {rest[0]}")
  elif program in ("pip", ".venv/bin/pip"):
    check_extras(rest)
  elif program not in OTHERS:
    raise ValueError(f"{program}: make check_command able to check it")


def check_extras(words: list[str]) -> None:
  """Raises if `pip install .[extra]` names an extra that setup.py lacks."""
  extras = re.findall(r"\[([\w,-]+)\]", " ".join(words))
  for extra in ",".join(extras).split(","):
    if extra and f'"{extra}": [' not in (ROOT / "setup.py").read_text():
      raise ValueError(f"setup.py has no extra {extra}")


def guide_commands() -> list[tuple[str, list[str]]]:
  return [
    (str(path.relative_to(ROOT)), command)
    for path in GUIDES
    if path.exists()
    for line in shell_lines(path.read_text())
    for command in commands_of(line)
  ]


@pytest.mark.parametrize(
  ("guide", "command"),
  guide_commands(),
  ids=lambda value: value if isinstance(value, str) else shlex.join(value),
)
def test_command_of_a_guide_parses(guide, command):
  del guide  # only names the test
  check_command(command)


@pytest.mark.parametrize(
  ("line", "error"),
  [
    ("make no-such-target", "no-such-target"),
    ("bert-jax --mode=trian", "mode"),
    ("bert-jax --mode=train --no_such_flag=1", "no_such_flag"),
    ("bert-jax --mode=train --config=configs/missing.py", "missing.py"),
    ("bert-jax --config=configs/base.py --config.optim.lr=1", "lr"),
    ("bert-jax --config=configs/base.py --config.seed=many", "seed"),
    ("bert-jax trian", "train"),
    ("python -m bert_jax.missing", "bert_jax.missing"),
    ("python experiments/missing.py", "missing.py"),
    ("pip install '.[missing]'", "missing"),
    ("frobnicate", "frobnicate"),
  ],
)
def test_a_command_that_cannot_start_is_found(line, error):
  (command,) = commands_of(line)
  with pytest.raises(
    (ValueError, AttributeError, OSError, flags.Error), match=error
  ):
    check_command(command)


def test_shell_lines_are_split_into_commands():
  text = "```sh\n# why\n$ A=1 make x \\\n  B=2 && ls y | jq . > z\n```\n"
  (line,) = shell_lines(text)
  assert commands_of(line) == [["make", "x", "B=2"], ["ls", "y"], ["jq", "."]]


def heading_anchors(text: str) -> set[str]:
  """Returns the anchors that a Markdown renderer gives to the headings."""
  headings = re.findall(r"^#+ +(.*)$", text, re.M)
  plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
  return {heading.strip().replace(" ", "-") for heading in plain}


def dead_links(path: pathlib.Path) -> list[str]:
  """Returns relative links and anchors of a document that lead nowhere."""
  dead, text = [], path.read_text()
  for link in re.findall(r"\]\(([^()\s]+)\)", text):
    target, _, anchor = link.partition("#")
    if re.match(r"[a-z]+:", target):
      continue
    place = path.parent / target if target else path
    if not place.exists() or (
      anchor
      and place.suffix == ".md"
      and anchor not in heading_anchors(place.read_text())
    ):
      dead.append(link)
  return dead


def missing_files(path: pathlib.Path) -> list[str]:
  """Returns files named in backticks, with a slash, that are not there.

  A name counts as a file of ours when it starts with a folder of ours or ends
  like a source or document; `eval/mlm_loss` and `runs/demo` are neither.
  """
  missing, named = [], re.compile(r"`([\w.*-]+(?:/[\w.*-]*)+)(?::[^`]*)?`")
  for word in named.findall(path.read_text()):
    first, suffix = word.split("/")[0], pathlib.Path(word).suffix
    ours = first not in ("runs", ".venv") and (ROOT / first).is_dir()
    if not ours and suffix not in (".py", ".md", ".toml"):
      continue
    if not any(list(place.glob(word)) for place in (ROOT, path.parent)):
      missing.append(word)
  return missing


def test_links_and_named_files_exist():
  documents = [path for path in tracked_files() if path.suffix == ".md"]
  assert README in documents, "README.md is missing"
  for path in documents:
    wrong = dead_links(path) + missing_files(path)
    assert not wrong, f"{path.relative_to(ROOT)} names {wrong}"


def test_dead_links_and_missing_files_are_found(tmp_path):
  path = tmp_path / "page.md"
  path.write_text(
    "# A title\n[a](#a-title) [b](#b) [c](page.md) [d](d.md) [e](https://e)\n"
    "`tests/test_docs.py` `tests/none.py` `eval/loss` `x/y.md`\n"
    "`bert_jax/*.py` `configs/base.py:size=large`\n"
  )
  assert dead_links(path) == ["#b", "d.md"]
  assert missing_files(path) == ["tests/none.py", "x/y.md"]


def test_no_column_of_a_table_is_empty():
  row = re.compile(r"(?<!\\)\|")
  for path in GUIDES:
    text = path.read_text() if path.exists() else ""
    for table in re.findall(r"^\|[-:| ]+\|\n((?:\|.*\n)+)", text, re.M):
      cells = [row.split(line)[1:-1] for line in table.splitlines()]
      for number in range(min(map(len, cells))):
        column = [line[number].strip() for line in cells]
        assert any(column), f"{path.relative_to(ROOT)}: column {number + 1}"


def test_make_help_describes_every_target():
  undescribed = [name for name, text in make_targets().items() if not text]
  assert not undescribed, f"add `## what it does` to {undescribed}"
  clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
  shown = subprocess.run(
    ["make", "--no-print-directory"],
    cwd=ROOT, env=clean, capture_output=True, text=True, check=True,
  )  # fmt: skip
  lines = shown.stdout.splitlines()
  assert [line.split()[0] for line in lines] == list(make_targets())
  assert max(map(len, lines)) <= 80


def test_every_phony_target_exists():
  (phony,) = re.findall(r"^\.PHONY:((?:.*\\\n)*.*)$", MAKEFILE, re.M)
  assert set(phony.replace("\\\n", " ").split()) == set(make_targets())


def test_every_config_and_experiment_is_in_a_guide():
  guides = "\n".join(path.read_text() for path in GUIDES if path.exists())
  files = [*ROOT.glob("configs/*.py"), *ROOT.glob("experiments/**/*.py")]
  names = [str(path.relative_to(ROOT)) for path in sorted(files)]
  names = [name for name in names if not name.endswith("__init__.py")]
  rules = re.split(r"^(?=[a-z-]+:)", MAKEFILE, flags=re.M)[1:]
  recipes = {rule.split(":")[0]: rule for rule in rules}
  for name in names:
    # Naming the make target that runs it is enough, or its short name.
    ways = [name, *(f"make {t}" for t, r in recipes.items() if name in r)]
    path = pathlib.Path(name)
    short = path.parent.name if path.name == "sweep.py" else path.stem
    ways.append(f"--config={short}")
    assert any(way in guides for way in ways), f"no guide names {ways}"


def test_every_config_key_that_a_file_names_exists():
  paths = [*(ROOT / "bert_jax").rglob("*.py"), *GUIDES]
  named = re.compile(r"--config\.([a-z]\w*\.[a-z]\w*(?:\.\w+)*)")
  for path in paths:
    for key in named.findall(path.read_text()):
      # The names of a key of no group in particular.
      assert key in {*settings.KEYS, "group.key"}, (
        f"{path.relative_to(ROOT)}: --config.{key}"
      )


def test_no_file_names_a_place_on_somebodys_machine_or_unfinished_work():
  place = re.compile(r"(?<![\w.\])}])/(?:home|root|work|Users)/\w")
  unfinished = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME)\b")
  for path in tracked_files():
    try:
      lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
      continue  # not text
    for number, line in enumerate(lines, 1):
      found = place.search(line) or unfinished.search(line)
      assert not found, f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
