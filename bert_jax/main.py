r"""bert-jax: BERT from raw text to the tables of its paper, on TPU slices.

What most people need:

  bert-jax --mode=prepare --config=configs/pretrain.py --input=TEXT \
    --output=DATA
  bert-jax --mode=train --config=configs/pretrain.py --config.data.dir=DATA \
    --workdir=RUN
  bert-jax --mode=train --config=configs/finetune.py:task=mrpc,from=RUN \
    --config.task.dir=GLUE --workdir=RUN2
  bert-jax --mode=evaluate --workdir=RUN2
  bert-jax --mode=predict --workdir=RUN2 --input=LINES.jsonl --output=OUT.jsonl

Other modes: plan (compile for a TPU slice before it is paid for), doctor (would
it start?), sweep, report, convert. What each takes: bert-jax --helpfull.

A config file is Python: --config=configs/X.py:argument=value,... and any key of
it changes by --config.group.key=value; configs/base.py says what each means.

Exit status: 0 done, 1 failed (of a plan: it does not fit the memory), 2 asked
for wrongly, 69 another process of the job died, 75 told to stop and saved, 130
told to stop with nothing to save. --helpfull explains all of them.
"""

import os
import sys

from bert_jax.runtime import signals

if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "bert-jax":
  signals.hold()  # `run` handles them; until then there are only imports

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import glob
import importlib.util
import logging
import platform
import re
import shlex
from typing import TYPE_CHECKING

from absl import app
from absl import flags
from absl import logging as absl_logging
import ml_collections
from ml_collections import config_flags

from bert_jax.runtime import files
from bert_jax.runtime import settings
from bert_jax.runtime import streams
from bert_jax.runtime.settings import Config

if TYPE_CHECKING:  # what a mode needs is imported when it runs
  from bert_jax.training import members

FLAGS = flags.FLAGS
USAGE_ERROR = 2
COMPUTING_MODES = ("train", "evaluate", "predict", "doctor")
MODES_OF_SEVERAL = ("train", "evaluate", "doctor")
# What is left of a mode that is interrupted; of the others, nothing.
_LEAVES = {
  "prepare": "what was finished is kept, and the same command goes on",
  "sweep": "what its trials had saved is kept, and the same command goes on",
  "train": "no step was taken; the same command starts or goes on",
}


_MORE_HELP = """
Modes and what each reads and writes:

  prepare   --config --input=TEXT,... --output=DATA
  train     --config --workdir, or --member of several; --replay_step=N
  evaluate  --workdir; --output=FILE.json --checkpoint=best|newest|STEP
  predict   --workdir or --config=configs/predict.py:from=DIR; --input --output
            --checkpoint=best|newest|STEP
  plan      --config --topology=v5e:4x4; --num_slices --search=batch
            --num_together=K --output=FILE.json --dump=FILE
  convert   --config=configs/convert.py --input=DIR --output=DIR
  doctor    --config --workdir; --topology
  sweep     --config=experiments/X/sweep.py --workdir; --output=RESULTS
            --dry_run --num_parallel --num_together --retry_failed --engine
  report    --input=RESULTS --output=DIR

Exit status:

  0    The job was done.
  1    It failed. Of a plan: the training does not fit the memory.
  2    The command, its settings or its files cannot be used.
  69   Another process of this job died or stood still: start the job again.
  75   It was told to stop and has saved, now or earlier: the same command
       goes on from there.
  130  It was told to stop and nothing is saved, or it was told twice.
  141  Nobody reads its standard output any more.

A process is told to stop by SIGTERM, SIGINT (Ctrl-C) or SIGHUP (a closed
terminal; nohup keeps it away). The second signal ends it at once.
"""


class UsageError(ValueError):
  """The command line asks for something that cannot be."""


def define_flags(flag_values: flags.FlagValues = FLAGS) -> None:
  """Defines the launcher's flags."""
  flags.DEFINE_enum(
    "mode", None, sorted(MODES), "What to do.", flag_values=flag_values
  )
  flags.DEFINE_string(
    "workdir", None, "Folder of the run.", flag_values=flag_values
  )
  flags.DEFINE_list(
    "input", [], "Files, globs or folders to read.", flag_values=flag_values
  )
  flags.DEFINE_string(
    "output", None, "File or folder to write.", flag_values=flag_values
  )
  flags.DEFINE_string(
    "checkpoint", None,
    "evaluate, predict: the step of the run to read: best, newest or its "
    "number. Default: best where the run keeps one, else newest.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_string(
    "topology",
    None,
    "plan, doctor: TPU slice, such as v5e:4x4.",
    flag_values=flag_values,
  )
  flags.DEFINE_integer(
    "num_slices", 1, "plan: how many such slices.", flag_values=flag_values
  )
  flags.DEFINE_enum(
    "search",
    None,
    ["batch"],
    "plan: also find the largest batch that fits.",
    flag_values=flag_values,
  )
  flags.DEFINE_string(
    "compile_cache",
    "auto",
    "Folder for compiled programs, used by the next start; auto: "
    "~/.cache/bert_jax, or JAX_COMPILATION_CACHE_DIR; off: none.",
    flag_values=flag_values,
  )
  flags.DEFINE_string(
    "dump", None, "plan: file for the text of the compiled program.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_boolean(
    "dry_run", False, "sweep: list the trials and what they cost.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "num_parallel", 1, "sweep: trials at a time.", flag_values=flag_values
  )
  flags.DEFINE_integer(
    "num_together", 1, "sweep, plan: seeds or rates trained in one program.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_multi_string(
    "member", [],
    "train: WORKDIR:seed=S,optim.learning_rate=R; several, in one program.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_boolean(
    "retry_failed", False, "sweep: also trials that failed before.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_enum(
    "engine", "here", ["here", "commands", "slurm", "xpk"],
    "sweep: run the trials here, by a cluster, or write commands to --output.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_enum(
    "completion", None, ["bash", "zsh"],
    "Print what completes options: source <(bert-jax --completion=bash)",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "replay_step", None, "train: look into a step of the run, change nothing.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_string(
    "coordinator", None, "Of several processes: HOST:PORT of the first.",
    flag_values=flag_values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "num_processes", None, "How many processes.", flag_values=flag_values
  )
  flags.DEFINE_integer(
    "process_id", None, "Which this one is, from 0.", flag_values=flag_values
  )
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


def _run_config(flag_values: flags.FlagValues) -> ml_collections.ConfigDict:
  """The config given, or else that of the workdir's run."""
  if flag_values.config is not None:
    return flag_values.config
  from bert_jax.runtime import run_log

  config = run_log.read_run(_workdir(flag_values))["config"]
  # The devices here need not be those of the training.
  config["mesh"] |= {"data": -1, "fsdp": 1, "tensor": 1}
  return ml_collections.ConfigDict(config, convert_dict=True)


def _same_config(flag_values: flags.FlagValues) -> ml_collections.ConfigDict:
  """The config given, or else that of the workdir's run, its mesh included."""
  if flag_values.config is not None:
    return flag_values.config
  from bert_jax.runtime import run_log

  config = run_log.read_run(_workdir(flag_values))["config"]
  return ml_collections.ConfigDict(config, convert_dict=True)


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
    on_tpu=_on_tpu(),
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
    replay.replay(_same_config(flag_values), workdir, step, flag_values.output)
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
  """Reads one --member."""
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
    _run_config(flag_values),
    workdir,
    flag_values.output,
    flag_values.checkpoint or "",
  )


def _predict(flag_values: flags.FlagValues) -> None:
  from bert_jax.prediction import predict

  try:
    config = _run_config(flag_values)
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
  """Keys of the config that the user sets; the more important ones first.

  Those of the command line come before those of the config file. The config of
  a run alone says nothing that the user sets.
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
  config, workdir = _same_config(flag_values), _workdir(flag_values)
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
  from bert_jax.kinds import table  # noqa: F401 (kinds register their heads)
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
    logging.getLogger("bert_jax").info(
      "wrote %d commands to %s", count, flag_values.output
    )
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
      _record(trials, workdir, flag_values.output)
    if failure:
      raise failure


def _record(trials, workdir: str, folder: str) -> None:
  """Writes down what is finished of a sweep."""
  from bert_jax.sweeps import results

  # How often and how fast it was run is no part of it; failures are to go on.
  ways = (
    "--num_parallel",
    "--num_together",
    "--retry_failed",
    "--engine",
    "--verbosity",
  )
  arguments = [a for a in sys.argv[1:] if not a.startswith(ways)]
  command = shlex.join(["bert-jax", *arguments, "--retry_failed"])
  count = results.record(trials, workdir, folder, command)
  log = logging.getLogger("bert_jax")
  log.info("%d new results in %s/results.jsonl", count, folder)


def _report(flag_values: flags.FlagValues) -> None:
  from bert_jax.sweeps import report

  if len(flag_values.input) != 1 or not flag_values.output:
    raise UsageError("--mode=report needs --input=DIR and --output=DIR")
  for path in report.report(flag_values.input[0], flag_values.output):
    logging.getLogger("bert_jax").info("wrote %s", path)


@contextlib.contextmanager
def _keeping_programs(flag_values: flags.FlagValues) -> Iterator[None]:
  """A context in which what is compiled serves the next start, too."""
  if flag_values.mode not in COMPUTING_MODES:
    yield
    return
  from bert_jax.runtime import compile_cache

  folder = compile_cache.enable(flag_values.compile_cache, _on_cpu())
  try:
    yield
  finally:
    if folder:
      log = logging.getLogger("bert_jax")
      log.debug("%s (%s)", compile_cache.summary(), folder)


MODES: dict[str, Callable[[flags.FlagValues], None]] = {
  "prepare": _prepare,
  "train": _train,
  "plan": _plan,
  "evaluate": _evaluate,
  "predict": _predict,
  "convert": _convert,
  "doctor": _doctor,
  "sweep": _sweep,
  "report": _report,
}


def main(argv: Sequence[str]) -> int:
  """Runs a mode; returns the exit status."""
  if len(argv) > 1:
    return _refuse(f"what is {argv[1]!r}? Options start with --")
  if odd := [arg for arg in sys.argv[1:] if not _is_text(arg)]:
    return _refuse(
      f"{odd[0]!r} is not UTF-8, so that it could not be written down; rename "
      "the file or folder"
    )
  if FLAGS.member and FLAGS.mode != "train":
    return _refuse("--member is for --mode=train")
  if FLAGS.checkpoint is not None:
    if FLAGS.mode not in ("evaluate", "predict"):
      return _refuse("--checkpoint is for --mode=evaluate and --mode=predict")
    from bert_jax.runtime import saved_steps

    try:
      saved_steps.check(FLAGS.checkpoint)
    except saved_steps.StepError as error:
      return _refuse(str(error))
  if FLAGS.num_processes and FLAGS.mode not in MODES_OF_SEVERAL:
    return _refuse(
      f"--mode={FLAGS.mode} runs in one process: --coordinator, --num_processes"
      f" and --process_id are for --mode={', '.join(MODES_OF_SEVERAL)}"
    )
  if FLAGS.completion:
    print(_completion(FLAGS, FLAGS.completion), end="")
    return 0
  _say_what_is_left(FLAGS)
  if FLAGS.mode is None:
    return _refuse(f"give --mode, one of {', '.join(sorted(MODES))}")
  if reason := _scheme_in(FLAGS):
    return _refuse(reason)
  log = logging.getLogger("bert_jax")
  log.addHandler(logging.StreamHandler())  # plain lines on standard error
  # --verbosity=1 also shows where an error was raised.
  log.setLevel(logging.DEBUG if FLAGS.verbosity > 0 else logging.INFO)
  log.propagate = False
  if FLAGS.verbosity < 1:  # of the libraries, only warnings
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_is_news)
  try:
    if FLAGS.config is not None:
      # Before jax is loaded, which takes seconds.
      settings.check(FLAGS.config)
      if "trials" not in FLAGS.config:  # the config of a sweep
        settings.check_names(FLAGS.config)
    with _keeping_programs(FLAGS):
      MODES[FLAGS.mode](FLAGS)
  except (ValueError, FileNotFoundError, PermissionError) as error:
    # What was asked for cannot be: say so, without a stack of frames.
    log.debug("raised here", exc_info=True)
    status = getattr(error, "exit_status", USAGE_ERROR)
    if _is_of_several():  # perhaps this one alone met it
      _leave(error, status)
    return _refuse(str(error), status)
  except BrokenPipeError:  # what reads standard output has read enough
    log.debug("raised here", exc_info=True)
    return streams.BROKEN_PIPE
  except OSError as error:  # a full disk, say
    log.debug("raised here", exc_info=True)
    if _is_of_several():  # the others know nothing of it
      _leave(error)
    print(f"bert-jax: {error}", file=sys.stderr)
    return 1
  except RuntimeError as error:
    # Known by name: their modules load jax.
    is_broken = type(error).__name__ in ("JaxRuntimeError", "PeerError")
    if is_broken and _is_of_several():
      _leave(error)
    status = getattr(error, "exit_status", None)
    if status is None:  # a bug
      raise
    return _refuse(str(error), status)
  return 0


def _say_what_is_left(flag_values: flags.FlagValues) -> None:
  """Says what an interruption of the mode leaves behind, and its status."""
  left = _LEAVES.get(flag_values.mode, "nothing was saved")
  status = signals.INTERRUPTED
  if flag_values.mode == "train" and flag_values.replay_step is None:
    from bert_jax.runtime import saved_steps

    members = (text.rpartition(":")[0] for text in flag_values.member)
    workdirs = [*filter(None, [flag_values.workdir, *members])]
    step = saved_steps.newest_common(workdirs)
    if step is not None:
      left = f"nothing new to save; the same command goes on from step {step}"
      status = signals.SAVED
  signals.leaves(left, status)


def _scheme_in(flag_values: flags.FlagValues) -> str:
  """Why gs://bucket/run or the like, given somewhere as a path, is refused.

  Returns:
    A message that names the flag or key and the path; "" if there is none.
  """
  cache = flag_values.compile_cache
  if problem := files.scheme_problem("--compile_cache", cache):
    # jax itself reads that variable, and can write to buckets.
    return f"{problem}, or leave it out and set JAX_COMPILATION_CACHE_DIR"
  own = ("workdir", "input", "output", "dump", "member")
  named = {f"--{name}": flag_values[name].value for name in own}
  if flag_values.mode in COMPUTING_MODES and cache == "auto":
    named["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME")
  if flag_values.config is not None:
    config = settings.flatten(settings.plain(flag_values.config))
    config.pop("engines", None)  # of a sweep: for its cluster, not read here
    if "trials" in config:
      config["trials"] = [t.to_dict() for t in flag_values.config.trials]
    named |= {f"--config.{key}": value for key, value in config.items()}
  problems = (files.scheme_problem(*pair) for pair in named.items())
  return next(filter(None, problems), "")


def _is_text(text: str) -> bool:
  """Whether an argument was UTF-8; Python keeps other bytes as surrogates."""
  return not any("\ud800" <= c <= "\udfff" for c in text)


def _is_of_several() -> bool:
  """Whether this is one process of a job of several."""
  from bert_jax.runtime import peers

  return peers.are_several()


def _is_news(record: logging.LogRecord) -> bool:
  """Orbax looks for metadata beside parameters that are read by themselves."""
  return "Metadata file does not exist" not in str(record.msg)


def _leave(error: Exception, status: int = 1) -> None:
  from bert_jax.runtime import peers

  peers.leave(error, status)


def _refuse(message: str, status: int = USAGE_ERROR) -> int:
  print(f"bert-jax: {message}", file=sys.stderr)
  return status


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses flags; what is wrong with them is said in one line, status 2."""
  if {"--help", "-h", "-help"} & set(argv):
    print(__doc__, end="")
    sys.exit(0)
  if "--helpfull" in argv:
    print(__doc__ + _MORE_HELP)
    print(FLAGS.module_help("bert_jax.main") or FLAGS.main_module_help())
    sys.exit(0)
  # Configs import each other as `configs.NAME`.
  for arg, following in zip(argv, [*argv[1:], ""], strict=True):
    name, equals, path = arg.lstrip("-").partition("=")
    if name == "config":
      path = path if equals else following
      if problem := files.scheme_problem("--config", path):
        sys.exit(_refuse(problem))
      folder = os.path.dirname(os.path.abspath(path.split(":")[0]))
      while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        if os.path.isdir(os.path.join(folder, "configs")):
          sys.path.insert(0, folder)
          break
  try:
    rest = FLAGS(argv)
    if FLAGS.config is not None:
      FLAGS.config.keys()  # a file that cannot be read raises only when used
    return rest
  except Exception as error:  # a config file may raise anything
    sys.exit(_refuse(_explain(error, argv)))


def _completion(flag_values: flags.FlagValues, shell: str) -> str:
  from bert_jax.runtime import completion

  config = flag_values.config
  own = flag_values.flags_by_module_dict()
  found = {
    flag.name: flag
    for named in own.values()
    for flag in named
    if flag.name in _own_flags()
  }
  choices = {
    name: getattr(flag.parser, "enum_values", ())
    for name, flag in found.items()
  }
  return completion.script(
    shell,
    sorted(found),
    {name: values for name, values in choices.items() if values},
    sorted(settings.flatten(settings.plain(config))) if config else [],
  )


def _own_flags() -> set[str]:
  """Names of the launcher's flags, without those of its libraries."""
  values = flags.FlagValues()
  define_flags(values)
  return set(values)


def _explain(error: Exception, argv: Sequence[str]) -> str:
  """What was wrong with the flags, in a line or two."""
  if isinstance(error, KeyError | AttributeError) and error.args:
    key = re.findall(r"\w+", str(error.args[0]))[0]
    for arg in argv:
      if arg.startswith("--config.") and key in arg:
        name = arg.partition("=")[0].removeprefix("--config.")
        return f"{arg}: {settings.unknown(name)}"
  # ml_collections puts the whole traceback of a config file into its message.
  lines = str(error).strip().splitlines() or [repr(error)]
  if "Traceback" in str(error):
    return lines[-1]
  return " ".join(line.strip() for line in lines)


def huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
  """The environment in which the C library asks for pages of 2 MB.

  On the CPU every step allocates its activations anew. With pages of 4 kB, a
  tenth of the processor time of a step of BERT-base goes into mapping them.

  Args:
    environ: variables of a process.

  Returns:
    A copy, with the setting added unless the user made his own.
  """
  tunables = [t for t in (environ.get("GLIBC_TUNABLES"),) if t]
  if not any("glibc.malloc.hugetlb" in t for t in tunables):
    tunables.append("glibc.malloc.hugetlb=1")
  return dict(environ) | {"GLIBC_TUNABLES": ":".join(tunables)}


def _on_tpu() -> bool:
  """Whether there are a TPU and what drives it, which plans alone have, too."""
  found = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")
  return bool(found and importlib.util.find_spec("libtpu"))


def _on_cpu() -> bool:
  """Whether jax will compute on the CPU; it is not asked, nor even loaded."""
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return True
  return not _on_tpu() and not any(
    importlib.util.find_spec(name)
    for name in ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
  )


def _restart_with_huge_pages() -> None:
  """Starts this program again, in its place, where huge pages would help.

  The C library reads the setting only when a process begins. Nothing is done
  on a machine with accelerators, nor for modes that compute nothing.
  """
  computes = any(
    arg.lstrip("-") in (f"mode={mode}" for mode in COMPUTING_MODES)
    for arg in sys.argv[1:]
  )
  environ = huge_pages(os.environ)
  if (
    computes
    and _on_cpu()
    and platform.libc_ver()[0] == "glibc"
    and environ != dict(os.environ)
  ):
    # Or the new program would meet them before it can handle them.
    signals.hold()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def run() -> None:
  """The console script."""
  _restart_with_huge_pages()
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
