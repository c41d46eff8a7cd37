"""Tests of sharding.py on eight devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.runtime import sharding
from bert_jax.training import optim
from tests.support.bert_shapes import bert_shapes

P = jax.sharding.PartitionSpec

# Every parameter by its name; there is no rule for the rest.
RULES = (
  (r"embeddings/word/embedding$", ("tensor", "fsdp")),
  (r"embeddings/(position|type)/embedding$", (None, "fsdp")),
  (r"attention/(query|key|value)/kernel$", ("fsdp", "tensor", None)),
  (r"attention/(query|key|value)/bias$", ("tensor", None)),
  (r"attention/out/kernel$", ("tensor", None, "fsdp")),
  (r"attention/out/bias$", (None,)),
  (r"mlp/in/kernel$", ("fsdp", "tensor")),
  (r"mlp/in/bias$", ("tensor",)),
  (r"mlp/out/kernel$", ("tensor", "fsdp")),
  (r"mlp/out/bias$", (None,)),
  (r"norm/(scale|bias)$", (None,)),
  (r"pooler/kernel$", ("fsdp", None)),
  (r"pooler/bias$", (None,)),
  (r"mlm/dense/kernel$", ("fsdp", None)),
  (r"mlm/dense/bias$", (None,)),
  (r"mlm/bias$", ("tensor",)),
  (r"nsp/kernel$", ("fsdp", None)),
  (r"nsp/bias$", (None,)),
)


def _abstract(shapes):
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


@pytest.fixture
def mesh():
  return sharding.make_mesh(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
  ("sizes", "want"),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((2, -1, 1), (2, 4, 1)),
    ((2, 2, -1), (2, 2, 2)),
    ((1, 8, 1), (1, 8, 1)),
  ],
)
def test_minus_one_takes_the_rest(sizes, want):
  mesh = sharding.make_mesh(*sizes)
  assert dict(mesh.shape) == dict(zip(sharding.MESH_AXES, want, strict=True))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}


def test_mesh_of_some_devices():
  mesh = sharding.make_mesh(1, -1, 1, devices=jax.devices()[:2])
  assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize(
  "sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (-2, 1, 1)]
)
def test_a_mesh_that_does_not_fit_is_refused(sizes):
  shape = "data={} x fsdp={} x tensor={}".format(*sizes)
  with pytest.raises(ValueError, match=f"mesh {shape} .* must be 8; change"):
    sharding.make_mesh(*sizes)


class Device(types.SimpleNamespace):
  __hash__ = object.__hash__


def tpu_devices(num_slices):
  """Slices of 2 x 2 chips, in no order."""
  places = [
    (i, x, y) for x in range(2) for i in range(num_slices) for y in range(2)
  ]
  return [
    Device(
      platform="tpu", device_kind="TPU v5 lite", slice_index=i, id=n,
      coords=[x, y, 0], core_on_chip=0, process_index=i,
    )
    for n, (i, x, y) in enumerate(places)
  ]  # fmt: skip


def test_each_slice_holds_whole_copies_of_the_model():
  mesh = sharding.make_mesh(-1, 2, 2, devices=tpu_devices(num_slices=3))
  assert dict(mesh.shape) == {"data": 3, "fsdp": 2, "tensor": 2}
  for copy in mesh.devices:
    assert len({d.slice_index for d in copy.flat}) == 1


def test_a_copy_of_the_model_on_several_slices_is_refused():
  with pytest.raises(ValueError, match="3 TPU slices, but mesh.data=1 is not"):
    sharding.make_mesh(1, 6, 2, devices=tpu_devices(num_slices=3))


def test_constrain_batch_cuts_rows_over_data_and_fsdp(mesh):
  with jax.set_mesh(mesh):
    y = jax.jit(sharding.constrain_batch)(jnp.ones([8, 3, 5]))
  want = jax.sharding.NamedSharding(mesh, P(("data", "fsdp"), None, None))
  assert y.sharding.is_equivalent_to(want, 3)


def test_constrain_batch_in_a_loop_and_its_gradient(mesh):
  """The constraint sits in the scanned layers and survives autodiff."""

  def loss(w, x):
    def body(h, _):
      return sharding.constrain_batch(jnp.tanh(h @ w)), None

    return jnp.sum(jax.lax.scan(body, x, None, length=2)[0])

  w, x = jnp.full([4, 4], 0.1), jnp.arange(32.0).reshape(8, 4)
  want = jax.grad(loss)(w, x)
  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss)).lower(w, x)
    got = jax.jit(jax.grad(loss))(w, x)
  assert lowered.as_text().count("sharding_constraint") >= 2
  # Each entry is a sum of 16 terms, whose order depends on the devices.
  np.testing.assert_allclose(got, want, rtol=16 * np.finfo(np.float32).eps)


def test_constrain_batch_does_nothing_without_our_mesh():
  x = jnp.ones([8, 2])
  assert sharding.constrain_batch(x) is x
  np.testing.assert_array_equal(jax.jit(sharding.constrain_batch)(x), x)
  auto = (jax.sharding.AxisType.Auto,)
  other = jax.make_mesh((8,), ("x",), axis_types=auto)
  with jax.set_mesh(other):
    np.testing.assert_array_equal(jax.jit(sharding.constrain_batch)(x), x)


def test_constrain_batch_does_nothing_in_a_shard_map(mesh):
  spec = P(("data", "fsdp"))
  fn = jax.shard_map(
    sharding.constrain_batch, mesh=mesh, in_specs=spec, out_specs=spec
  )
  with jax.set_mesh(mesh):
    np.testing.assert_array_equal(jax.jit(fn)(jnp.ones([8, 2])), 1)


@pytest.mark.parametrize(
  ("sizes", "batch_size", "num_micro_batches", "message"),
  [
    (
      (8, 1, 1),
      100,
      1,
      "batch_size=100 is not divisible by 8 devices (mesh data=8); use"
      " 96 or 104",
    ),
    (
      (4, 2, 1),
      24,
      2,
      "batch_size=24 is not divisible by 8 devices x 2 micro-batches"
      " (mesh data=4 x fsdp=2); use 16 or 32",
    ),
    (
      (2, 2, 2),
      2,
      1,
      "batch_size=2 is not divisible by 4 groups of 2 devices (mesh"
      " data=2 x fsdp=2); use 4",
    ),
    (
      (8, 1, 1),
      0,
      1,
      "batch_size=0 is not divisible by 8 devices (mesh data=8); use 8",
    ),
  ],
)
def test_batch_size_error_names_the_nearest(
  sizes, batch_size, num_micro_batches, message
):
  mesh = sharding.make_mesh(*sizes)
  with pytest.raises(ValueError) as e:
    sharding.check_batch_size(batch_size, mesh, num_micro_batches)
  assert str(e.value) == message


def test_batch_size_that_divides_is_accepted(mesh):
  sharding.check_batch_size(4, mesh)
  sharding.check_batch_size(24, mesh, num_micro_batches=3)


def test_put_global_batch_keeps_rows_in_order(mesh):
  batch = {
    "input_ids": np.arange(24, dtype=np.int32).reshape(8, 3),
    "weight": np.arange(8, dtype=np.float32),
  }
  placed = sharding.put_global_batch(batch, sharding.batch_sharding(mesh))
  for key, x in batch.items():
    np.testing.assert_array_equal(placed[key], x)
    assert placed[key].dtype == x.dtype
    assert placed[key].addressable_shards[0].data.shape[0] == 2


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rules_cover_every_parameter_and_moment(mesh, scan_layers):
  params = _abstract(bert_shapes(scan_layers))
  config = types.SimpleNamespace(
    name="lamb",
    learning_rate=1.0,
    schedule="bert",
    warmup_rate=0.1,
    cooldown_rate=0.0,
    weight_decay=0.01,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    clip_norm=1.0,
  )
  tx, _ = optim.make_optimizer(config, total_steps=10)
  state = {"step": jax.ShapeDtypeStruct((), jnp.int32), "params": params}
  state["opt_state"] = jax.eval_shape(tx.init, params)
  placed = sharding.state_sharding(state, mesh, RULES)
  assert jax.tree.structure(placed) == jax.tree.structure(state)
  assert placed["step"].spec == P()
  adam = next(s for s in placed["opt_state"] if hasattr(s, "mu"))
  assert adam.mu == adam.nu == placed["params"]

  encoder = placed["params"]["encoder"]
  lead = (None,) if scan_layers else ()
  layer = encoder["layers" if scan_layers else "layer_1"]
  query = layer["attention"]["query"]
  assert query["kernel"].spec == P(*lead, "fsdp", "tensor", None)
  assert query["bias"].spec == P(*lead, "tensor", None)
  assert layer["mlp"]["out"]["kernel"].spec == P(*lead, "tensor", "fsdp")
  assert layer["mlp_norm"]["scale"].spec == P(*lead, None)
  word = encoder["embeddings"]["word"]["embedding"]
  assert word.spec == P("tensor", "fsdp")


def test_first_rule_that_fits_wins(mesh):
  params = _abstract({"mlp": {"kernel": (4, 4)}, "head": {"kernel": (4, 4)}})
  rules = (("mlp/kernel$", ("fsdp", None)), ("kernel$", (None, "tensor")))
  placed = sharding.state_sharding(params, mesh, rules)
  assert placed["mlp"]["kernel"].spec == P("fsdp", None)
  assert placed["head"]["kernel"].spec == P(None, "tensor")


def test_a_dimension_may_be_cut_over_two_axes(mesh):
  params = _abstract({"kernel": (8, 4)})
  rules = (("kernel$", (["fsdp", "tensor"], None)),)
  placed = sharding.state_sharding(params, mesh, rules)
  assert placed["kernel"].spec == P(("fsdp", "tensor"), None)


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ((("bias$", (None,)),), "no sharding rule applies to mlp/kernel; add"),
    ((("kernel$", ("fsdp", "fsdp")),), "names the mesh axis 'fsdp' twice"),
    (
      (("kernel$", (("data", "fsdp"), "data")),),
      "names the mesh axis 'data' twice",
    ),
    (
      (("kernel$", ("model",)),),
      "the mesh axis 'model'; the mesh has data, fsdp, tensor",
    ),
    (
      (("kernel$", (None, None, "fsdp")),),
      r"has 3 axes, but mlp/kernel has the shape \(6, 5\)",
    ),
    (
      (("kernel$", ("fsdp", "tensor")),),
      r"mlp/kernel has the shape \(6, 5\), and 5 is not divisible by the"
      " mesh axis 'tensor' of size 2 .*change the mesh or the model size",
    ),
    ((("kernel$", "fsdp"),), r"write \('fsdp',\)"),
    ((("kernel[$", ("fsdp",)),), "bad regex"),
  ],
)
def test_a_rule_that_cannot_be_meant_is_refused(mesh, rules, message):
  params = _abstract({"mlp": {"kernel": (6, 5)}})
  with pytest.raises(ValueError, match=message):
    sharding.state_sharding(params, mesh, rules)


def test_every_lost_parameter_is_named(mesh):
  params = _abstract({"a": (1,), "b": (1,), "step": ()})
  with pytest.raises(ValueError, match="no sharding rule applies to a, b; add"):
    sharding.state_sharding(params, mesh, ())


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_sharded_mlp_computes_the_same(sizes):
  rng = np.random.default_rng(0)
  mesh = sharding.make_mesh(*sizes)
  params = {
    "mlp": {
      "in": {"kernel": rng.normal(size=(8, 16)).astype(np.float32)},
      "out": {"kernel": rng.normal(size=(16, 8)).astype(np.float32)},
    }
  }
  x = rng.normal(size=(8, 8)).astype(np.float32)

  def loss(params, x):
    h = jnp.tanh(x @ params["mlp"]["in"]["kernel"])
    h = sharding.constrain_batch(h @ params["mlp"]["out"]["kernel"])
    return jnp.sum(h * h)

  want = jax.jit(jax.value_and_grad(loss))(params, x)
  where = sharding.state_sharding(params, mesh, RULES)
  rows = sharding.batch_sharding(mesh)
  fn = jax.jit(jax.value_and_grad(loss), out_shardings=(None, where))
  with jax.set_mesh(mesh):
    got = fn(jax.device_put(params, where), sharding.put_global_batch(x, rows))
  kernel = got[1]["mlp"]["in"]["kernel"]
  assert kernel.sharding == where["mlp"]["in"]["kernel"]
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_moments_are_spread_over_the_copies_where_they_can_be():
  mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
  leaf = {
    "mlp": {
      "in": {"kernel": jax.ShapeDtypeStruct((64, 512), "float32")},
      "odd": {"kernel": jax.ShapeDtypeStruct((6, 128), "float32")},
    }
  }
  state = {"params": leaf, "opt_state": {"mu": leaf, "count": jnp.zeros(())}}
  rules = (("mlp/in/kernel$", ("fsdp", None)), ("odd", (None, None)))
  placed = sharding.state_sharding(state, mesh, rules, spread="^opt_state/")
  assert placed["params"]["mlp"]["in"]["kernel"].spec == P("fsdp", None)
  moments = placed["opt_state"]["mu"]["mlp"]
  assert moments["in"]["kernel"].spec == P("fsdp", "data")
  assert moments["odd"]["kernel"].spec == P(None, None)  # 6 rows, 128 lanes
  assert placed["opt_state"]["count"].spec == P()


@pytest.mark.parametrize("first", ["data", ("data", "fsdp")])
def test_what_a_rule_cuts_over_the_copies_is_not_cut_again(first):
  mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
  state = {"opt_state": {"kernel": jax.ShapeDtypeStruct((64, 512), "float32")}}
  rules = (("kernel$", (first, None)),)
  placed = sharding.state_sharding(state, mesh, rules, spread="^opt_state/")
  assert placed["opt_state"]["kernel"].spec == P(first, None)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_devices_are_connected_along_any_group_of_axes(sizes, monkeypatch):
  groups = []
  psum = jax.lax.psum
  monkeypatch.setattr(
    jax.lax, "psum", lambda x, axes: groups.append(axes) or psum(x, axes)
  )
  mesh = sharding.make_mesh(*sizes)
  sharding.connect(mesh)
  axes = [a for a in mesh.axis_names if mesh.shape[a] > 1]
  assert len(set(groups)) == 2 ** len(axes) - 1
  assert tuple(axes) in groups


def cpu_devices(num_processes, per_process=2):
  """Devices of several processes, in no order."""
  return [
    Device(
      platform="cpu", device_kind="cpu", id=10 * p + i, process_index=p,
      local_hardware_id=i,
    )
    for i in range(per_process)
    for p in reversed(range(num_processes))
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("sizes", "num_slices"), [((-1, 1, 1), 2), ((2, 2, 2), 2), ((4, 1, 2), 4)]
)
def test_only_the_first_axis_leaves_a_slice(sizes, num_slices):
  """Slices are groups of processes in their order."""
  devices = cpu_devices(num_processes=4)
  mesh = sharding.make_mesh(*sizes, devices, num_slices=num_slices)
  assert mesh.axis_names == sharding.MESH_AXES
  per_slice = 4 // num_slices
  slices = np.vectorize(lambda d: d.process_index // per_slice)(mesh.devices)
  assert (slices == np.sort(slices.ravel()).reshape(slices.shape)).all()
  for copy in slices:
    assert np.ptp(copy) == 0
  assert {d.id for d in mesh.devices.flat} == {d.id for d in devices}


@pytest.mark.parametrize(
  ("devices", "num_slices", "words"),
  [
    (cpu_devices(4), 3, "mesh.num_slices=3 does not divide the 4 processes"),
    (cpu_devices(1), 3, "does not divide the 2 devices"),
    (tpu_devices(num_slices=2), 4, "belong to 2 slices; use 2, or 0"),
    (tpu_devices(num_slices=1), 2, "belong to 1 slices; use 1, or 0"),
  ],
)
def test_a_number_of_slices_that_is_wrong_is_refused(
  devices, num_slices, words
):
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(-1, 1, 1, devices, num_slices=num_slices)


def test_one_process_may_try_slices_out():
  mesh = sharding.make_mesh(-1, 2, 1, num_slices=2)
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
  order = [d.id for d in mesh.devices.flat]
  assert set(order[:4]) == {d.id for d in jax.devices()[:4]}


def test_moments_are_shared_inside_of_a_slice_alone():
  """So that no parameters have to cross between slices, only gradients."""
  mesh = sharding.make_mesh(-1, 1, 1, num_slices=2)
  leaf = jax.ShapeDtypeStruct((64, 3), jnp.float32)
  tree = {"params": {"a": leaf}, "opt_state": {"a": leaf, "b": leaf}}
  rules = (("a$|b$", (None, None)),)
  place = sharding.state_sharding(tree, mesh, rules, "^opt_state/", 2)
  assert place["params"]["a"].is_fully_replicated
  for one in place["opt_state"].values():
    assert one.shard_shape((64, 3)) == (16, 3)  # a quarter, twice
    where = one.devices_indices_map((64, 3))
    for slice_ in mesh.devices.reshape(2, 4):
      starts = {where[device][0].start or 0 for device in slice_}
      assert starts == {0, 16, 32, 48}


def test_a_step_on_two_slices_is_that_of_one():
  """An update whose moments are placed by another mesh, compiled and run."""

  def run(num_slices):
    mesh = sharding.make_mesh(-1, 1, 1, num_slices=num_slices)
    leaf = jax.ShapeDtypeStruct((64, 4), jnp.float32)
    tree = {"params": leaf, "opt_state": leaf}
    rules = (("", (None, None)),)
    place = sharding.state_sharding(tree, mesh, rules, "^opt_state", num_slices)
    rows = sharding.batch_sharding(mesh)

    def step(state, x):
      def loss(w):
        return jnp.mean(jnp.tanh(sharding.constrain_batch(x) @ w) ** 2)

      moment = 0.9 * state["opt_state"] + jax.grad(loss)(state["params"])
      return {"params": state["params"] - moment, "opt_state": moment}

    with jax.set_mesh(mesh):
      state = jax.device_put(
        {"params": jnp.ones([64, 4]) / 64, "opt_state": jnp.zeros([64, 4])},
        place,
      )
      x = jax.device_put(jnp.linspace(0, 1, 512).reshape(8, 64), rows)
      compiled = jax.jit(step, in_shardings=(place, rows), out_shardings=place)
      for _ in range(3):
        state = compiled(state, x)
    return jax.tree.map(np.asarray, state)

  for one, two in zip(
    jax.tree.leaves(run(1)), jax.tree.leaves(run(2)), strict=True
  ):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
