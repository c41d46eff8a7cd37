"""Tests of planning/schedules.py: cycles counted by hand."""

import dataclasses

import pytest

from bert_jax.planning import costs
from bert_jax.planning import hlo
from bert_jax.planning import schedules
from bert_jax.runtime import chips

V5E = chips.parse_topology("v5e:2x2").chip.per_device(1)

# A loop over a grid of 4 steps, which runs 6 times; in two of them it jumps
# over the work. A bundle may have several lines.
GRID = """
LB: loop body
     0   :  { %s1_s0 = smov 0 /* copy for cssa */ }
   0x1 LB: > { %s2_s1 = sphi %s1_s0, %s3_s2 /* phi copy */ }
   0x2   : > { %9 = sbr.rel (%p5_p1) target bundleno = 7 (0x7), region = 4 }
   0x3   : > {}
   0x4   : > { %v1 = vld [vmem:%s9] }
   0x5   : > { %10 = dma.hbm_to_vmem %s1 /*
base_bounds: (8, 16, 2)
*/ }
   0x6   : > { %v2 = vadd.f32 %v1, %v1 }
   0x7 PF: > { %s3_s2 = sadd.s32 1, %s2_s1 }
   0x8   : > { %p22_p2 = scmp.ge.s32.totalorder %s3_s2, 6 /* loop exit test */ }
   0x9   : > { %24 = sbr.rel (!%p22_p2) target bundleno = 1 (0x1), region = 2 }
   0xa   :  {}
   0xb   :  { %11 = vsyncpa [#allocation3], 1 }
"""
# Outside 2, in the loop 7 with the empty bundle after the jump, and 3 of work.
GRID_CYCLES = 2 + 6 * 7 + 4 * 3


def test_a_loop_counts_as_often_as_it_runs_and_its_work_once_a_step():
  assert schedules.cycles(GRID, grid_steps=4) == GRID_CYCLES


def test_work_under_a_condition_counts_as_if_it_always_ran():
  assert schedules.cycles(GRID, grid_steps=6) == 2 + 6 * 10
  assert schedules.cycles(GRID, grid_steps=1) == 2 + 6 * 10  # another loop


def test_an_inner_loop_is_multiplied_out():
  inner = """
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sphi %s1, %s3 }
   0x2   : > { %s11 = smov 2 }
   0x3 LB: >> { %s12 = sphi %s11, %s13 }
   0x4   : >> { %s13 = sadd.s32 %s12, 2 }
   0x5   : >> { %p1 = scmp.ge.s32.totalorder %s13, 9 /* loop exit test */ }
   0x6   : >> { %5 = sbr.rel (!%p1) target bundleno = 3 (0x3), region = 5 }
   0x7   : > { %s3 = sadd.s32 1, %s2 }
   0x8   : > { %p2 = scmp.ge.s32.totalorder %s3, 5 /* loop exit test */ }
   0x9   : > { %6 = sbr.rel (!%p2) target bundleno = 1 (0x1), region = 6 }
"""
  assert schedules.cycles(inner, grid_steps=5) == 1 + 5 * (5 + 4 * 4)


def test_a_loop_of_unknown_length_is_the_grid_or_makes_no_schedule():
  unknown = GRID.replace("%s3_s2, 6 /*", "%s3_s2, %s77 /*")
  assert schedules.cycles(unknown, grid_steps=3) == 2 + 3 * 10
  two = unknown.replace(
    "   0xb   :  {", "   0xb   :  { %9 = sbr.rel target bundleno = 11 (0xb), "
  )
  assert schedules.cycles(two, grid_steps=3) is None
  assert schedules.cycles("no schedule", grid_steps=3) is None


def test_files_are_read_by_the_name_of_their_instruction(tmp_path):
  name = "17-attention_forward.1-01-packed-bundles-post-ra.txt"
  (tmp_path / name).write_text(GRID)
  (tmp_path / "17-TLP-hlo.txt").write_text("other")
  analysis = "17-attention_forward.1-00-schedule-analysis_packed-bundles-post"
  (tmp_path / f"{analysis}-ra.txt").write_text("Schedule analysis:")
  fusion = "17-fusion.3-01-packed-bundles-post-ra.txt"
  (tmp_path / fusion).write_text("of no kernel")
  names = {"attention_forward.1", "attention_forward.2"}
  assert schedules.read(str(tmp_path), names) == {"attention_forward.1": GRID}
  schedules.clear(str(tmp_path))
  assert schedules.read(str(tmp_path), names) == {}


def _program(*names):
  calls = [
    hlo.Instruction(
      name=name, opcode="custom-call", kind="pallas", shape="f32[8]",
      result_bytes=32, operand_shapes=("f32[8]",), op_name="", cycles=0,
      count=1, kernel="k",
    )
    for name in names
  ]  # fmt: skip
  return hlo.Program(tuple(hlo.Step(call) for call in calls), (), ())


def test_equal_kernels_share_a_schedule_and_others_keep_the_assumption():
  program = _program("k.1", "k.2")
  cost = costs.KernelCost("k", ("f32[8]",), vector_ops=1e9, grid_steps=4)
  given = {"k.1": (cost, True), "k.2": (cost, True)}
  found = costs.add_schedules(given, program, {"k.1": GRID}, num_cores=1)
  assert [c.cycles for c, _ in found.values()] == [GRID_CYCLES] * 2
  scheduled = found["k.2"][0]
  assert scheduled.secs(V5E) == pytest.approx(GRID_CYCLES / V5E.clock_hz)
  assert scheduled.assumed_secs(V5E) == cost.secs(V5E) > scheduled.secs(V5E)
  none = costs.add_schedules(given, program, {}, num_cores=1)
  assert none["k.1"][0].secs(V5E) == cost.assumed_secs(V5E)


def test_a_kernel_that_memory_cannot_feed_takes_the_time_of_its_bytes():
  cost = costs.KernelCost("k", (), bytes=1e9, cycles=10.0)
  wanted = 1e9 / (V5E.hbm_bandwidth * costs.MEMORY_EFFICIENCY)
  assert cost.secs(V5E) == pytest.approx(wanted)
  longer = dataclasses.replace(cost, cycles=2 * wanted * V5E.clock_hz)
  assert longer.secs(V5E) == pytest.approx(2 * wanted)
