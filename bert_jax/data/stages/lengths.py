"""Writes the order of examples by length, which packing reads.

It has a folder of its own, because older releases wrote examples without it.
"""

import os

import numpy as np

from bert_jax.data.stages import examples as stage_examples
from bert_jax.data.stages import stage
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.runtime import files
from bert_jax.runtime.settings import Config

_REPORT = manifests.LENGTHS_ROW | {"counts": [manifests.is_count]}


def write(config: Config, folder: str) -> None:
  """Writes the order by length of the examples that config.data asks for.

  Args:
    config: the configuration, of which `data` and `prepare` are read.
    folder: DATA, which has the examples.

  Raises:
    records.DataError: an example is damaged, or the order that is there belongs
      to other examples.
  """
  name = records.examples_name(config.data)
  examples = records.examples_folder(folder, name)
  target = records.lengths_folder(folder, name)
  work = stage.Stage(config.prepare, folder, f"{name}.lengths", target, "npy")
  manifest_path = os.path.join(target, "manifest.json")
  if files.exists(manifest_path):
    manifest = indexes.check_lengths(folder, name)
    if work.is_whole(manifest, [f"{split}.npy" for split in records.SPLITS]):
      work.end()
      return
  digest = files.file_hash(os.path.join(examples, "manifest.json"))
  work.begin({"examples": digest})
  jobs = stage.shard_jobs(
    manifests.read_manifest(examples)["shards"],
    "examples",
    examples=examples,
    target=target,
    seq_len=config.data.seq_len,
    special=stage_examples.special_counts(folder),
  )
  shards = work.run_by_split(sort_shard, jobs, "sort by length", _REPORT)
  hashes = {}
  for split, rows in shards.items():
    path = os.path.join(target, f"{split}.npy")
    counts = np.array([row.pop("counts") for row in rows], np.int64)
    records.write_array(path, counts.reshape(-1, config.data.seq_len + 1))
    hashes[split] = files.file_hash(path)
  work.end(manifest_path, examples=digest, sha256=hashes, shards=shards)


def sort_shard(job: dict) -> dict:
  """Writes the numbers of a shard's examples, the shortest first.

  Args:
    job: a job from stage.shard_jobs, with seq_len, the folders examples and
      target, and the numbers of special tokens of both forms of sequences.

  Returns:
    A dict of shard; counts, [L + 1] the number of examples with 0, 1, ... L
    tokens; and sha256.

  Raises:
    records.DataError: an example is longer than a row.
  """
  where = (job["split"], job["shard"])
  source = records.shard_path(job["examples"], *where, "array_record")
  store = records.Records([source], job["size"])
  lengths = records.read_lengths(
    lambda ids: store.read(ids, records.EXAMPLE, 1)[:, 0],
    np.arange(job["size"]),
    tuple(job["special"]),
  )
  if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= job["seq_len"]:
    raise records.DataError(
      f"{source}: the lengths of its examples are {lengths.min()} to "
      f"{lengths.max()} tokens, but data.seq_len={job['seq_len']}; delete the "
      "file and run bert-jax prepare again"
    )
  path = records.shard_path(job["target"], *where, "npy")
  order = np.argsort(lengths, kind="stable")
  records.write_array(path, order.astype(np.uint32))
  return {
    "shard": job["shard"],
    "counts": np.bincount(lengths, minlength=job["seq_len"] + 1).tolist(),
    "sha256": files.file_hash(path),
  }
