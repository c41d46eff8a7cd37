r"""bert-jax: BERT from raw text to the tables of its paper, on TPU slices.

What most people need:

  bert-jax prepare --config=pretrain --input=TEXT --output=DATA
  bert-jax train --config=pretrain --config.data.dir=DATA --workdir=RUN
  bert-jax train --config=finetune:task=mrpc,from=RUN \
    --config.task.dir=GLUE --workdir=RUN2
  bert-jax evaluate --workdir=RUN2
  bert-jax predict --workdir=RUN2 --input=LINES.jsonl --output=OUT.jsonl

Other modes are serve (answers over HTTP), export, explore, plan (compiles for a
TPU slice before you pay for it), launch (sends a job to a cluster), doctor
(checks whether a run would start), sweep, report, convert, configs (lists the
configs) and demo. bert-jax MODE --help shows what a mode takes.

A config is a Python file: --config=NAME:argument=value,... names a shipped one,
--config=FILE.py one of yours, and --config.group.key=value changes any key.

Exit status: 0 done, 1 failed (of a plan: it does not fit the memory), 2 wrong
command line or file, 3 some lines failed, 69 another process of the job died,
75 stopped and saved, 130 stopped with nothing to save. More: --helpfull.
"""

import os
import sys

from bert_jax.runtime import signals

if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "bert-jax":
  signals.hold()  # `run` handles them; until then there are only imports

from collections.abc import Iterator, Sequence
import contextlib
import importlib.metadata
import logging
import platform
import re

from absl import app
from absl import flags
from absl import logging as absl_logging

import bert_jax
from bert_jax import command_line
from bert_jax.modes import MODES
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import machine
from bert_jax.runtime import settings
from bert_jax.runtime import streams

FLAGS = flags.FLAGS
_log = logging.getLogger("bert_jax")


def define_flags(flag_values: flags.FlagValues = FLAGS) -> None:
  """Defines the launcher's flags."""
  command_line.define_flags(flag_values, list(MODES))


def parse(flag_values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Parses a command line into flag values; see `command_line.parse`."""
  command_line.parse(flag_values, argv, MODES)


def main(argv: Sequence[str]) -> int:
  """Runs the mode that the flags name; returns the exit status."""
  del argv  # `_parse` has put it into FLAGS
  if FLAGS.completion:
    from bert_jax.runtime import completion

    own = {name: FLAGS[name] for name in command_line.shown_flags(MODES)}
    print(completion.script(FLAGS.completion, own, FLAGS.config), end="")
    return 0
  try:
    mode = command_line.check_flags(FLAGS, sys.argv[1:], MODES)
    if FLAGS.checkpoint is not None:
      from bert_jax.runtime import saved_steps

      saved_steps.check(FLAGS.checkpoint)
    if problem := _scheme_in(FLAGS):
      raise command_line.UsageError(problem)
    _set_up_logging()
    _check_buckets(FLAGS)
    _say_what_is_left(FLAGS)
    if FLAGS.config is not None:
      # Before jax is loaded, which takes seconds.
      settings.check(FLAGS.config)
      settings.check_names(FLAGS.config)
    with contextlib.ExitStack() as stack:
      if mode.computes:
        stack.enter_context(_keeping_programs(FLAGS.compile_cache))
      mode.run(FLAGS)
  except Exception as error:
    _log.debug("raised here", exc_info=True)
    if isinstance(error, BrokenPipeError):  # its reader has read enough
      return errors.BROKEN_PIPE
    from bert_jax.runtime import peers

    status = errors.status_of(error)
    if peers.must_leave(error):  # the other processes know nothing of it
      peers.leave(error, errors.FAILED if status is None else status)
    if status is None:  # a bug
      raise
    return _refuse(str(error), status)
  return 0


@contextlib.contextmanager
def _keeping_programs(asked: str) -> Iterator[None]:
  """A context in which compiled programs are kept for the next start.

  Args:
    asked: the value of --compile_cache.
  """
  from bert_jax.runtime import compile_cache

  folder = compile_cache.enable(asked, machine.computes_on_cpu())
  try:
    yield
  finally:
    if folder:
      _log.debug("%s (%s)", compile_cache.summary(), folder)


def _set_up_logging() -> None:
  """Shows the package's messages on standard error, as plain lines."""
  _log.addHandler(logging.StreamHandler())
  # --verbosity=1 also shows where an error was raised.
  _log.setLevel(logging.DEBUG if FLAGS.verbosity > 0 else logging.INFO)
  _log.propagate = False
  if FLAGS.verbosity < 1:  # of the libraries, only warnings
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_is_news)


def _say_what_is_left(flag_values: flags.FlagValues) -> None:
  """Sets what an interruption of the mode leaves behind, and its status."""
  left = MODES[flag_values.mode].left if flag_values.mode else ""
  status = errors.INTERRUPTED
  if flag_values.mode == "train" and flag_values.replay_step is None:
    from bert_jax.runtime import saved_steps

    members = (text.rpartition(":")[0] for text in flag_values.member)
    workdirs = [*filter(None, [flag_values.workdir, *members])]
    step = saved_steps.newest_common(workdirs)
    if step is not None:
      left = f"nothing new to save; the same command goes on from step {step}"
      status = errors.SAVED
  signals.leaves(left, status)


def _scheme_in(flag_values: flags.FlagValues) -> str:
  """Returns why a path such as s3://bucket/run is refused.

  Returns:
    A message that names the flag or key and the path; "" if no path is refused.
  """
  problems = (
    files.scheme_problem(*pair) for pair in _paths_in(flag_values).items()
  )
  problem = next(filter(None, problems), "")
  if problem.startswith("--compile_cache="):
    # jax itself reads that variable, and can write to more kinds of storage.
    return f"{problem}, or leave it out and set JAX_COMPILATION_CACHE_DIR"
  if problem:
    return problem
  # Of this machine: it cannot be a bucket.
  own = {f"--{name}": flag_values[name].value for name in ("copy", "file")}
  own["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME")
  for name, value in own.items():
    if name != "XDG_CACHE_HOME" or _keeps_programs_at_home(flag_values):
      if files.is_remote(value):
        return f"{name}={value} is not a path of this machine; give one"
  return ""


def _keeps_programs_at_home(flag_values: flags.FlagValues) -> bool:
  """Returns whether compiled programs are kept in XDG_CACHE_HOME."""
  return (
    MODES[flag_values.mode].computes and flag_values.compile_cache == "auto"
  )


def _paths_in(flag_values: flags.FlagValues) -> dict[str, object]:
  """Returns the values that may contain paths, by flag or config key."""
  own = ("workdir", "input", "output", "dump", "member", "copy", "file")
  named = {
    f"--{name}": flag_values[name].value for name in ("compile_cache", *own)
  }
  if _keeps_programs_at_home(flag_values):
    named["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME")
  for change in flag_values.changes:
    name, _, value = change.partition("=")
    named[name] = value
  if flag_values.config is not None:
    config = settings.flatten(settings.plain(flag_values.config))
    config.pop("engines", None)  # of a sweep: for its cluster, not read here
    if "trials" in config:
      config["trials"] = [t.to_dict() for t in flag_values.config.trials]
    named |= {f"--config.{key}": value for key, value in config.items()}
  return named


def _check_buckets(flag_values: flags.FlagValues) -> None:
  """Raises an error that says what to do unless all buckets can be listed."""
  for name, value in _paths_in(flag_values).items():
    for path in files.bucket_paths(value):
      try:
        files.check_bucket(path)
      except (ValueError, OSError) as error:
        raise command_line.UsageError(f"{name}: {error}") from error


def _is_news(record: logging.LogRecord) -> bool:
  """Returns False for what Orbax says of parameters read by themselves."""
  return "Metadata file does not exist" not in str(record.msg)


def _refuse(message: str, status: int = errors.USAGE) -> int:
  print(f"bert-jax: {message}", file=sys.stderr)
  return status


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses flags; ends with one line and status 2 if they cannot be used."""
  if {"--help", "-h", "-help", "--helpfull"} & set(argv):
    asked = [a.removeprefix("--mode=") for a in argv[1:]]
    mode = next((name for name in asked if name in MODES), None)
    if "--helpfull" in argv:
      print(__doc__ + "\n" + command_line.full_help(MODES), end="")
    elif mode:
      print(command_line.help_of(mode, MODES[mode]), end="")
    else:
      print(__doc__, end="")
    sys.exit(0)
  if "--version" in argv:
    jax = importlib.metadata.version("jax")
    python = platform.python_version()
    print(f"bert-jax {bert_jax.__version__}, jax {jax}, Python {python}")
    sys.exit(0)
  # A config path is looked at before the file is opened.
  own = argv[: argv.index("--")] if "--" in argv else argv
  for arg, following in zip(own, [*own[1:], ""], strict=True):
    name, equals, path = arg.lstrip("-").partition("=")
    if name == "config":
      path = path if equals else following
      problem = files.scheme_problem("--config", path)
      if not problem and files.is_remote(path):
        problem = f"--config={path} is not a file of this machine; give one"
      if problem:
        sys.exit(_refuse(problem))
  try:
    parse(FLAGS, argv)
    return argv[:1]
  except Exception as error:  # a config file may raise anything
    sys.exit(_refuse(command_line.explain(error, argv)))


def run() -> None:
  """The console script."""
  asked = {re.sub("^-+mode=", "", arg) for arg in sys.argv[1:]}
  if any(MODES[name].computes for name in asked & MODES.keys()):
    machine.look_for_no_tpu()
    machine.restart_with_huge_pages()
  streams.guard()
  try:
    signals.guard()
    define_flags()
    app.run(main, flags_parser=_parse)
  finally:  # whatever an interruption has turned into on its way
    signals.finish()
    signals.end_if_interrupted()


if __name__ == "__main__":
  run()
