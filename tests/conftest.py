"""Settings of every test: eight devices on the CPU, no silent broadcasting."""

import os
import random
import signal
import types

# All are read once, when jax is imported. Tests compile much and run little:
# without LLVM's optimizations they take a third of the time, and a training
# step compiles in a third of the time if XLA emits its fusions without MLIR.
os.environ["JAX_PLATFORMS"] = "cpu"
for _flag in (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
  "--xla_cpu_use_fusion_emitters=false",
):
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}"

# A shell has its background jobs ignore SIGINT, which the processes that tests
# start and interrupt would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
import pytest  # noqa: E402

from bert_jax.data import prepare  # noqa: E402
from bert_jax.training import train  # noqa: E402
from configs import base  # noqa: E402
from tests.support import storage_server as storage  # noqa: E402
from tests.support import tiny_run  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
storage_server, bucket, place = (
  storage.storage_server, storage.bucket, storage.place
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory, worker_id):
  """Keeps compiled programs: many tests run the same steps, in new closures.

  All workers of pytest-xdist share one folder.
  """
  root = tmp_path_factory.getbasetemp()
  root = root if worker_id == "master" else root.parent
  folder = str(root / "compiled")
  jax.config.update("jax_compilation_cache_dir", folder)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # of programs they start
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  compilation_cache.reset_cache()  # it looks at the settings only once


@pytest.fixture
def tiny_config():
  """A function (data folder) -> config of a run that takes seconds."""
  return tiny_run.tiny_config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
  """Folder of prepared data: each document says one word again and again."""
  folder = tmp_path_factory.mktemp("prepared")
  rng = random.Random(0)
  words = tiny_run.WORDS
  documents = [
    "".join(
      f"{' '.join([words[i % len(words)]] * rng.randrange(3, 7))}\n"
      for _ in range(8)
    )
    for i in range(96)
  ]
  (folder / "text.txt").write_text("\n".join(documents))
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
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
  config = tiny_run.tiny_config(prepared)
  workdir = str(tmp_path_factory.mktemp("finished") / "run")
  result = train.train(config, workdir)
  return types.SimpleNamespace(config=config, workdir=workdir, result=result)
