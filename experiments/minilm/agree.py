"""How far hidden states are from those of Hugging Face's BERT, under torch.

  python -m experiments.minilm.agree --from=runs/minilm < sentences.txt

Reads a sentence a line. Ours go through --mode=predict's classes, several to a
row; theirs one at a time. Prints the largest difference of a number of the last
layer, and exits with 1 if it is above 1e-5. Needs torch and transformers.
"""

import argparse
import sys

import numpy as np
import torch
import transformers

from bert_jax.prediction import predict
from configs import predict as predict_config

TOLERANCE = 1e-5


def largest_difference(sentences, weights):
  """Compares the last layer's states of sentences, every token's.

  Returns:
    The number of tokens, and the largest difference.
  """
  config = predict_config.get_config(f"kind=embed,from={weights}")
  config.predict.fields, config.predict.layers = ("layers",), (-1,)
  config.predict.decimals = 0
  predictor = predict.Predictor.load(weights, config)
  records = list(predictor([{"text": text} for text in sentences]))
  tokenizer = transformers.BertTokenizer.from_pretrained(weights)
  model = transformers.BertModel.from_pretrained(weights).eval()
  tokens, largest = 0, 0.0
  for text, record in zip(sentences, records, strict=True):
    inputs = tokenizer([text], return_tensors="pt", truncation=True)
    with torch.no_grad():
      theirs = model(**inputs)[0][0].numpy()
    ours = np.array(record["layers"]["-1"])
    if ours.shape != theirs.shape:
      raise SystemExit(f"{text!r}: {len(ours)} tokens, theirs {len(theirs)}")
    tokens += len(ours)
    # Written so that what is no number stays.
    largest = float(np.maximum(largest, np.abs(ours - theirs).max()))
  return tokens, largest


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--from", dest="weights", default="runs/minilm")
  args = parser.parse_args()
  sentences = [line.strip() for line in sys.stdin if line.strip()]
  if not sentences:
    parser.error("there are no sentences in standard input")
  tokens, largest = largest_difference(sentences, args.weights)
  print(f"{len(sentences)} sentences, {tokens} tokens: {largest:.1e}")
  return int(not largest <= TOLERANCE)


if __name__ == "__main__":
  sys.exit(main())
