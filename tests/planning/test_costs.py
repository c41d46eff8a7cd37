"""Tests of costs.py."""

import dataclasses

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import pytest

from bert_jax.planning import costs
from bert_jax.planning import hlo
from bert_jax.runtime import chips

V5E = chips.parse_topology("v5e:4x4").chip


def count(f, *shapes):
  args = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes]
  return costs.count_program(jax.jit(f).trace(*args).jaxpr)


def test_matmuls_of_scans_branches_and_gradients():
  matmul = 2 * 8 * 8 * 8

  def scan(x):
    return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

  def branch(x):
    return jax.lax.cond(x[0, 0] > 0, lambda y: y, lambda y: y @ y @ y, x)

  def loss(x):
    return (x @ x).sum().astype(jnp.float32)

  assert count(scan, (8, 8)).matmul_flops == 5 * matmul
  assert count(branch, (8, 8)).matmul_flops == 2 * matmul
  assert count(jax.grad(loss), (8, 8)).matmul_flops == 3 * matmul


def test_of_programs_for_several_platforms_that_of_a_tpu_counts():
  def f(x):
    return jax.lax.platform_dependent(
      x, tpu=lambda y: y @ y, default=lambda y: y @ y @ y
    )

  assert count(f, (8, 8)).matmul_flops == 2 * 8 * 8 * 8


def test_recomputation_is_counted():
  def loss(x, remat):
    f = jax.checkpoint(lambda y: jnp.sin(y @ y)) if remat else (
      lambda y: jnp.sin(y @ y)
    )  # fmt: skip
    return f(x).sum().astype(jnp.float32)

  plain = count(jax.grad(lambda x: loss(x, False)), (8, 8)).matmul_flops
  again = count(jax.grad(lambda x: loss(x, True)), (8, 8)).matmul_flops
  assert again - plain == 2 * 8 * 8 * 8


def test_what_each_device_computes_is_added_up():
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )  # fmt: skip
  rows = jax.sharding.PartitionSpec("data")
  f = jax.shard_map(
    lambda x, y: x @ y,
    mesh=mesh,
    in_specs=(rows, jax.sharding.PartitionSpec()),
    out_specs=rows,
  )
  assert count(f, (8, 16), (16, 32)).matmul_flops == 2 * 8 * 16 * 32


def kernel_call(x, y):
  def kernel(x_ref, y_ref, o_ref):
    @pl.when(pl.program_id(1) >= 0)
    def _():
      product = x_ref[...] @ y_ref[...]
      o_ref[...] = jnp.exp(product).astype(o_ref.dtype)

  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((256, 256), jnp.bfloat16),
    grid=(4, 2),
    in_specs=[
      pl.BlockSpec((64, 64), lambda i, j: (i, 0)),
      pl.BlockSpec((64, 128), lambda i, j: (0, j)),
    ],
    out_specs=pl.BlockSpec((64, 128), lambda i, j: (i, j)),
    name="exp_product",
  )(x, y)


def test_a_kernel_is_counted_by_its_own_code():
  found = count(kernel_call, (256, 64), (64, 256))
  (kernel,) = found.kernels
  assert kernel.name == "exp_product"
  assert kernel.results == ("bf16[256,256]",)
  assert kernel.grid_steps == 8
  assert kernel.flops == found.matmul_flops == 2 * 256 * 64 * 256
  assert kernel.matrix_flops == 2 * kernel.flops  # 64 deep, padded to 128
  # A block of x stays for both columns of the grid; the others change.
  assert kernel.bytes == 2 * (4 * 64 * 64 + 8 * 64 * 128 + 8 * 64 * 128)
  # An exponential at the least, which counts as two operations.
  assert kernel.vector_ops >= 2 * 256 * 256


def test_what_a_kernel_repeats_is_counted_once():
  def cost(times):
    def kernel(x_ref, o_ref):
      total = 0.0
      for i in range(times):
        column = jax.lax.broadcasted_iota(jnp.int32, (128, 128), 1)
        total = total + jnp.where(column // 64 == 0, x_ref[...], float(i))
      o_ref[...] = total

    def call(x):
      shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
      return pl.pallas_call(kernel, out_shape=shape)(x)

    return count(call, (128, 128)).kernels[0].vector_ops

  # Again a read, a choice, an addition; the mask stays.
  assert cost(3) - cost(2) <= 4 * 128 * 128


def call_of(**kwargs):
  fields = {
    "name": "k.1",
    "opcode": "custom-call",
    "kind": "pallas",
    "shape": "bf16[256,256]",
    "result_bytes": 256 * 256 * 2,
    "operand_shapes": ("bf16[256,64]",),
    "op_name": "",
    "cycles": 0,
    "count": 1,
    "kernel": "exp_product",
  }
  return hlo.Instruction(**(fields | kwargs))


def test_the_slowest_unit_decides_and_nothing_is_free():
  (kernel,) = count(kernel_call, (256, 64), (64, 256)).kernels
  base = kernel.secs(V5E)
  assert base > 8 * costs.GRID_STEP_SECS
  for field in ("matrix_flops", "vector_ops", "bytes"):
    more = dataclasses.replace(kernel, **{field: 1e15})
    assert more.secs(V5E) > 10 * base
  assert costs.kernel_cost(call_of(), [kernel]) == (kernel, True)


def test_a_kernel_without_code_costs_what_it_says_or_moves():
  said = call_of(cost={"flops": 7e9, "bytes_accessed": 5e6})
  cost, known = costs.kernel_cost(said, [])
  assert (cost.flops, cost.bytes, known) == (7e9, 5e6, False)
  silent, _ = costs.kernel_cost(call_of(), [])
  assert silent.bytes == 256 * 256 * 2 + 256 * 64 * 2
  assert silent.secs(V5E) > 0


def grid_network(rows, columns, chip=V5E, **kwargs):
  coords = tuple((x, y) for x in range(rows) for y in range(columns))
  return costs.Network(chip, (rows, columns), coords, **kwargs)


def exchange(kind, groups, size=9e9, **kwargs):
  return hlo.Collective(
    "c", kind, "f32[1]", int(size), groups, 1, False, "", ("main", 0, 0),
    **kwargs,
  )  # fmt: skip


def test_an_exchange_over_two_dimensions_uses_the_links_of_both():
  square = grid_network(2, 2).secs(exchange("all-reduce", ((0, 1, 2, 3),)))
  # 2 * 3 / 4 of the bytes, over one link in each of two dimensions.
  assert square == pytest.approx(1.5 * 9e9 / 9e10, rel=1e-3)
  line = grid_network(2, 2).secs(exchange("all-reduce", ((0, 1), (2, 3))))
  assert line == pytest.approx(9e9 / 4.5e10, rel=1e-3)


def test_a_dimension_as_long_as_the_pod_is_a_ring():
  row = (tuple(range(16)),)
  ring = grid_network(16, 16).secs(exchange("all-gather", row))
  line = grid_network(16, 32).secs(exchange("all-gather", row))
  assert line == pytest.approx(2 * ring, rel=1e-3)


def test_groups_that_lie_in_turns_share_their_links():
  alone = grid_network(1, 4).secs(exchange("all-gather", ((0, 1), (2, 3))))
  turns = grid_network(1, 4).secs(exchange("all-gather", ((0, 2), (1, 3))))
  assert turns == pytest.approx(1.5 * alone, rel=1e-3)


def test_a_permutation_takes_as_long_as_its_longest_way():
  near = exchange("collective-permute", ((0, 1), (1, 0)))
  far = exchange("collective-permute", ((0, 3), (3, 0)))
  network = grid_network(1, 4)
  assert network.secs(far) == pytest.approx(3 * network.secs(near))
  assert network.secs(exchange("collective-permute", ((1, 1),))) == 0


def test_between_slices_the_data_centre_network_is_used():
  network = grid_network(2, 2, num_slices=2)
  over_dcn = exchange("all-reduce", (), over_dcn=True)
  want = costs.DCN_SECS + 9e9 / V5E.dcn_bandwidth
  assert network.secs(over_dcn) == pytest.approx(want)


def work(cycles, **kwargs):
  return hlo.Step(call_of(kind="fusion", kernel="", cycles=cycles), **kwargs)


def run(schedule, secs=1.0):
  return costs.timeline(
    schedule, clock_hz=100.0, kernel_secs=lambda _: 0.25,
    exchange_secs=lambda _: secs,
  )  # fmt: skip


def test_an_exchange_hides_behind_what_is_between_its_ends():
  x = exchange("all-gather", ())
  times = run([work(0, starts=x), work(30), work(0, waits=x), work(10)])
  assert (times.compute, times.exposed, times.hidden) == pytest.approx(
    (0.4, 0.7, 0.3)
  )
  assert times.step == pytest.approx(1.1)


def test_an_exchange_in_one_piece_hides_behind_nothing():
  x = exchange("all-gather", ())
  times = run([work(30, starts=x, waits=x), work(100)])
  assert (times.step, times.exposed) == pytest.approx((2.3, 1.0))


def test_exchanges_wait_for_each_other_on_one_network():
  x, y = exchange("all-gather", ()), exchange("all-reduce", ())
  dcn = exchange("all-reduce", (), over_dcn=True)
  both = [work(0, starts=x), work(0, starts=y), work(0, waits=y)]
  assert run([*both, work(0, waits=x)]).step == pytest.approx(2.0)
  apart = [work(0, starts=x), work(0, starts=dcn), work(0, waits=dcn)]
  assert run([*apart, work(0, waits=x)]).step == pytest.approx(1.0)


def test_a_loop_takes_its_body_as_often_as_it_runs():
  x = exchange("all-gather", ())
  kernel = hlo.Step(call_of())
  body = (work(50), work(0, starts=x, waits=x), kernel)
  times = run([work(0, body=body, runs=4)])
  assert (times.compute, times.exposed, times.kernels) == pytest.approx(
    (2.0, 4.0, 1.0)
  )


def test_work_that_memory_cannot_feed_takes_the_time_of_its_bytes():
  fed, starved = (
    dataclasses.replace(work(50).instruction, moved_bytes=size)
    for size in (40, 90)
  )
  schedule = [hlo.Step(fed), hlo.Step(starved)]
  times = costs.timeline(
    schedule, 100.0, lambda _: 0.0, lambda _: 0.0, bandwidth=100.0
  )
  # Half a second each by cycles; the second has bytes for 0.9 s.
  assert (times.compute, times.starved) == pytest.approx((1.0, 0.4))
  assert times.step == pytest.approx(1.4)
  assert run(schedule).step == pytest.approx(1.0)
