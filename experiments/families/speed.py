"""Embeddings of real sentences by RoBERTa and ModernBERT: ours against torch.

  python -m experiments.families.speed --data=../shared/data/glue

Random weights in the shapes of RoBERTa-base and ModernBERT-base, and a
byte-level BPE that is learned from the sentences. Text in, vectors out, in
float32 on the CPU: tokenising and making batches are timed, reading weights and
compiling are not.

  ours   bert_jax.prediction.predict.Predictor, what `bert-jax predict` runs
  torch  transformers with `sdpa` attention; each batch is padded to its longest
         sentence, in the order given

Each side has a process of its own; they take turns on the same sentences (the
first N of STS-B's validation split). Prints a line for each round and, as the
last line of each model, its medians as JSON. Fails if a vector differs by more
than 1e-4 of the largest number.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
from typing import Any

import numpy as np

from experiments.bench import predict as bench
from experiments.bench import sides as sides_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDES = ("ours", "torch")
MODELS = ("roberta", "modernbert")
TOLERANCE = 1e-4
_TINY = {
  "num_layers": 2, "hidden_size": 32, "num_heads": 4, "mlp_dim": 64,
}  # fmt: skip


def parse_args(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--data", default="../shared/data/glue")
  parser.add_argument("--models", default="+".join(MODELS))
  parser.add_argument("--sentences", type=int, default=512)
  parser.add_argument("--batch_size", type=int, default=32, help="of torch")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--size", default="base", choices=("base", "tiny"))
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--model", help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def read_sentences(data: str, count: int) -> list[str]:
  """Returns the first sentences of STS-B's validation split."""
  from bert_jax import tasks

  examples = tasks.read_examples(tasks.TASKS["stsb"], data, "validation")
  texts = [t for e in examples for t in (e.text_a, e.text_b)]
  if len(texts) < count:
    raise SystemExit(f"--sentences={count}, but there are {len(texts)}")
  return texts[:count]


def write_model(name: str, size: str, folder: str, texts: list[str]) -> None:
  """Writes random weights in the shape of a family's base size."""
  from bert_jax import weights
  from bert_jax.data.tokenizers import pipeline
  from bert_jax.models import families
  from bert_jax.models import heads
  from bert_jax.models import params as param_trees

  family = families.FAMILIES[name]
  model: dict[str, Any] = {
    "type_vocab_size": 0, **family.switches, **family.defaults,
    **family.presets["base"], **(_TINY if size == "tiny" else {}),
  }  # fmt: skip
  for key in ("dropout_rate", "attention_dropout_rate"):
    model.pop(key, None)
  rng = np.random.default_rng(0)
  flat = {}
  for path, shape in heads.param_shapes({**model, "family": name}, 1).items():
    if path.startswith("encoder/") and "pooler" not in path:
      values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
      flat[path] = values + np.float32(path.endswith("scale"))
  form = "roberta" if name == "roberta" else "bert"
  tokenizer = pipeline.PipelineTokenizer.learn(
    texts, 1000 if size == "base" else 300, False, special_tokens=form
  )
  weights.write(
    weights.Pretrained(
      format="bert_jax", model=model, params=param_trees.nest(flat),
      family=name, tokenizer=tokenizer,
    ),
    folder,
    "huggingface",
  )  # fmt: skip


def make_torch(args: argparse.Namespace) -> Any:
  """Returns a function from sentences to the means of their last states."""
  import torch
  import transformers

  torch.set_num_threads(args.threads)
  transformers.logging.set_verbosity_error()
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(args.model)
  model = transformers.AutoModel.from_pretrained(
    args.model, attn_implementation="sdpa"
  ).eval()

  def embed(texts: list[str]) -> np.ndarray:
    ids = tokenizer(texts)["input_ids"]
    found = []
    for start in range(0, len(ids), args.batch_size):
      fields = tokenizer.pad(
        {"input_ids": ids[start : start + args.batch_size]},
        return_tensors="pt",
      )
      with torch.inference_mode():
        hidden = model(
          input_ids=fields["input_ids"],
          attention_mask=fields["attention_mask"],
        ).last_hidden_state
        mask = fields["attention_mask"][..., None].to(hidden.dtype)
        found.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(found)

  return embed


def serve(args: argparse.Namespace) -> None:
  """One side: embeds the sentences of the folder, the first time to a file."""
  sides_lib.limit_threads(args.threads)
  folder = pathlib.Path(args.folder)
  texts = json.loads((folder / "sentences.json").read_text())
  make = bench.make_ours if args.side == "ours" else make_torch
  embed = make(args)
  np.save(folder / f"{args.side}.npy", embed(texts))
  sides_lib.serve(lambda: embed(texts))


def compare(name: str, args: argparse.Namespace, folder: str) -> dict[str, Any]:
  """Lets both sides take turns on one model; returns the medians."""
  from bert_jax.runtime import machine

  texts = json.loads((pathlib.Path(folder) / "sentences.json").read_text())
  model = os.path.join(folder, name)
  write_model(name, args.size, model, texts)
  argv = [
    f"--model={model}", f"--folder={folder}", f"--threads={args.threads}",
    f"--batch_size={args.batch_size}",
  ]  # fmt: skip
  # Ours runs in the environment that the launcher makes for itself.
  plain = os.environ | {"PYTHONPATH": str(ROOT)}
  environs = {"ours": machine.huge_pages(plain), "torch": plain}
  sides = {
    side: sides_lib.Side(__file__, side, argv, environs[side]) for side in SIDES
  }
  ours, theirs = (
    np.load(pathlib.Path(folder) / f"{side}.npy") for side in SIDES
  )
  difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
  if not difference <= TOLERANCE:
    raise SystemExit(f"{name}: the vectors differ by {difference:.1e}")
  speeds: dict[str, list[float]] = {side: [] for side in SIDES}
  others = []
  for i in range(args.rounds):
    for side, process in sides.items():
      (secs,), share = process.measure(1)
      speeds[side].append(args.sentences / secs)
      others.append(share)
    last = {side: found[-1] for side, found in speeds.items()}
    ratio = last["ours"] / last["torch"]
    cells = ", ".join(f"{k} {v:.1f}/s" for k, v in last.items())
    print(f"{name} {i}: {cells}, ratio {ratio:.2f}", flush=True)
  for process in sides.values():
    process.close()
  ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
  return {
    "model": name, "size": args.size, "sentences": args.sentences,
    **{k: round(statistics.median(v), 2) for k, v in speeds.items()},
    "ratio": round(statistics.median(ratios), 3),
    "others": round(max(0.0, *others), 3), "difference": difference,
  }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  args = parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TOKENIZERS_PARALLELISM"] = "true"
  if args.side:
    return serve(args)
  texts = read_sentences(args.data, args.sentences)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "sentences.json"
    path.write_text(json.dumps(texts))
    for name in args.models.split("+"):
      print(json.dumps(compare(name, args, folder)), flush=True)
  return None


if __name__ == "__main__":
  main()
