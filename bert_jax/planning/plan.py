"""Compiles a training step for a TPU slice, without any TPU.

  bert-jax plan --config=configs/pretrain.py:size=large \
    --config.model.dtype=bfloat16 --topology=v5e:4x4 --output=plan.json

The compiler of the TPU (libtpu, the extra `tpu`) runs on any Linux machine. Its
program tells the memory of a step, and the estimated cycles of each
instruction. schedules.py reads the cycles of Pallas kernels from the bundles
that the compiler has scheduled, and costs.py adds what it leaves out, based on
sizes, links and, where there is no schedule, the code of kernels. Every time is
a prediction; none of them was compared with a run on a TPU.

The plan compiles the same program as training, which session.py opens without
data.
"""

from collections.abc import Sequence
import functools
import importlib.metadata
import importlib.util
import logging
import math
import os
import sys
import time
from typing import Any

from absl import logging as absl_logging

from bert_jax.planning import costs
from bert_jax.planning import hlo
from bert_jax.planning import memory
from bert_jax.planning import remarks
from bert_jax.planning import report
from bert_jax.planning import schedules as kernel_schedules
from bert_jax.planning import search as batch_search
from bert_jax.planning import slices
from bert_jax.planning import traffic
from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config
from bert_jax.training import finetuning
from bert_jax.training import members
from bert_jax.training import session

_log = logging.getLogger(__name__)

FITS, OUT_OF_MEMORY = 0, 1

LEFT_OUT = (
  "making batches and sending them to the devices",
  "HBM slower than its share of the published bandwidth, and its latency",
  "gaps between instructions, and the start of a step",
  "slow devices and links, and other traffic on the links",
)


def open_program(
  config: Config, devices: Sequence[Any], num_members: int = 0
) -> session.Program:
  """Opens the program that training would compile, without its data.

  Args:
    config: the whole configuration.
    devices: the devices to compile for, which may be abstract.
    num_members: how many models train together; 0 = a single model.

  Raises:
    ValueError: the config contradicts itself, the weights or the devices.
  """
  if num_members:
    return members.open_abstract(config, devices, num_members)
  return session.open_abstract(config, devices)


def make_plan(
  config: Config,
  topology: str,
  num_slices: int = 1,
  search: str = "",
  dump: str = "",
  num_members: int = 0,
  schedules: str = "",
) -> dict[str, Any]:
  """Compiles a config's training step for a topology, and reads the program.

  Args:
    config: the whole configuration.
    topology: the topology of a slice, such as "v5e:4x4".
    num_slices: how many slices the data-centre network connects.
    search: "batch" = also find the largest batch that fits; "" = do not.
    dump: the file for the text of the compiled program; "" = write none.
    num_members: how many models train together; 0 = a single model.
    schedules: the folder to which the compiler was told to write the schedules
      of kernels (schedules.py); "" = it was not told.

  Returns:
    The plan, as it is written to a file. Its key `fits` tells whether the step
    fits the memory.

  Raises:
    ValueError: the config contradicts itself, its data, the weights or the
      topology, or the topology is unknown.
  """
  where = slices.open_slices(topology, num_slices)
  slices.check_compiler(config, where.topology.chip.name)
  program = open_program(config, where.devices, num_members)
  plan = _head(program, where) | {"num_members": num_members or 1}
  mean_row = program.job.mean_row()  # raises if the data is damaged
  start = time.monotonic()
  traced = program.trace()
  if schedules:
    kernel_schedules.clear(schedules)
  try:
    compiled = memory.compile_step(traced, program.mesh)
  except memory.OutOfMemoryError as error:
    plan |= memory.out_of_memory(program, error)
    needed = error.used + memory.state_bytes(program)
  else:
    text = compiled.as_text()
    if dump:
      files.write_text(dump, text)
    plan |= describe(
      program, where, traced, compiled, text, mean_row, schedules
    )
    needed = plan["hbm_bytes_per_device"]
    del compiled
  plan["compile_secs"] = round(time.monotonic() - start, 1)
  if search == "batch":
    shape = program.mesh.shape
    plan |= batch_search.largest_batch(
      functools.partial(_bytes_of_batch, config, where.devices, num_members),
      {config.data.batch_size: (needed, plan["fits"])},
      state=memory.state_bytes(program),
      available=plan["hbm_available_bytes"],
      unit=shape["data"] * shape["fsdp"] * config.optim.num_micro_batches,
    )
  return plan


def _bytes_of_batch(
  config: Config, devices: Sequence[Any], num_members: int, size: int
) -> tuple[int, bool]:
  """Compiles for another batch size.

  Returns:
    The bytes that a device needs, and whether they fit.
  """
  _log.info("compiling for a batch of %d", size)
  config = config.copy_and_resolve_references()
  config.data.batch_size = size
  program = open_program(config, devices, num_members)
  try:
    compiled = memory.compile_step(program.trace(), program.mesh)
  except memory.OutOfMemoryError as error:
    return error.used + memory.state_bytes(program), False
  return sum(memory.bytes_by_kind(program, compiled).values()), True


def _head(program: session.Program, where: slices.Slices) -> dict[str, Any]:
  """Returns the first entries of a plan: the program, the devices, the code."""
  config = program.config
  names = ("jax", "jaxlib", "libtpu", "flax", "optax")
  revision, dirty = runs.commit()
  return {
    "topology": where.topology.name,
    "num_slices": where.num_slices,
    "num_devices": len(where.devices),
    "device_kind": where.devices[0].device_kind,
    "mesh": dict(program.mesh.shape),
    "batch_size": config.data.batch_size,
    "seq_len": config.data.seq_len,
    "config": settings.plain(config),
    "commit": revision,
    "dirty": dirty,
    "versions": {name: importlib.metadata.version(name) for name in names},
    "hbm_available_bytes": where.chip.hbm_bytes,
  }


def describe(
  program: session.Program,
  where: slices.Slices,
  traced: Any,
  compiled: Any,
  text: str,
  mean_row: tuple[float, float, float] | None = None,
  schedules: str = "",
) -> dict[str, Any]:
  """Returns the entries of a plan for a step that was compiled.

  Args:
    program: the program of the step.
    where: the devices.
    traced: the traced step, from `program.trace`.
    compiled: the compiled step.
    text: the text of the compiled step.
    mean_row: facts about the rows of the training data, from `Job.mean_row`.
    schedules: as for `make_plan`; without it the time of kernels is assumed.
  """
  chip, mesh = where.chip, program.mesh
  parsed = hlo.parse(text)
  counted = costs.count_program(traced.jaxpr, chip.mxu_width)
  network = slices.make_network(mesh, where)
  kernels = {
    i.name: costs.kernel_cost(i, counted.kernels) for i in parsed.pallas_calls
  }
  if schedules:
    texts = kernel_schedules.read(schedules, kernels)
    kernels = costs.add_schedules(kernels, parsed, texts, chip.num_cores)
  times = costs.timeline(
    parsed.schedule,
    chip.clock_hz,
    lambda i: kernels[i.name][0].secs(chip),
    network.secs,
    chip.hbm_bandwidth * costs.MEMORY_EFFICIENCY,
  )
  # By the ruler of earlier plans: shares of peak, no limit of the memory.
  assumed = costs.timeline(
    parsed.schedule,
    chip.clock_hz,
    lambda i: kernels[i.name][0].assumed_secs(chip),
    network.secs,
  )
  bytes_by_kind = memory.bytes_by_kind(program, compiled)
  exchanges = traffic.describe_exchanges(parsed, mesh, network)
  moved = sum(i.moved_bytes * i.count for i in parsed.instructions) + sum(
    kernels[i.name][0].bytes * i.count for i in parsed.pallas_calls
  )
  rates = _rates(
    program,
    times,
    counted.matmul_flops,
    chip.peak_flops * len(where.devices),
    mean_row,
  )
  return {
    "fits": True,
    "prediction": "compiled, not run: every time and rate here is predicted",
    "left_out": list(LEFT_OUT),
    **rates,
    "assumed_step_secs": assumed.step,
    "assumed_mfu": rates["predicted_mfu"] * times.step / assumed.step,
    **_duration(program, times.step, where),
    "secs_by_kind": {
      "compute": times.compute,
      "waiting_for_memory": times.starved,
      "pallas_kernels": times.kernels,
      "communication_exposed": times.exposed,
      "communication_hidden": times.hidden,
    },
    "hbm_bytes_per_device": sum(bytes_by_kind.values()),
    "hbm_bytes_by_kind": bytes_by_kind,
    "cycles_per_step": parsed.cycles,
    "clock_hz": chip.clock_hz,
    "cycles_by_part": hlo.cycles_by_part(parsed.instructions),
    "pallas_kernels": costs.describe_kernels(parsed, kernels, chip),
    "collective_bytes_per_step": sum(x["bytes_sent"] for x in exchanges),
    "collectives": exchanges,
    "memory_bytes_per_step": moved,
    "memory_secs_per_step": moved / chip.hbm_bandwidth,
    "assumptions": remarks.assumptions(program.config, where),
    "error": remarks.error(parsed, kernels, times.step, chip),
    "warnings": remarks.warnings(
      program, parsed, chip, all(known for _, known in kernels.values())
    ),
  }


def _duration(
  program: session.Program, step_secs: float, where: slices.Slices
) -> dict[str, Any]:
  """Returns how long a run takes if nothing but its steps takes time.

  The entries are missing if the number of steps is not known.

  Args:
    program: the program of the step.
    step_secs: the predicted time of a step.
    where: the devices.
  """
  one = program.one if isinstance(program, members.StackedProgram) else program
  total_steps = one.job.total_steps
  if (
    program.config.train.num_epochs and total_steps == finetuning.UNKNOWN_STEPS
  ):
    return {}  # the examples of the task are not at hand
  hours = total_steps * step_secs / 3600
  num_chips = where.num_slices * math.prod(where.topology.shape)
  return {
    "total_steps": total_steps,
    "predicted_hours": hours,
    "num_chips": num_chips,
    "predicted_chip_hours": hours * num_chips,
  }


def _rates(
  program: session.Program,
  times: costs.Times,
  hardware_flops: float,
  peak: float,
  mean_row: tuple[float, float, float] | None,
) -> dict[str, Any]:
  """Returns the predicted speed and utilisation of a step.

  If the lengths of packed sequences are unknown, they are taken to be equal,
  which needs the least attention.

  Args:
    program: the program of the step.
    times: the predicted times of a step.
    hardware_flops: FLOPs of the matrix multiplications of a step.
    peak: FLOPs per second of all devices.
    mean_row: as for `describe`.
  """
  one, num_members = program, 1
  if isinstance(program, members.StackedProgram):
    one, num_members = program.one, program.num_members
  length, useful = one.batch["input_ids"].shape[1], None
  starts = one.batch.get("cls_positions")
  num_sequences = 1 if starts is None else starts.shape[1]
  attended, near = length**2 / num_sequences, None
  if mean_row:
    useful = mean_row[0] / length
    if num_sequences > 1:
      attended, near = mean_row[1:]
  needed, everywhere = (
    num_members * one.job.step_flops(one.batch, attended, all_positions, near)
    for all_positions in (False, True)
  )
  tokens_per_sec = program.batch["input_ids"].size / times.step
  return {
    "predicted_step_secs": times.step,
    "predicted_mfu": needed / (times.step * peak),
    "predicted_mfu_all_positions": everywhere / (times.step * peak),
    "predicted_mfu_without_communication": needed
    / ((times.step - times.exposed) * peak),
    "predicted_hardware_utilisation": hardware_flops / (times.step * peak),
    "predicted_tokens_per_sec": tokens_per_sec,
    "predicted_useful_tokens_per_sec": useful and useful * tokens_per_sec,
    "useful_token_share": useful,
    "model_flops_per_step": needed,
    "model_flops_all_positions": everywhere,
    "hardware_flops_per_step": hardware_flops,
  }


def run(
  config: Config,
  topology: str,
  num_slices: int,
  search: str,
  output: str,
  dump: str,
  num_members: int = 0,
  schedules: str = "",
) -> int:
  """Makes a plan, prints it and writes it.

  Args:
    config: as for `make_plan`.
    topology: as for `make_plan`.
    num_slices: as for `make_plan`.
    search: as for `make_plan`.
    output: the file for the plan; "" = write none.
    dump: as for `make_plan`.
    num_members: as for `make_plan`.
    schedules: as for `make_plan`.

  Returns:
    The exit status, FITS or OUT_OF_MEMORY.

  Raises:
    ValueError: as for `make_plan`, or the compiler is not installed.
  """
  if not importlib.util.find_spec("libtpu"):
    raise slices.PlanError(
      "bert-jax plan compiles with libtpu, which is not installed; run `make "
      "tpu` in the project's folder, or pip install -e '.[tpu]' there (700 MB; "
      "no TPU is needed)"
    )
  if folder := os.path.dirname(output):
    files.make_folder(folder)
  for path in filter(None, (output, dump)):
    files.check_writable(path)
  absl_logging.set_verbosity(absl_logging.ERROR)
  plan = make_plan(
    config, topology, num_slices, search, dump, num_members, schedules
  )
  print(report.report(plan))
  sys.stdout.flush()
  if output:
    files.write_json(output, plan, indent=2)
  return FITS if plan["fits"] else OUT_OF_MEMORY
