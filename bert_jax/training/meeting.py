"""Checks that all processes of a job run and read the same."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
from typing import Any

import jax
import numpy as np

from bert_jax.runtime import files
from bert_jax.runtime import hosts
from bert_jax.runtime import locks
from bert_jax.runtime import peers
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training.job import Job


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """A context in which no other job uses the workdir.

  Raises:
    locks.LockedError: another job uses it. Every host raises this.
  """
  with contextlib.ExitStack() as stack:
    refused: Exception | None = None
    if jax.process_index() == 0:
      try:
        stack.enter_context(locks.lock(workdir, "--workdir"))
      except (locks.LockedError, OSError, *files.UNREADABLE) as error:
        refused = error
    reason = hosts.from_first(str(refused) if refused else "")
    if refused is not None:
      raise refused
    if reason:
      raise locks.LockedError(
        f"process 0 could not lock --workdir={workdir}: {reason}"
      )
    yield


def meet(
  mode: str, config: Config, workdirs: Sequence[str], **more: Any
) -> None:
  """Checks, before anything is read, that all processes run the same.

  It does nothing in a job of one process. Keys of the scope "host" may differ.

  Args:
    mode: the mode of the launcher.
    config: the whole configuration.
    workdirs: the folders of the runs, which need not exist yet.
    **more: further facts that must be equal, as JSON values.

  Raises:
    hosts.DifferError: the processes differ, or do not share a workdir.
    OSError: process 0 cannot write to a workdir.
  """
  if not peers.are_several():
    return
  commit, dirty = runs.commit()
  may_differ = settings.names("host")
  hosts.compare(
    hosts.facts_of_process()
    | {"mode": mode, "code": runs.code_hash()}
    | {"commit": commit, "dirty": dirty}
    | {
      name: value
      for name, value in settings.flatten(settings.plain(config)).items()
      if name not in may_differ
    }
    | more
  )
  for workdir in workdirs:
    # An evaluation may have to read there only.
    hosts.check_shared(workdir, must_write=mode == "train")


def meet_opened(
  job: Job,
  pretrained: Any,
  mesh: jax.sharding.Mesh,
  more: Mapping[str, Any],
) -> None:
  """Checks that all processes have read the same; see `meet`.

  Args:
    job: the job that was opened.
    pretrained: the weights to start from, or None.
    mesh: the mesh of all devices, along which the processes are then connected.
    more: further facts that must be equal, as JSON values.

  Raises:
    hosts.DifferError: the processes have read different data or weights.
  """
  if not peers.are_several():
    return
  config = settings.plain(job.config)
  hosts.compare(
    settings.flatten(config["model"], "model.")
    | settings.flatten(job.read_hashes(), "data.")
    | {
      "vocabulary": job.tokenizer.fingerprint,
      "weights": _hash(pretrained.params) if pretrained else None,
    }
    | dict(more)
  )
  if mesh.devices.flat[0].platform == "cpu":
    sharding.connect(mesh)


def _hash(tree: Any) -> str:
  """Returns a hash of a tree of arrays on the host."""
  digest = hashlib.blake2b(digest_size=16)
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(x)
    digest.update(f"{jax.tree_util.keystr(path)} {array.shape}".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
