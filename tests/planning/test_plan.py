"""Tests of plan.py. What needs the TPU's compiler is slow, and skipped without.

The others compile for the CPU: its programs have no cycles, but memory, loops
and exchanges as those for a TPU have them.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

from bert_jax.data import batching
from bert_jax.models import flops
from bert_jax.planning import costs
from bert_jax.planning import hlo
from bert_jax.planning import memory
from bert_jax.planning import plan
from bert_jax.planning import remarks
from bert_jax.planning import report
from bert_jax.planning import search
from bert_jax.planning import slices
from bert_jax.planning import traffic
from bert_jax.runtime import chips
from bert_jax.runtime import sharding
from configs import base
from experiments.plan import table

ROOT = pathlib.Path(__file__).parents[2]
GIB = 2**30

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.fixture
def config():
  c = base.get_config()
  c.model.vocab_size = 48
  c.model.num_layers = 2
  c.model.hidden_size = 32
  c.model.num_heads = 4
  c.model.mlp_dim = 64
  c.model.max_len = 32
  c.data.seq_len = 32
  c.data.batch_size = 16
  c.mesh.spread_optimizer = False
  return c


def cpu_mesh(data=4, fsdp=1, tensor=1):
  return sharding.make_mesh(
    data, fsdp, tensor, jax.devices()[: data * fsdp * tensor]
  )


def open_program(config, data=4, fsdp=1, tensor=1):
  config.mesh.update({"data": data, "fsdp": fsdp, "tensor": tensor})
  return plan.open_program(config, jax.devices()[: data * fsdp * tensor])


def matmul_flops(config):
  traced = open_program(config).trace()
  return costs.count_program(traced.jaxpr).matmul_flops


def model_flops(config):
  """FLOPs that the mathematics needs, and with all positions counted."""
  program = open_program(config)
  rates = plan._rates(program, costs.Times(compute=1.0), 0, 1, None)
  return rates["model_flops_per_step"], rates["model_flops_all_positions"]


def one_hot_flops(config):
  """Segments are looked up by a matmul whose input needs no gradient."""
  positions = config.data.batch_size * config.data.seq_len
  return (
    2
    * 2
    * positions
    * config.model.type_vocab_size
    * (config.model.hidden_size)
  )


# --- arithmetic ---------------------------------------------------------------


def test_the_unrolled_step_computes_what_the_mathematics_needs(config):
  got = matmul_flops(config) - one_hot_flops(config)
  assert got == model_flops(config)[0]


def test_the_scanned_step_computes_the_last_layer_everywhere(config):
  config.model.scan_layers = True
  got = matmul_flops(config) - one_hot_flops(config)
  assert got == model_flops(config)[1]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_recomputing_layers_adds_their_forward_pass(config, scan_layers):
  config.model.scan_layers = scan_layers
  plain = matmul_flops(config)
  config.model.remat = "full"
  model, data = config.model, config.data
  outputs = None if scan_layers else batching.num_masked_slots(data) + 1
  layers = flops.encoder_flops(
    model, data.batch_size, data.seq_len, num_outputs=outputs, num_pooled=0
  )
  # The last matmul of each layer need not be computed again.
  assert 0.5 * layers < matmul_flops(config) - plain <= layers


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_scanned_program_does_not_grow_with_depth(config, scan_layers):
  sizes = []
  for num_layers in (2, 6):
    config.model.num_layers = num_layers
    config.model.scan_layers = scan_layers
    traced = open_program(config).trace()
    sizes.append(traced.lower().as_text().count("\n"))
  assert (sizes[1] == sizes[0]) is scan_layers


def test_micro_batches_change_nothing_in_the_arithmetic(config):
  whole = matmul_flops(config)
  config.optim.num_micro_batches = 4
  assert matmul_flops(config) == whole


def test_packed_rows_without_data_count_the_least_attention(config):
  alone = model_flops(config)
  config.data.max_sequences = 4
  packed = model_flops(config)
  sizes = (config.model, 16, 32, batching.num_masked_slots(config.data))
  assert packed[0] == flops.pretrain_step_flops(
    *sizes, num_sequences=4, attended=4 * 8**2
  )
  assert packed[0] != alone[0]


# --- batches ------------------------------------------------------------------


def shapes(batch):
  return {k: (x.shape, str(x.dtype)) for k, x in batch.items()}


@pytest.mark.parametrize("max_sequences", [1, 3])
def test_batches_have_the_shapes_of_real_ones(
  tiny_config, prepared, max_sequences
):
  config = tiny_config(prepared)
  config.data.max_sequences = max_sequences
  batches = batching.PretrainBatches(
    config.data, "train", seed=0, batch_size=8, num_steps=1
  )
  config.data.batch_size = 8
  assert shapes(open_program(config).batch) == shapes(batches[0])


@pytest.mark.parametrize(
  "task", ["mrpc", "stsb", "conll2003", "squad_v1", "swag"]
)
def test_a_step_of_every_kind_of_task_is_traced(config, task):
  config.objective = "task"
  config.task.name = task
  config.model.max_len = 128
  config.train.num_epochs, config.train.total_steps = 3.0, 0
  assert open_program(config).trace()
  assert model_flops(config)[0] > 0


# --- a whole plan, compiled for the CPU ---------------------------------------


@pytest.fixture
def make_cpu_plan(monkeypatch):
  """A function (config, data, fsdp, tensor) -> plan of a CPU program."""

  def make(config, **axes):
    program = open_program(config, **axes)
    mesh = program.mesh
    chip = chips.parse_topology("v5e:2x2").chip
    places = tuple((i // 2, i % 2) for i in range(mesh.devices.size))
    shape = (-(-mesh.devices.size // 2), 2)
    network = costs.Network(chip, shape, places)
    monkeypatch.setattr(slices, "make_network", lambda *_: network)
    where = slices.Slices(
      chips.parse_topology("v5e:2x2"), 1, chip, tuple(mesh.devices.flat)
    )
    traced = program.trace()
    compiled = memory.compile_step(traced, mesh)
    # Cycles such as the TPU's compiler writes them.
    text = re.sub(
      r"^( .* fusion\(.*)$",
      r'\1, backend_config={"estimated_cycles":"1000"}',
      compiled.as_text(),
      flags=re.MULTILINE,
    )
    made = {
      "topology": "v5e:2x2", "num_slices": 1, "num_devices": mesh.devices.size,
      "device_kind": "cpu", "mesh": dict(mesh.shape), "compile_secs": 1.0,
      "batch_size": config.data.batch_size, "seq_len": config.data.seq_len,
      "hbm_available_bytes": chip.hbm_bytes,
    }  # fmt: skip
    return made | plan.describe(program, where, traced, compiled, text)

  return make


def test_a_plan_says_what_is_asked_of_it(config, make_cpu_plan):
  made = make_cpu_plan(config, data=4)
  for key in (
    "predicted_mfu", "predicted_step_secs", "hbm_bytes_per_device",
    "model_flops_per_step", "collective_bytes_per_step", "cycles_by_part",
  ):  # fmt: skip
    assert key in made
  assert made["hbm_bytes_per_device"] == sum(made["hbm_bytes_by_kind"].values())
  assert json.loads(json.dumps(made)) == made
  assert made["num_chips"] == 4
  hours = config.train.total_steps * made["predicted_step_secs"] / 3600
  assert made["predicted_hours"] == hours
  assert made["predicted_chip_hours"] == 4 * hours
  text = report.report(made)
  assert f"all {config.train.total_steps:,} steps" in text
  assert "MFU, predicted" in text and "all times are predictions" in text
  assert "model.dtype=float32" in text


def test_gradients_are_summed_over_the_data_axis(config, make_cpu_plan):
  made = make_cpu_plan(config, data=4)
  program = open_program(config)
  params = memory.local_bytes(program.abstract.params, program.place.params)
  # On a ring each device sends 2 * 3 / 4 of what is summed: the gradients,
  # that of the word table once for each of its two uses.
  sent = made["collective_bytes_per_step"]
  table = config.model.vocab_size * config.model.hidden_size * 4
  assert 1.5 * params <= sent < 1.5 * (params + table) + 1000
  assert {row["mesh_axes"] for row in made["collectives"]} == {"data"}


@pytest.mark.slow
def test_scanned_layers_sum_as_many_bytes_as_unrolled_ones(
  config, make_cpu_plan
):
  unrolled = make_cpu_plan(config, data=2, tensor=2)
  config.model.scan_layers = True
  scanned = make_cpu_plan(config, data=2, tensor=2)
  # The last layer is computed everywhere.
  ratio = (
    scanned["collective_bytes_per_step"] / unrolled["collective_bytes_per_step"]
  )
  assert 1.0 <= ratio < 1.5
  axes = {row["mesh_axes"] for row in scanned["collectives"]}
  assert {"data", "tensor"} <= axes
  assert any("tensor parallelism" in w for w in scanned["warnings"])


@pytest.mark.slow
def test_cut_parameters_take_less_memory_and_more_sending(
  config, make_cpu_plan
):
  whole = make_cpu_plan(config, data=4)
  cut = make_cpu_plan(config, data=1, fsdp=4)
  sizes = [p["hbm_bytes_by_kind"]["optimizer"] for p in (whole, cut)]
  assert sizes[1] < 0.3 * sizes[0]
  kinds = {row["kind"] for row in cut["collectives"]}
  assert "all-gather" in kinds


def test_moments_spread_over_the_copies_take_less_memory(config):
  sizes = []
  for spread in (False, True):
    config.mesh.spread_optimizer = spread
    program = open_program(config)
    state, place = program.abstract.opt_state, program.place.opt_state
    sizes.append(memory.local_bytes(state, place))
  assert sizes[1] < sizes[0]


# --- memory -------------------------------------------------------------------


@pytest.mark.parametrize(
  ("message", "used", "available"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (82.00G) exceeds available HBM (15.75G).",
      82, 15.75,
    ),
    (
      "Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm. "
      "Exceeded hbm capacity by 1.50G.",
      17.25, 15.75,
    ),
  ],
)  # fmt: skip
def test_the_compilers_message_is_understood(message, used, available):
  error = memory.read_out_of_memory(message)
  assert error is not None
  assert (error.used, error.available) == (used * GIB, int(available * GIB))


def test_other_errors_are_not_taken_for_it():
  text = "Ran out of memory in memory space vmem. Used 17M of 16M vmem."
  assert memory.read_out_of_memory(text) is None


class Refuses:
  """A traced step whose compilation fails."""

  def __init__(self, message):
    self.message = message

  def lower(self):
    return self

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.message)


def test_out_of_memory_is_an_answer(config):
  config.optim.num_micro_batches = 2
  program = open_program(config, data=2)
  traced = Refuses("Used 31.0G of 15.75G hbm. Exceeded")
  with pytest.raises(memory.OutOfMemoryError) as caught:
    memory.compile_step(traced, program.mesh)
  made = memory.out_of_memory(program, caught.value)
  assert made["fits"] is False
  advice = " ".join(made["to_make_it_fit"])
  assert "--config.optim.num_micro_batches=4" in advice
  assert "--config.model.remat=NAME" in advice
  assert "--config.mesh.fsdp" not in advice  # the state is small here


def test_a_state_that_does_not_fit_is_to_be_cut(config):
  error = memory.OutOfMemoryError(20 * GIB, 16 * GIB)
  state = {"parameters": 4 * GIB, "optimizer": 8 * GIB}
  advice = memory.advice(config, cpu_mesh(), state, error)
  assert "--config.mesh.data=1 --config.mesh.fsdp=4" in advice[0]
  # Over no more devices than it takes; gradients count.
  state = {"parameters": 2 * GIB, "optimizer": GIB}
  error = memory.OutOfMemoryError(20 * GIB, 9 * GIB)
  mesh = types.SimpleNamespace(shape={"data": 16, "fsdp": 1, "tensor": 1})
  advice = memory.advice(config, mesh, state, error)
  assert "--config.mesh.data=2 --config.mesh.fsdp=8" in advice[0]
  assert "5.00 GiB" in advice[0]


def test_a_kernel_too_large_for_the_chip_is_no_lack_of_memory():
  traced = Refuses("Scoped allocation exceeded the vmem limit")
  with pytest.raises(slices.PlanError, match="smaller blocks"):
    memory.compile_step(traced, cpu_mesh())


@pytest.mark.parametrize("first", [64, 1024, 4096, 100_000])
@pytest.mark.parametrize("curve", [0.0, 1e-2])
def test_the_largest_batch_is_found_in_few_trials(first, curve):
  state, available, unit = 3 * GIB, int(15.75 * GIB), 16

  def need(rows):
    return int(state + 2.5e6 * rows + curve * 2e2 * rows**1.5)

  def measure(size):
    assert size % unit == 0 and size not in known
    return need(size), need(size) <= available

  first = first // unit * unit
  known: dict[int, tuple[int, bool]] = {}
  known[first] = measure(first)
  found = search.largest_batch(measure, known, state, available, unit)
  best = found["largest_batch_size"]
  assert len(known) <= 1 + search.MOST_COMPILES
  assert need(best) <= available < need(best + max(unit, best // 10))


# --- what it is for -----------------------------------------------------------


def test_which_axes_an_exchange_goes_over():
  mesh = types.SimpleNamespace(
    shape={"data": 2, "fsdp": 2, "tensor": 2},
    axis_names=("data", "fsdp", "tensor"),
  )

  def axes(*groups, kind="all-reduce"):
    c = hlo.Collective("c", kind, "f32[]", 4, groups, 1, False, "", ("", 0, 0))
    return traffic.mesh_axes_of(c, mesh)

  assert axes((0, 1), (2, 3)) == "tensor"
  assert axes((0, 4), (1, 5)) == "data"
  assert axes((0, 2, 4, 6)) == "data+fsdp"
  assert axes() == "data+fsdp+tensor"
  assert axes((0, 0), (1, 3), (3, 1), kind="collective-permute") == "fsdp"


def test_sizes_that_do_not_fill_the_tiles_are_named(config):
  mesh = cpu_mesh()
  chip = chips.parse_topology("v5e:2x2").chip
  config.model.dtype = "bfloat16"
  config.model.hidden_size, config.model.num_heads = 768, 12
  config.model.vocab_size, config.model.mlp_dim = 30592, 3072
  config.data.seq_len = 128
  (only,) = remarks._size_warnings(config, mesh, chip)
  assert "head_dim = 64 is padded to 128" in only
  config.model.vocab_size = 30522
  assert len(remarks._size_warnings(config, mesh, chip)) == 2


def _exchange(kind, shape, op_name=""):
  return hlo.Collective(
    "c", kind, shape, hlo.shape_bytes(shape), ((0, 1, 2, 3),), 2, False,
    op_name, ("main", 0, 0),
  )  # fmt: skip


def test_tables_gathered_and_activations_summed_are_named(config):
  config.model.mlp_dim = 128  # as many as the tokens of a device
  program = open_program(config)

  def warn(*exchanges):
    return remarks._exchange_warnings(program, hlo.Program((), exchanges, ()))

  (text,) = warn(_exchange("all-gather", "f32[48,8]", "jit(f)/mlm/dot_general"))
  assert "vocabulary table is gathered whole" in text and "mesh.fsdp" in text
  # 2 runs, each sends 2 * 3 / 4 of 4 rows x 32 tokens x 32 x 4 bytes.
  (text,) = warn(_exchange("all-reduce", "f32[4,32,32]"))
  assert "activations are summed over devices, 0 MB" in text
  assert "nothing in the config asks for it" in text
  # Gradients of kernels are no activations, whatever their sizes.
  assert not warn(
    _exchange("all-reduce", "f32[128,32]"),
    _exchange("all-gather", "f32[32,8]", "jit(f)/mlp/out/dot_general"),
  )


def test_gradients_of_head_kernels_are_no_activations_either(config):
  config.data.batch_size = 4  # 32 tokens a device, as wide as the model
  program = open_program(config)
  exchanges = (_exchange("all-reduce", "f32[32,32]"),)
  compiled = hlo.Program((), exchanges, ())
  assert not remarks._exchange_warnings(program, compiled)


def test_without_the_compiler_one_line_says_what_to_install(
  config, monkeypatch
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    slices.PlanError, match=r"`make tpu`.*pip install -e '.\[tpu\]'"
  ):
    plan.run(config, "v5e:2x2", 1, "", "", "")


def test_what_crashes_the_compiler_is_refused_before(config, monkeypatch):
  installed = "0.0.42.1"
  monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
  config.model.dtype = "bfloat16"
  with pytest.raises(slices.PlanError, match="crashes.*scan_layers=True"):
    slices.check_compiler(config, "tpu7x")
  slices.check_compiler(config, "v5e")
  config.model.scan_layers = True
  slices.check_compiler(config, "tpu7x")
  config.model.scan_layers, installed = False, "0.0.43"
  slices.check_compiler(config, "tpu7x")


def test_an_unknown_topology_lists_those_there_are():
  with pytest.raises(ValueError, match=r"v5e:2x2.*tpu7x:2x2x1"):
    slices.open_slices("v9:2x2")


# --- with the compiler of the TPU ---------------------------------------------


def run_plan(tmp_path, *args):
  path = tmp_path / "plan.json"
  done = subprocess.run(
    [sys.executable, "-m", "bert_jax.main", "--mode=plan", *args,
     f"--output={path}"],
    cwd=ROOT, capture_output=True, text=True, check=False,
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
  )  # fmt: skip
  made = json.loads(path.read_text()) if path.exists() else None
  return done, made


SMALL = (
  "--config=configs/pretrain.py:size=tiny",
  "--config.model.dtype=bfloat16",
  "--config.model.vocab_size=1024",
  "--config.model.num_layers=4",
  "--topology=v5e:2x2",
)


@pytest.mark.slow
@needs_compiler
def test_scanned_and_unrolled_plans_agree(tmp_path):
  made = []
  for scan in (False, True):
    done, found = run_plan(
      tmp_path, *SMALL, f"--config.model.scan_layers={scan}"
    )
    assert done.returncode == 0, done.stderr
    assert found["fits"] and "MFU, predicted" in done.stdout
    made.append(found)
  unrolled, scanned = made
  for kind in ("parameters", "batch"):
    sizes = [p["hbm_bytes_by_kind"][kind] for p in made]
    assert sizes[0] == sizes[1]
  # Stacked vectors have one dimension more that moments can be cut along.
  sizes = [p["hbm_bytes_by_kind"]["optimizer"] for p in made]
  assert 0.95 * sizes[0] < sizes[1] <= sizes[0]
  for part in ("mlp", "attention"):
    cycles = [sum(p["cycles_by_part"][part].values()) for p in made]
    # One of four layers is computed at a sixth of the positions if unrolled.
    assert 0.9 * cycles[0] < cycles[1] < 2 * cycles[0]
  assert (
    scanned["hardware_flops_per_step"] > unrolled["hardware_flops_per_step"]
  )


@pytest.mark.slow
@needs_compiler
def test_too_large_a_batch_exits_with_1_and_says_why(tmp_path):
  done, made = run_plan(
    tmp_path,
    *SMALL,
    "--config.model.num_layers=1",
    "--config.data.batch_size=524288",
  )
  assert done.returncode == 1, done.stderr
  assert made["fits"] is False
  assert made["hbm_bytes_per_device"] > made["hbm_available_bytes"]
  assert (
    "DOES NOT FIT" in done.stdout and "what would make it fit" in done.stdout
  )


@pytest.mark.slow
@needs_compiler
def test_several_slices_exchange_over_the_data_centre_network(tmp_path):
  done, made = run_plan(tmp_path, *SMALL, "--num_slices=2")
  assert done.returncode == 0, done.stderr
  assert (made["num_devices"], made["mesh"]["data"]) == (8, 8)
  sent = {row["links"]: 0.0 for row in made["collectives"]}
  for row in made["collectives"]:
    sent[row["links"]] += row["bytes_sent"]
  # What four chips of a slice have summed and cut up goes to the other slice.
  assert 0 < sent["DCN"] < sent["ICI"]
  # Sums of gradients, but no parameters.
  crossing = {r["kind"] for r in made["collectives"] if r["links"] == "DCN"}
  assert crossing == {"all-reduce"}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
  ("topology", "num_devices"),
  [("v4:2x2x1", 4), ("v5p:2x2x1", 4), ("v6e:2x2", 4), ("tpu7x:2x2x1", 8)],
)
def test_every_kind_of_chip_has_its_plan(tmp_path, topology, num_devices):
  done, made = run_plan(
    tmp_path,
    *SMALL[:-1],
    f"--topology={topology}",
    "--config.model.attention_dropout_rate=0.0",
  )
  assert done.returncode == 0, done.stderr
  assert made["fits"] and made["num_devices"] == num_devices
  assert made["cycles_per_step"] > 0 and 0 < made["predicted_mfu"] < 1


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("attention", ["fused", "splash"])
def test_kernels_are_used_and_their_time_is_counted(tmp_path, attention):
  done, made = run_plan(
    tmp_path,
    *SMALL,
    f"--config.model.attention={attention}",
    "--config.model.attention_dropout_rate=0.0",
  )
  assert done.returncode == 0, done.stderr
  kernels = made["pallas_kernels"]
  assert {k["phase"] for k in kernels} == {"forward", "backward"}
  # The last layer is plain: it is computed where it is read.
  assert all(k["runs"] == 3 and k["code_found"] for k in kernels)
  assert all(k["secs_per_run"] > 0 for k in kernels)
  # The compiler has written their schedules, and these were understood.
  assert all(k["scheduled_cycles"] > 0 for k in kernels)
  assert made["error"]["share_of_kernels_without_schedule"] == 0
  # 64 rows a device, 2 heads: two products of 128 x 128 x 64 forward, five
  # backward. The fused kernel multiplies by the lanes of both heads.
  width = 64 if attention == "splash" else 128
  product = 64 * 2 * 2 * 128 * 128 * width
  found = {k["phase"]: (k["name"], k["matmul_flops"]) for k in kernels}
  prefix = "splash_mha" if attention == "splash" else "attention_"
  for phase, count in (("forward", 2), ("backward", 5)):
    name, done_flops = found[phase]
    assert name.startswith(prefix) and done_flops == count * product


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_and_new_parameters_travel_once(tmp_path, micro_batches):
  """The word table, which has two gradients, as well as all others."""
  done, made = run_plan(
    tmp_path,
    "--config=configs/pretrain.py:size=L2_H512",
    "--config.model.dtype=bfloat16",
    "--config.data.batch_size=512",
    f"--config.optim.num_micro_batches={micro_batches}",
    "--topology=v5e:4x4",
  )
  assert done.returncode == 0, done.stderr
  # Moments are cut over the 16 copies: each device computes a share of the new
  # parameters. An all-reduce sends twice, an all-gather once.
  size = made["hbm_bytes_by_kind"]["parameters"] * 15 / 16
  assert 2.9 * size < made["collective_bytes_per_step"] < 3.1 * size


@pytest.mark.slow
@needs_compiler
def test_a_topology_that_the_compiler_refuses_exits_with_2(tmp_path):
  done, made = run_plan(tmp_path, *SMALL[:-1], "--topology=v5e:3x3")
  assert (done.returncode, made) == (2, None)
  assert "v5e:2x2, v5e:2x4" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@needs_compiler
def test_the_table_has_not_drifted():
  """The two entries that compile fastest, within 5 %."""
  path = table.FOLDER / "table.json"
  rows = json.loads(path.read_text())
  entries = [e for e in table.entries() if e.key in rows]
  entries = [e for e in entries if rows[e.key]["fits"]]
  quickest = sorted(entries, key=lambda e: rows[e.key]["compile_secs"])[:2]
  assert len(quickest) == 2
  for entry in quickest:
    found = table.drift(rows[entry.key], table.compile_entry(entry))
    assert set(found) == set(table.COMPARED)
    assert max(found.values()) < 0.05, f"{entry.key}: {found}"


def test_the_table_shows_what_fits_and_what_does_not():
  row = {
    "phase": "phase 1", "fits": True, "batch_size": 64, "seq_len": 128,
    "hbm_bytes_per_device": 2 * GIB, "hbm_available_bytes": 16 * GIB,
    "predicted_step_secs": 0.0125, "predicted_mfu": 0.5,
    "predicted_mfu_all_positions": 0.53,
    "predicted_mfu_without_communication": 0.6,
    "predicted_tokens_per_sec": 12345.6, "collective_bytes_per_step": 7e6,
    "versions": {"jax": "1"}, "commit": "a" * 40, "dirty": False,
  }  # fmt: skip
  key = "configs/pretrain.py:size=base,seq_len=128 data.batch_size=64 @ v5e:4x4"
  text = table.to_markdown({key: row, key + "x": row | {"fits": False}})
  assert (
    "| size=base,seq_len=128, phase 1 | v5e:4x4 | 64 x 128 | 2.0 of 16.0 |"
    " 12.5 | 50.0% (53.0%) | 60.0% | 12,346 | 7 |" in text
  )
  assert "does not fit" in text and "aaaaaaaaaaaa" in text


def test_what_the_page_on_meshes_says_is_in_the_table():
  rows = json.loads((table.FOLDER / "meshes.json").read_text()).values()
  found = {}
  for row in rows:
    size = re.search(r"size=(\w+)", row["argv"][0])[1]
    mesh = tuple(row["mesh"][axis] for axis in ("data", "fsdp", "tensor"))
    found[size, row["topology"][:3], mesh] = row

  def figures(*key):
    row = found[key]
    sent = row.get("collective_bytes_per_step", 0) / 1e9
    ms = row.get("predicted_step_secs", 0) * 1e3
    gib = row["hbm_bytes_per_device"] / GIB
    return f"{ms:,.0f}", f"{gib:.1f}", f"{sent:.1f}"

  page = " ".join((table.FOLDER / "choosing.md").read_text().split())
  ms, gib, sent = figures("large", "v5e", (256, 1, 1))
  assert f"BERT-large needs {gib} of the 15.8 GiB of a v5e" in page
  assert f"gathered once, {sent} GB a step" in page
  fsdp = figures("large", "v5e", (16, 16, 1))
  assert f"{fsdp[0]} ms with `mesh.fsdp=16` and {ms} with data alone" in page
  tensor = figures("large", "v5e", (64, 1, 4))
  assert f"`mesh.tensor=4` takes {tensor[0]} ms for BERT-large on v5e" in page
  assert f"needs more memory, too, {tensor[1]} GiB" in page
  times = [figures("large", "v5p", m)[0] for m in ((16, 1, 4), (64, 1, 1))]
  assert f"{times[0]} in place of {times[1]} on v5p" in page
  big = "L24_H2048"
  assert f"needs {figures(big, 'v5e', (256, 1, 1))[1]} GiB of a v5e" in page
  ms, gib, sent = figures(big, "v5e", (16, 16, 1))
  assert f"it needs {gib} and takes {ms} ms" in page and f"{sent} GB." in page
  ms, gib, sent = figures(big, "v5e", (1, 256, 1))
  assert f"all 256 it needs {gib}, hardly less" in page
  assert f"takes {ms} ms with {sent} GB" in page
  too_much = [
    figures(big, *key)[1] for key in (("v5e", (64, 1, 4)), ("v5p", (16, 1, 4)))
  ]
  assert f"v5e ({too_much[0]} of 15.8) nor on v5p ({too_much[1]} of" in page
  ms, gib, _ = figures(big, "v5p", (64, 1, 1))
  assert f"need {gib} of 95.7 GiB whole and take {ms} ms" in page
  ms, gib, _ = figures(big, "v5p", (1, 64, 1))
  assert f"they need {gib} and take {ms} ms" in page


def test_a_local_layer_is_the_difference_of_two_plans():
  def row(length, local, **changes):
    flops = {"1 local": 10e12, "5 local": 10e12 + 16e9 * length}[local]
    return {
      "phase": local, "seq_len": length, "num_devices": 4,
      "hbm_bytes_by_kind": {
        "activations": (4 if local == "5 local" else 1) * length * 2**20
      },
      "hardware_flops_per_step": flops, "predicted_step_secs": 0.5,
      "versions": {"jax": "1"}, "commit": "a" * 40, "dirty": False,
    }  # fmt: skip

  rows = {
    f"{length}{local}": row(length, local)
    for length in (1000, 2000)
    for local in ("1 local", "5 local")
  }
  text = table.long_to_markdown(rows)
  # 16e9 L FLOPs of 4 layers on 4 devices, and 3 MiB L of 4 layers.
  assert "| 1,000 | 1000.0 | 750.0 | 0.0 | 1000.00, 750.00, 0.00 |" in text
  assert "| 2,000 | 2000.0 | 1500.0 | 0.0 | 1000.00, 750.00, 0.00 |" in text
  keys = [entry.key for entry in table.long_entries()]
  assert len(set(keys)) == len(keys) == 12


def test_what_was_planned_by_the_older_ruler_is_planned_again(
  tmp_path, monkeypatch
):
  old, new, large, lacking, other = [x.key for x in table.depth_entries()]
  known = {
    old: {"fits": True, "predicted_mfu": 0.4},
    new: {"fits": True, "predicted_mfu": 0.4, "assumed_mfu": 0.5},
    large: {"fits": False},  # nothing is predicted of it by either ruler
  }
  path = tmp_path / "depth.json"
  path.write_text(json.dumps(known))
  compiled = []

  def compile_entry(entry):
    compiled.append(entry.key)
    return {"fits": True, "assumed_mfu": 0.3}

  monkeypatch.setattr(table, "FOLDER", tmp_path)
  monkeypatch.setattr(table, "compile_entry", compile_entry)
  monkeypatch.setitem(table.TABLES, "depth", (table.depth_entries, str))
  for _ in range(2):  # what was planned is not planned a second time
    assert table.main(["depth"]) == 0
    assert compiled == [old, lacking, other]
  assert json.loads(path.read_text())[new] == known[new]


def test_every_entry_of_the_table_is_a_config_that_exists():
  keys = [entry.key for entry in table.entries()]
  assert len(set(keys)) == len(keys)
  for entry in table.entries():
    path, _, args = entry.config.partition(":")
    assert (ROOT / path).exists() and args
    chips.parse_topology(entry.topology)
