"""Lists the trials of a sweep, with the state and predicted cost of each."""

from collections.abc import Callable, Sequence
import statistics

from rich import console
from rich import markup
from rich import table

from bert_jax.launching import plans
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep

_NUM_BATCHES = 20  # from which the FLOPs of a step are estimated


def listing(
  trials: Sequence[sweep.Trial],
  workdir: str,
  cost: Callable[[sweep.Trial], str],
) -> list[tuple[str, str, str]]:
  """Returns rows of (name, state, cost), for --dry_run.

  Args:
    trials: from `read_trials`.
    workdir: the folder of the sweep.
    cost: describes the predicted cost of a trial that is not done.
  """
  journal = running.Journal(workdir)
  failed, secs = journal.failed(), journal.seconds()
  rows = []
  for one in trials:
    state = one.state()
    if state != "done" and one.name in failed:
      state = "failed"
    if state == "done":
      took = secs.get(one.name)
      text = f"took {took:,.0f} s" if took is not None else ""
    else:
      text = cost(one)
    rows.append((one.name, state, text))
  return rows


def show(rows: Sequence[tuple[str, str, str]]) -> None:
  """Prints the rows of `listing` as a table."""
  grid = table.Table(box=None, pad_edge=False)
  for heading in ("trial", "state", "cost"):
    grid.add_column(heading, overflow="fold")
  for row in rows:
    grid.add_row(*map(markup.escape, row))
  console.Console(highlight=False).print(grid)
  states = [state for _, state, _ in rows]
  counts = (f"{states.count(s)} {s}" for s in dict.fromkeys(states))
  print(f"{len(rows)} trials: {', '.join(counts)}")


class Costs:
  """Predicts the costs of trials from their FLOPs.

  The predicted time assumes the speed of the sweep's trials that are done. For
  a TPU slice, a plan predicts the time of a step.
  """

  def __init__(
    self, trials: Sequence[sweep.Trial], workdir: str, topology: str | None
  ):
    """Measures the speed of the trials that are done.

    Args:
      trials: all trials of the sweep.
      workdir: the folder of the sweep.
      topology: the TPU slice to plan for, such as "v5e:4x4", or None.
    """
    self._topology = topology
    self._plans: dict[tuple[str, ...], dict] = {}
    self._flops: dict[tuple[str, ...], tuple[int, float]] = {}
    secs = running.Journal(workdir).seconds()
    speeds = []
    for one in trials:
      if not topology and one.name in secs and one.is_done():
        speeds.append(self.flops(one)[1] / secs[one.name])
    self._speed = statistics.median(speeds) if speeds else None
    self._num_done = len(speeds)

  def flops(self, one: sweep.Trial) -> tuple[int, float]:
    """Returns the number of steps of a trial, and the FLOPs of all its steps.

    Raises:
      ValueError: the config or the data of the trial cannot be used.
    """
    # These modules load jax, which a sweep itself does not need.
    from bert_jax.runtime import sharding
    from bert_jax.training import checks
    from bert_jax.training import jobs

    key = one.program()
    if key in self._flops:
      return self._flops[key]
    config = one.load_config()
    checks.check_settings(config)
    job, _ = jobs.open_job(config, "")
    m = config.mesh
    batches = job.batches(sharding.make_mesh(m.data, m.fsdp, m.tensor))
    # The batches of a task differ in shape, so the first few are averaged.
    count = min(len(batches), _NUM_BATCHES)
    mean = statistics.mean(job.step_flops(batches[i]) for i in range(count))
    self._flops[key] = job.total_steps, mean * job.total_steps
    return self._flops[key]

  def __call__(self, one: sweep.Trial) -> str:
    """Describes the cost of a trial, or says why it is unknown."""
    try:
      if self._topology:
        return self._planned(one, self._topology)
      num_steps, flops = self.flops(one)
    except ValueError as error:
      return f"unknown: {error}"
    text = f"{num_steps:,} steps, {flops:.2g} model FLOPs"
    if self._speed:
      text += (
        f", about {flops / self._speed / 60:,.1f} min at the speed of the "
        f"{self._num_done} trials done"
      )
    return text

  def _planned(self, one: sweep.Trial, topology: str) -> str:
    """Describes the cost of a trial on the TPU slice, from its plan."""
    key = one.program()
    if key not in self._plans:
      config = [text for text in key if text.startswith("--config")]
      self._plans[key] = make_plan(config, topology)
    plan = self._plans[key]
    num_steps = one.load_config().train.total_steps or self.flops(one)[0]
    secs = plan["predicted_step_secs"] * num_steps
    return (
      f"{num_steps:,} steps, predicted {secs / 3600:,.2f} h on "
      f"{topology}, {secs * plan['num_devices'] / 3600:,.1f} chip-hours"
    )


def make_plan(config: Sequence[str], topology: str) -> dict:
  """Makes a plan in a new process, and returns it.

  Args:
    config: the arguments --config and --config.KEY of the training.
    topology: the slice, such as v5e:4x4.

  Raises:
    sweep.SweepError: the training does not fit the memory, or the plan failed.
  """
  try:
    return plans.make(config, topology)
  except plans.PlanError as error:
    raise sweep.SweepError(str(error)) from error
