"""Plans on TPU slices, in tables: shipped configs, meshes, depth, long rows.

  python -m experiments.plan.table            all that table.json lacks
  python -m experiments.plan.table meshes     all that meshes.json lacks
  python -m experiments.plan.table depth      all that depth.json lacks
  python -m experiments.plan.table long       all that long.json lacks
  python -m experiments.plan.table recipes    all that recipes.json lacks
  python -m experiments.plan.table --only=v5e:4x4
  python -m experiments.plan.table --again    all, also those it has
  python -m experiments.plan.table --list

Each entry is compiled by a process of its own (`bert-jax --mode=plan`; needs
the extra `tpu`, no TPU) and put into the JSON file as soon as it is there, so a
run that is stopped goes on where it was. The page beside it is written from it.
An entry by the older ruler (README.md) counts as one that the file lacks.
Everything about time is a prediction; nothing was run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]

# What a table keeps of a plan.
KEPT = (
  "fits",
  "topology",
  "num_devices",
  "device_kind",
  "mesh",
  "batch_size",
  "seq_len",
  "predicted_step_secs",
  "predicted_mfu",
  "predicted_mfu_without_communication",
  "predicted_mfu_all_positions",
  "predicted_tokens_per_sec",
  "assumed_step_secs",
  "assumed_mfu",
  "memory_secs_per_step",
  "error",
  "pallas_kernels",
  "secs_by_kind",
  "hbm_bytes_per_device",
  "hbm_available_bytes",
  "hbm_bytes_by_kind",
  "model_flops_per_step",
  "model_flops_all_positions",
  "hardware_flops_per_step",
  "collective_bytes_per_step",
  "collectives",
  "cycles_per_step",
  "cycles_by_part",
  "warnings",
  "to_make_it_fit",
  "compile_secs",
  "versions",
  "commit",
  "dirty",
)
# Figures that a test compares.
COMPARED = (
  "predicted_step_secs",
  "predicted_mfu",
  "hbm_bytes_per_device",
  "model_flops_per_step",
  "collective_bytes_per_step",
)

# Slices of the table, smallest first, and what jax counts on them.
SLICES = {
  "v5e:2x2": 4,
  "v5e:4x4": 16,
  "v6e:2x2": 4,
  "v6e:4x4": 16,
  "v5p:4x4x4": 64,
  "v5e:16x16": 256,
}
# Other settings of some entries: (topology, size, seq_len) -> each of them.
# Without dropout of attention probabilities, and other programs of attention.
_NO_DROPOUT = ("model.attention_dropout_rate", 0.0)
VARIANTS = {
  ("v5e:2x2", "base", 512): ((_NO_DROPOUT,),),
  ("v5e:2x2", "large", 512): (
    (_NO_DROPOUT, ("model.attention", "splash")),
    (("model.attention", "plain"),),
  ),
  ("v5e:4x4", "base", 512): ((_NO_DROPOUT,),),
  ("v6e:2x2", "large", 128): ((_NO_DROPOUT,),),
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A config on a topology.

  Attributes:
    config: with arguments, as after --config=.
    overrides: (key, value) of further settings.
    topology: such as "v5e:4x4".
    phase: what it is for.
  """

  config: str
  overrides: tuple[tuple[str, Any], ...]
  topology: str
  phase: str

  @property
  def key(self) -> str:
    """What it is called in table.json."""
    settings = ",".join(f"{k}={v}" for k, v in self.overrides)
    return f"{self.config} {settings} @ {self.topology}"

  def arguments(self) -> list[str]:
    """Of --mode=plan."""
    return [
      f"--config={self.config}",
      *(f"--config.{k}={v}" for k, v in self.overrides),
      f"--topology={self.topology}",
    ]


def entries() -> list[Entry]:
  """All of the table, the quickest to compile first."""
  found = [
    Entry(
      "configs/pretrain.py:size=mini,seq_len=128",
      (
        ("model.dtype", "bfloat16"),
        ("data.batch_size", 256),
        ("model.scan_layers", scan),
      ),
      "v5e:2x2",
      "a small model, layers scanned" if scan else "a small model",
    )
    for scan in (True, False)
  ]
  for topology, devices in SLICES.items():
    chip = topology.partition(":")[0]
    for phase, seq_len in ((1, 128), (2, 512)):
      for size in ("base", "large"):
        config = (
          f"configs/tpu.py:size={size},seq_len={seq_len},chip={chip},"
          f"devices={devices}"
        )
        settings = ((), *VARIANTS.get((topology, size, seq_len), ()))
        found += [
          Entry(config, more, topology, f"phase {phase}") for more in settings
        ]
  return found


def mesh_entries() -> list[Entry]:
  """Two large models on two slices, cut in several ways.

  Rows of 512, layers scanned: one layer is compiled for all, so that the
  figures compare meshes, not speed with that of the other table.
  """
  found = []
  for topology, devices, tokens, cuts in (
    ("v5e:16x16", 256, 8192, ((1, 1), (16, 1), (256, 1), (1, 4))),
    ("v5p:4x4x4", 64, 32_768, ((1, 1), (64, 1), (1, 4))),
  ):
    for size in ("large", "L24_H2048"):
      for fsdp, tensor in cuts:
        rows = devices * tokens // 512
        found.append(
          Entry(
            f"configs/pretrain.py:size={size},seq_len=512",
            (
              ("model.dtype", "bfloat16"),
              ("model.attention", "fused"),
              ("model.scan_layers", True),
              ("model.vocab_size", 30_528),  # divisible by fsdp and tensor
              ("data.batch_size", rows),
              ("mesh.data", devices // (fsdp * tensor)),
              ("mesh.fsdp", fsdp),
              ("mesh.tensor", tensor),
            ),
            topology,
            "cut",
          )
        )
  return found


def depth_entries() -> list[Entry]:
  """Layers of base, scanned and unrolled: what depth costs the compiler."""
  return [
    Entry(
      "configs/pretrain.py:size=base,seq_len=128",
      (
        ("model.dtype", "bfloat16"),
        ("model.attention", "fused"),
        ("data.batch_size", 512),
        ("model.scan_layers", scan),
        ("model.num_layers", layers),
      ),
      "v5e:2x2",
      "scanned" if scan else "unrolled",
    )
    for scan, layers in ((True, 3), (True, 12), (True, 24),
                         (False, 3), (False, 12))
  ]  # fmt: skip


LENGTHS = (1024, 2048, 4096, 8192)
# Two depths, both with one full layer; the others are local.
_FEW, _MORE = 2, 6


def long_entries() -> list[Entry]:
  """ModernBERT base at growing lengths, one row a device.

  Models of one full layer and of few or more local ones tell what a local layer
  costs; a whole model follows for each length.
  """
  found = []
  for layers in (_FEW, _MORE, 22):
    for seq_len in LENGTHS:
      settings: tuple[tuple[str, Any], ...] = (
        ("model.dtype", "bfloat16"),
        ("model.attention", "splash"),
        ("data.batch_size", 4),
      )
      if layers < 22:
        settings += (
          ("model.num_layers", layers),
          ("model.full_every", layers),
        )
      config = f"family=modernbert,size=base,seq_len={seq_len}"
      found.append(
        Entry(
          f"configs/pretrain.py:{config}",
          settings,
          "v5e:2x2",
          "whole" if layers == 22 else f"{layers - 1} local",
        )
      )
  return found


_FUSED = (("model.attention", "fused"),)
_SPLASH = (("model.attention", "splash"),)
# The number of micro-batches of a step, as in configs/tpu.py.
_PARTS = 8
# Name of a recipe: its config, further settings, and the rows that a device
# computes at once. A recipe in phases has an entry for each shape.
RECIPES: dict[str, tuple[str, tuple[tuple[str, Any], ...], int]] = {
  "BERT base": ("configs/pretrain.py:size=base,seq_len=512", _FUSED, 32),
  "RoBERTa base": (
    "configs/roberta.py:size=base",
    (*_FUSED, ("model.vocab_size", 50_304)),
    32,
  ),
  "ALBERT base": (
    "configs/albert.py:size=base",
    (*_FUSED, ("model.vocab_size", 30_080)),
    32,
  ),
  "ELECTRA base": ("configs/electra.py:size=base", _FUSED, 32),
  "ELECTRA base, disentangled": (
    "configs/electra.py:size=base",
    (*_FUSED, ("generator.sharing", "disentangled")),
    32,
  ),
  "DeBERTa-v3 base": (
    "configs/electra.py:family=deberta-v2,size=v3-base",
    (("model.remat", "full"), ("model.vocab_size", 128_128)),
    4,
  ),
  "DistilBERT, 6 layers": (
    "configs/distill.py:teacher=TEACHER,student_layers=6,steps=1000",
    (*_FUSED, ("distill.positions", "masked"),
     ("distill.teacher_dtype", "bfloat16"), ("train.export", "")),
    16,
  ),
  "ModernBERT base, main": (
    "configs/modernbert.py:size=base",
    (*_SPLASH, ("model.vocab_size", 50_368), ("train.phases", ())),
    16,
  ),
  "ModernBERT base, longer": (
    "configs/modernbert.py:size=base,seq_len=8192",
    (*_SPLASH, ("model.vocab_size", 50_368), ("train.phases", ()),
     ("model.rope_theta", 160_000.0)),
    1,
  ),
}  # fmt: skip


def recipe_entries() -> list[Entry]:
  """Every recipe of pre-training on two slices, at full depth."""
  found = []
  for topology in ("v5e:2x2", "v5e:4x4"):
    for name, (config, settings, rows) in RECIPES.items():
      more = (
        ("model.dtype", "bfloat16"),
        ("data.batch_size", rows * SLICES[topology] * _PARTS),
        ("optim.num_micro_batches", _PARTS),
        *settings,
      )
      found.append(Entry(config, more, topology, name))
  return found


def blank_teacher(folder: str) -> None:
  """Writes BERT base with zeros for weights, of which only shapes matter."""
  import numpy as np

  from bert_jax import weights
  from bert_jax.configs import base
  from bert_jax.models import heads
  from bert_jax.models import params
  from bert_jax.runtime import settings

  config = base.get_config()
  config.model.vocab_size = settings.VOCAB_SIZE
  model = {key: config.model[key] for key in settings.SHAPE_KEYS}
  flat = {
    path: np.zeros(shape, np.float32)
    for path, shape in heads.param_shapes(model, 2).items()
    if path.startswith(("encoder/", "mlm/"))
  }
  blank = weights.Pretrained(
    format="bert_jax",
    family="bert",
    model={k: v for k, v in model.items() if k != "family"},
    params=params.nest(flat),
  )
  weights.write(blank, folder, "bert_jax")


def compile_entry(entry: Entry) -> dict[str, Any]:
  """Runs --mode=plan; returns what the table keeps of its plan.

  Raises:
    RuntimeError: no plan was made.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "plan.json"
    arguments = entry.arguments()
    if "teacher=TEACHER" in entry.config:
      teacher = f"{folder}/teacher"
      blank_teacher(teacher)
      arguments = [x.replace("TEACHER", teacher, 1) for x in arguments]
    done = subprocess.run(
      [sys.executable, "-m", "bert_jax.main", "--mode=plan",
       *arguments, f"--output={path}"],
      cwd=ROOT, capture_output=True, text=True, check=False,
      # Flags for the CPU, such as tests set, would change the program.
      env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )  # fmt: skip
    if not path.exists():
      raise RuntimeError(f"{entry.key}: no plan was made: {done.stderr[-800:]}")
    plan = json.loads(path.read_text())
  row = {name: plan[name] for name in KEPT if name in plan}
  return {"phase": entry.phase, "argv": entry.arguments()} | row


def is_older(row: dict[str, Any]) -> bool:
  """Returns whether a row is by the ruler that knew no schedules."""
  return row["fits"] and "assumed_mfu" not in row


def drift(old: dict[str, Any], new: dict[str, Any]) -> dict[str, float]:
  """By how much the figures of two rows differ, as shares of the old ones.

  A row that is older than the schedules is compared by its own ruler.
  """
  if is_older(old) and not is_older(new):
    new = new | {
      "predicted_mfu": new["assumed_mfu"],
      "predicted_step_secs": new["assumed_step_secs"],
    }
  return {
    name: abs(new[name] - old[name]) / abs(old[name])
    for name in COMPARED
    if name in old and name in new and old[name]
  }


def to_markdown(table: dict[str, dict[str, Any]]) -> str:
  """The table as Markdown."""
  lines = [
    "# Predicted speed and memory of the shipped configs",
    "",
    "Made by `make plan-table` from compiled programs; nothing was run on a",
    "TPU, and every time here is a prediction. What it rests on and leaves out",
    "is in the plans themselves (`--mode=plan`). MFU counts what the",
    "mathematics needs (bert_jax/models/flops.py); with the last layer counted",
    "at all positions it is the figure in parentheses.",
    "",
    "Kernels count by their scheduled bundles, and what the memory cannot feed",
    "by its bytes; the column `by shares of peak` has the MFU without either.",
    "Rows where it says `all` were planned earlier: all their figures are by",
    "shares of peak. The last column says by how much a step grows if the",
    "memory gives a fifth less, and if each step of a kernel's grid costs its",
    "documented 0.35 us on top.",
    "",
    "| config | topology | rows x tokens | memory, GiB | step, ms | MFU |"
    " without communication | tokens/s | sent, MB | by shares of peak |"
    " compiled in, s | step grows by |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for key, row in table.items():
    config, _, topology = key.rpartition(" @ ")
    config = re.sub(r"configs/\w+\.py:|model\.dtype=bfloat16,?", "", config)
    config = re.sub(r",?(data\.batch_size|chip|devices)=\w+", "", config)
    config = ",".join(filter(None, re.split(r"[ ,]+", config)))
    gib = row["hbm_bytes_per_device"] / 2**30
    available = row["hbm_available_bytes"] / 2**30
    cells = [
      f"{config}, {row['phase']}",
      topology,
      f"{row['batch_size']} x {row['seq_len']}",
      f"{gib:.1f} of {available:.1f}",
    ]
    if row["fits"]:
      cells += [
        f"{row['predicted_step_secs'] * 1e3:.1f}",
        f"{row['predicted_mfu']:.1%} "
        f"({row['predicted_mfu_all_positions']:.1%})",
        f"{row['predicted_mfu_without_communication']:.1%}",
        f"{row['predicted_tokens_per_sec']:,.0f}",
        f"{row['collective_bytes_per_step'] / 1e6:,.0f}",
        f"{row['assumed_mfu']:.1%}" if "assumed_mfu" in row else "all",
        f"{row['compile_secs']:.0f}" if "compile_secs" in row else "",
        _growth(row),
      ]
    else:
      cells += ["does not fit", *6 * [""]]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines + _origin(table)) + "\n"


def _growth(row: dict[str, Any]) -> str:
  """By how much a step would grow if what is assumed of it failed."""
  if "error" not in row:
    return ""
  memory, grid = (
    row["error"][name]
    for name in (
      "if_memory_gives_a_fifth_less",
      "if_grid_steps_cost_what_is_documented",
    )
  )
  return f"{memory:.1%}, {grid:.1%}"


def recipes_to_markdown(table: dict[str, dict[str, Any]]) -> str:
  """The table of recipes as Markdown, with the distance of ELECTRA to BERT."""
  lines = [
    "# Predicted speed and memory of the recipes",
    "",
    "Made by `make plan-recipes` from compiled programs; nothing was run on a",
    "TPU, and every time is a prediction. Full depth. A step has",
    f"{_PARTS} micro-batches. MFU counts what the mathematics needs, of both",
    "models where two are trained.",
    "",
    "| recipe | topology | rows x tokens | memory, GiB | step, ms | MFU |"
    " tokens/s |",
    "|---|---|---|---|---|---|---|",
  ]
  mfu: dict[tuple[str, str], float] = {}
  for row in table.values():
    cells = [
      row["phase"],
      row["topology"],
      f"{row['batch_size']:,} x {row['seq_len']:,}",
      f"{row['hbm_bytes_per_device'] / 2**30:.1f} of "
      f"{row['hbm_available_bytes'] / 2**30:.1f}",
    ]
    if row["fits"]:
      mfu[row["phase"], row["topology"]] = row["predicted_mfu"]
      cells += [
        f"{row['predicted_step_secs'] * 1e3:,.0f}",
        f"{row['predicted_mfu']:.1%}",
        f"{row['predicted_tokens_per_sec']:,.0f}",
      ]
    else:
      cells += ["does not fit", "", ""]
    lines.append("| " + " | ".join(cells) + " |")
  for (name, topology), found in mfu.items():
    whole = mfu.get(("BERT base", topology))
    if name.startswith("ELECTRA") and whole:
      lines += [
        "",
        f"{name} on {topology}: {(whole - found) * 100:.1f} points under BERT"
        " base.",
      ]
  return "\n".join(lines + _origin(table)) + "\n"


def meshes_to_markdown(table: dict[str, dict[str, Any]]) -> str:
  """The table of meshes as Markdown."""
  lines = [
    "# Predicted cost of ways to cut a model",
    "",
    "Made by `make plan-meshes` from compiled programs; nothing was run on a",
    "TPU, and every time here is a prediction. Rows of 512 tokens, layers",
    "scanned, the paper's dropout, Adam's moments spread over the copies.",
    "",
    "| model | slice | data x fsdp x tensor | rows | parameters, moments,"
    " activations: GiB | step, ms | of it sending | MFU | all-reduce,"
    " all-gather, reduce-scatter, others: MB sent |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for row in table.values():
    size = re.search(r"size=(\w+)", " ".join(row["argv"]))
    mesh, kinds = row["mesh"], row["hbm_bytes_by_kind"]
    memory = ", ".join(
      f"{kinds[name] / 2**30:.1f}" if name in kinds else "?"
      for name in ("parameters", "optimizer", "activations")
    )
    available = row["hbm_available_bytes"] / 2**30
    cells = [
      size[1] if size else "",
      row["topology"],
      f"{mesh['data']} x {mesh['fsdp']} x {mesh['tensor']}",
      f"{row['batch_size']:,}",
      f"{memory} of {available:.1f}",
    ]
    if row["fits"]:
      named = ("all-reduce", "all-gather", "reduce-scatter")
      sent = dict.fromkeys((*named, "others"), 0.0)
      for exchange in row["collectives"]:
        kind = exchange["kind"] if exchange["kind"] in named else "others"
        sent[kind] += exchange["bytes_sent"]
      sending = row["secs_by_kind"]["communication_exposed"]
      cells += [
        f"{row['predicted_step_secs'] * 1e3:,.0f}",
        f"{sending * 1e3:,.0f}",
        f"{row['predicted_mfu']:.1%}",
        ", ".join(f"{x / 1e6:,.0f}" for x in sent.values()),
      ]
    else:
      needed = row["hbm_bytes_per_device"] / 2**30
      cells += [f"does not fit: {needed:.1f} GiB", "", "", ""]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines + _origin(table)) + "\n"


def depth_to_markdown(table: dict[str, dict[str, Any]]) -> str:
  """The table of depths as Markdown."""
  lines = [
    "# What depth costs the compiler",
    "",
    "Made by `make plan-depth` from compiled programs; nothing was run on a",
    "TPU. BERT-base's width, rows of 128, on v5e:2x2. Seconds are of two cores",
    "of a shared machine. Scanned layers are one loop: its cycles, kernels and",
    "exchanges are multiplied out, and the last layer is computed everywhere.",
    "",
    "| layers | | compiled in, s | code, MiB | activations, GiB | step, ms |"
    " hardware FLOPs / model FLOPs, all positions |",
    "|---|---|---|---|---|---|---|",
  ]
  for key, row in table.items():
    layers = re.search(r"num_layers=(\d+)", key)
    kinds = row["hbm_bytes_by_kind"]
    share = row["hardware_flops_per_step"] / row["model_flops_all_positions"]
    cells = [
      layers[1] if layers else "",
      row["phase"],
      f"{row['compile_secs']:.0f}",
      f"{kinds['code'] / 2**20:.0f}",
      f"{kinds['activations'] / 2**30:.2f}",
      f"{row['predicted_step_secs'] * 1e3:.1f}",
      f"{share:.3f}",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines + _origin(table)) + "\n"


def long_to_markdown(table: dict[str, dict[str, Any]]) -> str:
  """The table of long rows as Markdown."""
  lines = [
    "# Long rows",
    "",
    "Made by `make plan-long` from compiled programs; nothing was run on a",
    "TPU, and every time is a prediction. ModernBERT base on v5e:2x2, one row",
    "a device, attention by the splash kernel. A local layer, which sees 64",
    f"tokens to each side, is the difference between models with {_FEW - 1}",
    f"and {_MORE - 1} of them, divided by their number. FLOPs are those of a",
    "step of training on one device.",
    "",
    "| tokens | a local layer: GFLOPs | memory, MiB | ms | GFLOPs, MiB and ms a"
    " thousand tokens | the whole model: memory, GiB | step, ms | MFU |",
    "|---|---|---|---|---|---|---|---|",
  ]
  by_length: dict[int, dict[str, Any]] = {}
  for row in table.values():
    by_length.setdefault(row["seq_len"], {})[row["phase"]] = row
  for length, rows in sorted(by_length.items()):
    cells = [f"{length:,}", *4 * [""]]
    few, more = (rows.get(f"{n - 1} local") for n in (_FEW, _MORE))
    if few and more:
      found = [a / (_MORE - _FEW) for a in _local_layer(few, more)]
      shares = [value / length * 1000 for value in found]
      cells[1:4] = [f"{value:.1f}" for value in found]
      cells[4] = ", ".join(f"{value:.2f}" for value in shares)
    if whole := rows.get("whole"):
      gib = whole["hbm_bytes_per_device"] / 2**30
      available = whole["hbm_available_bytes"] / 2**30
      cells.append(f"{gib:.1f} of {available:.1f}")
      cells += (
        [
          f"{whole['predicted_step_secs'] * 1e3:.0f}",
          f"{whole['predicted_mfu']:.1%}",
        ]
        if whole["fits"]
        else ["does not fit", ""]
      )
    else:
      cells += ["", "", ""]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines + _origin(table)) + "\n"


def _local_layer(
  few: dict[str, Any], more: dict[str, Any]
) -> tuple[float, float, float]:
  """Returns by how much two plans differ: GFLOPs, MiB and ms of a device."""
  activations = [
    row["hbm_bytes_by_kind"]["activations"] / 2**20 for row in (few, more)
  ]
  names = ("hardware_flops_per_step", "predicted_step_secs")
  flops, secs = (more[name] - few[name] for name in names)
  return (
    flops / more["num_devices"] / 1e9,
    activations[1] - activations[0],
    secs * 1e3,
  )


def _origin(table: dict[str, dict[str, Any]]) -> list[str]:
  """What all of a table was compiled with."""
  versions = {
    ", ".join(f"{k} {v}" for k, v in row["versions"].items())
    for row in table.values()
  }
  commits = {
    f"{str(row['commit'])[:12]}{' (changed)' if row['dirty'] else ''}"
    for row in table.values()
  }
  return [
    "",
    f"All in bfloat16. Compiled with {'; '.join(sorted(versions))}, from "
    f"commit {', '.join(sorted(commits))}.",
  ]


TABLES = {
  "table": (entries, to_markdown),
  "meshes": (mesh_entries, meshes_to_markdown),
  "depth": (depth_entries, depth_to_markdown),
  "long": (long_entries, long_to_markdown),
  "recipes": (recipe_entries, recipes_to_markdown),
}


def main(argv: list[str] | None = None) -> int:
  """Makes the table."""
  parser = argparse.ArgumentParser(prog="python -m experiments.plan.table")
  parser.add_argument("which", nargs="?", default="table", choices=TABLES)
  parser.add_argument("--only", default="", help="regex over the entries")
  parser.add_argument("--again", action="store_true", help="also those it has")
  parser.add_argument("--list", action="store_true", help="only name them")
  args = parser.parse_args(argv)
  make_entries, make_page = TABLES[args.which]
  path = FOLDER / f"{args.which}.json"
  table = json.loads(path.read_text()) if path.exists() else {}
  failed = 0
  for entry in make_entries():
    if not re.search(args.only, entry.key):
      continue
    known = entry.key in table and not is_older(table[entry.key])
    if args.list or (known and not args.again):
      print(f"{'has ' if known else 'lacks '}{entry.key}")
      continue
    print(f"compiling {entry.key}", flush=True)
    try:
      table[entry.key] = compile_entry(entry)
    except RuntimeError as error:
      print(error, file=sys.stderr)
      failed = 1
      continue
    order = {e.key: i for i, e in enumerate(make_entries())}
    listed = {e.key for e in make_entries()}
    table = {key: row for key, row in table.items() if key in listed}
    table = dict(
      sorted(table.items(), key=lambda item: order.get(item[0], len(order)))
    )
    path.write_text(json.dumps(table, indent=1) + "\n")
  if table and not args.list:
    path.with_suffix(".md").write_text(make_page(table))
  return failed


if __name__ == "__main__":
  sys.exit(main())
