"""Tests of hlo.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.planning import hlo
from bert_jax.planning import hlo_groups

LOOP = """HloModule jit_step, is_scheduled=true

%fused_mm (p0: bf16[8,16], p1: bf16[16,32]) -> bf16[8,32] {
  %p0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %dot.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), \
dim_labels=bf_io->bf, backend_config={"estimated_cycles":"999"}
}

%inner_body (q: (s32[], f32[4])) -> (s32[], f32[4]) {
  %q = (s32[], f32[4]{0}) parameter(0)
  %qi = s32[] get-tuple-element(%q), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%qi, %one)
  %qx = f32[4]{0} get-tuple-element(%q), index=1
  %twice = f32[4]{0} add(%qx, %qx), metadata={op_name="jit(step)/jvp(M)/\
encoder/while/body/layers/attention/add"}, \
backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %twice)
}

%inner_cond (r: (s32[], f32[4])) -> pred[] {
  %r = (s32[], f32[4]{0}) parameter(0)
  %ri = s32[] get-tuple-element(%r), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%ri, %three), direction=LT
}

%outer_body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %si = s32[] get-tuple-element(%s), index=0
  %sx = f32[4]{0} get-tuple-element(%s), index=1
  %zero = s32[] constant(0)
  %first = (s32[], f32[4]{0}) tuple(%zero, %sx)
  %inner = (s32[], f32[4]{0}) while(%first), condition=%inner_cond, \
body=%inner_body
  %sum = f32[4]{0} all-reduce(%sx), channel_id=4, \
replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %result = (s32[], f32[4]{0}) tuple(%si, %sum)
}

%outer_cond (t: (s32[], f32[4])) -> pred[] {
  %t = (s32[], f32[4]{0}) parameter(0)
  ROOT %go = pred[] custom-call(%t), custom_call_target="Unknown"
}

ENTRY %main (a: bf16[8,16], b: bf16[16,32], c: (s32[], f32[4])) -> \
bf16[8,32] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  %c = (s32[], f32[4]{0}) parameter(2)
  %loop = (s32[], f32[4]{0}) while(%c), condition=%outer_cond, \
body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %fusion = bf16[8,32]{1,0:T(8,128)(2,1)} fusion(%a, %b), \
kind=kOutput, calls=%fused_mm, metadata={op_name="jit(step)/transpose(jvp(M))\
/encoder/layer_0/mlp/in/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
}
"""


def find(program, name):
  (found,) = [i for i in program.instructions if i.name == name]
  return found


def test_bodies_of_loops_count_as_often_as_they_run():
  program = hlo.parse(LOOP)
  assert find(program, "twice").count == 5 * 3
  assert program.cycles == 15 * 7 + 100
  assert not program.unknown_loops


def test_what_is_inside_of_a_fusion_is_not_counted_again():
  fusion = find(hlo.parse(LOOP), "fusion")
  assert (fusion.cycles, fusion.kind, fusion.num_matmuls) == (100, "matmul", 1)
  assert fusion.result_bytes == 8 * 32 * 2
  assert fusion.operand_bytes == (8 * 16 + 16 * 32) * 2


def test_parts_and_passes():
  program = hlo.parse(LOOP)
  assert hlo.cycles_by_part(program.instructions) == {
    "attention": {"forward": 105},
    "mlp": {"backward": 100},
  }


@pytest.mark.parametrize(
  ("path", "part", "phase"),
  [
    ("jvp(M)/encoder/layer_3/mlp_norm/reduce_sum", "layer_norm", "forward"),
    ("jvp(M)/encoder/layer_3/attention_norm/mul", "layer_norm", "forward"),
    ("jvp(M)/encoder/layer_3/attention/dot", "attention", "forward"),
    ("transpose(jvp(M))/encoder/layers/mlp/out/dot", "mlp", "backward"),
    ("jvp(M)/encoder/while/body/x/layers/dropout/xor", "dropout", "forward"),
    ("jvp(M)/encoder/embeddings/word/gather", "embedding", "forward"),
    ("jvp(M)/encoder/embeddings/norm/mul", "layer_norm", "forward"),
    ("jvp(M)/mlm/dense/dot_general", "vocabulary", "forward"),
    ("transpose(jvp())/reduce_sum", "vocabulary", "backward"),
    ("jvp(M)/encoder/while/body/dynamic_slice", "scan", "forward"),
    ("jvp(M)/nsp/dot_general", "other", "forward"),
    ("sqrt", "optimizer", "forward"),
    (
      "transpose(jvp(M))/encoder/checkpoint/rematted_computation/"
      "layer_0/mlp/in/dot_general", "mlp", "recomputed",
    ),
  ],
)  # fmt: skip
def test_where_a_name_belongs(path, part, phase):
  name = f"jit(train_step)/{path}"
  assert (hlo.part_of(name), hlo.phase_of(name)) == (part, phase)


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
  (c,) = hlo.parse(LOOP).collectives
  assert (c.kind, c.count, c.groups) == ("all-reduce", 5, ((0, 1), (2, 3)))
  assert c.bytes_sent(4) == 16  # 2 * (n - 1) / n of 4 floats


def test_a_loop_of_unknown_length_is_named_and_counted_once():
  text = LOOP.replace('"known_trip_count":{"n":"5"}', "")
  program = hlo.parse(text)
  assert program.unknown_loops == ("loop",)
  assert program.cycles == 3 * 7 + 100


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}, x", ((0, 1), (2, 3))),
    ("replica_groups={}", ()),
    ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
    ("replica_groups=[1,4]<=[4]", ((0, 1, 2, 3),)),
    (
      "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_0'}, b",
      ((0, 2), (1, 3)),
    ),
    (
      "replica_groups=mesh['a'=2,'b'=2] {'a','b'}",
      ((0, 1, 2, 3),),
    ),
    ("replica_groups=mesh['a'=4] {'a':(2)2}, c", ((0, 1), (2, 3))),
    ("replica_groups=mesh['a'=4] {'a':(1)2}, c", ((0, 2), (1, 3))),
    (
      "replica_groups=mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) {'b'}",
      ((0, 1), (2, 3), (4, 5)),
    ),
    (
      "replica_groups=mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) {'c'}",
      ((0, 2, 4), (1, 3, 5)),
    ),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([4]) {'b'}, e",
      ((0, 1), (2, 3)),
    ),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}, e",
      ((0, 2), (1, 3)),
    ),
    ("source_target_pairs={{0,1},{1,0}}, d", ((0, 1), (1, 0))),
  ],
)
def test_device_groups(text, groups):
  assert hlo_groups.parse_groups(text) == groups


@pytest.mark.parametrize(
  "text",
  ["replica_groups=torus(2,2)", "replica_groups=mesh['a'=2], ids=(x) {'a'}"],
)
def test_device_groups_that_cannot_be_read_are_no_group_of_all(text):
  with pytest.raises(hlo.HloError, match="device groups: replica_groups="):
    hlo_groups.parse_groups(text)


def collective(kind, **kwargs):
  groups = kwargs.pop("groups", ((0, 1, 2, 3),))
  return hlo.Collective(
    "c", kind, "f32[25]", 100, groups, 1, False, "", ("main", 0, 0), **kwargs
  )


@pytest.mark.parametrize(
  ("kind", "sent"),
  [
    ("all-reduce", 150),
    ("all-gather", 300),
    ("reduce-scatter", 75),
    ("all-to-all", 75),
  ],
)
def test_bytes_that_a_device_sends_on_a_ring(kind, sent):
  assert collective(kind).bytes_sent(4) == sent
  assert collective(kind, groups=()).bytes_sent(4) == sent
  assert collective(kind, groups=((0,), (1,))).bytes_sent(4) == 0


def test_a_permutation_that_moves_nothing_sends_nothing():
  stays = collective("collective-permute", groups=((0, 0), (1, 1)))
  moves = collective("collective-permute", groups=((0, 1), (1, 0)))
  assert (stays.bytes_sent(2), moves.bytes_sent(2)) == (0, 100)


ASYNC = """HloModule m, is_scheduled=true

%start (p: f32[4]) -> (f32[4], f32[8], u32[]) {
  %p = f32[4]{0} parameter(0)
  %ag.1 = f32[8]{0} all-gather(%p), channel_id=9, \
replica_groups={{0,1}}, dimensions={0}, backend_config=\
{"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %cc = (f32[4]{0}, f32[8]{0}, u32[]) custom-call(%ag.1), \
custom_call_target="AsyncCollectiveStart"
}

%middle (p.2: f32[4], p.3: f32[8]) -> f32[8] {
  %p.2 = f32[4]{0} parameter(0)
  %p.3 = f32[8]{0} parameter(1)
  ROOT %ag.2 = f32[8]{0} all-gather(%p.2), channel_id=9, \
replica_groups={{0,1}}, dimensions={0}, backend_config=\
{"async_collective_fusion_config":{"flag_start":"2"}}
}

%shard (p.4: f32[8]) -> f32[4] {
  %p.4 = f32[8]{0} parameter(0)
  ROOT %inside = f32[4]{0} reduce-scatter(%p.4), channel_id=3, \
replica_groups={{0,1}}, dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[4], y: f32[8]) -> f32[8] {
  %x = f32[4]{0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %f1 = (f32[4]{0}, f32[8]{0}, u32[]) fusion(%x), kind=kCustom, calls=%start
  %work = f32[8]{0} negate(%y), backend_config={"estimated_cycles":"50"}
  %f2 = f32[8]{0} fusion(%x, %y), kind=kCustom, calls=%middle, \
backend_config={"estimated_cycles":"60"}
  %ar = f32[8]{0} all-reduce-start(%y), replica_groups={{0,1}}, channel_id=1
  %work2 = f32[8]{0} negate(%f2), backend_config={"estimated_cycles":"5"}
  %ar.done = f32[8]{0} all-reduce-done(%ar)
  %rs = ((f32[8]{0}), f32[4]{0}) async-start(%ar.done), calls=%shard
  %rs.done = f32[4]{0} async-done(%rs)
  ROOT %last = f32[8]{0} add(%ar.done, %work2)
}
"""


CARRIED = ASYNC.replace(
  "ENTRY %main",
  """%body (t: (s32[], f32[4], f32[8])) -> (s32[], f32[4], f32[8]) {
  %t = (s32[], f32[4]{0}, f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %a = f32[4]{0} get-tuple-element(%t), index=1
  %b = f32[8]{0} get-tuple-element(%t), index=2
  %on = f32[8]{0} fusion(%a, %b), kind=kCustom, calls=%middle, \
backend_config={"estimated_cycles":"10"}
  ROOT %out = (s32[], f32[4]{0}, f32[8]{0}) tuple(%i, %a, %on)
}

%condition (t.2: (s32[], f32[4], f32[8])) -> pred[] {
  %t.2 = (s32[], f32[4]{0}, f32[8]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main""",
).replace(
  "  %f2 =",
  """  %zero = s32[] constant(0)
  %init = (s32[], f32[4]{0}, f32[8]{0}) tuple(%zero, %x, %y)
  %loop = (s32[], f32[4]{0}, f32[8]{0}) while(%init), \
condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %f2 =""",
)


def test_a_collective_that_a_loop_carries_on_is_none_of_the_loop():
  program = hlo.parse(CARRIED)
  assert not program.unknown_loops
  (gather,) = [c for c in program.collectives if c.kind == "all-gather"]
  assert (gather.count, gather.schedule[0]) == (1, "main")
  # It hides behind the loop, which is between its start and its end.
  (loop,) = [s for s in program.schedule if s.body is not None]
  assert loop.runs == 5 and loop.body[0].instruction.cycles == 10
  assert loop.body[0].starts is None and loop.body[0].waits is None
  # One that a loop starts itself runs as often as the loop.
  inside = CARRIED.replace(
    "%f1 = (", "%f1.x = f32[8]{0} negate(%y)\n  %old = ("
  )
  inside = inside.replace("fusion(%x), kind=kCustom, calls=%start", "tuple(%y)")
  inside = inside.replace(
    "  %on = ",
    "  %s = (f32[4]{0}, f32[8]{0}, u32[]) fusion(%a), kind=kCustom, "
    "calls=%start\n  %on = ",
  )
  (gather,) = [
    c for c in hlo.parse(inside).collectives if c.schedule[0] == "body"
  ]
  assert (gather.kind, gather.count) == ("all-gather", 5)


def test_a_collective_spread_over_instructions_counts_once():
  program = hlo.parse(ASYNC)
  kinds = {c.kind: c for c in program.collectives}
  assert len(program.collectives) == 3
  gather = kinds["all-gather"]
  assert gather.is_async and gather.operand_bytes == 16
  assert gather.bytes_sent(2) == 16
  assert kinds["all-reduce"].is_async and kinds["all-reduce"].count == 1
  assert kinds["reduce-scatter"].operand_bytes == 32
  assert program.cycles == 115


def test_the_schedule_says_what_starts_and_what_is_waited_for():
  schedule = hlo.parse(ASYNC).schedule
  events = [
    (s.instruction.name, s.starts and s.starts.kind, s.waits and s.waits.kind)
    for s in schedule
    if s.starts or s.waits
  ]
  assert events == [
    ("f1", "all-gather", None),
    ("f2", None, "all-gather"),
    ("ar", "all-reduce", None),
    ("ar.done", None, "all-reduce"),
    ("rs", "reduce-scatter", None),
    ("rs.done", None, "reduce-scatter"),
  ]


BRANCHES = """HloModule m

%cheap (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%a), backend_config={"estimated_cycles":"1"}
}

%dear (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  ROOT %e = f32[4]{0} exponential(%b), backend_config={"estimated_cycles":"90"}
}

ENTRY %main (i: s32[], x: f32[4]) -> f32[4] {
  %i = s32[] parameter(0)
  %x = f32[4]{0} parameter(1)
  %y = f32[4]{0} call(%x), to_apply=%cheap
  ROOT %c = f32[4]{0} conditional(%i, %y, %y), \
branch_computations={%cheap, %dear}
}
"""


def test_the_costliest_branch_counts_and_calls_are_followed():
  assert hlo.parse(BRANCHES).cycles == 1 + 90


def test_bytes_of_types():
  assert hlo.shape_bytes("pred[3]") == 3
  assert hlo.shape_bytes("s4[6]") == 3
  assert hlo.shape_bytes("f8e4m3fn[2,2]{1,0}") == 4
  assert hlo.shape_bytes("f32[]") == 4
  assert hlo.shape_bytes("(f32[2,3]{1,0:T(8,128)}, token[])") == 24


def test_other_text_is_refused():
  with pytest.raises(hlo.HloError, match=r"compiled.as_text\(\)"):
    hlo.parse("module @jit_f { }")


def compiled_loop(length):
  def f(x):
    def body(carry, _):
      return jnp.tanh(carry @ carry), None

    return jax.lax.scan(body, x, None, length=length)[0]

  return jax.jit(f).lower(jnp.ones((64, 64))).compile()


def test_a_compiled_loop_is_multiplied_out():
  """Matrix multiplications of a scanned program, counted in its text."""
  for length in (3, 7):
    text = compiled_loop(length).as_text()
    for known in (text, text.replace("known_trip_count", "rewritten")):
      program = hlo.parse(known)
      runs = sum(i.count for i in program.instructions if i.num_matmuls)
      assert runs == length
      assert not program.unknown_loops


def test_collectives_of_a_compiled_program():
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )  # fmt: skip
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  compiled = (
    jax.jit(lambda x: x.sum(0), in_shardings=place, out_shardings=everywhere)
    .lower(jax.ShapeDtypeStruct((8, 16), np.float32))
    .compile()
  )
  (c,) = hlo.parse(compiled.as_text()).collectives
  assert (c.kind, c.operand_bytes, c.group_size) == ("all-reduce", 64, 4)


def test_the_command_prints_a_report(tmp_path, capsys):
  path = tmp_path / "step.txt"
  path.write_text(LOOP)
  assert hlo.main([str(path), "--top=1"]) == 0
  out = capsys.readouterr().out
  assert "attention" in out and "51.2%" in out and "all-reduce" in out
  path.write_text("nothing")
  assert hlo.main([str(path)]) == 2
  assert "ENTRY" in capsys.readouterr().err


# --- memory traffic -----------------------------------------------------------

TRAFFIC = """HloModule m

%inner (p0: f32[64,8], p1: f32[2,8], p2: s32[]) -> f32[64,8] {
  %p0 = f32[64,8]{1,0} parameter(0)
  %p1 = f32[2,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %twice = f32[2,8]{1,0} add(%p1, %p1)
  ROOT %put = f32[64,8]{1,0} dynamic-update-slice(%p0, %twice, %p2, %zero)
}

%cut (q0: f32[64,8], q1: s32[]) -> f32[1,8] {
  %q0 = f32[64,8]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %piece = f32[1,8]{1,0} dynamic-slice(%q0, %q1, %zero.1)
  ROOT %neg = f32[1,8]{1,0} negate(%piece)
}

ENTRY %main (a: f32[64,8], b: f32[2,8], i: s32[]) -> f32[64,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %b = f32[2,8]{1,0:T(2,128)S(1)} parameter(1)
  %i = s32[]{:S(2)} parameter(2)
  %f.1 = f32[64,8]{1,0} fusion(%a, %b, %i), calls=%inner, CYCLES
  %f.2 = f32[1,8]{1,0} fusion(%f.1, %i), calls=%cut, CYCLES
  %c.1 = f32[64,8]{0,1} copy(%f.1), CYCLES
  ROOT %c.2 = f32[64,8]{0,1} copy(%c.1)
}
""".replace("CYCLES", 'backend_config={"estimated_cycles":"7"}')


def test_bytes_are_those_of_slices_and_updates_in_main_memory():
  moved = {i.name: i.moved_bytes for i in hlo.parse(TRAFFIC).instructions}
  row = 8 * 4
  assert moved["f.1"] == 2 * row  # what it reads lies on the chip
  assert moved["f.2"] == row + row
  assert moved["c.1"] == 2 * 64 * row
  assert moved["c.2"] == 0  # without an estimate it is not the core's work
