"""Ten thousand mixed requests, bad ones among them: every answer is checked.

  python -m experiments.serve.mixed --model=runs/minilm --requests=10000

Starts `bert-jax serve`, sends it requests of every route in an order of chance
from 64 clients, and compares each answer with that of the Python API, or with
the status that a bad request must get. Prints what was sent and, as the last
line, the counts as JSON. Fails if an answer is lost or wrong. Needs the extra
serve and httpx.
"""

import argparse
import asyncio
import base64
import collections
import json
import os
import random
import tempfile

import numpy as np

from experiments.bench import predict as bench
from experiments.bench import prepare as bench_prepare
from experiments.serve import load

TOLERANCE = 1e-5

# Name -> method, path, body and the status of a request that is refused.
BAD = {
  "no JSON": ("POST", "/v1/embeddings", b"{", 400),
  "no object": ("POST", "/predict", b"[1]", 400),
  "no input": ("POST", "/v1/embeddings", {}, 400),
  "empty": ("POST", "/v1/embeddings", {"input": []}, 400),
  "token ids": ("POST", "/v1/embeddings", {"input": [[1, 2]]}, 400),
  "a number": ("POST", "/v1/embeddings", {"input": ["a", 3]}, 400),
  "unknown field": ("POST", "/rerank", {"query": "a", "docs": []}, 400),
  "unknown kind": ("POST", "/predict",
                   {"kind": "sing", "records": [{"text": "a"}]}, 400),
  "half a character": ("POST", "/v1/embeddings",
                       b'{"input": "\\ud800"}', 400),
  "half in model": ("POST", "/v1/embeddings",
                    b'{"input": "a", "model": "\\ud800"}', 400),
  "half in id": ("POST", "/predict",
                 b'{"kind": "embed", "records": [{"text": "a", '
                 b'"id": "\\udfff"}]}', 400),
  "half in name": ("POST", "/rerank",
                   b'{"query": "a", "documents": ["b"], "\\ud800": 1}', 400),
  "infinite id": ("POST", "/predict",
                  b'{"kind": "embed", "records": [{"text": "a", '
                  b'"id": 1e999}]}', 400),
  "too many": ("POST", "/v1/embeddings", {"input": ["a"] * 3000}, 413),
  "too large": ("POST", "/v1/embeddings", {"input": "a" * (1 << 25)}, 413),
  "no route": ("GET", "/nothing", None, 404),
  "wrong method": ("GET", "/predict", None, 405),
}  # fmt: skip
_RARE = ("too many", "too large")  # they are slow to send


def draw(rng, texts):
  """Returns (name, what to send, numbers of the texts) of a request."""
  kind = rng.choice(["one", "many", "base64", "predict", "rerank", "bad"])
  count = 1 if kind == "one" else rng.randint(1, 24)
  places = [rng.randrange(len(texts)) for _ in range(count)]
  chosen = [texts[i] for i in places]
  if kind == "bad":
    name = rng.choice(list(BAD))
    if name in _RARE and rng.random() < 0.95:
      name = "empty"
    return name, BAD[name][:3], []
  if kind == "predict":
    body = {"kind": "embed", "records": [{"text": text} for text in chosen]}
    return kind, ("POST", "/predict", body), places
  if kind == "rerank":
    query = rng.randrange(len(texts))
    body = {"query": texts[query], "documents": chosen}
    return kind, ("POST", "/rerank", body), [query, *places]
  body = {"input": chosen[0] if kind == "one" else chosen}
  if kind == "base64":
    body["encoding_format"] = "base64"
  return kind, ("POST", "/v1/embeddings", body), places


def is_right(name, places, status, answer, vectors):
  """Whether an answer is that of the Python API, or the error it must be."""
  if name in BAD:
    return status == BAD[name][3] and "error" in answer
  if status != 200:
    return False
  if name == "rerank":
    query, *rest = vectors[places]
    rest = np.stack(rest)
    norms = np.linalg.norm(rest, axis=1) * np.linalg.norm(query)
    wanted = rest @ query / norms
    got = {x["index"]: x["relevance_score"] for x in answer["results"]}
    found = np.array([got[i] for i in range(len(rest))])
    order = [x["relevance_score"] for x in answer["results"]]
    return bool(
      np.abs(found - wanted).max() < TOLERANCE
      and order == sorted(order, reverse=True)
    )
  if name == "predict":
    field = "sentence" if "sentence" in answer["answers"][0] else "mean"
    found = np.array([one[field] for one in answer["answers"]])
  else:
    given = [one["embedding"] for one in answer["data"]]
    if name == "base64":
      given = [np.frombuffer(base64.b64decode(x), "<f4") for x in given]
    found = np.array(given)
  return found.shape == (len(places), vectors.shape[1]) and bool(
    np.abs(found - vectors[places]).max() < TOLERANCE
  )


async def send_all(address, args, texts, vectors):
  """Sends every request; returns the count of each name, and what was wrong."""
  import httpx

  rng = random.Random(0)
  drawn = iter([draw(rng, texts) for _ in range(args.requests)])
  counts: collections.Counter = collections.Counter()
  wrong: list[str] = []

  async def client(http):
    for name, (method, path, body), places in drawn:
      content = body if isinstance(body, bytes) else None
      as_json = None if isinstance(body, bytes) else body
      try:
        answer = await http.request(method, path, content=content, json=as_json)
        found = answer.json()
        good = is_right(name, places, answer.status_code, found, vectors)
        problem = f"{name}: {answer.status_code} {answer.text[:200]}"
      except Exception as error:
        # The server may close a connection whose body it does not read.
        good = name == "too large" and isinstance(error, httpx.TransportError)
        problem = f"{name}: {error!r}"
      counts[name] += 1
      if not good:
        wrong.append(problem)

  limits = httpx.Limits(max_connections=args.clients)
  async with httpx.AsyncClient(
    base_url=address, timeout=300, limits=limits
  ) as http:
    await asyncio.gather(*(client(http) for _ in range(args.clients)))
  return counts, wrong


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--model", default="runs/minilm", help="in HF's format")
  parser.add_argument("--input", default=bench_prepare.INPUT)
  parser.add_argument("--texts", type=int, default=512)
  parser.add_argument("--requests", type=int, default=10_000)
  parser.add_argument("--clients", type=int, default=64)
  args = parser.parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  texts = bench.read_sentences(args.input)
  texts = random.Random(0).sample(texts, min(args.texts, len(texts)))
  import bert_jax

  model = bert_jax.load(args.model)
  has_steps = bool(model.pretrained.sentence)
  field = "sentence" if has_steps else "mean"
  found = model.embed(texts, fields=(field,))
  vectors = np.stack([getattr(one, field) for one in found])
  with tempfile.TemporaryDirectory() as folder:
    process, address, _ = load.start("ours", args, folder)
    try:
      counts, wrong = asyncio.run(send_all(address, args, texts, vectors))
    finally:
      status = load.stop(process)
  for name, count in sorted(counts.items()):
    print(f"{name:<18}{count:>8}")
  total = sum(counts.values())
  summary = {
    "requests": total,
    "lost": args.requests - total,
    "wrong": len(wrong),
    "exit_status": status,
  }
  print(json.dumps(summary))
  if wrong or total != args.requests or status:
    raise SystemExit("\n".join(["wrong:", *wrong[:10]]))


if __name__ == "__main__":
  main()
