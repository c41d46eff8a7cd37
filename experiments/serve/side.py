"""The same weights behind the same server, computed by torch or onnxruntime.

  python -m experiments.serve.side --side=torch --model=runs/minilm --port=8001

Routes, queue and batching are those of `bert-jax serve`; only what computes a
batch differs. Texts are sorted by length and padded to the longest of 32, as
the fastest of the sides of experiments/bench/predict.py does.
"""

import argparse
import types
from typing import Any, cast

import numpy as np

from bert_jax.kinds import answers
from bert_jax.prediction.serving import app
from bert_jax.prediction.serving import server as server_lib
from experiments.bench import predict as bench

BATCH = 32


class Reference:
  """A model of another program, as the server knows models.

  Attributes: those of `serving.served.Served`.
  """

  kinds = ("embed",)
  default_kind = embedder = "embed"

  def __init__(self, args):
    import transformers

    self.name = args.side
    self._tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    make = bench.make_torch if args.side == "torch" else bench.make_onnx
    self._means = make(args)
    width = transformers.AutoConfig.from_pretrained(args.model).hidden_size
    pretrained = types.SimpleNamespace(model={"hidden_size": width})
    self.model = types.SimpleNamespace(pretrained=pretrained)

  def predictor(self, kind):
    del kind
    return self

  def answerer(self, kind):
    del kind
    return types.SimpleNamespace(vector="mean")

  def parse(self, kind, records, name):
    del kind, name
    texts = [record["text"] for record in records]
    ids = self._tokenizer(texts, truncation=True, max_length=bench.MAX_LEN)
    return [
      answers.Line("", {}, [answers.EncodedText(one, [0] * len(one))])
      for one in ids["input_ids"]
    ]

  def num_tokens(self, line):
    return len(line.examples[0].ids)

  def compute(self, lines):
    ids = [line.examples[0].ids for line in lines]
    lengths = [len(one) for one in ids]
    found: list[dict[str, np.ndarray]] = [{}] * len(ids)
    for places in bench.split_batches(lengths, BATCH, by_length=True):
      for place, vector in zip(
        places, self._means(bench.pad([ids[i] for i in places])), strict=True
      ):
        found[place] = {"mean": np.asarray(vector, np.float32)}
    return found


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--side", choices=["torch", "onnx"], required=True)
  parser.add_argument("--model", default="runs/minilm", help="in HF's format")
  parser.add_argument("--port", type=int, required=True)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--folder", default=".", help="for the ONNX graph")
  args = parser.parse_args(argv)
  sock = server_lib.open_socket("127.0.0.1", args.port)
  server = app.Server(app.Limits())
  model = Reference(args)
  model.compute(model.parse("embed", [{"text": "a first text"}], ""))
  server.ready([cast(Any, model)])

  import uvicorn

  config = uvicorn.Config(
    server.app, log_level="warning", access_log=False, lifespan="off"
  )
  try:
    uvicorn.Server(config).run(sockets=[sock])
  finally:
    server.close()


if __name__ == "__main__":
  main()
