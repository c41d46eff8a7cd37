"""Writes docs/reference/families.md: what is read and written of each family.

  python -m experiments.families.table [FAMILY ...]
  python -m experiments.families.table --plans [FAMILY ...]

Every cell is the largest difference from transformers, for a small random model
(see measure.py). Families that are named are measured again; the numbers of the
others stay as experiments/families/table.json has them. Needs torch and
transformers; two or three minutes a family on two cores.

`--plans` compiles, for a TPU, two layers of a base size of each family that has
no plan yet, or that is named. Needs the extra `tpu` instead.
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
from experiments.families import measure
from experiments.plan import table as plans

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
and parameters. `-`: transformers has no such head.

{plans}
`python -m experiments.families.table` (`experiments/families/table.py`) makes
this page, with the models of
`experiments/families/measure.py`.

"""
_PLANS = """\
The last columns are from a plan: a training step of two layers of the named
size, 64 rows of 512 tokens in bfloat16, compiled for four TPU v5e chips. They
are the memory of a chip, the time that the step should take, and the share of
the FLOPs of the compiled program that the mathematics needs.

"""
_PLAN_COLUMNS = ("plan of", "GiB", "ms", "FLOPs needed")
_FOOT = """
NeoBERT (`neobert`) and MosaicBERT (`mosaic_bert`) have no class in
transformers. They agree with straight-line code of their authors' arithmetic to
1e-5 (`tests/models/test_remote_families.py`).

XLNet (`xlnet`) is left out. Its layers project sinusoids of distances with
three learned biases beside the query and compare the segments of two tokens,
both with parameters of every layer; and its texts end with the token that heads
read, while the batches, heads and templates here begin with it. It would bend
the encoder and the data of all other families for one model.

## Pre-train one from scratch

```sh
bert-jax train --config=pretrain:family=modernbert,size=ettin-17m \\
  --config.data.dir=DATA --workdir=RUN
```

| family | sizes |
|---|---|
"""
# Sizes to plan where it is not the base size.
_SIZES = {
  "deberta-v2, convolution": "v2-xlarge", "eurobert, shared keys": "610m",
}  # fmt: skip
_IDS = """
## Token ids on real text

Texts whose ids differ from those of transformers, out of the texts of a folder
of benchmarks and corpora. `experiments/families/ids.py` counts them. BERT's
differ in random Unicode alone: the rules here are those of the original code,
which keeps characters for private use, and Python's Unicode is newer than that
of the library behind transformers.
"""
_WORDS = """
## Masked words of trained models

Some Python packages hold trained models. None is a general model of English:
they are small models of search terms, antibodies and chemical reactions. Their
scores are those of the reference (`tests/test_real_weights.py`, 1e-5).
`experiments/families/real_weights.py` asks them:
"""
_SWEEP = """

## Fine-tune by the authors' settings

`experiments/families/sweep.py` has what the authors of RoBERTa, ELECTRA and
ModernBERT published for GLUE:

```sh
bert-jax sweep --workdir=runs/roberta-glue \\
  --config=experiments/families/sweep.py:family=roberta,from=DIR,data=DATA
```

ELECTRA's authors learn each pair of MRPC and STS-B in both orders
(`task.both_orders`), and let the learning rate fall from layer to layer
(`optim.layer_decay`); so does its sweep.

## More comparisons

* `make bench-embed` (`experiments/families/speed.py`): the speed of embeddings
  by RoBERTa-base and ModernBERT-base, against transformers under torch.
* `experiments/families/ids.py`: token ids of all texts in a folder, and of
  random Unicode, against transformers.
* `experiments/families/real_weights.py` asks trained models for masked words.
"""


def size_of(name: str) -> str:
  """Returns the size of a row of `measure.REFERENCES` that is planned."""
  sizes = measure.family_of(name).presets
  usual = next((n for n in sizes if n.endswith("base")), [*sizes][0])
  return _SIZES.get(name, usual)


def make_plan(name: str) -> dict[str, float]:
  """Compiles a training step of two layers of a family for a TPU.

  Returns:
    The bytes of a chip, the seconds of the step, and the share of its FLOPs
    that the mathematics needs.
  """
  family = measure.family_of(name)
  more = {"model.layer_groups": 1} if "layer_groups" in family.switches else {}
  settings = {
    "model.dtype": "bfloat16", "model.num_layers": 2, "data.batch_size": 64,
    **more,
  }  # fmt: skip
  row = plans.compile_entry(
    plans.Entry(
      f"configs/pretrain.py:family={family.name},size={size_of(name)},"
      "seq_len=512",
      tuple(settings.items()),
      "v5e:2x2",
      name,
    )
  )
  return {
    "hbm_bytes": row["hbm_bytes_per_device"],
    "secs": row["predicted_step_secs"],
    "needed": row["model_flops_per_step"] / row["hardware_flops_per_step"],
  }


def main(names: list[str]) -> None:
  known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
  if names[:1] == ["--plans"]:
    rows = names[1:] or [n for n in known if "plan" not in known[n]]
    for name in rows:
      known[name]["plan"] = make_plan(name)
      print(name, known[name]["plan"], flush=True)
      NUMBERS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
      write_page()
    return
  for name in names or measure.REFERENCES:
    with tempfile.TemporaryDirectory() as folder:
      found = measure.measure(name, folder)
      found["sharded"] = measure.measure_sharded(name, folder)
    plan = {k: v for k, v in known.get(name, {}).items() if k == "plan"}
    known[name] = {part: values[0] for part, values in found.items()} | plan
    print(name, known[name], flush=True)
    NUMBERS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    write_page()


def write_page() -> None:
  """Writes the page from the numbers that there are."""
  known = json.loads(NUMBERS.read_text())
  is_planned = any("plan" in row for row in known.values())
  sizes = [
    f"| `{name}` | {', '.join(f'`{size}`' for size in family.presets)} |"
    for name, family in families.FAMILIES.items()
  ]
  PAGE.write_text(
    _HEAD.replace("{plans}\n", _PLANS if is_planned else "")
    + "\n".join(numbers_of(known, is_planned))
    + "\n"
    + _FOOT
    + "\n".join(sizes)
    + _SWEEP
    + _ids_section()
    + _words_section()
  )


def numbers_of(known: dict[str, dict], is_planned: bool) -> list[str]:
  """Returns the lines of the table of families.

  Args:
    known: the numbers of each family, as in table.json.
    is_planned: whether any family has a plan, so that plans have columns.
  """
  heads = ["family", *COLUMNS, *(_PLAN_COLUMNS if is_planned else ())]
  lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
  for name in measure.REFERENCES:
    if name in known:
      cells = [_cell(known[name], part) for part in COLUMNS.values()]
      if is_planned:
        cells += [f"`{size_of(name)}`", *_plan_cells(known[name].get("plan"))]
      lines.append(f"| `{name}` | {' | '.join(cells)} |")
  return lines


def _plan_cells(plan: dict[str, float] | None) -> list[str]:
  if plan is None:
    return ["", "", ""]
  return [
    f"{plan['hbm_bytes'] / 2**30:.1f}",
    f"{plan['secs'] * 1e3:.0f}",
    f"{plan['needed']:.0%}",
  ]


def _ids_section() -> str:
  """Returns the counts of ids.py; "" if there are none."""
  path = NUMBERS.with_name("ids.json")
  if not path.exists():
    return ""
  known = json.loads(path.read_text())
  sources = list(
    dict.fromkeys(s for row in known.values() for s in row["counts"])
  )
  lines = [_IDS, f"| tokenizer | texts taken | {' | '.join(sources)} |"]
  lines.append("|---" * (len(sources) + 2) + "|")
  for kind, row in sorted(known.items()):
    every = "all" if row["every"] == 1 else f"1 in {row['every']}"
    cells = []
    for source in sources:
      texts, tokens, differing = row["counts"].get(source, (0, 0, 0))
      cells.append(f"{differing} of {texts:,} ({tokens:,} tokens)")
    lines.append(f"| {kind} | {every} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def _words_section() -> str:
  """Returns the answers of real_weights.py; "" if there are none."""
  path = NUMBERS.with_name("real_weights.json")
  if not path.exists():
    return ""
  lines = [_WORDS, "| package | text | most probable |", "|---" * 3 + "|"]
  for package, row in sorted(json.loads(path.read_text()).items()):
    for found in row["answers"]:
      best = found["answer"]["masks"][0]
      words = ", ".join(f"`{w['token']}` {w['score']:.0%}" for w in best)
      name = f"{package} {row['version']}"
      lines.append(f"| {name} | `{found['text']}` | {words} |")
  return "\n".join(lines) + "\n"


def _cell(numbers: dict[str, float], part: str) -> str:
  if part not in numbers:
    return "-"
  value = numbers[part]
  return f"{value:.0f}" if part == "export" else f"{value:.0e}"


if __name__ == "__main__":
  main(sys.argv[1:])
