"""Measures the memory that a compiled step needs; advises how to lower it."""

from collections.abc import Mapping
import math
import re
from typing import Any

import jax

from bert_jax.models import encoder
from bert_jax.planning import slices
from bert_jax.runtime.chips import GIB
from bert_jax.runtime.settings import Config
from bert_jax.training import session


class OutOfMemoryError(RuntimeError):
  """A program needs more memory than a device has.

  Attributes:
    used: the bytes that it needs, as the compiler reports them.
    available: the bytes that a device has.
  """

  def __init__(self, used: int, available: int):
    super().__init__(f"{used / GIB:.2f} of {available / GIB:.2f} GiB")
    self.used, self.available = used, available


# The two forms in which the compiler reports the needed and the available size.
_SIZES = re.compile(
  r"(?:temporaries \(|Used )([\d.]+)([BKMGT]?)"
  r"(?:\) exceeds available HBM \(| of )([\d.]+)([BKMGT]?)(?:\)| hbm)"
)


def read_out_of_memory(message: str) -> OutOfMemoryError | None:
  """Reads an error of the compiler; returns None if it is about another matter.

  Example:
    >>> str(read_out_of_memory("Used 42.5G of 15.75G hbm. Exceeded by 26.7G"))
    '42.50 of 15.75 GiB'
  """
  match = _SIZES.search(message)
  if match is None:
    return None
  used, available = (
    int(float(match[i]) * 1024 ** "BKMGT".find(match[i + 1] or "B"))
    for i in (1, 3)
  )
  return OutOfMemoryError(used, available)


def compile_step(traced: Any, mesh: jax.sharding.Mesh) -> Any:
  """Compiles a step.

  Args:
    traced: the traced step, from `Program.trace`.
    mesh: the mesh of the program.

  Raises:
    OutOfMemoryError: the step needs more memory than a device has.
    slices.PlanError: a kernel needs more on-chip memory than there is.
  """
  try:
    with jax.set_mesh(mesh):
      return traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if found := read_out_of_memory(str(error)):
      raise found from error
    if "vmem" in str(error):
      raise slices.PlanError(
        "a kernel needs more on-chip memory than there is; give it smaller "
        "blocks, or choose another model.attention: "
        + " ".join(str(error).split())[:500]
      ) from error
    raise


def local_bytes(abstract: Any, place: Any) -> int:
  """Returns the bytes of a tree on one device, without the padding of tiles.

  Args:
    abstract: a tree of jax.ShapeDtypeStruct.
    place: the same tree with shardings.
  """

  def size(x, where):
    return math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize

  return sum(jax.tree.leaves(jax.tree.map(size, abstract, place)))


def state_bytes(program: session.Program) -> int:
  """Returns the bytes of the train state on one device."""
  return local_bytes(program.abstract, program.place)


def _bytes_of_state(program: session.Program) -> dict[str, int]:
  state, place = program.abstract, program.place
  known = {
    "parameters": local_bytes(state.params, place.params),
    "optimizer": local_bytes(state.opt_state, place.opt_state),
  }
  if state.average is not None:
    known["average"] = local_bytes(state.average, place.average)
  return known


def bytes_by_kind(program: session.Program, compiled: Any) -> dict[str, int]:
  """Returns the bytes of HBM that a step takes on one device, by content."""
  analysis = compiled.memory_analysis()
  known = _bytes_of_state(program)
  place = dict.fromkeys(program.batch, program.batch_place)
  known["batch"] = local_bytes(program.batch, place)
  results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return known | {
    "padding": max(analysis.argument_size_in_bytes - sum(known.values()), 0),
    "activations": analysis.temp_size_in_bytes + max(results, 0),
    "code": analysis.generated_code_size_in_bytes,
  }


def out_of_memory(
  program: session.Program, error: OutOfMemoryError
) -> dict[str, Any]:
  """Returns the entries of a plan for a step that does not fit."""
  state = _bytes_of_state(program)
  return {
    "fits": False,
    "hbm_bytes_per_device": error.used,
    "hbm_available_bytes": error.available,
    "hbm_bytes_by_kind": state,
    "to_make_it_fit": advice(program.config, program.mesh, state, error),
  }


def advice(
  config: Config, mesh, state: Mapping[str, int], error: OutOfMemoryError
) -> list[str]:
  """Returns settings that need less memory, the cheapest first.

  Args:
    config: the whole configuration.
    mesh: the mesh of the devices.
    state: the bytes of the parameters and of the optimizer on a device.
    error: the bytes that are needed and available.
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
      f"parameters, gradients and optimizer take {cut / GIB:.2f} GiB of each "
      f"device; this shards them over {parts} devices"
    )
  if config.model.dtype == "float32":
    found.append("--config.model.dtype=bfloat16: halves the activations")
  if rows > micro:
    over = error.used / max(error.available - resident, error.available / 8)
    wanted = next(
      (k for k in range(micro + 1, rows + 1)
       if rows % k == 0 and k >= micro * over),
      rows,
    )  # fmt: skip
    found.append(
      f"--config.optim.num_micro_batches={wanted}: keeps the activations of "
      f"{rows // wanted} rows at a time instead of {rows // micro}"
    )
  if config.model.remat == "none":
    policies = ", ".join(name for name in encoder.REMATS if name != "none")
    found.append(
      f"--config.model.remat=NAME ({policies}): recomputes activations in the "
      "backward pass; full takes the least memory and a third more time"
    )
  if rows > 1:
    found.append(
      f"a smaller --config.data.batch_size than {config.data.batch_size}; "
      "--search=batch finds the largest that fits"
    )
  elif mesh.shape["tensor"] == 1:
    found.append(
      "--config.mesh.tensor=2 or more: shards the heads and the MLP of the row"
    )
  return found
