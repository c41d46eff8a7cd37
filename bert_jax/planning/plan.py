"""Compiles a training step for a TPU slice that nobody has rented yet.

  bert-jax --mode=plan --config=configs/pretrain.py:size=large \
    --config.model.dtype=bfloat16 --topology=v5e:4x4 --output=plan.json

The compiler of the TPU (libtpu, the extra `tpu`) runs on any Linux machine. The
program it makes says how much memory a step takes and, instruction by
instruction, how many cycles; what it leaves out is added from sizes, links and
the code of Pallas kernels (costs.py). Everything about time is a prediction,
and nothing here was timed on a TPU.
"""

from collections.abc import Mapping
import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import math
import os
import re
import sys
import time
from typing import Any

from absl import logging as absl_logging
import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np

from bert_jax.data import batching
from bert_jax.data import packing
from bert_jax.data.store import indexes
from bert_jax.data.store import records
from bert_jax.kinds import objectives
from bert_jax.models import encoder
from bert_jax.models import flops
from bert_jax.models.config import ModelConfig
from bert_jax.planning import costs
from bert_jax.planning import hlo
from bert_jax.runtime import chips
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training import finetuning
from bert_jax.training import members
from bert_jax.training import optim
from bert_jax.training import steps

_log = logging.getLogger(__name__)

GIB = 2**30
FITS, OUT_OF_MEMORY = 0, 1
# Choices of a question where no data says how many: those of SWAG.
_NUM_CHOICES = 4
# Compilations that a search for the largest batch takes at most.
_SEARCH_COMPILES = 6

LEFT_OUT = (
  "making batches and sending them to the devices",
  "waiting for data on its way between HBM and the chip",
  "gaps between instructions, and the start of a step",
  "slow devices and links, and other traffic on them",
)


class PlanError(errors.UserError):
  """There is no plan for what was asked for; says why."""


# --- what is compiled --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slices:
  """The devices a plan is for.

  Attributes:
    topology: of one slice.
    num_slices: how many of them.
    chip: of one device.
    devices: all of them.
    devices_per_chip: 1, or 2 where each core is a device.
  """

  topology: chips.Topology
  num_slices: int
  chip: chips.Chip
  devices: tuple[Any, ...]
  devices_per_chip: int


def open_slices(name: str, num_slices: int = 1) -> Slices:
  """Opens a topology; no TPU is needed.

  Args:
    name: such as "v5e:4x4".
    num_slices: how many of these slices.

  Raises:
    ValueError: there is no such topology.
  """
  topology = chips.parse_topology(name)
  if num_slices < 1:
    raise PlanError(f"num_slices={num_slices}; it must be 1 or more")
  options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  if topology.chip.name == "v4":
    # As a TPU VM sets it up: both cores of a chip are one device.
    options["chip_config_name"] = "megacore"
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    )
  except Exception as error:
    known = ", ".join(topology.chip.topologies)
    reason = str(error).strip().splitlines()[-1]
    raise PlanError(
      f"topology={name!r} is not one that the compiler opens ({reason}); of "
      f"{topology.chip.name} these are known: {known}"
    ) from error
  devices = tuple(found.devices)
  num_chips = num_slices * math.prod(topology.shape)
  per_chip = len(devices) // num_chips
  return Slices(
    topology,
    num_slices,
    topology.chip.per_device(per_chip),
    devices,
    per_chip,
  )


def batch_shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a training batch, without any data.

  Pre-training has one shape, which the config decides. Of a task it depends on
  the examples how many share a row; here each has its own, as with
  data.pack=False, of data.seq_len tokens.

  Args:
    config: the whole configuration.
  """
  data = config.data
  rows, length = data.batch_size, data.seq_len

  def shape(*sizes, dtype="int32"):
    return jax.ShapeDtypeStruct((rows, *sizes), jnp.dtype(dtype))

  batch = {
    name: shape(length) for name in ("input_ids", "input_mask", "segment_ids")
  }
  packed = {name: shape(length) for name in ("positions", "sequence_ids")}
  if config.objective != "task":
    slots = batching.num_masked_slots(data)
    batch |= {
      "masked_positions": shape(slots),
      "masked_ids": shape(slots),
      "masked_weights": shape(slots, dtype="float32"),
    }
    if data.max_sequences == 1:
      return batch | {"nsp_label": shape(), "weight": shape(dtype="float32")}
    many = data.max_sequences
    return (
      batch
      | packed
      | {
        "nsp_label": shape(many),
        "weight": shape(many, dtype="float32"),
        "cls_positions": shape(many),
      }
    )
  kind = finetuning.get_task(config.task).kind
  choices = _NUM_CHOICES if kind == "choice" else 1
  batch = {name: shape(length * choices) for name in (*batch, *packed)} | {
    "cls_positions": shape(choices)
  }
  if kind == "tag":
    return batch | {
      "label": shape(length),
      "weight": shape(length, dtype="float32"),
    }
  batch["weight"] = shape(1, dtype="float32")
  if kind == "span":
    return batch | {"start": shape(1), "end": shape(1)}
  dtype = "float32" if kind == "regress" else "int32"
  return batch | {"label": shape(1, dtype=dtype)}


@dataclasses.dataclass(frozen=True)
class Step:
  """A training step, traced and placed, ready to compile.

  Attributes:
    config: the whole configuration.
    mesh: over the devices of the topology.
    abstract: shapes of the train state.
    place: sharding of the train state.
    batch: shapes of a batch.
    traced: the step.
    num_members: models that train together, on the first axis of all shapes;
      0 = it is one, and there is no such axis.
  """

  config: Config
  mesh: jax.sharding.Mesh
  abstract: steps.TrainState
  place: steps.TrainState
  batch: Mapping[str, jax.ShapeDtypeStruct]
  traced: Any
  num_members: int = 0

  @property
  def batch_place(self) -> jax.sharding.NamedSharding:
    """Sharding of a batch."""
    rows = sharding.batch_sharding(self.mesh)
    return sharding.of_members(rows, self.mesh) if self.num_members else rows


def trace_step(
  config: Config, mesh: jax.sharding.Mesh, num_members: int = 0
) -> Step:
  """Traces the step that train.py runs.

  Args:
    config: the whole configuration; its model has the shape to plan for.
    mesh: over the devices of the topology.
    num_members: models that train together; 0 = one, alone.

  Raises:
    ValueError: the config cannot be, or does not fit the mesh.
  """
  sharding.check_batch_size(
    config.data.batch_size, mesh, config.optim.num_micro_batches
  )
  model_config = ModelConfig.from_config(config.model)
  if config.data.seq_len > model_config.max_len:
    raise PlanError(
      f"data.seq_len={config.data.seq_len} is longer than model.max_len="
      f"{model_config.max_len}; lower it, or raise max_len"
    )
  if config.objective == "task":
    task = finetuning.get_task(config.task)
    objective = objectives.get_objective(task.kind)
    model = objective.make_model(model_config, num_labels=task.num_outputs)
  else:
    batching.check_max_sequences(config.data)
    objective = objectives.get_objective(config.objective)
    model = objective.make_model(model_config)
  # The number of steps is a constant of the learning rate, nothing else.
  total = config.train.total_steps or 1000
  optimizer, schedule = optim.make_optimizer(config.optim, total)
  init_rng, dropout_rng = jax.random.split(jax.random.key(config.seed))
  batch = batch_shapes(config)
  row = {
    k: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    for k, x in batch.items()
  }
  with jax.set_mesh(mesh):
    abstract = jax.eval_shape(
      lambda row: steps.init_state(model, objective, optimizer, init_rng, row),
      row,
    )
    place = sharding.place_state(abstract, mesh, config.mesh)
    if num_members:
      return _trace_together(
        config, mesh, model, objective, (abstract, place, batch), num_members
      )
    step = steps.jit_train_step(
      config,
      model,
      objective,
      optimizer,
      schedule,
      dropout_rng,
      mesh,
      place,
    )
    traced = step.trace(abstract, batch)
  return Step(config, mesh, abstract, place, batch, traced)


def _trace_together(
  config: Config,
  mesh: jax.sharding.Mesh,
  model: Any,
  objective: objectives.Objective,
  of_one: tuple[Any, Any, dict[str, jax.ShapeDtypeStruct]],
  count: int,
) -> Step:
  """The step of several models; of_one: state, its places and batch of one."""
  total = config.train.total_steps or 1000
  step = steps.jit_members_step(
    config,
    model,
    objective,
    functools.partial(optim.make_optimizer, config.optim, total),
    mesh,
    of_one[1],
  )
  abstract, batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype),
    (of_one[0], of_one[2]),
  )
  rngs = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  rates = jax.ShapeDtypeStruct((count,), jnp.float32)
  return Step(
    config,
    mesh,
    abstract,
    sharding.of_members(of_one[1], mesh),
    batch,
    step.trace(abstract, batch, rngs, rates),
    count,
  )


# --- memory ------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
  """A program needs more memory than a device has.

  Attributes:
    used: bytes it needs, as far as the compiler says.
    available: bytes there are.
  """

  def __init__(self, used: int, available: int):
    super().__init__(f"{used / GIB:.2f} of {available / GIB:.2f} GiB")
    self.used, self.available = used, available


_SIZES = (
  # Both ways the compiler puts it.
  r"temporaries \((?P<used>[\d.]+[BKMGT]?)\) exceeds available HBM "
  r"\((?P<available>[\d.]+[BKMGT]?)\)",
  r"Used (?P<used>[\d.]+[BKMGT]?) of (?P<available>[\d.]+[BKMGT]?) hbm",
)


def read_out_of_memory(message: str) -> OutOfMemoryError | None:
  """Reads the compiler's message; None if it is about something else.

  Example:
    >>> str(read_out_of_memory("Used 42.5G of 15.75G hbm. Exceeded by 26.7G"))
    '42.50 of 15.75 GiB'
  """
  for pattern in _SIZES:
    if match := re.search(pattern, message):
      return OutOfMemoryError(
        _parse_bytes(match["used"]), _parse_bytes(match["available"])
      )
  return None


def _parse_bytes(text: str) -> int:
  power = "BKMGT".find(text[-1])
  number = text if power < 0 else text[:-1]
  return int(float(number) * 1024 ** max(power, 0))


def compile_step(step: Step) -> Any:
  """Compiles a step.

  Raises:
    OutOfMemoryError: it needs more memory than a device has.
  """
  try:
    with jax.set_mesh(step.mesh):
      return step.traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if found := read_out_of_memory(str(error)):
      raise found from error
    if "vmem" in str(error):
      raise PlanError(
        "a kernel needs more of the chip's own memory than there is; give it "
        "smaller blocks, or another model.attention: "
        + " ".join(str(error).split())[:500]
      ) from error
    raise


def local_bytes(abstract: Any, place: Any) -> int:
  """Bytes of a tree on one device, without the padding of tiles."""

  def size(x, where):
    return math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize

  return sum(jax.tree.leaves(jax.tree.map(size, abstract, place)))


def memory(step: Step, compiled: Any) -> dict[str, int]:
  """Bytes of HBM that a step takes on one device, by kind."""
  analysis = compiled.memory_analysis()
  parameters = local_bytes(step.abstract.params, step.place.params)
  optimizer = local_bytes(step.abstract.opt_state, step.place.opt_state)
  batch = local_bytes(step.batch, {k: step.batch_place for k in step.batch})
  arguments = analysis.argument_size_in_bytes
  results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  kinds = {
    "parameters": parameters,
    "optimizer": optimizer,
    "batch": batch,
    "padding": max(arguments - parameters - optimizer - batch, 0),
    "activations": analysis.temp_size_in_bytes + max(results, 0),
    "code": analysis.generated_code_size_in_bytes,
  }
  return kinds | {"total": sum(kinds.values())}


# --- the plan ----------------------------------------------------------------


def make_plan(
  config: Config,
  topology: str,
  num_slices: int = 1,
  search: str = "",
  dump: str = "",
  num_members: int = 0,
) -> dict[str, Any]:
  """Compiles a config's training step for a topology and reads the program.

  Args:
    config: the whole configuration.
    topology: such as "v5e:4x4".
    num_slices: slices of that topology, connected by the data-centre network.
    search: "batch" also finds the largest batch that fits.
    dump: file for the text of the compiled program, or "".
    num_members: models that train together; 0 = one, alone.

  Returns:
    The plan, as it is written to a file; `fits` says whether it does.

  Raises:
    ValueError: the config or the topology cannot be.
  """
  settings.check(config)
  config = _with_shape_of_weights(config)
  slices = open_slices(topology, num_slices)
  check_compiler(config, slices.topology.chip.name)
  seeds = None
  if num_members:
    members.check_config(config)
    seeds = members.seed_axis(config.mesh, num_members, len(slices.devices))
  mesh = sharding.make_mesh(
    config.mesh.data,
    config.mesh.fsdp,
    config.mesh.tensor,
    slices.devices,
    seed=seeds,
  )
  plan = _head(config, slices, mesh) | {"num_members": num_members or 1}
  sequence_lengths(config)  # what is wrong with the data is found here
  step = trace_step(config, mesh, num_members)
  start = time.monotonic()
  points: dict[int, int] = {}  # batch size -> bytes a device
  try:
    compiled = compile_step(step)
  except OutOfMemoryError as error:
    plan |= _out_of_memory(step, error)
    points[config.data.batch_size] = error.used + _state_bytes(step)
  else:
    text = compiled.as_text()
    if dump:
      files.write_text(dump, text)
    plan |= _compiled(step, slices, compiled, text)
    points[config.data.batch_size] = plan["hbm_bytes_per_device"]
    del compiled
  plan["compile_secs"] = round(time.monotonic() - start, 1)
  if search == "batch":
    plan |= largest_batch(step, plan, points)
  return plan


def check_compiler(config: Config, chip: str) -> None:
  """Raises PlanError for what makes the compiler itself crash.

  It takes the whole process with it, so that nothing could be said afterwards.

  Args:
    config: the whole configuration.
    chip: name of the chip.
  """
  version = importlib.metadata.version("libtpu")
  model = config.model
  if (
    (chip, version) == ("tpu7x", "0.0.42.1")
    and model.dtype == "bfloat16"
    and model.attention_dropout_rate
    and not model.scan_layers
  ):
    raise PlanError(
      f"libtpu {version} crashes (segmentation fault) where it compiles "
      "unrolled layers with dropout of attention probabilities in bfloat16 for "
      "tpu7x; "
      "use --config.model.scan_layers=True or "
      "--config.model.attention_dropout_rate=0.0"
    )


def _with_shape_of_weights(config: Config) -> Any:
  config = config.copy_and_resolve_references()
  if config.init_from:
    from bert_jax.weights import weights

    shape = weights.read(config.init_from).model
    config.model.update({k: shape[k] for k in settings.SHAPE_KEYS})
  return config


def _head(config: Config, slices: Slices, mesh) -> dict[str, Any]:
  """What the plan is for."""
  names = ("jax", "jaxlib", "libtpu", "flax", "optax")
  revision, dirty = runs.commit()
  return {
    "topology": slices.topology.name,
    "num_slices": slices.num_slices,
    "num_devices": len(slices.devices),
    "device_kind": slices.devices[0].device_kind,
    "mesh": dict(mesh.shape),
    "batch_size": config.data.batch_size,
    "seq_len": config.data.seq_len,
    "config": settings.plain(config),
    "commit": revision,
    "dirty": dirty,
    "versions": {name: importlib.metadata.version(name) for name in names},
    "hbm_available_bytes": slices.chip.hbm_bytes,
  }


def _state_bytes(step: Step) -> int:
  return local_bytes(step.abstract, step.place)


def _out_of_memory(step: Step, error: OutOfMemoryError) -> dict[str, Any]:
  """What a plan says of a step that does not fit."""
  state = {
    "parameters": local_bytes(step.abstract.params, step.place.params),
    "optimizer": local_bytes(step.abstract.opt_state, step.place.opt_state),
  }
  return {
    "fits": False,
    "hbm_bytes_per_device": error.used,
    "hbm_available_bytes": error.available,
    "hbm_bytes_by_kind": state,
    "to_make_it_fit": advice(step.config, step.mesh, state, error),
  }


def advice(
  config: Config, mesh, state: Mapping[str, int], error: OutOfMemoryError
) -> list[str]:
  """Settings that would take less memory, those that cost least first.

  Args:
    config: the whole configuration.
    mesh: of the devices.
    state: bytes of the parameters and of the optimizer on a device.
    error: what is needed and what there is.
  """
  found = []
  resident = sum(state.values())
  # Gradients are as large as the parameters.
  cut = resident + state["parameters"]
  rows = config.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
  micro = config.optim.num_micro_batches
  copies = mesh.shape["data"]
  if cut > error.available / 2 and copies > 1:
    # The fewest devices that leave most of the memory to activations.
    parts = next(
      (k for k in range(2, copies) if copies % k == 0
       and cut / k < error.available / 8),
      copies,
    )  # fmt: skip
    found.append(
      f"--config.mesh.data={copies // parts} --config.mesh.fsdp={parts}: "
      f"parameters, gradients and optimizer take {cut / GIB:.2f} GiB of a "
      f"device, cut over {parts} of them a part of it"
    )
  if config.model.dtype == "float32":
    found.append("--config.model.dtype=bfloat16: activations of half the size")
  if rows > micro:
    over = error.used / max(error.available - resident, error.available / 8)
    wanted = next(
      (k for k in range(micro + 1, rows + 1)
       if rows % k == 0 and k >= micro * over),
      rows,
    )  # fmt: skip
    found.append(
      f"--config.optim.num_micro_batches={wanted}: activations of "
      f"{rows // wanted} rows at a time instead of {rows // micro}"
    )
  if config.model.remat == "none":
    policies = ", ".join(name for name in encoder.REMATS if name != "none")
    found.append(
      f"--config.model.remat=NAME ({policies}): activations are computed again "
      "in the backward pass; full takes the least memory and a third more time"
    )
  if rows > 1:
    found.append(
      f"a smaller --config.data.batch_size than {config.data.batch_size}; "
      "--search=batch finds the largest that fits"
    )
  elif mesh.shape["tensor"] == 1:
    found.append(
      "--config.mesh.tensor=2 or more: heads and MLP of the one row are cut"
    )
  return found


def _compiled(
  step: Step, slices: Slices, compiled: Any, text: str
) -> dict[str, Any]:
  """What a plan says of a step that was compiled."""
  config, mesh, chip = step.config, step.mesh, slices.chip
  program = hlo.parse(text)
  kinds = memory(step, compiled)
  counted = costs.count_program(step.traced.jaxpr, chip.mxu_width)
  network = make_network(mesh, slices)
  kernels = {
    i.name: costs.kernel_cost(i, counted.kernels) for i in program.pallas_calls
  }
  times = costs.timeline(
    program.schedule,
    chip.clock_hz,
    lambda i: kernels[i.name][0].secs(chip),
    network.secs,
  )
  count = step.num_members or 1
  model = {name: n * count for name, n in model_flops(config).items()}
  peak = chip.peak_flops * len(slices.devices)
  positions = step.batch["input_ids"].size
  useful = useful_share(config)
  exchanges = describe_exchanges(program, mesh, network)
  plan: dict[str, Any] = {
    "fits": True,
    "prediction": "compiled, not run: every time and rate here is predicted",
    "left_out": list(LEFT_OUT),
    "predicted_step_secs": times.step,
    "predicted_mfu": model["needed"] / (times.step * peak),
    "predicted_mfu_all_positions": model["all_positions"] / (times.step * peak),
    "predicted_mfu_without_communication": model["needed"]
    / ((times.compute + times.kernels) * peak),
    "predicted_hardware_utilisation": counted.matmul_flops
    / (times.step * peak),
    "predicted_tokens_per_sec": positions / times.step,
    "predicted_useful_tokens_per_sec": None
    if useful is None
    else useful * positions / times.step,
    "useful_token_share": useful,
    "secs_by_kind": {
      "compute": times.compute,
      "pallas_kernels": times.kernels,
      "communication_exposed": times.exposed,
      "communication_hidden": times.hidden,
    },
    "hbm_bytes_per_device": kinds.pop("total"),
    "hbm_bytes_by_kind": kinds,
    "model_flops_per_step": model["needed"],
    "model_flops_all_positions": model["all_positions"],
    "hardware_flops_per_step": counted.matmul_flops,
    "cycles_per_step": program.cycles,
    "clock_hz": chip.clock_hz,
    "cycles_by_part": hlo.cycles_by_part(program.instructions),
    "pallas_kernels": describe_kernels(program, kernels, chip),
    "collective_bytes_per_step": sum(x["bytes_sent"] for x in exchanges),
    "collectives": exchanges,
    "assumptions": assumptions(config, slices),
  }
  found_kernels = all(known for _, known in kernels.values())
  plan["warnings"] = warnings(step, program, chip, found_kernels)
  return plan


def make_network(mesh, slices: Slices) -> costs.Network:
  """The links between the devices of a mesh, in its order."""
  devices = list(mesh.devices.flat)
  first = devices[: len(devices) // slices.num_slices]
  shape = slices.topology.shape
  return costs.Network(
    slices.chip,
    shape,
    tuple(tuple(d.coords)[: len(shape)] for d in first),
    slices.num_slices,
  )


def model_flops(config: Config) -> dict[str, int]:
  """Model FLOPs of a step of the global batch; see flops.py.

  Args:
    config: the whole configuration.

  Returns:
    `needed`: what the mathematics needs. `all_positions`: with the last layer
    and attention counted everywhere, as others count.
  """
  data = config.data
  if config.objective == "task":
    kind = finetuning.get_task(config.task).kind
    choices = _NUM_CHOICES if kind == "choice" else 1
    pooled = objectives.is_pooled(kind)
    shape = (config.model, data.batch_size, data.seq_len * choices)
    return {
      "needed": flops.task_step_flops(
        *shape,
        pooled,
        num_sequences=choices,
        attended=data.seq_len**2 * choices if choices > 1 else None,
      ),
      "all_positions": flops.task_step_flops(
        *shape, pooled, num_sequences=choices, all_positions=True
      ),
    }
  lengths = sequence_lengths(config)
  many = data.max_sequences
  attended = None
  if many > 1:
    if lengths is None:
      # The least: S sequences of equal length.
      attended = data.seq_len**2 / many
    else:
      total, squares, rows = lengths
      attended = squares / rows
  sizes = (
    config.model,
    data.batch_size,
    data.seq_len,
    batching.num_masked_slots(data),
  )
  return {
    "needed": flops.pretrain_step_flops(
      *sizes, num_sequences=many, attended=attended
    ),
    "all_positions": flops.pretrain_step_flops(
      *sizes, num_sequences=many, all_positions=True
    ),
  }


def sequence_lengths(config: Config) -> tuple[float, float, int] | None:
  """Of prepared data: tokens, their squares by sequence, and rows they fill.

  Returns:
    None where no data is given.
  """
  data = config.data
  if config.objective == "task" or not data.dir:
    return None
  name = records.examples_name(data)
  examples = batching.open_examples(data, "train")
  if data.max_sequences > 1:
    histogram = indexes.LengthIndex(data.dir, name, "train").histogram
    rows = packing.pack_histogram(
      histogram, data.seq_len, data.max_sequences
    ).num_rows
    sizes = range(len(histogram))
    total = sum(n * int(c) for n, c in zip(sizes, histogram, strict=True))
    squares = sum(n * n * int(c) for n, c in zip(sizes, histogram, strict=True))
    return total, squares, rows
  found = records.example_lengths(
    examples.read(np.arange(min(len(examples), 65536)))
  )
  return float(found.sum()), float((found**2).sum()), len(found)


def useful_share(config: Config) -> float | None:
  """Share of the positions that hold a token; None where no data says."""
  lengths = sequence_lengths(config)
  if lengths is None:
    return None
  total, _, rows = lengths
  return total / (rows * config.data.seq_len)


def describe_kernels(program, kernels, chip) -> list[dict[str, Any]]:
  """The Pallas kernels of a program; equal calls are one entry."""
  table: dict[tuple, dict[str, Any]] = {}
  for call in program.pallas_calls:
    cost, known = kernels[call.name]
    row = table.setdefault(
      (call.kernel, call.shape, call.part, call.phase),
      {
        "name": call.kernel,
        "part": call.part,
        "phase": call.phase,
        "runs": 0,
        "secs_per_run": cost.secs(chip),
        "matmul_flops": cost.flops,
        "matmul_flops_padded": cost.matrix_flops,
        "vector_ops": cost.vector_ops,
        "bytes": cost.bytes,
        "grid_steps": cost.grid_steps,
        "code_found": known,
      },
    )
    row["runs"] += call.count
  return list(table.values())


def mesh_axes_of(exchange: hlo.Collective, mesh) -> str:
  """The axes of the mesh that devices of a group differ in: "data", "fsdp"."""
  sizes = tuple(mesh.shape.values())
  if exchange.over_dcn:
    return "data"
  group = exchange.groups[0] if exchange.groups else range(math.prod(sizes))
  if exchange.kind == "collective-permute":
    group = next((g for g in exchange.groups if g[0] != g[1]), (0,))

  def place(i):
    found = []
    for size in reversed(sizes):
      i, rest = divmod(i, size)
      found.append(rest)
    return tuple(reversed(found))

  places = [place(i) for i in group]
  differ = [
    axis
    for k, axis in enumerate(mesh.axis_names)
    if len({p[k] for p in places}) > 1
  ]
  return "+".join(differ) or "none"


def describe_exchanges(
  program: hlo.Program, mesh, network: costs.Network
) -> list[dict[str, Any]]:
  """Exchanges between devices by kind, axes and links, the largest first."""
  table: dict[tuple[str, str, str], dict[str, Any]] = {}
  for exchange in program.collectives:
    links = "DCN" if exchange.over_dcn else "ICI"
    key = (exchange.kind, mesh_axes_of(exchange, mesh), links)
    row = table.setdefault(
      key,
      dict(zip(("kind", "mesh_axes", "links"), key, strict=True))
      | {"count": 0, "bytes_sent": 0.0, "secs": 0.0, "async_count": 0},
    )
    parties = network.num_slices if exchange.over_dcn else len(network.coords)
    row["count"] += exchange.count
    row["async_count"] += exchange.count * exchange.is_async
    row["bytes_sent"] += exchange.count * exchange.bytes_sent(parties)
    row["secs"] += exchange.count * network.secs(exchange)
  return sorted(table.values(), key=lambda row: -row["bytes_sent"])


def assumptions(config: Config, slices: Slices) -> list[str]:
  """What a prediction rests on, in words."""
  chip = slices.chip
  found = [
    "computing: the compiler's estimated cycles at "
    f"{chip.clock_hz / 1e9:.2f} GHz, the clock at which its matrix units reach "
    f"the published {chip.peak_flops / 1e12:.4g} TFLOP/s a device",
    f"links: {chip.link_bandwidth / 1e9:.3g} GB/s each way, rings, "
    f"{costs.HOP_SECS * 1e6:.0f} us a hop; an exchange hides only behind what "
    "is scheduled between its start and its end, one that the compiler does "
    "not split hides behind nothing",
    "Pallas kernels: the slowest of matrix unit "
    f"({costs.MATRIX_EFFICIENCY:.0%} of peak, sizes padded), vector unit "
    f"({costs.VECTOR_EFFICIENCY:.0%}) and memory "
    f"({costs.MEMORY_EFFICIENCY:.0%}), and {costs.GRID_STEP_SECS * 1e6:.2f} us "
    "a grid step",
  ]
  if slices.num_slices > 1:
    found.append(
      f"between slices: {chip.dcn_bandwidth / 1e9:.3g} GB/s a device each way"
    )
  if config.objective == "task":
    found.append(
      "a task: one example a row, padded to data.seq_len; packed rows "
      "(data.pack) depend on the data and are fewer"
    )
  elif config.data.max_sequences > 1 and not config.data.dir:
    found.append(
      "packed rows: attention within sequences counted for "
      f"{config.data.max_sequences} equal ones a row, the least; "
      "--config.data.dir=DATA says what they are"
    )
  return found


# --- the largest batch -------------------------------------------------------


def largest_batch(
  step: Step, plan: Mapping[str, Any], points: dict[int, int]
) -> dict[str, int | None]:
  """Finds the largest batch that fits, to within a sixteenth if it can.

  Memory grows in a line with the rows, nearly: two sizes say where the line
  meets what there is; compiling there says whether it was right.

  Args:
    step: of the config's batch size, compiled or not.
    plan: what came out.
    points: batch size -> bytes a device that it takes; is filled.

  Returns:
    Of the sizes that were compiled, in rows over all devices:
    `largest_batch_size`, the largest that fits, and `smallest_batch_too_large`;
    None where there was none.
  """
  config, mesh = step.config, step.mesh
  available = plan["hbm_available_bytes"]
  unit = mesh.shape["data"] * mesh.shape["fsdp"]
  unit *= config.optim.num_micro_batches
  fits = {config.data.batch_size} if plan["fits"] else set()
  fails = set() if plan["fits"] else {config.data.batch_size}
  for _ in range(_SEARCH_COMPILES):
    size = next_batch(points, fits, fails, _state_bytes(step), available, unit)
    if size is None:
      break
    _log.info("compiling for a batch of %d", size)
    other = config.copy_and_resolve_references()
    other.data.batch_size = size
    trial = trace_step(other, mesh, step.num_members)
    try:
      compiled = compile_step(trial)
    except OutOfMemoryError as error:
      fails.add(size)
      points[size] = error.used + _state_bytes(step)
    else:
      fits.add(size)
      points[size] = memory(trial, compiled)["total"]
      del compiled
  return {
    "largest_batch_size": max(fits, default=None),
    "smallest_batch_too_large": min(fails, default=None),
  }


def next_batch(
  points: Mapping[int, int],
  fits: set[int],
  fails: set[int],
  state: int,
  available: int,
  unit: int,
) -> int | None:
  """The next size to try in the search for the largest batch.

  Args:
    points: batch size -> bytes a device that it takes.
    fits: sizes that fit.
    fails: sizes that do not.
    state: bytes that every size takes.
    available: bytes there are.
    unit: sizes are multiples of it.

  Returns:
    A size between the largest that fits and the smallest that does not; None if
    these are close enough.
  """
  low, high = max(fits, default=0), min(fails, default=None)
  close = max(unit, low // 16 // unit * unit)
  if high is not None and high - low <= close:
    return None
  a, *others = sorted(points, key=lambda b: abs(points[b] - available))
  if others:
    slope = (points[a] - points[others[0]]) / (a - others[0])
  else:
    slope = (points[a] - state) / a
  guess = a + (0.985 * available - points[a]) / max(slope, 1.0)
  size = int(guess // unit) * unit
  if high is None:
    size = min(size, 16 * a)
    return size if not fits or size - low > close else None
  if not low + close <= size < high:  # the line was wrong: halve what is left
    size = (low + high) // 2 // unit * unit
  return max(size, unit) if low < size < high else None


# --- warnings ----------------------------------------------------------------


def warnings(
  step: Step, program: hlo.Program, chip: chips.Chip, found_kernels: bool
) -> list[str]:
  """What is wasteful in a compiled step, in words."""
  return (
    _size_warnings(step.config, step.mesh, chip)
    + _exchange_warnings(step, program)
    + _program_warnings(program, found_kernels)
  )


def _size_warnings(config: Config, mesh, chip: chips.Chip) -> list[str]:
  """Of dimensions that do not fill the tiles of the chip."""
  found = []
  model, tensor = config.model, mesh.shape["tensor"]
  if model.dtype == "float32":
    found.append(
      "model.dtype=float32: the matrix units take bfloat16; on TPU use "
      "--config.model.dtype=bfloat16 (parameters stay float32)"
    )
  width = chip.mxu_width
  head_dim = model.hidden_size // model.num_heads
  for name, size in (
    ("model.hidden_size", model.hidden_size),
    ("model.mlp_dim / mesh.tensor", model.mlp_dim / tensor),
    ("data.seq_len", config.data.seq_len),
    ("head_dim", head_dim),
  ):
    if size % width:
      padded = math.ceil(size / width) * width
      found.append(
        f"{name} = {size:g} is padded to {padded} in the matrix units of "
        f"{chip.name}: {1 - size / padded:.0%} of that work is for nothing"
      )
  vocab = model.vocab_size / tensor
  if vocab % 128:
    padded = math.ceil(vocab / 128) * 128
    found.append(
      f"model.vocab_size = {model.vocab_size}, {vocab:g} a device, is padded "
      f"to {padded}: {padded / vocab - 1:.1%} more"
    )
  return found


def _exchange_warnings(step: Step, program: hlo.Program) -> list[str]:
  """Of tables gathered whole and activations that are summed."""
  config, mesh = step.config, step.mesh
  model = config.model
  found = []
  rows = config.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
  rows //= config.optim.num_micro_batches
  length = config.data.seq_len
  table = model.vocab_size * model.hidden_size / mesh.shape["tensor"]
  kernels = _kernel_shapes(step.abstract.params)
  summed = 0.0
  for c in program.collectives:
    if c.over_dcn:
      continue
    parties = c.group_size or mesh.devices.size
    shapes = [
      tuple(map(int, re.findall(r"\d+", dims)))
      for dims in re.findall(r"\[([\d,]*)\]", c.shape)
    ]
    if c.kind == "all-gather":
      largest = max(map(math.prod, shapes), default=0) * parties
      part = hlo.part_of(c.op_name)
      if largest > 0.9 * table and part in ("embedding", "vocabulary"):
        found.append(
          f"a vocabulary table is gathered whole on every device ({c.count} "
          f"times a step, {c.operand_bytes * parties / 1e6:.0f} MB, {part}), "
          "because mesh.fsdp cuts it"
        )
    elif c.kind in ("all-reduce", "reduce-scatter") and any(
      shape[:2] in ((rows, length), (rows * length, model.hidden_size))
      # A kernel may be as long as the rows of a device have tokens.
      and (shape not in kernels or mesh_axes_of(c, mesh) == "tensor")
      for shape in shapes
    ):
      summed += c.count * c.bytes_sent(parties)
  if summed:
    reason = (
      "tensor parallelism needs it"
      if mesh.shape["tensor"] > 1
      else "nothing in the config asks for it: look at mesh.rules"
    )
    found.append(
      f"activations are summed over devices, {summed / 1e6:.0f} MB sent by "
      f"each a step; {reason}"
    )
  return list(dict.fromkeys(found))


def _kernel_shapes(params: Any) -> set[tuple[int, ...]]:
  """Shapes in which gradients of parameters may travel, as matrices too."""
  whole = {tuple(x.shape) for x in jax.tree.leaves(params)}
  whole |= {shape[1:] for shape in whole}  # of one of stacked layers
  matrices = {
    (math.prod(shape[:i]), math.prod(shape[i:]))
    for shape in whole
    for i in range(1, len(shape))
  }
  return whole | matrices


def _program_warnings(program: hlo.Program, found_kernels: bool) -> list[str]:
  found = []
  copies = sum(i.total_cycles for i in program.instructions if i.kind == "copy")
  if copies > 0.05 * program.cycles:
    found.append(
      f"{copies / program.cycles:.0%} of the cycles go into copies from one "
      "layout to another; `python -m bert_jax.planning.hlo` on the program's "
      "text (--dump) names them"
    )
  if program.unknown_loops:
    found.append(
      "loops whose number of runs is not known are counted once: "
      + ", ".join(program.unknown_loops)
    )
  if not found_kernels:
    found.append(
      "a Pallas kernel's code was not found: its time is what it says of "
      "itself, or that of moving its arguments"
    )
  return found


# --- the report --------------------------------------------------------------


def report(plan: Mapping[str, Any]) -> str:
  """A plan in words."""
  slices = f"{plan['num_slices']} x " if plan["num_slices"] > 1 else ""
  mesh = ", ".join(f"{k}={v}" for k, v in plan["mesh"].items())
  together = plan.get("num_members", 1)
  lines = [
    f"{slices}{plan['topology']}: {plan['num_devices']} x "
    f"{plan['device_kind']}, mesh {mesh}; {plan['batch_size']} rows of "
    f"{plan['seq_len']} a step"
    + (f" for each of {together} models" if together > 1 else ""),
    f"compiled in {plan['compile_secs']:.0f} s; nothing was run: "
    "all times are predictions",
    "",
  ]
  available = plan["hbm_available_bytes"]
  used = plan["hbm_bytes_per_device"]
  fits = "fits" if plan["fits"] else "DOES NOT FIT"
  lines.append(f"memory of a device: {_gib(used)} of {_gib(available)}: {fits}")
  for kind, size in plan["hbm_bytes_by_kind"].items():
    lines.append(f"  {kind:<14}{_gib(size):>12}")
  if plan["fits"]:
    lines += _report_time(plan)
  else:
    lines += ["", "what would make it fit:"]
    lines += [f"  {text}" for text in plan["to_make_it_fit"]]
  if "largest_batch_size" in plan:
    size, over = (
      plan["largest_batch_size"], plan["smallest_batch_too_large"]
    )  # fmt: skip
    text = "none was found" if size is None else f"{size} rows over all devices"
    end = "larger ones were not tried" if over is None else f"{over} do not fit"
    lines += ["", f"largest batch that fits: {text}; {end}"]
  return "\n".join(lines)


def _gib(size: float) -> str:
  return f"{size / GIB:.3f} GiB"


def _report_time(plan: Mapping[str, Any]) -> list[str]:
  secs = plan["secs_by_kind"]
  step = plan["predicted_step_secs"]
  lines = ["", f"a step, predicted: {step * 1e3:.2f} ms"]
  for kind, value in secs.items():
    hidden = kind == "communication_hidden"
    share = "(not added)" if hidden else f"{value / step:>6.1%}"
    lines.append(f"  {kind:<24}{value * 1e3:>10.2f} ms {share}")
  useful = plan["predicted_useful_tokens_per_sec"]
  useful_text = (
    "not known without data; give --config.data.dir=DATA"
    if useful is None
    else f"{useful:,.0f} ({plan['useful_token_share']:.1%} of positions)"
  )
  lines += [
    f"  tokens/s, predicted       {plan['predicted_tokens_per_sec']:,.0f}",
    f"  useful tokens/s           {useful_text}",
    f"  MFU, predicted            {plan['predicted_mfu']:.1%}; without "
    f"communication {plan['predicted_mfu_without_communication']:.1%}",
    "    with the last layer and attention counted at all positions "
    f"{plan['predicted_mfu_all_positions']:.1%}",
    f"  model FLOPs               {plan['model_flops_per_step']:.4g}",
    f"  hardware FLOPs            {plan['hardware_flops_per_step']:.4g} "
    f"({plan['predicted_hardware_utilisation']:.1%} of peak)",
    "",
    f"cycles by part, estimated by the compiler ({plan['cycles_per_step']:,}):",
  ]
  parts = plan["cycles_by_part"]
  total = max(plan["cycles_per_step"], 1)
  for part in sorted(parts, key=lambda p: -sum(parts[p].values())):
    cycles = sum(parts[part].values())
    phases = ", ".join(
      f"{k} {v / total:.1%}" for k, v in parts[part].items() if v
    )
    lines.append(f"  {part:<12}{cycles:>14,}{cycles / total:>8.1%}  {phases}")
  if plan["pallas_kernels"]:
    lines += ["", "Pallas kernels, beside these cycles:"]
  for kernel in plan["pallas_kernels"]:
    lines.append(
      f"  {kernel['runs']} x {kernel['name']} ({kernel['phase']}): "
      f"{kernel['secs_per_run'] * 1e6:.1f} us each, "
      f"{kernel['runs'] * kernel['secs_per_run'] * 1e3:.2f} ms a step"
    )
  sent = plan["collective_bytes_per_step"]
  lines += ["", f"sent by a device to others: {sent / 1e6:,.1f} MB a step"]
  for row in plan["collectives"]:
    if row["bytes_sent"] < 0.001 * sent:
      continue
    lines.append(
      f"  {row['count']:>4} x {row['kind']:<19} over {row['mesh_axes']} "
      f"({row['links']}): {row['bytes_sent'] / 1e6:,.1f} MB, "
      f"{row['secs'] * 1e3:.2f} ms, {row['async_count']} may overlap"
    )
  for title, key in (
    ("warnings", "warnings"),
    ("assumed", "assumptions"),
    ("left out", "left_out"),
  ):
    if plan[key]:
      lines += ["", f"{title}:"] + [f"  {text}" for text in plan[key]]
  return lines


# --- the mode ----------------------------------------------------------------


def run(
  config: Config,
  topology: str,
  num_slices: int,
  search: str,
  output: str,
  dump: str,
  num_members: int = 0,
) -> int:
  """Makes a plan, prints it and writes it.

  Args:
    config: the whole configuration.
    topology: such as "v5e:4x4".
    num_slices: of it.
    search: "" or "batch".
    output: file to write, or "".
    dump: file for the text of the compiled program, or "".
    num_members: models that train together; 0 = one, alone.

  Returns:
    FITS or OUT_OF_MEMORY, the exit status.

  Raises:
    ValueError: the config or the topology cannot be.
  """
  if not importlib.util.find_spec("libtpu"):
    raise PlanError(
      "--mode=plan compiles with libtpu, which is not installed here; "
      "`make tpu` in the project's folder, or pip install -e '.[tpu]' there "
      "(700 MB; no TPU is needed)"
    )
  if folder := os.path.dirname(output):
    files.make_folder(folder)
  for path in filter(None, (output, dump)):
    files.check_writable(path)
  absl_logging.set_verbosity(absl_logging.ERROR)
  plan = make_plan(config, topology, num_slices, search, dump, num_members)
  print(report(plan))
  sys.stdout.flush()
  if output:
    files.write_text(output, files.to_json(plan, indent=2) + "\n")
  return FITS if plan["fits"] else OUT_OF_MEMORY
