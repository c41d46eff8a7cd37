r"""bert-jax: BERT from raw text to the tables of its paper, on TPU slices.

What most people need:

  bert-jax prepare --config=configs/pretrain.py --input=TEXT --output=DATA
  bert-jax train --config=configs/pretrain.py --config.data.dir=DATA \
    --workdir=RUN
  bert-jax train --config=configs/finetune.py:task=mrpc,from=RUN \
    --config.task.dir=GLUE --workdir=RUN2
  bert-jax evaluate --workdir=RUN2
  bert-jax predict --workdir=RUN2 --input=LINES.jsonl --output=OUT.jsonl

The other modes are plan (which compiles for a TPU slice before it is paid for),
doctor (which checks whether a run would start), sweep, report and convert.
--mode=train does the same as the word train. bert-jax --helpfull says what each
mode takes.

A config file is written in Python. --config=configs/X.py:argument=value,...
names it, and --config.group.key=value changes any of its keys; docs/config.md
says what each key means.

Exit statuses: 0 done, 1 failed (of a plan: it does not fit the memory), 2 wrong
command line or file, 69 another process of the job died, 75 told to stop and
saved, 130 told to stop with nothing to save. --helpfull explains them.
"""

import os
import sys

from bert_jax.runtime import signals

if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "bert-jax":
  signals.hold()  # `run` handles them; until then there are only imports

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import logging
import pathlib
import re
import textwrap
from typing import TYPE_CHECKING, Any

from absl import app
from absl import flags
from absl import logging as absl_logging
import ml_collections
from ml_collections import config_flags

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import machine
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import streams
from bert_jax.runtime.settings import Config

if TYPE_CHECKING:  # what a mode needs is imported when it runs
  from bert_jax.training import members

FLAGS = flags.FLAGS
_log = logging.getLogger("bert_jax")
_SIGNALS_HELP = """\
A process is told to stop by SIGTERM, SIGINT (Ctrl-C) or SIGHUP (a closed
terminal; nohup keeps it away). The second signal ends it at once.
"""

# How each flag is defined: function, name, default, for some the choices, help.
_FLAGS: tuple[tuple[Any, ...], ...] = (
  (flags.DEFINE_string, "workdir", None, "Folder of the run."),
  (flags.DEFINE_list, "input", [], "Files, globs or folders to read."),
  (flags.DEFINE_string, "output", None, "File or folder to write."),
  (flags.DEFINE_string, "checkpoint", None,
   "evaluate, predict: the step of the run to read: best, newest or its number."
   " Default: best where the run keeps one, else newest."),
  (flags.DEFINE_string, "topology", None,
   "plan, doctor: TPU slice, such as v5e:4x4."),
  (flags.DEFINE_integer, "num_slices", 1, "plan: how many such slices."),
  (flags.DEFINE_enum, "search", None, ["batch"],
   "plan: also find the largest batch that fits."),
  (flags.DEFINE_string, "compile_cache", "auto",
   "Folder for compiled programs, used by the next start; auto: "
   "~/.cache/bert_jax, or JAX_COMPILATION_CACHE_DIR; off: none."),
  (flags.DEFINE_string, "dump", None,
   "plan: file for the text of the compiled program."),
  (flags.DEFINE_boolean, "dry_run", False,
   "sweep: list the trials and what they cost."),
  (flags.DEFINE_integer, "num_parallel", 1, "sweep: trials at a time."),
  (flags.DEFINE_integer, "num_together", 1,
   "sweep, plan: seeds or rates trained in one program."),
  (flags.DEFINE_multi_string, "member", [],
   "train: WORKDIR:seed=S,optim.learning_rate=R; several, in one program."),
  (flags.DEFINE_boolean, "retry_failed", False,
   "sweep: also trials that failed before."),
  (flags.DEFINE_enum, "engine", "here", ["here", "commands", "slurm", "xpk"],
   "sweep: run the trials here, by a cluster, or write commands to --output."),
  (flags.DEFINE_enum, "completion", None, ["bash", "zsh"],
   "Print what completes options: source <(bert-jax --completion=bash)"),
  (flags.DEFINE_integer, "replay_step", None,
   "train: look into a step of the run, change nothing."),
  (flags.DEFINE_string, "coordinator", None,
   "Of several processes: HOST:PORT of the first."),
  (flags.DEFINE_integer, "num_processes", None, "How many processes."),
  (flags.DEFINE_integer, "process_id", None, "Which this one is, from 0."),
)  # fmt: skip


class UsageError(errors.UserError):
  """The command line asks for something that is not possible."""


def define_flags(flag_values: flags.FlagValues = FLAGS) -> None:
  """Defines the launcher's flags."""
  flag_values.set_gnu_getopt()  # flags may also follow the word of the mode
  flags.DEFINE_enum(
    "mode",
    None,
    sorted(MODES),
    "What to do; the word alone says the same.",
    flag_values=flag_values,
  )
  for define, *arguments in _FLAGS:
    define(*arguments, flag_values=flag_values)
  config_flags.DEFINE_config_file(
    "config",
    None,
    "configs/X.py:key=value,...; change keys by --config.group.key=value.",
    lock_config=True,
    flag_values=flag_values,
  )


def _config(flag_values: flags.FlagValues) -> ml_collections.ConfigDict:
  if flag_values.config is None:
    raise UsageError("this mode needs --config, such as configs/pretrain.py")
  return flag_values.config


def _run_config(
  flag_values: flags.FlagValues, mesh: Mapping[str, int] | None = None
) -> ml_collections.ConfigDict:
  """Returns the config given, or else that of the workdir's run.

  Args:
    flag_values: of the launcher.
    mesh: sizes of axes that take the place of the run's.
  """
  if flag_values.config is not None:
    return flag_values.config

  config = runs.read_run(_workdir(flag_values))["config"]
  config["mesh"] |= mesh or {}
  return ml_collections.ConfigDict(config, convert_dict=True)


# The devices here need not be those of the training.
_ANY_MESH = {"data": -1, "fsdp": 1, "tensor": 1}


def _workdir(flag_values: flags.FlagValues) -> str:
  if not flag_values.workdir:
    raise UsageError("this mode needs --workdir=DIR")
  from bert_jax.runtime import saved_steps

  saved_steps.refuse_step(flag_values.workdir)
  return flag_values.workdir


# Each mode imports what it needs when it runs: reading text needs no jax, and
# its worker processes should not load it.


def _prepare(flag_values: flags.FlagValues) -> None:
  from bert_jax.data import prepare

  config = _config(flag_values)
  folder = flag_values.output or config.data.dir
  if not folder:
    raise UsageError("--mode=prepare needs --output=DATA, the folder to make")
  prepare.prepare(config, flag_values.input, folder)


def _meet(flag_values: flags.FlagValues) -> None:
  """Connects the processes of a job of several."""
  from bert_jax.runtime import hosts
  from bert_jax.runtime import peers

  hosts.start(
    flag_values.coordinator,
    flag_values.num_processes,
    flag_values.process_id,
    on_tpu=machine.has_tpu(),
    stops_in_order=(
      flag_values.mode == "train" and flag_values.replay_step is None
    ),
  )
  if not peers.are_several():
    return
  reads_config = flag_values.config is None
  hosts.compare(
    {
      "--mode": flag_values.mode,
      "--replay_step": flag_values.replay_step,
      "config of the workdir": reads_config,
    }
  )
  if reads_config:  # which the workdir is needed for
    hosts.check_shared(_workdir(flag_values), must_write=False)


def _train(flag_values: flags.FlagValues) -> None:
  if flag_values.member and flag_values.replay_step is not None:
    raise UsageError("--replay_step looks into one run: give its --workdir")
  _meet(flag_values)
  if flag_values.replay_step is not None:
    from bert_jax.training import replay

    workdir, step = _workdir(flag_values), flag_values.replay_step
    replay.replay(_run_config(flag_values), workdir, step, flag_values.output)
    return
  from bert_jax.training import train

  if flag_values.member:
    if flag_values.workdir:
      raise UsageError("give --workdir, or a --member for each workdir")
    config = _config(flag_values)
    wanted = [_member(config, text) for text in flag_values.member]
    train.train_together(config, wanted)
    return
  train.train(_config(flag_values), _workdir(flag_values))


def _member(config: Config, text: str) -> "members.Member":
  """Reads the value of one --member flag."""
  from bert_jax.training import members

  workdir, _, pairs = text.rpartition(":")
  found = {}
  try:
    for pair in pairs.split(","):
      key, _, value = pair.partition("=")
      found[key] = {"seed": int, "optim.learning_rate": float}[key](value)
  except (KeyError, ValueError):
    workdir = ""
  if not workdir:
    raise UsageError(
      f"--member={text} is not WORKDIR:seed=S,optim.learning_rate=R, one of "
      "them or both"
    )
  return members.Member(
    workdir,
    found.get("seed", config.seed),
    found.get("optim.learning_rate", config.optim.learning_rate),
  )


def _evaluate(flag_values: flags.FlagValues) -> None:
  _meet(flag_values)
  from bert_jax.training import evaluate

  workdir = _workdir(flag_values)
  evaluate.check_workdir(workdir)  # the run.json there may have no config
  evaluate.evaluate(
    _run_config(flag_values, _ANY_MESH),
    workdir,
    flag_values.output,
    flag_values.checkpoint or "",
  )


def _predict(flag_values: flags.FlagValues) -> None:
  from bert_jax.prediction import predict

  try:
    config = _run_config(flag_values, _ANY_MESH)
  except KeyError as error:  # weights that were converted, not trained
    raise UsageError(
      f"the run.json of {flag_values.workdir} has no {error}; give "
      f"--config=configs/predict.py:from={flag_values.workdir}"
    ) from error
  if len(flag_values.input) > 1:
    raise UsageError(f"--mode=predict reads one file, not {flag_values.input}")
  with streams.ending_with_reader():
    total, failed = predict.predict(
      config,
      flag_values.workdir or "",
      "".join(flag_values.input),
      flag_values.output or "",
      flag_values.checkpoint or "",
      _given_keys(flag_values),
    )
  if failed and failed == total:
    sys.exit(1)


def _given_keys(flag_values: flags.FlagValues) -> tuple[str, ...]:
  """Returns the keys of the config that the user sets, most important first.

  Keys of the command line come before those of the config file. The config of a
  run by itself sets none.
  """
  if flag_values.config is None:
    return ()
  from bert_jax.prediction import settings

  named = config_flags.get_override_values(flag_values["config"])
  # A setting may have a name in the group `predict` and one in another.
  named = sorted(named, key=lambda key: not key.startswith("predict."))
  return (*named, *settings.asked_in(flag_values.config))


def _plan(flag_values: flags.FlagValues) -> None:
  config = _config(flag_values)
  if not flag_values.topology:
    raise UsageError("--mode=plan needs --topology, such as v5e:4x4")
  # jax, which looks at these when it is imported, computes on the CPU, and the
  # compiler asks no cloud service which TPU it is on.
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Without a TPU its compiler cannot read back a program that was kept.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
  }
  from bert_jax.planning import plan

  status = plan.run(
    config,
    flag_values.topology,
    flag_values.num_slices,
    flag_values.search or "",
    flag_values.output or "",
    flag_values.dump or "",
    flag_values.num_together if flag_values.num_together > 1 else 0,
  )
  if status:
    sys.exit(status)


def _doctor(flag_values: flags.FlagValues) -> None:
  config, workdir = _run_config(flag_values), _workdir(flag_values)
  if flag_values.topology and flag_values.config is None:
    raise UsageError("--topology needs --config: a plan is made for that")
  from bert_jax.planning import doctor

  sound = doctor.examine(
    config,
    workdir,
    flag_values.coordinator,
    flag_values.process_id,
    flag_values.num_processes or 1,
    flag_values.topology,
    sys.argv[1:],
  )
  if not sound:
    sys.exit(1)


def _convert(flag_values: flags.FlagValues) -> None:
  from bert_jax.weights import convert

  if len(flag_values.input) != 1 or not flag_values.output:
    raise UsageError("--mode=convert needs --input=DIR and --output=DIR")
  convert.convert(
    _config(flag_values), flag_values.input[0], flag_values.output
  )


def _sweep(flag_values: flags.FlagValues) -> None:
  from bert_jax.sweeps import costs
  from bert_jax.sweeps import engines
  from bert_jax.sweeps import running
  from bert_jax.sweeps import sweep

  config, workdir = _config(flag_values), _workdir(flag_values)
  trials = sweep.read_trials(config, workdir)
  if flag_values.num_together > 1 and flag_values.engine != "here":
    raise UsageError(
      "--num_together is for --engine=here; elsewhere every trial is a job"
    )
  if flag_values.dry_run:
    cost = costs.Costs(trials, workdir, flag_values.topology)
    costs.show(costs.listing(trials, workdir, cost))
  elif flag_values.engine == "commands":
    if not flag_values.output:
      raise UsageError("--engine=commands needs --output=FILE")
    count = engines.write_commands(trials, flag_values.output)
    _log.info("wrote %d commands to %s", count, flag_values.output)
  elif flag_values.engine in ("slurm", "xpk"):
    settings = sweep.engine_settings(config, flag_values.engine)
    if flag_values.engine == "slurm":
      engines.submit(trials, workdir, settings)
    else:
      engines.send(trials, settings)
  else:
    failure = None
    try:
      running.run(
        trials,
        workdir,
        flag_values.num_parallel,
        flag_values.retry_failed,
        flag_values.num_together,
      )
    except running.FailedError as error:
      failure = error
    if flag_values.output:
      from bert_jax.sweeps import results

      command = results.command_of(sys.argv[1:])
      count = results.record(trials, workdir, flag_values.output, command)
      _log.info("%d new results in %s/results.jsonl", count, flag_values.output)
    if failure:
      raise failure


def _report(flag_values: flags.FlagValues) -> None:
  from bert_jax.sweeps import report

  if len(flag_values.input) != 1 or not flag_values.output:
    raise UsageError("--mode=report needs --input=DIR and --output=DIR")
  for path in report.report(flag_values.input[0], flag_values.output):
    _log.info("wrote %s", path)


@contextlib.contextmanager
def _keeping_programs(asked: str) -> Iterator[None]:
  """A context in which compiled programs are kept for the next start.

  Args:
    asked: of --compile_cache.
  """
  from bert_jax.runtime import compile_cache

  folder = compile_cache.enable(asked, machine.computes_on_cpu())
  try:
    yield
  finally:
    if folder:
      _log.debug("%s (%s)", compile_cache.summary(), folder)


@dataclasses.dataclass(frozen=True)
class Mode:
  """A mode of the launcher: one kind of job that it can run.

  Attributes:
    run: does it.
    usage: its flags, for the help.
    computes: it computes with jax, so that programs are kept for later starts
      and huge pages help.
    only: flags that it shares with few other modes; elsewhere they are refused.
    left: what an interruption leaves behind.
  """

  run: Callable[[flags.FlagValues], None]
  usage: str
  computes: bool = False
  only: tuple[str, ...] = ()
  left: str = "nothing was saved"


_PROCESSES = ("coordinator", "num_processes", "process_id")
MODES = {
  "prepare": Mode(
    _prepare,
    "--config --input=TEXT,... --output=DATA",
    left="what was finished is kept, and the same command goes on",
  ),
  "train": Mode(
    _train,
    "--config --workdir, or --member of several; --replay_step=N",
    computes=True,
    only=("member", *_PROCESSES),
    left="no step was taken; the same command starts or goes on",
  ),
  "evaluate": Mode(
    _evaluate,
    "--workdir; --output=FILE.json --checkpoint=best|newest|STEP",
    computes=True,
    only=("checkpoint", *_PROCESSES),
  ),
  "predict": Mode(
    _predict,
    "--workdir or --config=configs/predict.py:from=DIR; --input --output\n"
    "--checkpoint=best|newest|STEP",
    computes=True,
    only=("checkpoint",),
  ),
  "plan": Mode(
    _plan,
    "--config --topology=v5e:4x4; --num_slices --search=batch\n"
    "--num_together=K --output=FILE.json --dump=FILE",
  ),
  "convert": Mode(
    _convert, "--config=configs/convert.py --input=DIR --output=DIR"
  ),
  "doctor": Mode(
    _doctor,
    "--config --workdir; --topology",
    computes=True,
    only=_PROCESSES,
  ),
  "sweep": Mode(
    _sweep,
    "--config=experiments/X/sweep.py --workdir; --output=RESULTS\n"
    "--dry_run --num_parallel --num_together --retry_failed --engine",
    left="what its trials had saved is kept, and the same command goes on",
  ),
  "report": Mode(_report, "--input=RESULTS --output=DIR"),
}


def take_mode(flag_values: flags.FlagValues, words: Sequence[str]) -> None:
  """Sets the mode that the command line names by a word instead of --mode.

  Args:
    flag_values: of the launcher, parsed.
    words: what is left of the command line without its flags; the program is
      the first.

  Raises:
    UsageError: the word is no mode, is not the mode of --mode, or is followed
      by another word.
  """
  if len(words) > 2:
    raise UsageError(f"what is {words[2]!r}? Options start with --")
  for word in words[1:]:
    if word not in MODES:
      near = difflib.get_close_matches(word, MODES, n=1)
      guess = f" Did you mean {near[0]}?" if near else ""
      raise UsageError(
        f"there is no mode {word!r}.{guess} The modes are "
        f"{', '.join(sorted(MODES))}; options start with --"
      )
    if flag_values.mode not in (None, word):
      raise UsageError(
        f"{word} and --mode={flag_values.mode} are two modes; give one"
      )
    flag_values["mode"].value = word


def _check_flags(flag_values: flags.FlagValues) -> Mode:
  """Returns the mode that is asked for.

  Raises:
    UsageError: the flags name no mode, or a flag or path cannot be used.
  """
  # Python keeps bytes that are not UTF-8 as surrogates.
  if odd := [a for a in sys.argv[1:] if re.search("[\ud800-\udfff]", a)]:
    raise UsageError(
      f"{odd[0]!r} is not UTF-8, so that it could not be written down; rename "
      "the file or folder"
    )
  if flag_values.mode is None:
    raise UsageError(f"name a mode: {', '.join(sorted(MODES))}")
  mode = MODES[flag_values.mode]
  for name in {n for other in MODES.values() for n in other.only}:
    if flag_values[name].value not in (None, []) and name not in mode.only:
      takers = [n for n, other in MODES.items() if name in other.only]
      raise UsageError(f"--{name} is for --mode={', '.join(takers)}")
  if flag_values.checkpoint is not None:
    from bert_jax.runtime import saved_steps

    saved_steps.check(flag_values.checkpoint)
  if reason := _scheme_in(flag_values):
    raise UsageError(reason)
  return mode


def main(argv: Sequence[str]) -> int:
  """Runs the mode that the flags name; returns the exit status."""
  del argv  # `_parse` has put it into FLAGS
  if FLAGS.completion:
    from bert_jax.runtime import completion

    own = {flag: FLAGS[flag] for flag in _own_flags()}
    print(completion.script(FLAGS.completion, own, FLAGS.config), end="")
    return 0
  try:
    _say_what_is_left(FLAGS)
    mode = _check_flags(FLAGS)
    _set_up_logging()
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
  left = MODES[flag_values.mode].left if flag_values.mode else Mode.left
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
  """Returns why a path such as gs://bucket/run is refused.

  Returns:
    A message that names the flag or key and the path; "" if no path is refused.
  """
  cache = flag_values.compile_cache
  if problem := files.scheme_problem("--compile_cache", cache):
    # jax itself reads that variable, and can write to buckets.
    return f"{problem}, or leave it out and set JAX_COMPILATION_CACHE_DIR"
  own = ("workdir", "input", "output", "dump", "member")
  named = {f"--{name}": flag_values[name].value for name in own}
  mode = MODES.get(flag_values.mode)
  if mode and mode.computes and cache == "auto":
    named["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME")
  if flag_values.config is not None:
    config = settings.flatten(settings.plain(flag_values.config))
    config.pop("engines", None)  # of a sweep: for its cluster, not read here
    if "trials" in config:
      config["trials"] = [t.to_dict() for t in flag_values.config.trials]
    named |= {f"--config.{key}": value for key, value in config.items()}
  problems = (files.scheme_problem(*pair) for pair in named.items())
  return next(filter(None, problems), "")


def _is_news(record: logging.LogRecord) -> bool:
  """Returns False for what Orbax says of parameters read by themselves."""
  return "Metadata file does not exist" not in str(record.msg)


def _refuse(message: str, status: int = errors.USAGE) -> int:
  print(f"bert-jax: {message}", file=sys.stderr)
  return status


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses flags; ends with one line and status 2 if they cannot be used."""
  if {"--help", "-h", "-help"} & set(argv):
    print(__doc__, end="")
    sys.exit(0)
  if "--helpfull" in argv:
    print(__doc__ + _more_help())
    print(FLAGS.module_help("bert_jax.main") or FLAGS.main_module_help())
    sys.exit(0)
  # Configs import each other as `configs.NAME`.
  for arg, following in zip(argv, [*argv[1:], ""], strict=True):
    name, equals, path = arg.lstrip("-").partition("=")
    if name == "config":
      path = path if equals else following
      if problem := files.scheme_problem("--config", path):
        sys.exit(_refuse(problem))
      for folder in pathlib.Path(os.path.abspath(path.split(":")[0])).parents[
        1:
      ]:
        if (folder / "configs").is_dir():
          sys.path.insert(0, str(folder))
          break
  try:
    rest = FLAGS(argv)
    take_mode(FLAGS, rest)
    if FLAGS.config is not None:
      FLAGS.config.keys()  # a file that cannot be read raises only when used
    return rest
  except Exception as error:  # a config file may raise anything
    sys.exit(_refuse(_explain(error, argv)))


def _own_flags() -> set[str]:
  """Returns the names of the launcher's flags, without its libraries'."""
  values = flags.FlagValues()
  define_flags(values)
  return set(values)


def _explain(error: Exception, argv: Sequence[str]) -> str:
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


def _more_help() -> str:
  """Returns what --helpfull shows before the flags."""
  lines = ["", "Modes and what each reads and writes:", ""]
  for name, mode in MODES.items():
    usage = mode.usage.replace("\n", "\n" + " " * 12)
    lines.append(f"  {name:<8}  {usage}")
  lines += ["", "Exit status:", ""]
  for status, meaning in errors.MEANINGS.items():
    text = textwrap.fill(meaning, 70, subsequent_indent=" " * 7)
    lines.append(f"  {status:<3}  {text}")
  return "\n".join([*lines, "", _SIGNALS_HELP])


def run() -> None:
  """The console script."""
  asked = {re.sub("^-+mode=", "", arg) for arg in sys.argv[1:]}
  if any(MODES[name].computes for name in asked & MODES.keys()):
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
