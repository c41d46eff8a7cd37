"""Embeddings of real sentences: this project against PyTorch and ONNX, on CPU.

Text in, vectors out: what is timed is everything between a list of sentences
and the mean of each one's last hidden states, tokenising and making batches
included, in float32 with the same weights. Reading the weights, compiling and
writing to a file are not.

  ours         bert_jax.prediction.predict.Predictor, what --mode=predict runs
  hf           Hugging Face transformers with `sdpa` attention; each batch is
               padded to its longest sentence, in the order given
  hf_sorted    the same, sorted by length before batches are made
  onnx         onnxruntime on the graph that torch.onnx exports, all of its
               optimisations on; batches as for hf
  onnx_sorted  the same, sorted by length

  python experiments/bench/predict.py --model=runs/minilm --input=TEXT

Prints a table of sentences/s and, as the last line, a summary as JSON. Each
side has a process of its own; they take turns on the same sentences. Fails if
a vector differs from ours by more than 1e-5. Needs torch, transformers, onnx
and onnxruntime beside the package.
"""

import argparse
import json
import os
from pathlib import Path
import random
import sys
import tempfile
import warnings

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bert_jax.data import corpus
from experiments import help_pages
from experiments.bench import prepare as bench_prepare
from experiments.bench import sides as sides_lib

SIDES = ("ours", "hf", "hf_sorted", "onnx", "onnx_sorted")
TOLERANCE = 1e-5
MAX_LEN = 512  # tokens a sentence; what is longer is cut on all sides
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--model", default="runs/minilm", help="in HF's format")
  parser.add_argument("--input", default=bench_prepare.INPUT,
                      help="text, one sentence a line")  # fmt: skip
  parser.add_argument("--sentences", type=int, default=1024, help="at random")
  parser.add_argument("--batch_size", type=int, default=32, help="of theirs")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  for name in ("sentences", "batch_size", "rounds"):
    if getattr(args, name) < 1:
      parser.error(f"--{name}={getattr(args, name)} must be at least 1")
  if not os.path.isdir(args.model):
    parser.error(f"--model={args.model} is not there; `make minilm` fetches it")
  return args


def read_sentences(path):
  """The lines of a text; without one, sentences of Python's help pages."""
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      return [line.strip() for line in file if line.strip()]
  if path != bench_prepare.INPUT:
    raise SystemExit(f"--input={path} is not there; give a text")
  print(f"{path} is not here: using Python's help pages")
  with tempfile.TemporaryDirectory() as folder:
    pages = os.path.join(folder, "pages.txt")
    Path(pages).write_text("\n\n\n".join(help_pages.pages()), encoding="utf-8")
    return [
      sentence
      for unit in corpus.list_units([pages], "paragraphs", 1 << 23)
      for document in corpus.read_documents(unit, "paragraphs", "", "en")
      for sentence in document
    ]


def pick_sentences(sentences, count):
  """Some of them in an order of chance, which is always the same."""
  if len(sentences) < count:
    raise SystemExit(f"--sentences={count}, but there are {len(sentences)}")
  return random.Random(0).sample(sentences, count)


def split_batches(lengths, batch_size, by_length):
  """[N] lengths -> arrays of places, each at most a batch.

  Args:
    lengths: tokens of each sentence.
    batch_size: sentences a batch.
    by_length: the longest first, so that a batch pads little; else in order.
  """
  order = np.arange(len(lengths))
  if by_length:
    order = np.argsort(-np.asarray(lengths), kind="stable")
  return np.split(order, range(batch_size, len(order), batch_size))


def make_ours(args):
  """Returns a function from sentences to vectors [N, D]."""
  from bert_jax.prediction import predict
  from configs import predict as predict_config

  config = predict_config.get_config("kind=embed,fields=mean")
  predictor = predict.Predictor.load(args.model, config)
  return lambda texts: np.array(
    [found["mean"] for found in predictor({"text": text} for text in texts)]
  )


def make_reference(args):
  """The same for the other sides."""
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
  make = make_torch if args.side.startswith("hf") else make_onnx
  means = make(args)
  by_length = args.side.endswith("_sorted")

  def embed(texts):
    ids = tokenizer(texts, truncation=True, max_length=MAX_LEN)["input_ids"]
    lengths = [len(tokens) for tokens in ids]
    found = None
    for places in split_batches(lengths, args.batch_size, by_length):
      fields = pad([ids[i] for i in places])
      vectors = means(fields)
      if found is None:
        found = np.zeros((len(texts), vectors.shape[-1]), np.float32)
      found[places] = vectors
    return found

  return embed


def pad(ids):
  """Lists of token ids -> int64 arrays [B, longest] by name of the input."""
  shape = (len(ids), max(map(len, ids)))
  fields = {name: np.zeros(shape, np.int64) for name in INPUTS}  # [PAD] is 0
  for row, tokens in enumerate(ids):
    fields["input_ids"][row, : len(tokens)] = tokens
    fields["attention_mask"][row, : len(tokens)] = 1
  return fields


def load_torch(args, attention):
  """The reference's encoder, without the pooler, which nobody reads."""
  import torch
  import transformers

  torch.set_num_threads(args.threads)
  transformers.logging.set_verbosity_error()  # of weights that are not read
  return transformers.BertModel.from_pretrained(
    args.model, attn_implementation=attention, add_pooling_layer=False
  ).eval()


def make_torch(args):
  """Returns a function from the fields of a batch to vectors [B, D]."""
  import torch

  model = load_torch(args, "sdpa")

  def means(fields):
    with torch.inference_mode():
      fields = {name: torch.from_numpy(x) for name, x in fields.items()}
      hidden = model(**fields).last_hidden_state
      mask = fields["attention_mask"][..., None].to(hidden.dtype)
      return ((hidden * mask).sum(1) / mask.sum(1)).numpy()

  return means


def make_onnx(args):
  """The same by onnxruntime."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = args.threads
  options.graph_optimization_level = (
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
  )
  path = os.path.join(args.folder, f"{args.side}.onnx")
  export(args, path)
  session = onnxruntime.InferenceSession(
    path, options, providers=["CPUExecutionProvider"]
  )

  def means(fields):
    (hidden,) = session.run(None, fields)
    mask = fields["attention_mask"][..., None].astype(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)

  return means


def export(args, path):
  """Writes the encoder as an ONNX graph with free batch and length.

  Of torch's exporters and kinds of attention this pair gave onnxruntime the
  graph that it was fastest with; its own fusions for BERT changed nothing.
  """
  import torch

  model = load_torch(args, "eager")

  class Hidden(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.model = model

    def forward(self, *fields):
      named = dict(zip(INPUTS, fields, strict=True))
      return self.model(**named).last_hidden_state

  row = torch.ones((2, 8), dtype=torch.int64)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is older than torch's default
    torch.onnx.export(
      Hidden(),
      (row, row, torch.zeros_like(row)),
      path,
      dynamo=False,
      opset_version=17,
      input_names=list(INPUTS),
      output_names=["hidden"],
      dynamic_axes={name: {0: "B", 1: "L"} for name in (*INPUTS, "hidden")},
    )


def serve(args):
  """One side: embeds the sentences of the folder, the first time to a file."""
  sides_lib.limit_threads(args.threads)
  folder = Path(args.folder)
  texts = json.loads((folder / "sentences.json").read_text())
  embed = (make_ours if args.side == "ours" else make_reference)(args)
  np.save(folder / f"{args.side}.npy", embed(texts))
  sides_lib.serve(lambda: embed(texts))


def largest_differences(folder):
  """{side: largest difference of a number from ours}."""
  ours = np.load(Path(folder) / "ours.npy")
  return {
    name: float(np.abs(np.load(Path(folder) / f"{name}.npy") - ours).max())
    for name in SIDES[1:]
  }


def compare(args, argv, folder):
  """Lets the sides take turns; prints a table, returns a summary."""
  sides = sides_lib.start(__file__, [*argv, f"--folder={folder}"], SIDES)
  differences = largest_differences(folder)
  if max(differences.values()) > TOLERANCE:
    raise SystemExit(f"the vectors differ from ours by {differences}")
  columns = [*SIDES, "to hf", "to onnx", "to sorted", "others"]
  print("round".rjust(8), *(name.rjust(11) for name in columns))
  table: dict[str, list[float]] = {name: [] for name in columns}

  def show(title, values):
    cells = [f"{v:>11.1f}" for v in values[:5]]
    cells += [f"{v:>11.2f}" for v in values[5:8]] + [f"{values[8]:>11.0%}"]
    print(f"{title:>8}", *cells, flush=True)

  for i in range(args.rounds):
    shares = []
    for name, side in sides.items():
      (secs,), share = side.measure(1)
      table[name].append(args.sentences / secs)
      shares.append(share)
    ours = table["ours"][-1]
    table["to hf"].append(ours / table["hf"][-1])
    table["to onnx"].append(ours / table["onnx"][-1])
    best = max(table[f"{name}_sorted"][-1] for name in ("hf", "onnx"))
    table["to sorted"].append(ours / best)
    table["others"].append(max(0.0, *shares))
    show(str(i), [column[-1] for column in table.values()])
  for side in sides.values():
    side.close()
  summary = sides_lib.summarize(table, show)
  return summary | {"largest_difference": max(differences.values())}


def main(argv=None):
  argv = sys.argv[1:] if argv is None else list(argv)
  args = parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TOKENIZERS_PARALLELISM"] = "true"
  if args.side:
    return serve(args)
  texts = pick_sentences(read_sentences(args.input), args.sentences)
  words = sum(len(text.split()) for text in texts) / len(texts)
  print(
    f"{args.sentences} sentences of {words:.1f} words, {args.threads} threads, "
    f"theirs {args.batch_size} a batch; sentences/s. 'to sorted': to the "
    "faster of the two that sort"
  )
  with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "sentences.json").write_text(json.dumps(texts))
    summary = compare(args, argv, folder)
  given = {k: v for k, v in vars(args).items() if k not in ("side", "folder")}
  given["input"] = os.path.basename(args.input)
  print(json.dumps(given | {"unit": "sentences/s"} | summary))
  return None


if __name__ == "__main__":
  main()
