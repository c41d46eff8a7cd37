"""Writes docs/reference/families.md: what is read and written of each family.

  python -m experiments.families.table [FAMILY ...]

Every cell is the largest difference from transformers, for a small random model
(see measure.py). Families that are named are measured again; the numbers of the
others stay as experiments/families/table.json has them. Needs torch and
transformers; two or three minutes a family on two cores.
"""

import json
import os
import pathlib
import sys
import tempfile

# Before jax is imported: devices to shard over.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_backend_optimization_level=0"
)

from bert_jax.models import families
from bert_jax.models import flops
from bert_jax.runtime import settings
from experiments.families import measure

NUMBERS = pathlib.Path(__file__).with_name("table.json")
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "families.md"
# The head of a column: the part of `measure`.
COLUMNS = {
  "import": "import", "export": "export", "masked words": "mlm",
  "sequence": "classify", "token": "tag", "questions": "span",
  "choice": "choice", "replaced": "rtd", "packed": "packed",
  "8 devices": "sharded",
}  # fmt: skip
_HEAD = """\
# Families of encoders

Every family is read from a Hugging Face folder, and written to one, with the
heads of the table, for `init_from`, `predict`, `convert` and training. Files
with and without the prefix of the encoder are read. Files under the names of
fairseq (RoBERTa) and Composer (ModernBERT) are read, too.

A number is the largest difference in float32 from transformers, for a random
model with 4 layers of odd sizes, values up to about 5, padding, and rows
shorter and longer than a local window. *import* is the last hidden layer,
*export* counts the tensors whose names or bytes changed on the way from a
folder to a folder, *packed* compares sequences that share a row with the same
ones alone, and *8 devices* compares one device with fake ones that split rows
and parameters. `-`: transformers has no such head. *GFLOPs* are those of a
forward pass over a row of 512 tokens for the base size, as `plan` counts them.

`python -m experiments.families.table` (`experiments/families/table.py`) makes
this page, with the models of
`experiments/families/measure.py`.

"""
_FOOT = """
NeoBERT (`neobert`) and MosaicBERT (`mosaic_bert`) have no class in
transformers. They agree with straight-line code of their authors' arithmetic to
1e-5 (`tests/models/test_remote_families.py`).

## Pre-train one from scratch

```sh
bert-jax train --config=pretrain:family=modernbert,size=ettin-17m \\
  --config.data.dir=DATA --workdir=RUN
```

| family | sizes |
|---|---|
"""
_SWEEP = """

## Fine-tune by the authors' settings

`experiments/families/sweep.py` has what the authors of RoBERTa, ELECTRA and
ModernBERT published for GLUE:

```sh
bert-jax sweep --workdir=runs/roberta-glue \\
  --config=experiments/families/sweep.py:family=roberta,from=DIR,data=DATA
```
"""


def gflops(name: str) -> float:
  """Returns 1e9 FLOPs of a row of 512 tokens, for a family's first size."""
  family = families.FAMILIES[name]
  model = settings.make_config().model
  sizes = family.presets
  name_of_size = next((n for n in sizes if n.endswith("base")), [*sizes][0])
  size = sizes[name_of_size]
  model.update({**family.switches, **family.defaults, **size, "family": name})
  return flops.encoder_flops(model, 1, 512) / 1e9


def main(names: list[str]) -> None:
  known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
  for name in names or measure.REFERENCES:
    with tempfile.TemporaryDirectory() as folder:
      found = measure.measure(name, folder)
      found["sharded"] = measure.measure_sharded(name, folder)
    known[name] = {part: values[0] for part, values in found.items()}
    print(name, known[name], flush=True)
    NUMBERS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    write_page()


def write_page() -> None:
  """Writes the page from the numbers that there are."""
  known = json.loads(NUMBERS.read_text())
  lines = [
    f"| family | {' | '.join(COLUMNS)} | GFLOPs |",
    "|---" * (len(COLUMNS) + 2) + "|",
  ]
  for name in measure.REFERENCES:
    if name in known:
      cells = [_cell(known[name], part) for part in COLUMNS.values()]
      lines.append(f"| `{name}` | {' | '.join(cells)} | {gflops(name):.0f} |")
  sizes = [
    f"| `{name}` | {', '.join(f'`{size}`' for size in family.presets)} |"
    for name, family in families.FAMILIES.items()
  ]
  PAGE.write_text(
    _HEAD + "\n".join(lines) + "\n" + _FOOT + "\n".join(sizes) + _SWEEP
  )


def _cell(numbers: dict[str, float], part: str) -> str:
  if part not in numbers:
    return "-"
  value = numbers[part]
  return f"{value:.0f}" if part == "export" else f"{value:.0e}"


if __name__ == "__main__":
  main(sys.argv[1:])
