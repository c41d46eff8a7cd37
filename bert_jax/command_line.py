"""The command line of the launcher: modes, flags, help, and what is refused.

`parse` reads a command line into flag values. A mode (`Mode`) names the flags
that it takes, so its help shows these alone, and every other flag is an error.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import re
import textwrap
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from bert_jax.runtime import config_files
from bert_jax.runtime import errors
from bert_jax.runtime import runs
from bert_jax.runtime import settings

# How each flag is defined: function, name, default, for some the choices, help.
_FLAGS: tuple[tuple[Any, ...], ...] = (
  (flags.DEFINE_string, "workdir", None, "Folder of the run."),
  (flags.DEFINE_list, "input", [],
   "Files, globs or folders to read, separated by commas."),
  (flags.DEFINE_string, "output", None, "File or folder to write."),
  (flags.DEFINE_string, "push", None,
   "Name on the Hugging Face hub, OWNER/NAME, to upload the output as."),
  (flags.DEFINE_multi_string, "text", [],
   "A text to predict, in place of --input; may be given several times."),
  (flags.DEFINE_string, "checkpoint", None,
   "The step of the run to read: best, newest or its number. Default: best if "
   "the run keeps one, else newest."),
  (flags.DEFINE_string, "topology", None, "TPU slice, such as v5e:4x4."),
  (flags.DEFINE_integer, "num_slices", 1, "Number of such slices."),
  (flags.DEFINE_enum, "search", None, ["batch"],
   "Also find the largest batch that fits the memory."),
  (flags.DEFINE_string, "compile_cache", "auto",
   "Folder that keeps compiled programs for the next start. auto: the value of "
   "JAX_COMPILATION_CACHE_DIR, else ~/.cache/bert_jax; off: none."),
  (flags.DEFINE_string, "dump", None,
   "File to write the text of the compiled program to."),
  (flags.DEFINE_list, "from", [],
   "Models: folders, workdirs or names of the hub, separated by "
   "commas; NAME=DIR gives one a name."),
  (flags.DEFINE_string, "host", "127.0.0.1",
   "Address to listen at; 0.0.0.0 for all of this machine."),
  (flags.DEFINE_integer, "port", 8000, "Port to listen at; 0: any free one."),
  (flags.DEFINE_enum, "to", "stablehlo", ["stablehlo", "onnx"],
   "The form of the program."),
  (flags.DEFINE_enum, "weights", "float32", ["float32", "int8"],
   "The numbers of its matrices; int8: a quarter of the size."),
  (flags.DEFINE_boolean, "dry_run", False,
   "Of a sweep: list the trials and what they cost, and run none. Of launch: "
   "print exactly what would be sent, and send nothing."),
  (flags.DEFINE_integer, "num_parallel", 1,
   "Number of trials that run at a time."),
  (flags.DEFINE_integer, "num_together", 1,
   "Number of seeds or learning rates that one program trains together."),
  (flags.DEFINE_multi_string, "member", [],
   "WORKDIR:seed=S,optim.learning_rate=R; several, instead of --workdir, are "
   "trained together in one program."),
  (flags.DEFINE_list, "allow_changes", [],
   "Keys, such as train.total_steps, that the run in --workdir may go on with "
   "another value of; run.json records the change."),
  (flags.DEFINE_boolean, "retry_failed", False,
   "Also run trials that failed before."),
  (flags.DEFINE_enum, "engine", "here",
   ["here", "commands", "gke", "slurm", "vm", "xpk"],
   "Who runs the job, or the trials of a sweep: this machine, a cluster, TPU "
   "VMs (vm: show what to type), or nobody (commands: write their commands to "
   "--output)."),
  (flags.DEFINE_string, "name", None,
   "Name of the job, by which its engine knows it."),
  (flags.DEFINE_string, "image", None, "Container image that the hosts run."),
  (flags.DEFINE_string, "cluster", None, "Name of the cluster (xpk)."),
  (flags.DEFINE_string, "project", None, "Project of the cloud (xpk, vm)."),
  (flags.DEFINE_string, "zone", None, "Zone of cluster or slice (xpk, vm)."),
  (flags.DEFINE_string, "queue", None,
   "Queue of Kueue in which the job waits (gke)."),
  (flags.DEFINE_boolean, "spot", False,
   "Use machines that may be taken away, which cost less (gke, vm)."),
  (flags.DEFINE_integer, "max_restarts", 100,
   "How often the job starts again by itself (gke, xpk, vm)."),
  (flags.DEFINE_multi_string, "set", [],
   "NAME=VALUE: another setting of the engine; may be given several times. "
   "docs/howto/launch.md lists them."),
  (flags.DEFINE_string, "plan", "auto",
   "Plan of the training to show before it is sent: auto (find or make it), "
   "the file of one, or none."),
  (flags.DEFINE_integer, "replay_step", None,
   "Compute this step of the run again and show it; change nothing."),
  (flags.DEFINE_string, "copy", None,
   "Name of a shipped config to copy to the file that is named next."),
  (flags.DEFINE_string, "coordinator", None,
   "HOST:PORT of the first process, of a job of several processes."),
  (flags.DEFINE_integer, "num_processes", None,
   "Number of processes of the job."),
  (flags.DEFINE_integer, "process_id", None,
   "Number of this process, from 0."),
)  # fmt: skip
_NO_MODE_FLAGS: tuple[tuple[Any, ...], ...] = (
  (flags.DEFINE_boolean, "version", False, "Print the versions and end."),
  (flags.DEFINE_enum, "completion", None, ["bash", "zsh"],
   "Print what completes options: source <(bert-jax --completion=bash)"),
)  # fmt: skip

_CONFIG_HELP = (
  "A shipped config, as NAME or NAME:ARGUMENT=VALUE,..., or a file of your own "
  "(MY.py). `bert-jax configs` lists the shipped ones. --config.KEY=VALUE "
  "changes any key; docs/config.md describes all keys."
)
_OWN_CONFIG_HELP = (
  _CONFIG_HELP + " Default: the config of the run in --workdir."
)
_SIGNALS_HELP = """\
SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal, unless nohup is used)
tell a process to stop: a training saves first. A second signal ends it at once.
"""
_WIDTH = 80

PROCESSES = ("coordinator", "num_processes", "process_id")


class UsageError(errors.UserError):
  """The command line asks for something that is not possible."""


@dataclasses.dataclass(frozen=True)
class Mode:
  """A mode of the launcher: one kind of job that it can run.

  Attributes:
    run: runs the job.
    summary: what the mode does, in one sentence.
    examples: commands, without the words "bert-jax MODE".
    flags: the names of the flags that it takes.
    config: "needed", "of the run" if the config of the run in --workdir is the
      default, "changes" if only --config.KEY=VALUE is taken, or "none".
    file: what a word after the mode names; "" if there may be no such word.
    computes: whether it computes with jax, so that compiled programs are kept
      for later starts and huge pages help.
    left: what an interruption leaves behind.
    is_sent: whether `launch` sends such a job to other machines.
    takes_command: whether the command of another mode follows after " -- ".
  """

  run: Callable[[flags.FlagValues], None]
  summary: str
  examples: tuple[str, ...]
  flags: tuple[str, ...]
  config: str = "none"
  file: str = ""
  computes: bool = False
  left: str = "nothing was saved"
  is_sent: bool = False
  takes_command: bool = False

  def all_flags(self) -> tuple[str, ...]:
    """Returns the names of its flags, with those that follow from the rest."""
    first = ("config",) if self.config not in ("none", "changes") else ()
    last = ("compile_cache",) if self.computes else ()
    return (*first, *self.flags, *last)


def define_flags(flag_values: flags.FlagValues, modes: Sequence[str]) -> None:
  """Defines the launcher's flags but --config, which `parse` defines.

  Args:
    flag_values: where the flags are defined.
    modes: the names of the modes.
  """
  flag_values.set_gnu_getopt()  # flags may also follow the word of the mode
  flags.DEFINE_enum(
    "mode",
    None,
    sorted(modes),
    "What to do; the word alone says the same.",
    flag_values=flag_values,
  )
  for define, *arguments in (*_FLAGS, *_NO_MODE_FLAGS):
    define(*arguments, flag_values=flag_values)
  # `parse` fills these: arguments --config.KEY=VALUE that are given without
  # --config, the word after the mode, and what follows after " -- ".
  flags.DEFINE_multi_string("changes", [], "", flag_values=flag_values)
  flags.DEFINE_string("file", "", "", flag_values=flag_values)
  flags.DEFINE_multi_string("command", [], "", flag_values=flag_values)


def parse(
  flag_values: flags.FlagValues,
  argv: Sequence[str],
  modes: Mapping[str, Mode],
) -> None:
  """Parses a command line into flag values, whatever the order of its flags.

  Args:
    flag_values: with the launcher's flags. `changes` is set to the arguments
      --config.KEY=VALUE if there is no --config.
    argv: the program, and its arguments.
    modes: the modes by name.

  Raises:
    Exception: A flag, its value or the config file is wrong. A config file may
      raise anything; `explain` returns a message.
  """
  argv, command = _split_command(argv)
  hidden = "--?(no)?(changes|file|command)(=|$)"
  if found := [a for a in argv if re.match(hidden, a)]:
    raise UsageError(f"Unknown command line flag {found[0]!r}")
  argv, config = _split_config([_quote(word) for word in argv])
  if config is None:
    argv, changes = _split_changes(argv)
    argv += [f"--changes={change}" for change in changes]
  else:  # the flags that change a config must follow the config
    argv.insert(1, f"--config={config_files.resolve(config)}")
  config_flags.DEFINE_config_file(
    "config", None, _CONFIG_HELP, flag_values=flag_values, sys_argv=argv
  )
  words = flag_values(argv)
  _take_words(flag_values, words, modes)
  if command is not None:
    _take_command(flag_values, command, modes)
  if flag_values.config is not None:
    flag_values.config.keys()  # reads the file, which may raise an error


def _split_command(
  argv: Sequence[str],
) -> tuple[list[str], list[str] | None]:
  """Returns a command line up to " -- ", and what follows, if it has that."""
  words = list(argv)
  if "--" not in words:
    return words, None
  at = words.index("--")
  return words[:at], words[at + 1 :]


def _take_command(
  flag_values: flags.FlagValues,
  command: Sequence[str],
  modes: Mapping[str, Mode],
) -> None:
  """Sets the command of another mode, which follows after " -- ".

  Raises:
    UsageError: the mode takes none, or none follows.
  """
  mode = flag_values.mode
  if mode not in modes or not modes[mode].takes_command:
    takers = [name for name, one in modes.items() if one.takes_command]
    raise UsageError(f"only {', '.join(takers)} takes a command after ' -- '")
  if not command:
    raise UsageError(f"{mode}: no command follows after ' -- '")
  flag_values["command"].value = list(command)


def _quote(word: str) -> str:
  """Returns --config.KEY=VALUE with a value that is read as a list.

  A list of words is given without quotes, as in task.text=premise,claim. The
  parser of lists takes no spaces, braces and equals signs in such words, which
  names and templates of columns and new names of tokens may have.
  """
  name, _, value = word.partition("=")
  key = settings.KEYS.get(re.sub(r"^--?config\.", "", name))
  is_list = key is not None and key.type is tuple and key.item_type is str
  ends = value[:1] + value[-1:]
  is_literal = ends in ("()", "[]", '""', "''")
  if is_list and re.search(r"[\s{=]", value) and not is_literal:
    return f"{name}=({value!r},)"
  return word


def config_arguments(argv: Sequence[str]) -> list[str]:
  """Returns the arguments --config and --config.KEY of a command line."""
  rest, config = _split_config(argv)
  found = [] if config is None else [f"--config={config}"]
  return found + _split_changes(rest)[1]


def _split_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
  """Returns a command line without --config, and the value of --config."""
  rest, value = [], None
  words = iter(argv)
  for word in words:
    if word in ("--config", "-config"):
      value = next(words, "")
    elif re.match("--?config=", word):
      value = word.partition("=")[2]
    else:
      rest.append(word)
  return rest, value


def _split_changes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns a command line without its arguments --config.KEY, and these."""
  rest, changes = [], []
  words = iter(argv)
  for word in words:
    if not re.match(r"--?(no)?config\.", word):
      rest.append(word)
      continue
    key = settings.KEYS.get(word.partition(".")[2])
    is_switch = word.startswith(("--no", "-no")) or (key and key.type is bool)
    if "=" not in word and not is_switch:
      word = f"{word}={next(words, '')}"
    changes.append(word)
  return rest, changes


def _take_words(
  flag_values: flags.FlagValues,
  argv: Sequence[str],
  modes: Mapping[str, Mode],
) -> None:
  """Sets the mode that a word names, and the file that is named after it.

  Raises:
    UsageError: A word is no mode, or it contradicts --mode.
  """
  words = list(argv[1:])
  if words and words[0] in modes:
    mode = words.pop(0)
    if flag_values.mode not in (None, mode):
      raise UsageError(
        f"{mode} and --mode={flag_values.mode} are two modes; give one"
      )
    flag_values["mode"].value = mode
  mode = flag_values.mode
  if words and mode and modes[mode].file:
    flag_values["file"].value = words.pop(0)
  if words:
    name = words[0]
    if mode:
      raise UsageError(f"{name!r} is not expected here: options start with --")
    near = difflib.get_close_matches(name, modes, n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(
      f"there is no mode {name!r}.{guess} The modes are "
      f"{', '.join(sorted(modes))}; options start with --"
    )


def check_flags(
  flag_values: flags.FlagValues, argv: Sequence[str], modes: Mapping[str, Mode]
) -> Mode:
  """Returns the mode that the command line names.

  Raises:
    UsageError: It names no mode, or a flag that the mode does not take.
  """
  # Python keeps bytes that are not UTF-8 as surrogates.
  if odd := [a for a in argv if re.search("[\ud800-\udfff]", a)]:
    raise UsageError(
      f"{odd[0]!r} is not UTF-8, so it could not be written down; rename the "
      "file or folder"
    )
  if flag_values.mode is None:
    raise UsageError(f"name a mode: {', '.join(sorted(modes))}")
  mode = modes[flag_values.mode]
  for name in shown_flags(modes) - {"mode", *mode.all_flags()}:
    if flag_values[name].present:
      takers = [n for n, other in modes.items() if name in other.all_flags()]
      raise UsageError(
        f"--{name} is a flag of {', '.join(takers)}, not of {flag_values.mode}"
      )
  if flag_values.changes and mode.config not in ("of the run", "changes"):
    raise UsageError(
      f"{flag_values.changes[0].partition('=')[0]} changes a config, and none "
      "is given; add --config, such as --config=pretrain"
    )
  return mode


def shown_flags(modes: Mapping[str, Mode]) -> set[str]:
  """Returns the names of the flags that users may give."""
  shared = {"mode", *(name for _, name, *_ in _NO_MODE_FLAGS)}
  return shared.union(*(mode.all_flags() for mode in modes.values()))


def config_of(flag_values: flags.FlagValues) -> ml_collections.ConfigDict:
  """Returns the config that --config names."""
  if flag_values.config is None:
    raise UsageError("this mode needs --config, such as --config=pretrain")
  return flag_values.config


def run_config(
  flag_values: flags.FlagValues, mesh: Mapping[str, int] | None = None
) -> ml_collections.ConfigDict:
  """Returns the config that --config names, or else that of the workdir's run.

  Args:
    flag_values: the flags of the launcher, parsed.
    mesh: sizes of mesh axes that replace those of the run.

  Raises:
    RunError: There is no run in --workdir.
    UsageError: An argument --config.KEY=VALUE is wrong.
  """
  if flag_values.config is not None:
    return flag_values.config
  workdir = flag_values.workdir
  recorded = runs.read_run(workdir)["config"]
  if "mesh" not in recorded:
    raise UsageError(
      f"{workdir} holds converted weights, not a run; give --config=predict:"
      f"from={workdir}, or another --workdir and --config=finetune:task=TASK,"
      f"from={workdir}"
    )
  recorded["mesh"] |= mesh or {}
  config = settings.unflatten(settings.flatten(recorded))
  return changed_config(flag_values, config)


def changed_config(
  flag_values: flags.FlagValues, config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """Returns a config with the changes of the arguments --config.KEY=VALUE.

  Args:
    flag_values: the flags of the launcher, parsed without --config.
    config: the config to change.

  Raises:
    UsageError: An argument --config.KEY=VALUE is wrong.
  """
  changed = flags.FlagValues()
  argv = ["bert-jax", *flag_values.changes]
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=changed, sys_argv=argv
    )
    changed(argv)
  except Exception as error:  # of ml_collections, of many classes
    raise UsageError(explain(error, argv)) from error
  settings.check(changed.config)
  return changed.config


def given_keys(flag_values: flags.FlagValues) -> list[str]:
  """Returns the keys of the config that the command line sets."""
  if flag_values.config is not None:
    return list(config_flags.get_override_values(flag_values["config"]))
  return [
    change.partition("=")[0].partition(".")[2] for change in flag_values.changes
  ]


def explain(error: Exception, argv: Sequence[str]) -> str:
  """Returns what was wrong with the flags, in a line or two."""
  if isinstance(error, KeyError | AttributeError) and error.args:
    words = re.findall(r"\w+", str(error.args[0]))
    for arg in argv:
      name = arg.partition("=")[0].removeprefix("--config.")
      if arg.startswith("--config.") and name not in settings.KEYS:
        if words and words[0] in name.split("."):
          return f"{arg}: {settings.unknown(name)}"
  # ml_collections puts the whole traceback of a config file into its message.
  lines = str(error).strip().splitlines() or [repr(error)]
  if "Traceback" in str(error):
    return lines[-1]
  return " ".join(line.strip() for line in lines)


def help_of(name: str, mode: Mode) -> str:
  """Returns the help of a mode: its commands and its flags, on one screen."""
  file = f" {mode.file}" if mode.file else ""
  lines = [*textwrap.wrap(f"bert-jax {name}: {mode.summary}", _WIDTH), ""]
  lines += [f"  bert-jax {name} {example}" for example in mode.examples]
  lines += ["", f"Flags of bert-jax {name}{file}:", ""]
  for definition in (_config_row(mode), *_FLAGS):
    if definition and definition[1] in mode.all_flags():
      lines += _flag_help(*definition)
  lines += _flag_help(None, "verbosity", 0, "1 also shows details of errors.")
  return "\n".join(lines) + "\n"


def _config_row(mode: Mode) -> tuple[Any, ...]:
  text = _OWN_CONFIG_HELP if mode.config == "of the run" else _CONFIG_HELP
  return (None, "config", None, text)


def _flag_help(define: Any, name: str, default: Any, *more: Any) -> list[str]:
  """Returns the lines of the help about one flag."""
  *choices, text = more
  values = "|".join(choices[0]) if choices else ""
  if values:
    text = f"{text} One of {values}."
  if default not in (None, [], False, 0) and "auto" not in str(default):
    text = f"{text} Default: {default}."
  indent = " " * 19
  lines = textwrap.wrap(
    text, _WIDTH, initial_indent=indent, subsequent_indent=indent
  )
  label = f"  --{name}"
  if len(label) < len(indent):
    return [label + lines[0][len(label) :], *lines[1:]]
  return [label, *lines]


def full_help(modes: Mapping[str, Mode]) -> str:
  """Returns the help of every mode, and what the exit statuses mean."""
  parts = [help_of(name, mode) for name, mode in modes.items()]
  lines = ["Flags that need no mode:", ""]
  for definition in _NO_MODE_FLAGS:
    lines += _flag_help(*definition)
  lines += ["", "Exit status:", ""]
  for status, meaning in errors.MEANINGS.items():
    text = textwrap.fill(meaning, 70, subsequent_indent=" " * 7)
    lines.append(f"  {status:<3}  {text}")
  return "\n".join([*parts, *lines, "", _SIGNALS_HELP])
