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
  assert set(found.stdout.split()) == table.TASK_KINDS.keys()


def test_each_kind_takes_the_row_of_its_name():
  for name, kind in table.TASK_KINDS.items():
    assert kind.head is task_heads.HEADS[name]
