"""Several processes that train one model, and what they say."""

import functools
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
  "model.num_layers": 1,
  "model.hidden_size": 32,
  "model.num_heads": 2,
  "model.mlp_dim": 64,
  "model.vocab_size": 32,
  "model.max_len": 16,
  "data.seq_len": 16,
  "data.batch_size": 16,
  "data.dupe_factor": 4,
  "train.total_steps": 120,
  "train.log_every_steps": 1,
  "eval.every_steps": 50,
  "eval.batch_size": 16,
  "checkpoint.every_steps": 20,
}


def start(
  prepared, workdir, num_processes, num_devices, odd=None, limit=None,
  program=("-m", "bert_jax.main"), folder=ROOT, other_workdir=None,
  mode="train", config="configs/base.py", said=None, each=lambda i: {},
  **changes,
):  # fmt: skip
  """Starts the processes of a job, with some devices each.

  What they say goes to WORKDIR-NUMBER.txt, or SAID-NUMBER.txt. The last one
  has settings of its own, `odd`, may write files of `limit` bytes at most, and
  may run another `program`, in another `folder`, with another workdir. `each`
  returns settings that differ between processes, by their number.
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environ = dict(os.environ) | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"
    " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
  }
  settings = SETTINGS | {"data.dir": prepared}
  settings |= {k.replace("__", "."): v for k, v in changes.items()}
  jobs = []
  for i in range(num_processes):
    is_last = i == num_processes - 1
    several = (
      f"--coordinator=127.0.0.1:{port}",
      f"--num_processes={num_processes}",
      f"--process_id={i}",
    )
    args = [
      f"--mode={mode}",
      f"--workdir={is_last and other_workdir or workdir}",
      *([f"--config={config}"] if config else []),
      *(f"--config.{k}={v}" for k, v in settings.items() if config),
      *(f"--config.{k}={v}" for k, v in each(i).items()),
      *(f"--config.{k}={v}" for k, v in (odd or {}).items() if is_last),
      *(several if num_processes > 1 else ()),
    ]
    name = f"{said or workdir}-{i}.txt"
    own = program if is_last else ("-m", "bert_jax.main")
    with open(name, "w") as file:
      jobs.append(
        subprocess.Popen(
          [sys.executable, *own, *args],
          preexec_fn=functools.partial(_limit_files, limit)
          if limit and is_last
          else None,
          cwd=folder if is_last else ROOT,
          env=environ,
          stdout=subprocess.DEVNULL,
          stderr=file,
        )
      )
    jobs[-1].said = pathlib.Path(name)
  return jobs


def _limit_files(size):
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def finish(jobs):
  """Their exit statuses; shows what they said, for where a test fails."""
  try:
    return [job.wait(600) for job in jobs]
  finally:
    for job in jobs:
      job.kill()
      print(f"--- {job.args[-1]}", job.said.read_text()[-2000:], sep="\n")


def assert_told(job, *parts):
  """It said the cause in one line, its last, and without a list of threads."""
  said = job.said.read_text()
  ours = [x for x in said.splitlines() if x.startswith("bert-jax: ")]
  assert len(ours) == 1 and said.splitlines()[-1] == ours[0], said
  assert all(part in ours[0] for part in parts), said
  assert "Fatal Python error" not in said and "Traceback" not in said


def wait_for_lines(workdir, count, jobs):
  """Until the log has so many."""
  log = workdir / "metrics.jsonl"
  while not (log.exists() and log.read_text().count("\n") > count):
    time.sleep(0.05)
    assert all(job.poll() is None for job in jobs)
