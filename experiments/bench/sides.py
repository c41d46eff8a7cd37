"""Two programs that take turns: each in a process of its own, timed alike.

A benchmark script is its own worker: it starts itself again with --side=NAME
for every side, and asks each for some steps in turn.
"""

import json
import os
import statistics
import subprocess
import sys
import time


def limit_threads(num_threads):
  """Pins the process to `num_threads` cores; XLA makes a thread per core.

  Must run before jax and torch are imported.
  """
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < num_threads:
    raise SystemExit(
      f"--threads={num_threads}, but only {len(cores)} cores "
      f"may be used here; pass --threads={len(cores)}"
    )
  os.sched_setaffinity(0, cores[:num_threads])
  os.environ["OMP_NUM_THREADS"] = str(num_threads)


def busy_secs():
  """Returns the processor seconds that all processes have used so far."""
  with open("/proc/stat") as file:
    fields = [int(field) for field in file.readline().split()[1:9]]
  idle = fields[3] + fields[4]
  return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def serve(run, restart=lambda: None):
  """Runs one side: as many steps as each line of standard input says.

  Prints a line of JSON for each: seconds of every step, processor seconds of
  the process, and of all processes. The first step of a turn is not among
  them: it pays for memory that the side which waited has given back.

  Args:
    run: does a step; called twice before the first turn, to compile.
    restart: called before every turn.
  """
  run(), run()
  print("ready", flush=True)
  for line in sys.stdin:
    restart()
    run()
    secs = []
    busy, own = busy_secs(), time.process_time()
    for _ in range(int(line)):
      start = time.perf_counter()
      run()
      secs.append(time.perf_counter() - start)
    own = time.process_time() - own
    print(json.dumps([secs, own, busy_secs() - busy]), flush=True)


def pretraining_step(config, batch, rng_impl=None):
  """Returns a function that runs one step of this project and its loss.

  Args:
    config: the whole configuration, of which `model` and `optim` are read.
    batch: a batch of words and pairs by batch key, numpy.
    rng_impl: the generator of jax.random.key; None means its default.
  """
  import jax
  import jax.numpy as jnp

  from bert_jax.kinds import table
  from bert_jax.models.config import ModelConfig
  from bert_jax.training import optim
  from bert_jax.training import steps

  objective = table.get("mlm_nsp")
  model = objective.make_model(ModelConfig.from_config(config.model))
  optimizer, schedule = optim.make_optimizer(config.optim, total_steps=1_000)
  batch = {name: jnp.asarray(value) for name, value in batch.items()}
  init_rng, dropout_rng = jax.random.split(jax.random.key(0, impl=rng_impl))
  state = jax.jit(
    lambda: steps.init_state(model, objective, optimizer, init_rng, batch)
  )()
  gradients = steps.make_gradients(model, objective, dropout_rng)
  step = jax.jit(
    steps.make_train_step(gradients, optimizer, schedule), donate_argnums=0
  )

  def run():
    nonlocal state
    state, metrics = step(state, batch)
    return float(metrics["loss"])

  return run


def torch_step(model, optimizer, inputs):
  """A training step of the reference; returns its loss."""
  import torch

  optimizer.zero_grad(set_to_none=True)
  loss = model(**inputs).loss
  loss.backward()
  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  optimizer.step()
  return loss.item()


def start(script, argv, names):
  """Starts a process for each side; returns name -> side.

  The side "ours" runs in the environment that the launcher makes for itself.

  Args:
    script: the path of the benchmark.
    argv: its arguments.
    names: the names of the sides.
  """
  from bert_jax.runtime import machine

  plain = dict(os.environ)
  environs = {"ours": machine.huge_pages(plain)}
  return {
    name: Side(script, name, argv, environs.get(name, plain)) for name in names
  }


def summarize(table, show):
  """Prints and returns the median, least and most of each column.

  Args:
    table: name of a column -> its numbers.
    show: prints a row: (title, numbers).
  """
  summary = {}
  for statistic in (statistics.median, min, max):
    values = [statistic(column) for column in table.values()]
    show(statistic.__name__, values)
    summary[statistic.__name__] = dict(
      zip(table, (round(v, 3) for v in values), strict=True)
    )
  return summary


class Side:
  """A process that runs one of the two, and waits while the other does."""

  def __init__(self, script, name, argv, environ):
    self._process = subprocess.Popen(
      [sys.executable, script, f"--side={name}", *argv],
      env=environ,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self._process.stdin and self._process.stdout
    self._asks, self._answers = self._process.stdin, self._process.stdout
    if self._answers.readline() != "ready\n":
      raise SystemExit(f"the side {name} did not start; see above")

  def measure(self, num_steps):
    """Returns the seconds of each of some steps, and the others' share."""
    self._asks.write(f"{num_steps}\n")
    self._asks.flush()
    secs, own, busy = json.loads(self._answers.readline())
    share = (busy - own) / (sum(secs) * (os.cpu_count() or 1))
    return secs, share

  def close(self):
    """Ends the process."""
    self._asks.close()
    self._process.wait()
    self._answers.close()
