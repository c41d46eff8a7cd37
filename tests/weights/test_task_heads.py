"""Tests of weights/task_heads.py: what files of weights say of a head."""

import subprocess
import sys

from bert_jax.kinds import table
from bert_jax.weights import task_heads


def test_readers_of_weights_know_all_kinds_by_themselves():
  code = (
    "from bert_jax import weights; from bert_jax.weights import task_heads;"
    "import sys; assert 'bert_jax.kinds' not in sys.modules;"
    "print(*task_heads.HEADS)"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert set(found.stdout.split()) == {
    kind.head.name for kind in table.TASK_KINDS.values() if kind.heads
  }


def test_each_kind_with_a_head_takes_a_row():
  """Rerankers are regressions to others; vectors need no head."""
  rows = {"rerank": "regress"}
  for name, kind in table.TASK_KINDS.items():
    if kind.heads:
      assert kind.head is task_heads.HEADS[rows.get(name, name)]
  without = {k for k, kind in table.TASK_KINDS.items() if not kind.heads}
  assert without == {"contrast", "similarity"}
