"""Settings of every test: eight devices on the CPU, no silent broadcasting."""

import os
import random
import types

# All are read once, when jax is imported. Tests compile much and run little:
# without LLVM's optimizations they take a third of the time.
os.environ["JAX_PLATFORMS"] = "cpu"
for _flag in (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
):
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}"

import jax  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
import pytest  # noqa: E402

from bert_jax.data import prepare  # noqa: E402
from bert_jax.training import train  # noqa: E402
from configs import base  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def bert_shapes():
  """A function (scan_layers) -> shapes of the parameters of a small BERT."""
  layers, d, n, h, f, v, length = 2, 8, 2, 4, 16, 32, 12

  def norm():
    return {"scale": (d,), "bias": (d,)}

  def layer(lead):
    def stacked(tree):
      if isinstance(tree, dict):
        return {k: stacked(x) for k, x in tree.items()}
      return lead + tree

    qkv = {"kernel": (d, n, h), "bias": (n, h)}
    return stacked(
      {
        "attention": {
          "query": qkv,
          "key": qkv,
          "value": qkv,
          "out": {"kernel": (n, h, d), "bias": (d,)},
        },
        "attention_norm": norm(),
        "mlp": {
          "in": {"kernel": (d, f), "bias": (f,)},
          "out": {"kernel": (f, d), "bias": (d,)},
        },
        "mlp_norm": norm(),
      }
    )

  def shapes(scan_layers):
    if scan_layers:
      stack = {"layers": layer((layers,))}
    else:
      stack = {f"layer_{i}": layer(()) for i in range(layers)}
    return {
      "encoder": {
        "embeddings": {
          "word": {"embedding": (v, d)},
          "position": {"embedding": (length, d)},
          "type": {"embedding": (2, d)},
          "norm": norm(),
        },
        **stack,
        "pooler": {"kernel": (d, d), "bias": (d,)},
      },
      "mlm": {
        "dense": {"kernel": (d, d), "bias": (d,)},
        "norm": norm(),
        "bias": (v,),
      },
      "nsp": {"kernel": (d, 2), "bias": (2,)},
    }

  return shapes


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
  """Keeps compiled programs: many tests run the same steps, in new closures."""
  folder = str(tmp_path_factory.mktemp("compiled"))
  jax.config.update("jax_compilation_cache_dir", folder)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # of programs they start
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  compilation_cache.reset_cache()  # it looks at the settings only once


WORDS = (
  "sun moon star sky rain wind snow hill lake tree bird fish stone road house"
  " door"
).split()


def _tiny_config(folder=None):
  c = base.get_config()
  c.model.vocab_size = 32
  c.model.num_layers = 1
  c.model.hidden_size = 32
  c.model.num_heads = 4
  c.model.mlp_dim = 64
  c.model.max_len = 16
  c.data.dir = folder
  c.data.seq_len = 16
  c.data.batch_size = 16
  c.data.dupe_factor = 4
  c.prepare.held_out_rate = 0.2
  c.prepare.num_workers = 1
  c.optim.learning_rate = 1e-2
  c.optim.warmup_rate = 0.1
  c.train.total_steps = 8
  c.train.log_every_steps = 1
  c.eval.every_steps = 2
  c.eval.batch_size = 16
  c.checkpoint.every_steps = 2
  c.checkpoint.keep = 2
  return c


@pytest.fixture
def tiny_config():
  """A function (data folder) -> config of a run that takes seconds."""
  return _tiny_config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
  """Folder of prepared data: each document says one word again and again."""
  folder = tmp_path_factory.mktemp("prepared")
  rng = random.Random(0)
  documents = [
    "".join(
      f"{' '.join([WORDS[i % len(WORDS)]] * rng.randrange(3, 7))}\n"
      for _ in range(8)
    )
    for i in range(96)
  ]
  (folder / "text.txt").write_text("\n".join(documents))
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
  (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
  c = base.get_config()
  c.data.seq_len = 16
  c.data.dupe_factor = 4
  c.prepare.held_out_rate = 0.2
  c.prepare.num_workers = 1
  c.prepare.vocab = str(folder / "vocab.txt")
  data = folder / "data"
  prepare.prepare(c, [str(folder / "text.txt")], str(data))
  return str(data)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, prepared):
  """A run of eight steps: its config, its workdir and what train returned."""
  config = _tiny_config(prepared)
  workdir = str(tmp_path_factory.mktemp("finished") / "run")
  result = train.train(config, workdir)
  return types.SimpleNamespace(config=config, workdir=workdir, result=result)
