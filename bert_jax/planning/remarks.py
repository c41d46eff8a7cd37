"""What a prediction assumes, and what is wasteful in a compiled step."""

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
  """What a prediction rests on, in words."""
  chip = where.chip
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
  if where.num_slices > 1:
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


def warnings(
  program: session.Program,
  compiled: hlo.Program,
  chip: chips.Chip,
  found_kernels: bool,
) -> list[str]:
  """What is wasteful in a compiled step, in words."""
  return (
    _size_warnings(program.config, program.mesh, chip)
    + _exchange_warnings(program, compiled)
    + _program_warnings(compiled, found_kernels)
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


def _exchange_warnings(
  program: session.Program, compiled: hlo.Program
) -> list[str]:
  """Of tables gathered whole and activations that are summed."""
  config, mesh = program.config, program.mesh
  model = config.model
  found = []
  rows = config.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
  rows //= config.optim.num_micro_batches
  length = config.data.seq_len
  table = model.vocab_size * model.hidden_size / mesh.shape["tensor"]
  kernels = _kernel_shapes(program.abstract.params)
  summed = 0.0
  for c in compiled.collectives:
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
      and (shape not in kernels or traffic.mesh_axes_of(c, mesh) == "tensor")
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
