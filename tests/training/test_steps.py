"""Tests of steps.py: the step's arithmetic, and its sharding over a mesh."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.kinds import table
from bert_jax.models import config as model_config
from bert_jax.models import hooks
from bert_jax.runtime import sharding
from bert_jax.training import optim
from bert_jax.training import steps
from configs import base
from tests.support import breadth
from tests.support import layer_stacks
from tests.support import xla_flags

# Rows by the eight, and no product of sizes that equals another by chance:
# tests look for the rows of the whole batch among the shapes of a program.
B, L, P, V = 88, 15, 5, 104
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}


@pytest.fixture
def config(tiny_config):
  c = tiny_config()
  c.model.vocab_size = V
  c.model.num_heads = 2
  c.model.dropout_rate = 0.0
  c.model.attention_dropout_rate = 0.0
  c.train.total_steps = 20
  return c


def make_batch(rows, seed=0, real=None, length=L):
  """Random rows, with more masked slots in the first ones than in the last."""
  rng = np.random.default_rng(seed)
  used = np.linspace(P, 0, rows).round()
  batch = {
    "input_ids": rng.integers(5, V, (rows, length)),
    "input_mask": np.arange(length) < rng.integers(8, length + 1, (rows, 1)),
    "segment_ids": np.arange(length) >= rng.integers(3, 8, (rows, 1)),
    "masked_positions": np.sort(
      rng.permuted(np.tile(np.arange(8), (rows, 1)), axis=1)[:, :P]
    ),
    "masked_ids": rng.integers(5, V, (rows, P)),
    "nsp_label": rng.integers(0, 2, rows),
  }  # fmt: skip
  batch = {k: x.astype(np.int32) for k, x in batch.items()}
  weight = np.arange(rows) < (rows if real is None else real)
  masked = (np.arange(P)[None] < used[:, None]) & weight[:, None]
  return batch | {
    "masked_weights": masked.astype(np.float32),
    "weight": weight.astype(np.float32),
  }


class Training:
  """All that a step is made of, for a config."""

  def __init__(self, config):
    self.config, self.objective = config, table.get(config.objective)
    self.model = self.objective.make_model(
      model_config.ModelConfig.from_config(config.model)
    )
    self.optimizer, self.schedule = optim.make_optimizer(
      config.optim, config.train.total_steps
    )
    self.init = functools.partial(
      steps.init_state,
      self.model,
      self.objective,
      self.optimizer,
      jax.random.key(0),
    )
    gradients = steps.make_gradients(
      self.model,
      self.objective,
      jax.random.key(1),
      config.optim.num_micro_batches,
    )
    self.step = steps.make_train_step(
      gradients,
      self.optimizer,
      self.schedule,
      skip_bad=config.train.on_bad_step == "skip",
      spike_factor=config.train.spike_factor,
    )


def assert_trees_close(got, want, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want
  )


# -- one device ----------------------------------------------------------------


@pytest.fixture
def plain_sgd(config):
  """A config whose update is, from the first step on, -gradient."""
  config.optim.name = "adamw"
  config.optim.b1 = config.optim.b2 = 0.0
  config.optim.eps = 1e4  # g / (|g| + eps) is g / eps as far as float32 sees
  config.optim.learning_rate = 1e4
  config.optim.weight_decay = config.optim.clip_norm = 0.0
  config.optim.schedule = "constant"
  config.optim.warmup_rate = 0.0
  return config


def _one_step(config, batch):
  training = Training(config)
  state = jax.jit(training.init)(batch)
  after, metrics = jax.jit(training.step)(state, batch)
  return state, after, jax.device_get(metrics)


@pytest.mark.parametrize("k", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_micro_batches_equal_the_full_batch_where_their_mean_would_not(
  plain_sgd, k
):
  batch = make_batch(8, real=7)
  before, full, metrics = _one_step(plain_sgd, batch)
  gradient = jax.tree.map(jnp.subtract, before.params, full.params)
  np.testing.assert_allclose(
    math.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient))),
    metrics["grad_norm"],
    rtol=1e-3,  # the parameters' last bits
  )
  plain_sgd.optim.num_micro_batches = k
  _, split, split_metrics = _one_step(plain_sgd, batch)
  for name, value in metrics.items():
    np.testing.assert_allclose(split_metrics[name], value, rtol=1e-5)
  assert_trees_close(split.params, full.params, rtol=1e-5, atol=1e-6)

  # The mean of what each half says on its own is something else.
  plain_sgd.optim.num_micro_batches = 1
  step = jax.jit(Training(plain_sgd).step)
  halves = [
    batch
    | {
      k: batch[k] * mine.reshape(-1, *(1,) * (batch[k].ndim - 1))
      for k in ("masked_weights", "weight")
    }
    for mine in np.float32([[1, 0] * 4, [0, 1] * 4])
  ]
  naive = np.mean([step(before, half)[1]["mlm_loss"] for half in halves])
  assert abs(naive - metrics["mlm_loss"]) > 1e-3 * metrics["mlm_loss"]


def test_a_step_that_is_skipped_changes_counts_and_nothing_else(config):
  config.optim.name = "adamw"
  config.train.on_bad_step = "skip"
  # Bits are compared as XLA computes them outside of tests.
  jit = functools.partial(jax.jit, compiler_options=xla_flags.USUAL)
  training, batch = Training(config), make_batch(8)
  poisoned = batch | {"masked_weights": batch["masked_weights"] * np.nan}
  step = jit(training.step)
  before, _ = step(jax.jit(training.init)(batch), batch)
  after, metrics = step(before, poisoned)
  assert np.isnan(metrics["loss"]) and metrics["bad_step"] == 1
  assert metrics["skipped_steps"] == 1
  assert int(after.step) == int(before.step) + 1
  kept = (before.params, before.guard.total, before.guard.weight)
  found = (after.params, after.guard.total, after.guard.weight)
  assert_trees_equal(found, kept)
  for old, new in zip(
    jax.tree.leaves(before.opt_state),
    jax.tree.leaves(after.opt_state),
    strict=True,
  ):
    if old.dtype == np.int32:  # the learning rate goes on with the step
      assert int(new) == int(old) + 1
    else:
      np.testing.assert_array_equal(new, old)
  # A good step is the very same whether bad ones would be skipped or not.
  config.train.on_bad_step = "stop"
  plain, _ = jit(Training(config).step)(before, batch)
  assert_trees_equal(plain, step(before, batch)[0])


def assert_trees_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_spike_is_a_loss_above_so_many_times_the_mean_of_good_ones():
  guard, losses = steps.Guard.fresh(), np.linspace(4, 2, 30)
  mean = 0.0
  for i, loss in enumerate(losses):
    if i:  # a mean that halves the past every 34 steps, by hand
      weights = 0.98 ** np.arange(i)[::-1]
      mean = np.average(losses[:i], weights=weights)
      np.testing.assert_allclose(guard.total / guard.weight, mean, rtol=1e-5)
    is_spike = guard.is_bad(jnp.float32(3.1 * mean), jnp.float32(1), 3.0)
    assert bool(is_spike) == (i >= 20)  # too little is known before
    assert not guard.is_bad(jnp.float32(2.9 * mean), jnp.float32(1), 3.0)
    assert not guard.is_bad(jnp.float32(1e9), jnp.float32(1), 0.0)
    assert guard.is_bad(jnp.float32(1), jnp.float32(np.inf), 0.0)
    guard = guard.after(jnp.bool(False), jnp.float32(loss))
  assert int(guard.skipped) == 0
  bad = guard.after(jnp.bool(True), jnp.float32(np.nan))
  assert int(bad.skipped) == 1
  assert bad.total == guard.total and bad.weight == guard.weight


def test_losses_of_a_step_equal_numpy_on_the_logits(plain_sgd):
  batch = make_batch(8, real=7)
  training = Training(plain_sgd)
  state = jax.jit(training.init)(batch)
  mlm, nsp = jax.jit(
    lambda params: training.objective.apply(training.model, params, batch)
  )(state.params)
  _, metrics = jax.jit(training.step)(state, batch)

  def nll(logits, labels):
    x = np.asarray(logits, np.float64)
    x = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return -np.take_along_axis(x, labels[..., None], -1)[..., 0]

  weights = batch["masked_weights"]
  mlm_loss = (nll(mlm, batch["masked_ids"]) * weights).sum() / weights.sum()
  nsp_loss = nll(nsp, batch["nsp_label"])[:7].mean()
  np.testing.assert_allclose(metrics["mlm_loss"], mlm_loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["nsp_loss"], nsp_loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], mlm_loss + nsp_loss, rtol=1e-5)


def test_bfloat16_computes_while_float32_is_kept(plain_sgd):
  batch = make_batch(8)
  _, _, wide = _one_step(plain_sgd, batch)
  plain_sgd.model.dtype = "bfloat16"
  before, after, narrow = _one_step(plain_sgd, batch)
  for leaf in jax.tree.leaves((after.params, after.opt_state)):
    assert leaf.dtype in (jnp.float32, jnp.int32)
  assert {x.dtype for x in narrow.values()} == {np.dtype(np.float32)}
  np.testing.assert_allclose(narrow["loss"], wide["loss"], rtol=1e-2)
  assert narrow["loss"] != wide["loss"]
  # It did compute in bfloat16, and updates smaller than its steps are kept.
  word = ("encoder", "embeddings", "word", "embedding")
  old, new = (
    np.asarray(functools.reduce(lambda t, k: t[k], word, s.params))
    for s in (before, after)
  )
  moved = new != old
  assert moved.any()
  assert (moved & (new.astype(jnp.bfloat16) == old.astype(jnp.bfloat16))).any()


def test_an_eval_step_of_a_filler_row_adds_nothing(config):
  training = Training(config)
  batch = make_batch(8, real=7)
  params = jax.jit(training.init)(batch).params
  step = jax.jit(steps.make_eval_step(training.model, training.objective))
  log_probs = jnp.full(V, -math.log(V))
  whole = step(params, batch, log_probs)
  changed = dict(batch)
  changed["input_ids"] = np.where(
    np.arange(8)[:, None] == 7, 9, batch["input_ids"]
  )
  assert (changed["input_ids"] != batch["input_ids"]).any()
  jax.tree.map(
    np.testing.assert_array_equal, step(params, changed, log_probs), whole
  )
  assert float(whole["nsp_loss"][1]) == 7
  loss, weight = whole["unigram_loss"]
  np.testing.assert_allclose(loss / weight, math.log(V), rtol=1e-6)


@pytest.mark.parametrize(
  "name",
  breadth.slow_but(
    [n for n, row in optim.OPTIMIZERS.items() if row.takes_rows],
    lambda name: name == "lamb",
  ),
)
def test_the_gradient_of_the_words_of_a_batch_alone_makes_the_same_step(
  name, config, monkeypatch
):
  """Words occur several times, and those of the step before not again."""
  config.optim.name = name
  config.optim.learning_rate, config.optim.warmup_rate = 1e-2, 0.0
  config.optim.clip_norm = 0.1  # of the gradient of all words
  objective = table.get("classify")
  model = objective.make_model(
    model_config.ModelConfig.from_config(config.model), num_labels=3
  )
  optimizer, schedule = optim.make_optimizer(config.optim, 20)
  found, calls = {}, []
  of_words = hooks.EncoderHooks.of_words

  def counted(*args):
    found = of_words(*args)
    calls.extend([1] * (found is not None))
    return found

  monkeypatch.setattr(hooks.EncoderHooks, "of_words", counted)
  for sparse in (False, True):
    gradients = steps.make_gradients(
      model, objective, jax.random.key(1), sparse_words=sparse
    )
    step = jax.jit(steps.make_train_step(gradients, optimizer, schedule))
    state, metrics = None, []
    for seed, rows in enumerate((3, 3, 4)):  # 4 x 15 are most of 104 words
      batch = make_batch(rows, seed)
      batch["input_ids"] = 5 + 40 * seed + batch["input_ids"] % 12
      batch["cls_positions"] = np.zeros((rows, 1), np.int32)
      batch["label"] = np.arange(rows, dtype=np.int32)[:, None] % 3
      batch["weight"] = batch["weight"][:, None]
      if state is None:
        state = steps.init_state(
          model, objective, optimizer, jax.random.key(0), batch
        )
      state, values = step(state, batch)
      metrics.append(values)
    found[sparse] = jax.device_get((state, metrics))
    assert len(calls) == (1 if sparse else 0)  # traced once: 2 batches, 1 shape
  assert_trees_close(found[True], found[False], rtol=2e-4, atol=2e-6)
  assert all(m["grad_norm"] > 0.1 for m in found[False][1])  # it was clipped


# -- the parameters of the real model ------------------------------------------


def _abstract(config):
  training = Training(config)
  return training, jax.eval_shape(training.init, make_batch(8)).params


def _paths(tree):
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


@pytest.mark.parametrize("scan_layers", [False, True])
def test_decay_spares_biases_and_norms_of_the_real_model(config, scan_layers):
  config.model.scan_layers = scan_layers
  _, params = _abstract(config)
  decayed = {k for k, v in _paths(optim.decay_mask(params)).items() if v}
  layer = "encoder/" + ("layers" if scan_layers else "layer_0")
  assert decayed == {
    *(
      f"encoder/embeddings/{x}/embedding" for x in ("word", "position", "type")
    ),
    *(
      f"{layer}/attention/{x}/kernel" for x in ("query", "key", "value", "out")
    ),
    f"{layer}/mlp/in/kernel",
    f"{layer}/mlp/out/kernel",
    "encoder/pooler/kernel",
    "mlm/dense/kernel",
    "nsp/kernel",
  }


def test_lamb_of_the_scanned_model_is_that_of_the_unrolled(config):
  """Each layer has its own ratio, though a scan stacks their parameters."""
  config.model.num_layers = 2
  config.optim.name = "lamb"
  unrolled, shapes = _abstract(config)
  config.model.scan_layers = True
  scanned, stacked_shapes = _abstract(config)
  rng = np.random.default_rng(0)

  def random(scale):  # the layers differ in size, and so do their ratios
    return {
      name: scale(name) * rng.normal(size=x.shape).astype(np.float32)
      for name, x in _paths(shapes).items()
    }

  treedef = jax.tree.structure(shapes)
  params, grads = (
    jax.tree.unflatten(treedef, random(scale).values())
    for scale in (
      lambda name: 1 + 3 * ("layer_1" in name),
      lambda name: 1e-3 + 5 * ("layer_0" in name),
    )
  )
  stacked = layer_stacks.stack_layers(params)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
    lambda x: x.shape, stacked_shapes
  )

  def update(optimizer, params, grads):
    state = optimizer.init(params)
    _, state = optimizer.update(grads, state, params)
    return optimizer.update(grads, state, params)[0]

  want = jax.jit(functools.partial(update, unrolled.optimizer))(params, grads)
  got = jax.jit(functools.partial(update, scanned.optimizer))(
    stacked, layer_stacks.stack_layers(grads)
  )
  assert_trees_close(got, layer_stacks.stack_layers(want), rtol=1e-5, atol=1e-7)


# -- eight devices -------------------------------------------------------------


def one_device():
  return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


class Sharded:
  """A jitted step with the arguments that train.py gives it."""

  def __init__(self, config, mesh):
    training = Training(config)
    self.mesh = mesh
    self.rows = sharding.batch_sharding(mesh)
    self.abstract = jax.eval_shape(training.init, make_batch(8))
    self.places = sharding.state_sharding(
      self.abstract, mesh, base.SHARDING_RULES, spread="^opt_state/"
    )
    self.init = jax.jit(training.init, out_shardings=self.places)
    self.step = steps.jit_train_step(
      training,
      training.optimizer,
      training.schedule,
      jax.random.key(1),
      self.places,
    )

  def program(self, rows=B):
    """The compiled program of a device, as text."""
    with jax.set_mesh(self.mesh):
      lowered = self.step.lower(self.abstract, make_batch(rows))
      return lowered.compile().as_text()

  def run(self, num_steps, rows=B, length=L):
    """Returns (state, losses) after some steps."""
    losses = []
    with jax.set_mesh(self.mesh):
      state = self.init({k: v[:1] for k, v in make_batch(1).items()})
      for i in range(num_steps):
        batch = make_batch(rows, i, length=length)
        batch = sharding.put_global_batch(batch, self.rows)
        state, metrics = self.step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(
  params=[
    (1, False),
    pytest.param((2, False), marks=pytest.mark.slow),
    pytest.param((2, True), marks=pytest.mark.slow),
  ],
  ids=["one_layer", "two_layers", "two_scanned_layers"],
)
def dropout_config(request, config):
  config.model.num_layers, config.model.scan_layers = request.param
  config.model.dropout_rate = config.model.attention_dropout_rate = 0.1
  config.optim.schedule, config.optim.warmup_rate = "linear", 0.2
  return config


_COLLECTIVE = re.compile(
  r"= (?P<result>.*?) (?P<op>all-gather|all-reduce|all-to-all|"
  r"collective-permute|reduce-scatter|collective-broadcast)(-start)?\("
  r"(?P<operands>[^)]*)\)"
)
_DEFINITION = re.compile(r"^\s*(?:ROOT )?(%?[\w.-]+) = (\(.*?\)|\S+) ")


def collectives(program):
  """Returns [(operation, [shape, ...])] of a program; operands count too."""
  shapes = {}
  for line in program.splitlines():
    if found := _DEFINITION.match(line):
      shapes[found[1].lstrip("%")] = found[2]
  result = []
  for found in _COLLECTIVE.finditer(program):
    names = re.findall(r"%?([\w.-]+)", found["operands"])
    text = [found["result"], *(shapes.get(name, "") for name in names)]
    dims = re.findall(r"\w+\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", str(text)))
    result.append(
      (found["op"], [tuple(map(int, d.split(","))) if d else () for d in dims])
    )
  return result


def batch_collectives(program, rows, num_groups):
  """Returns the collectives that move rows of more than one batch group.

  A device computes rows / num_groups rows. An array with more rows than these,
  or of as many elements as the hidden states of the batch, must not travel.
  """
  own = rows // num_groups
  more_rows = [own * i for i in (2, 4, 8) if i <= num_groups]
  too_much = {
    n * inner for n in more_rows for inner in (1, L, P, L * 32, P * 32)
  }
  return [
    (op, shapes)
    for op, shapes in collectives(program)
    if any(
      too_much & set(shape) or math.prod(shape) >= rows * L * 32
      for shape in shapes
    )
  ]


def test_dropout_and_rate_are_functions_of_the_step_alone(dropout_config):
  batch = make_batch(B)
  sharded = Sharded(dropout_config, one_device())

  def run(step):
    with jax.set_mesh(sharded.mesh):
      state = sharded.init({k: v[:1] for k, v in make_batch(1).items()})
      state = state.replace(step=jnp.int32(step))
      return jax.device_get(sharded.step(state, batch))

  first, again, later = run(3), run(3), run(4)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert later[1]["loss"] != first[1]["loss"]
  assert first[0].step == 4
  for step, rate in ((0, 0.0), (1, 0.25), (4, 1.0), (12, 0.5), (20, 0.0)):
    want = rate * dropout_config.optim.learning_rate
    np.testing.assert_allclose(run(step)[1]["learning_rate"], want, rtol=1e-6)


def test_a_mesh_changes_neither_losses_nor_dropout(dropout_config):
  _, want = Sharded(dropout_config, one_device()).run(20)
  assert len(set(want)) == 20
  for sizes in MESHES.values():
    sharded = Sharded(dropout_config, sharding.make_mesh(*sizes))
    state, losses = sharded.run(20)
    np.testing.assert_allclose(losses, want, rtol=1e-4, err_msg=str(sizes))
    assert sharded.step._cache_size() == 1, "the step compiles once"
    assert int(state.step) == 20
    _assert_cut_as_the_rules_say(state, sharded.mesh)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["fused", "fused_qkv", "splash"])
def test_kernels_of_attention_make_the_same_steps_on_any_mesh(
  config, attention
):
  """With dropout, in micro-batches; the heads of a layer cut where they may."""
  config.model.update(
    hidden_size=256, num_heads=4, mlp_dim=256, max_len=128, num_layers=2,
    dropout_rate=0.1,
    attention_dropout_rate=0.0 if attention == "splash" else 0.1,
  )  # fmt: skip
  config.optim.num_micro_batches = 2
  _, want = Sharded(config, one_device()).run(3, rows=16, length=128)
  config.model.attention = attention
  cut = 1 if attention == "fused_qkv" else 2
  for sizes in ((1, 1, 1), (2, 4 // cut, cut), (8, 1, 1)):
    devices = jax.devices()[: np.prod(sizes)]
    mesh = sharding.make_mesh(*sizes, devices=devices)
    _, losses = Sharded(config, mesh).run(3, rows=16, length=128)
    np.testing.assert_allclose(losses, want, rtol=1e-5, err_msg=str(sizes))


def _assert_cut_as_the_rules_say(state, mesh):
  leaves = _paths(state)
  assert sum("word/embedding" in name for name in leaves) == 3  # mu and nu too
  for name, x in leaves.items():
    rules = [axes for rx, axes in base.SHARDING_RULES if re.search(rx, name)]
    axes = rules[0] if x.ndim else ()
    whole = (None,) * (x.ndim - len(axes)) + axes
    want = tuple(
      size // (mesh.shape[axis] if axis else 1)
      for size, axis in zip(x.shape, whole, strict=True)
    )
    # Moments may be cut over the copies too, along one axis left whole.
    spread = {want}
    if name.startswith("opt_state/"):
      spread |= {
        (*want[:i], size // mesh.shape["data"], *want[i + 1 :])
        for i, size in enumerate(want)
        if size == x.shape[i]
      }
    for shard in x.addressable_shards:
      assert shard.data.shape in spread, name
    if name.startswith("opt_state/") and want == x.shape == (V, 32):
      assert x.addressable_shards[0].data.shape == (V // mesh.shape["data"], 32)
    assert len(x.addressable_shards) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "all"])
def test_no_collective_is_over_activations_of_the_whole_batch(
  dropout_config, name
):
  mesh = sharding.make_mesh(*MESHES[name])
  program = Sharded(dropout_config, mesh).program()
  found = collectives(program)
  assert collections.Counter(op for op, _ in found)["all-gather"] > 0
  num_groups = mesh.shape["data"] * mesh.shape["fsdp"]
  assert not batch_collectives(program, B, num_groups)
  if name == "fsdp":  # Only parameters, their gradients and sums travel.
    assert {op for op, _ in found} == {"all-gather", "all-reduce"}
    assert max(math.prod(s) for _, shapes in found for s in shapes) <= V * 32


def test_without_constrained_activations_the_batch_does_travel(
  dropout_config, monkeypatch
):
  """The check above can fail: the negative control."""
  monkeypatch.setattr(sharding, "constrain_batch", lambda x: x)
  sharded = Sharded(dropout_config, sharding.make_mesh(*MESHES["fsdp"]))
  found = batch_collectives(sharded.program(), B, 8)
  assert any({B, B * L} & set(shape) for _, shapes in found for shape in shapes)


def test_a_parameter_without_a_rule_is_named(config):
  mesh = sharding.make_mesh(*MESHES["all"])
  training = Training(config)
  state = jax.eval_shape(training.init, make_batch(8))
  rules = [r for r in base.SHARDING_RULES if not r[0].startswith("pooler/k")]
  with pytest.raises(ValueError, match="no sharding rule.*encoder/pooler/ker"):
    sharding.state_sharding(state, mesh, rules)


def test_a_rule_with_an_axis_twice_is_refused(config):
  mesh = sharding.make_mesh(*MESHES["all"])
  training = Training(config)
  state = jax.eval_shape(training.init, make_batch(8))
  rules = (("pooler/kernel$", ("fsdp", "fsdp")), *base.SHARDING_RULES)
  with pytest.raises(ValueError, match="'pooler/kernel.*'fsdp' twice"):
    sharding.state_sharding(state, mesh, rules)


@pytest.mark.slow
def test_micro_batches_leave_every_row_on_its_device(config):
  rows = 2 * B
  _, want = Sharded(config, one_device()).run(3, rows)
  config.optim.num_micro_batches = 2
  sharded = Sharded(config, sharding.make_mesh(*MESHES["fsdp"]))
  np.testing.assert_allclose(sharded.run(3, rows)[1], want, rtol=1e-4)
  program = sharded.program(rows)
  assert not batch_collectives(program, B, 8)
  assert not batch_collectives(program, rows, 8)
