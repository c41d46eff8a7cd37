"""The modes of the launcher: what each one runs, and the flags it takes.

Each mode imports what it needs when it runs: reading text needs no jax, and the
worker processes that read it should not load jax.
"""

from collections.abc import Sequence
import logging
import os
import sys
import tempfile
from typing import TYPE_CHECKING

from absl import flags

from bert_jax import command_line
from bert_jax.command_line import PROCESSES
from bert_jax.command_line import Mode
from bert_jax.command_line import UsageError
from bert_jax.command_line import config_of
from bert_jax.command_line import run_config
from bert_jax.runtime import config_files
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import machine
from bert_jax.runtime import phases
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import streams
from bert_jax.runtime.settings import Config

if TYPE_CHECKING:
  from bert_jax.launching import launch
  from bert_jax.training import members

_log = logging.getLogger("bert_jax")

# The devices here need not be those of the training.
_ANY_MESH = {"data": -1, "fsdp": 1, "tensor": 1}


def _workdir(flag_values: flags.FlagValues) -> str:
  if not flag_values.workdir:
    raise UsageError("this mode needs --workdir=DIR")
  from bert_jax.runtime import saved_steps

  saved_steps.refuse_step(flag_values.workdir)
  return flag_values.workdir


def _prepare(flag_values: flags.FlagValues) -> None:
  from bert_jax.data import prepare

  config = config_of(flag_values)
  folder = flag_values.output or config.data.dir
  if not folder:
    raise UsageError("prepare needs --output=DATA, the folder to make")
  prepare.prepare(config, flag_values.input, folder)
  for phase in phases.read(config, ""):  # other examples of the same tokens
    if config.train.phases and phase.config.data.dir in (None, config.data.dir):
      prepare.prepare(phase.config, (), folder)


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
  if flag_values.allow_changes and (
    flag_values.member or flag_values.replay_step is not None
  ):
    raise UsageError("--allow_changes is for one run, given by --workdir")
  if flag_values.output and flag_values.replay_step is None:
    raise UsageError("--output of train is for --replay_step; give --workdir")
  if flag_values.input and (
    flag_values.member or flag_values.replay_step is not None
  ):
    raise UsageError("--input of train is for one run, given by --workdir")
  _meet(flag_values)
  if flag_values.replay_step is not None:
    from bert_jax.training import replay

    workdir = _workdir(flag_values)
    config = run_config(flag_values)
    replay.replay(config, workdir, flag_values.replay_step, flag_values.output)
    return
  from bert_jax.training import train

  if flag_values.member:
    if flag_values.workdir:
      raise UsageError("give --workdir, or a --member for each workdir")
    config = config_of(flag_values)
    wanted = [_member(config, text) for text in flag_values.member]
    train.train_together(config, wanted, machine.process_start())
    return
  workdir = _workdir(flag_values)
  if flag_values.config is None and not runs.exists(workdir):
    raise UsageError(
      f"train needs --config, such as --config=pretrain: {workdir} holds no "
      "run to go on with"
    )
  config = run_config(flag_values)
  if flag_values.input:
    from bert_jax.training import from_text

    config = from_text.prepare_text(config, flag_values.input, workdir)
  train.train(
    config,
    workdir,
    flag_values.allow_changes,
    machine.process_start(),
  )


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
    run_config(flag_values, _ANY_MESH),
    workdir,
    flag_values.output,
    flag_values.checkpoint or "",
  )


def _predict(flag_values: flags.FlagValues) -> None:
  from bert_jax.prediction import predict
  from bert_jax.prediction import records

  if flag_values.config is None:
    _workdir(flag_values)
  if len(flag_values.input) > 1:
    raise UsageError(f"predict reads one file, not {flag_values.input}")
  if flag_values.input and flag_values.text:
    raise UsageError("give --input or --text, not both")
  source = records.of_texts(flag_values.text) or "".join(flag_values.input)
  config = run_config(flag_values, _ANY_MESH)
  with streams.ending_with_reader():
    total, failed = predict.predict(
      config,
      flag_values.workdir or "",
      source,
      flag_values.output or "",
      flag_values.checkpoint or "",
      _given_keys(flag_values),
    )
  if failed:
    sys.exit(errors.FAILED if failed == total else errors.SOME_FAILED)


def _sources(flag_values: flags.FlagValues) -> list[str]:
  return list(flag_values["from"].value or ())


def _predict_config(
  flag_values: flags.FlagValues,
) -> tuple[Config, dict[str, object]]:
  """Returns the config `predict` with the changes, and the changed values."""
  config = command_line.changed_config(
    flag_values, config_files.load("predict")
  )
  flat = settings.flatten(config)
  return config, {k: flat[k] for k in command_line.given_keys(flag_values)}


def _serve(flag_values: flags.FlagValues) -> None:
  from bert_jax.prediction.serving import server

  config, given = _predict_config(flag_values)
  texts = _sources(flag_values)
  server.serve(config, given, texts, flag_values.host, flag_values.port)


def _explore(flag_values: flags.FlagValues) -> None:
  from bert_jax.prediction.serving import server

  _, given = _predict_config(flag_values)
  texts = _sources(flag_values)
  server.explore(given, texts, flag_values.host, flag_values.port)


def _export(flag_values: flags.FlagValues) -> None:
  sources = _sources(flag_values)
  if len(sources) != 1 or not flag_values.output:
    raise UsageError("export needs --from=DIR, one model, and --output=FOLDER")
  config, given = _predict_config(flag_values)
  from bert_jax.prediction import exporting
  from bert_jax.prediction import model as model_lib

  written = exporting.export(
    model_lib.load(sources[0], given),
    flag_values.output,
    flag_values.to,
    config.predict.kind,
    flag_values.weights,
  )
  for name in written:
    size = files.size(os.path.join(flag_values.output, name))
    _log.info("wrote %s (%s bytes)", name, f"{size:,}")


def _given_keys(flag_values: flags.FlagValues) -> tuple[str, ...]:
  """Returns the keys of the config that the user set, most important first.

  Keys of the command line come before those of the config file. The config of a
  run by itself sets none.
  """
  from bert_jax.prediction import settings

  # A setting may have a name in the group `predict` and one in another.
  named = sorted(
    command_line.given_keys(flag_values),
    key=lambda key: not key.startswith("predict."),
  )
  if flag_values.config is None:
    return tuple(named)
  return (*named, *settings.asked_in(flag_values.config))


def _plan(flag_values: flags.FlagValues) -> None:
  config = config_of(flag_values)
  if not flag_values.topology:
    raise UsageError("plan needs --topology, such as v5e:4x4")
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
  from bert_jax.planning import schedules

  status = 0
  with tempfile.TemporaryDirectory() as folder:
    # The compiler reads this when it is loaded. A user who gives it options of
    # his own keeps them; kernels are then counted by assumed shares of peak.
    own = os.environ.setdefault("LIBTPU_INIT_ARGS", schedules.flags(folder))
    from bert_jax.planning import plan

    for i, phase in enumerate(phases.read(config, "")):
      if phase.name:
        print(f"phase {phase.name}")
      name = phase.name if i else ""  # the first phase has the files as named
      status |= plan.run(
        phase.planned,
        flag_values.topology,
        flag_values.num_slices,
        flag_values.search or "",
        _of_phase(flag_values.output, name),
        _of_phase(flag_values.dump, name),
        flag_values.num_together if flag_values.num_together > 1 else 0,
        folder if own == schedules.flags(folder) else "",
      )
  if status:
    sys.exit(status)


def _of_phase(path: str | None, name: str) -> str:
  """Returns the file for a phase: FILE-NAME.json for FILE.json."""
  if not path or not name:
    return path or ""
  stem, ending = os.path.splitext(path)
  return f"{stem}-{name}{ending}"


def _doctor(flag_values: flags.FlagValues) -> None:
  workdir = _workdir(flag_values)
  config = run_config(flag_values)
  if flag_values.topology and flag_values.config is None:
    raise UsageError("--topology needs --config: a plan is made for that")
  from bert_jax.planning import doctor

  found = phases.read(config, workdir)
  if len(found) > 1:
    from bert_jax.training import train

    found = train.check_phases(found)
    begun = [phase for phase in found if runs.exists(phase.workdir)]
    present = begun[-1] if begun else found[0]
    config, workdir = present.config, present.workdir
  sound = doctor.examine(
    config,
    workdir,
    flag_values.coordinator,
    flag_values.process_id,
    flag_values.num_processes or 1,
    flag_values.topology,
    command_line.config_arguments(sys.argv[1:]),
  )
  if not sound:
    sys.exit(1)


def _convert(flag_values: flags.FlagValues) -> None:
  from bert_jax.weights import convert

  if len(flag_values.input) != 1 or not flag_values.output:
    raise UsageError("convert needs --input=DIR and --output=DIR")
  convert.convert(
    config_of(flag_values),
    flag_values.input[0],
    flag_values.output,
    flag_values.push or "",
  )


def _launch(flag_values: flags.FlagValues) -> None:
  from bert_jax.launching import jobs
  from bert_jax.launching import launch

  engine, action = flag_values.engine, flag_values.file
  launch.find_engine(engine)
  given = {
    n: flag_values[n].value for n in jobs.FLAGS if flag_values[n].present
  }
  settings = launch.read_settings(engine, given, flag_values.set)
  name = flag_values.name
  if not name:
    raise UsageError("launch needs --name=NAME, such as --name=bert-base-1")
  if action:
    if action not in launch.ACTIONS or flag_values.command:
      known = ", ".join(launch.ACTIONS)
      raise UsageError(
        f"launch {action}: give one of {known} without a command, or a command "
        "after ' -- ' without such a word"
      )
    for unused in ("plan", "topology"):
      if flag_values[unused].present:
        raise UsageError(
          f"launch {action} does not need --{unused}; leave it out"
        )
    slices = flag_values.num_slices
    job = jobs.Job(name, (), num_slices=slices, settings=settings)
    launch.act(engine, action, job, flag_values.dry_run)
    return
  command = _read_command(flag_values.command)
  job = launch.make_job(
    engine, name, command, flag_values.topology, flag_values.num_slices,
    settings,
  )  # fmt: skip
  launch.send(engine, command, job, flag_values.plan, flag_values.dry_run)


def _read_command(words: Sequence[str]) -> "launch.Command":
  """Reads the command of a job as the hosts will read it.

  Raises:
    UsageError: it is wrong, or of a mode that is not sent.
  """
  from bert_jax.launching import launch
  from bert_jax.runtime import settings

  sent = [name for name, mode in MODES.items() if mode.is_sent]
  if not words:
    raise UsageError(
      "give the command of the job after ' -- ', such as -- train "
      "--config=pretrain --workdir=gs://BUCKET/run; launch sends "
      f"{', '.join(sent)}"
    )
  argv, values = ["bert-jax", *words], flags.FlagValues()
  command_line.define_flags(values, list(MODES))
  try:
    command_line.parse(values, argv, MODES)
  except Exception as error:  # a config file may raise anything
    problem = command_line.explain(error, argv)
    raise UsageError(f"the command of the job: {problem}") from error
  mode = command_line.check_flags(values, argv[1:], MODES)
  if not mode.is_sent:
    raise UsageError(
      f"launch does not send {values.mode}; it sends {', '.join(sent)}"
    )
  read = {f"--input of {path}": path for path in values.input}
  if values.config is not None:
    settings.check(values.config)
    settings.check_names(values.config)
    read |= launch.paths_in(values.config)
  kept: dict[str, str] = {}
  for name in ("workdir", "output"):
    if path := values[name].value:
      kept[f"--{name}"] = path
  for text in values.member:
    workdir = text.rpartition(":")[0]
    kept[f"--member of {workdir}"] = workdir
  if not kept:
    raise UsageError(
      f"{values.mode} as a job needs --workdir or --output: what else it "
      "writes is lost with its machine"
    )
  config_arguments = tuple(command_line.config_arguments(argv[1:]))
  used = [a.removeprefix("--config=") for a in config_arguments[:1]]
  if values.mode == "sweep":
    from bert_jax.sweeps import sweep

    for one in sweep.read_trials(values.config, values.workdir or ""):
      read |= launch.paths_in(one.load_config(), f"trial {one.name}")
      used.append(one.config)
  return launch.Command(
    values.mode,
    tuple(words),
    values.config,
    config_arguments,
    kept,
    read,
    tuple(used),
  )


def _sweep(flag_values: flags.FlagValues) -> None:
  from bert_jax.sweeps import costs
  from bert_jax.sweeps import engines
  from bert_jax.sweeps import running
  from bert_jax.sweeps import sweep

  config, workdir = config_of(flag_values), _workdir(flag_values)
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
  elif flag_values.engine != "here":
    settings = sweep.engine_settings(config, flag_values.engine)
    engines.SENDERS[flag_values.engine](trials, workdir, settings)
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
  from bert_jax.sweeps import curves
  from bert_jax.sweeps import report

  paths, output = flag_values.input, flag_values.output
  if not paths:
    raise UsageError("report needs --input=RESULTS or --input=RUN")
  if runs.exists(paths[0]):
    written = curves.report(paths, output or paths[0])
  elif len(paths) > 1 or not output:
    raise UsageError(
      f"{paths[0]} holds no run; of the results of a sweep, report needs one "
      "--input=DIR and --output=DIR"
    )
  else:
    written = report.report(paths[0], output)
  for path in written:
    _log.info("wrote %s", path)


def _demo(flag_values: flags.FlagValues) -> None:
  from bert_jax import demo

  demo.run(flag_values.workdir or "runs/demo")


def _configs(flag_values: flags.FlagValues) -> None:
  if (flag_values.copy is None) != (not flag_values.file):
    raise UsageError(
      "name the config and the file to write: configs --copy=finetune my.py"
    )
  if flag_values.copy is None:
    print(config_files.describe())
    return
  config_files.copy(flag_values.copy, flag_values.file)
  print(f"wrote {flag_values.file}; use it as --config={flag_values.file}")


MODES = {
  "prepare": Mode(
    _prepare,
    "Turns text into training data.",
    ("--config=pretrain --input=TEXT --output=DATA",),
    ("input", "output"),
    config="needed",
    left="what was finished is kept, and the same command goes on",
    is_sent=True,
  ),
  "train": Mode(
    _train,
    "Trains a model, or goes on with a run that was stopped.",
    (
      "--config=pretrain:size=mini --config.data.dir=DATA \\\n"
      "    --workdir=RUN",
      "--config=finetune:task=mrpc,from=RUN --config.task.dir=GLUE \\\n"
      "    --workdir=RUN2",
      "--config=adapt:from=DIR --input=TEXT --workdir=RUN",
      "--workdir=RUN",
    ),
    (
      "workdir",
      "input",
      "allow_changes",
      "member",
      "replay_step",
      "output",
      *PROCESSES,
    ),  # fmt: skip
    config="of the run",
    computes=True,
    left="no step was taken; the same command starts or goes on",
    is_sent=True,
  ),
  "evaluate": Mode(
    _evaluate,
    "Scores a run on its held-out or development data.",
    ("--workdir=RUN", "--workdir=RUN --output=scores.json --checkpoint=newest"),
    ("workdir", "output", "checkpoint", *PROCESSES),
    config="of the run",
    computes=True,
    is_sent=True,
  ),
  "predict": Mode(
    _predict,
    "Answers texts with a trained model, one JSON object a line.",
    (
      '--workdir=RUN --text="Paris is the [MASK] of France."',
      "--config=predict:kind=embed,from=DIR --input=LINES.jsonl \\\n"
      "    --output=OUT.jsonl",
    ),
    ("workdir", "input", "output", "text", "checkpoint"),
    config="of the run",
    computes=True,
    is_sent=True,
  ),
  "serve": Mode(
    _serve,
    "Answers requests over HTTP with trained models, until it is told to stop.",
    (
      "--from=RUN --port=8000",
      "--from=small=DIR,large=DIR2 --host=0.0.0.0 \\\n"
      "    --config.serve.kinds=embed,classify",
    ),
    ("from", "host", "port"),
    config="changes",
    computes=True,
    left="requests in progress were not answered",
  ),
  "explore": Mode(
    _explore,
    "Shows on a web page what a model does inside.",
    ("--from=RUN --port=8000",),
    ("from", "host", "port"),
    config="changes",
    computes=True,
    left="nothing was to be saved",
  ),
  "export": Mode(
    _export,
    "Writes a model as a program that runs without this package.",
    (
      "--from=RUN --to=stablehlo --output=DIR",
      "--from=DIR --to=onnx --weights=int8 --output=DIR2 \\\n"
      "    --config.predict.kind=embed",
    ),
    ("from", "to", "weights", "output"),
    config="changes",
    computes=True,
  ),
  "plan": Mode(
    _plan,
    "Compiles a training for a TPU slice and predicts its memory and speed.",
    ("--config=tpu:size=large,chip=v5e,devices=16 --topology=v5e:4x4",),
    ("topology", "num_slices", "search", "num_together", "output", "dump"),
    config="needed",
  ),
  "convert": Mode(
    _convert,
    "Writes weights in another format.",
    (
      "--config=convert:to=huggingface --input=RUN --output=DIR",
      "--config=convert:to=huggingface --input=RUN --output=DIR \\\n"
      "    --push=OWNER/NAME",
    ),
    ("input", "output", "push"),
    config="needed",
  ),
  "doctor": Mode(
    _doctor,
    "Checks everything that could stop a training from starting.",
    ("--config=pretrain --config.data.dir=DATA --workdir=RUN",),
    ("workdir", "topology", *PROCESSES),
    config="of the run",
    computes=True,
  ),
  "sweep": Mode(
    _sweep,
    "Runs many trainings, or hands them to a cluster.",
    (
      "--config=glue:from=WEIGHTS,data=GLUE,seeds=5 --workdir=RUNS \\\n"
      "    --output=RESULTS",
      "--config=MY_SWEEP.py --workdir=RUNS --dry_run",
    ),
    (
      "workdir",
      "output",
      "dry_run",
      "num_parallel",
      "num_together",
      "retry_failed",
      "engine",
      "topology",
    ),  # fmt: skip
    config="needed",
    left="what its trials had saved is kept, and the same command goes on",
    is_sent=True,
  ),
  "launch": Mode(
    _launch,
    "Sends a job to a cluster or to TPU VMs, after showing its plan.",
    (
      "--engine=gke --name=base --topology=v5e:4x4 --spot \\\n"
      "    --image=IMAGE -- train --config=tpu --workdir=gs://BUCKET/base",
      "--engine=gke --name=base ... --dry_run -- train ... > job.yaml",
      "status --engine=gke --name=base",
    ),
    (
      "engine",
      "name",
      "topology",
      "num_slices",
      "image",
      "cluster",
      "project",
      "zone",
      "queue",
      "spot",
      "max_restarts",
      "set",
      "plan",
      "dry_run",
    ),  # fmt: skip
    file="ACTION",
    left="nothing was sent",
    takes_command=True,
  ),
  "report": Mode(
    _report,
    "Makes tables and pictures of the results of a sweep, or of some runs.",
    (
      "--input=RESULTS --output=DIR",
      "--input=RUN",
      "--input=RUN,RUN2 --output=DIR",
    ),
    ("input", "output"),
  ),
  "demo": Mode(
    _demo,
    "Pre-trains a small BERT on the docstrings of Python: 5 minutes.",
    ("", "--workdir=runs/demo"),
    ("workdir",),
    left="the demo starts again from its beginning",
  ),
  "configs": Mode(
    _configs,
    "Lists the shipped configs, or copies one to a file for you to edit.",
    ("", "--copy=finetune my.py"),
    ("copy",),
    file="FILE",
  ),
}
