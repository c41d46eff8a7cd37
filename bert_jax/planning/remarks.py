"""States what a prediction assumes, and warns of waste in a compiled step."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import jax

from bert_jax.planning import costs
from bert_jax.planning import hlo
from bert_jax.planning import slices
from bert_jax.planning import traffic
from bert_jax.runtime import chips
from bert_jax.runtime.settings import Config
from bert_jax.training import session


def assumptions(config: Config, where: slices.Slices) -> list[str]:
  """Returns the assumptions of a prediction, a sentence each."""
  chip = where.chip
  found = [
    "computing: the compiler's estimated cycles at "
    f"{chip.clock_hz / 1e9:.2f} GHz, the clock at which its matrix units reach "
    f"the published {chip.peak_flops / 1e12:.4g} TFLOP/s per device",
    f"links: {chip.link_bandwidth / 1e9:.3g} GB/s in each direction, rings, "
    f"{costs.HOP_SECS * 1e6:.0f} us per hop; an exchange overlaps only with "
    "the work that is scheduled between its start and its end, and not at all "
    "if the compiler does not split it",
    f"memory: {costs.MEMORY_EFFICIENCY:.0%} of the published "
    f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s; an instruction that would need "
    "more at its estimated cycles takes the time of its bytes, each operand "
    "read and each result written once",
    "Pallas kernels: the cycles of the bundles that the compiler has "
    "scheduled, or the time of their bytes if that is longer; what runs under "
    "a condition counts as if it always ran",
    "Pallas kernels without a schedule, and all of assumed_mfu: the time of "
    f"the slowest of matrix unit ({costs.MATRIX_EFFICIENCY:.0%} of peak, sizes "
    f"padded), vector unit ({costs.VECTOR_EFFICIENCY:.0%}) and memory "
    f"({costs.MEMORY_EFFICIENCY:.0%}), and {costs.GRID_STEP_SECS * 1e6:.2f} us "
    "per grid step",
  ]
  if where.num_slices > 1:
    found.append(
      f"between slices: {chip.dcn_bandwidth / 1e9:.3g} GB/s per device in each "
      "direction"
    )
  if config.objective == "task":
    found.append(
      "a task: one example per row, padded to data.seq_len; the number of "
      "packed rows (data.pack) depends on the data and is smaller"
    )
  elif config.data.max_sequences > 1 and not config.data.dir:
    found.append(
      f"packed rows: {config.data.max_sequences} sequences of equal length per "
      "row, which need the least attention; give --config.data.dir=DATA to use "
      "the real lengths"
    )
  return found


def error(
  compiled: hlo.Program,
  kernels: Mapping[str, tuple[costs.KernelCost, bool]],
  step_secs: float,
  chip: chips.Chip,
) -> dict[str, float]:
  """Returns by how much a prediction may be wrong, as far as it can tell.

  Each figure is a share of the predicted step: what it would grow by if an
  assumption failed.

  Args:
    compiled: the compiled step.
    kernels: the costs of its kernels, by the names of their calls.
    step_secs: the predicted time of a step.
    chip: the facts of one device.
  """
  calls = [(i.count, kernels[i.name][0]) for i in compiled.pallas_calls]
  grids = sum(
    count * cost.grid_secs(chip)
    for count, cost in calls
    if cost.cycles is not None
  )
  assumed = sum(
    count * cost.secs(chip) for count, cost in calls if cost.cycles is None
  )
  slow = chip.hbm_bandwidth * costs.MEMORY_EFFICIENCY**2
  starved = sum(
    i.count * max(i.moved_bytes / slow - i.cycles / chip.clock_hz, 0.0)
    for i in compiled.instructions
  )
  now = sum(
    i.count
    * max(
      i.moved_bytes * costs.MEMORY_EFFICIENCY / slow - i.cycles / chip.clock_hz,
      0.0,
    )
    for i in compiled.instructions
  )
  return {
    "if_grid_steps_cost_what_is_documented": grids / step_secs,
    "if_memory_gives_a_fifth_less": (starved - now) / step_secs,
    "share_of_kernels_without_schedule": assumed / step_secs,
  }


def warnings(
  program: session.Program,
  compiled: hlo.Program,
  chip: chips.Chip,
  found_kernels: bool,
) -> list[str]:
  """Returns warnings about time and memory that a compiled step wastes.

  Examples are sizes that do not fill the tiles of the matrix unit, and arrays
  that are exchanged between devices without need. Each is a sentence.

  Args:
    program: the step before it was compiled: its config, mesh and shapes.
    compiled: the step as the compiler made it, read from its HLO.
    chip: the peak FLOPs, memory and tile sizes of one device.
    found_kernels: whether the code of all Pallas kernels could be read. If
      not, a warning says that the plan lacks their time.
  """
  return (
    _size_warnings(program.config, program.mesh, chip)
    + _exchange_warnings(program, compiled)
    + _program_warnings(compiled, found_kernels)
  )


def _size_warnings(config: Config, mesh, chip: chips.Chip) -> list[str]:
  """Warns of dimensions that do not fill the tiles of the chip."""
  found = []
  model, tensor = config.model, mesh.shape["tensor"]
  if model.dtype == "float32":
    found.append(
      "model.dtype=float32: the matrix units compute in bfloat16; use "
      "--config.model.dtype=bfloat16 on a TPU (parameters stay float32)"
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
        f"{chip.name}: {1 - size / padded:.0%} of that work is wasted"
      )
  vocab = model.vocab_size / tensor
  if vocab % 128:
    padded = math.ceil(vocab / 128) * 128
    found.append(
      f"model.vocab_size = {model.vocab_size}, {vocab:g} per device, is padded "
      f"to {padded}: {padded / vocab - 1:.1%} more"
    )
  return found


def _exchange_warnings(
  program: session.Program, compiled: hlo.Program
) -> list[str]:
  """Warns of tables that are gathered, and of activations that are summed."""
  mesh = program.mesh
  exchanges = [
    (c, c.group_size or mesh.devices.size, _shapes(c.shape))
    for c in compiled.collectives
    if not c.over_dcn
  ]
  found = _gathered_tables(program, exchanges)
  if summed := _summed_activation_bytes(program, exchanges):
    reason = (
      "tensor parallelism needs it"
      if mesh.shape["tensor"] > 1
      else "nothing in the config asks for it: check mesh.rules"
    )
    found.append(
      f"activations are summed over devices, {summed / 1e6:.0f} MB sent by "
      f"each per step; {reason}"
    )
  return found


def _shapes(types: str) -> list[tuple[int, ...]]:
  """Returns the shapes of the arrays in a type as HLO writes it."""
  return [
    tuple(map(int, re.findall(r"\d+", dims)))
    for dims in re.findall(r"\[([\d,]*)\]", types)
  ]


# A collective, the number of devices of its groups, the shapes of its operands.
_Exchange = tuple[hlo.Collective, int, list[tuple[int, ...]]]


def _gathered_tables(
  program: session.Program, exchanges: Sequence[_Exchange]
) -> list[str]:
  """Warns of vocabulary tables that every device gathers whole."""
  model = program.config.model
  table = model.vocab_size * model.hidden_size / program.mesh.shape["tensor"]
  found = []
  for c, parties, shapes in exchanges:
    part = hlo.part_of(c.op_name)
    largest = max(map(math.prod, shapes), default=0) * parties
    if (
      c.kind == "all-gather"
      and part in ("embedding", "vocabulary")
      and largest > 0.9 * table
    ):
      found.append(
        f"a vocabulary table is gathered whole on every device ({c.count} "
        f"times per step, {c.operand_bytes * parties / 1e6:.0f} MB, {part}), "
        "because mesh.fsdp shards it"
      )
  return list(dict.fromkeys(found))


def _summed_activation_bytes(
  program: session.Program, exchanges: Sequence[_Exchange]
) -> float:
  """Returns the bytes of activations that a device sends to be summed."""
  config, mesh = program.config, program.mesh
  rows = config.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
  rows //= config.optim.num_micro_batches
  length = config.data.seq_len
  activations = (rows, length), (rows * length, config.model.hidden_size)
  kernels = _kernel_shapes(program.abstract.params)
  return sum(
    c.count * c.bytes_sent(parties)
    for c, parties, shapes in exchanges
    if c.kind in ("all-reduce", "reduce-scatter")
    and any(
      shape[:2] in activations
      # A kernel may have as many rows as the batch of a device has tokens.
      and (shape not in kernels or traffic.mesh_axes_of(c, mesh) == "tensor")
      for shape in shapes
    )
  )


def _kernel_shapes(params: Any) -> set[tuple[int, ...]]:
  """Returns the shapes in which gradients may be sent, also as matrices."""
  whole = {tuple(x.shape) for x in jax.tree.leaves(params)}
  whole |= {shape[1:] for shape in whole}  # one layer of stacked layers
  matrices = {
    (math.prod(shape[:i]), math.prod(shape[i:]))
    for shape in whole
    for i in range(1, len(shape))
  }
  return whole | matrices


def _program_warnings(program: hlo.Program, found_kernels: bool) -> list[str]:
  """Warns of copies, and of work whose time is not well known."""
  found = []
  copies = sum(i.total_cycles for i in program.instructions if i.kind == "copy")
  if copies > 0.05 * program.cycles:
    found.append(
      f"{copies / program.cycles:.0%} of the cycles go into copies from one "
      "layout to another; write the program's text with --dump, and list them "
      "with `python -m bert_jax.planning.hlo`"
    )
  if program.unknown_loops:
    found.append(
      "loops whose number of runs is unknown are counted once: "
      + ", ".join(program.unknown_loops)
    )
  if not found_kernels:
    found.append(
      "the code of a Pallas kernel was not found: its time is the kernel's own "
      "estimate, or the time of moving its arguments"
    )
  return found
