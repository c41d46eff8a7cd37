"""The tree of parameters that a small BERT has, written out by hand."""


def bert_shapes(scan_layers):
  """Shapes of the parameters of a small BERT, as a tree."""
  layers, d, n, h, f, v, length = 2, 8, 2, 4, 16, 32, 12

  def norm():
    return {"scale": (d,), "bias": (d,)}

  def layer(lead):
    def stacked(tree):
      if isinstance(tree, dict):
        return {k: stacked(x) for k, x in tree.items()}
      return lead + tree

    qkv = {"kernel": (d, n, h), "bias": (n, h)}
    return stacked(
      {
        "attention": {
          "query": qkv,
          "key": qkv,
          "value": qkv,
          "out": {"kernel": (n, h, d), "bias": (d,)},
        },
        "attention_norm": norm(),
        "mlp": {
          "in": {"kernel": (d, f), "bias": (f,)},
          "out": {"kernel": (f, d), "bias": (d,)},
        },
        "mlp_norm": norm(),
      }
    )

  if scan_layers:
    stack = {"layers": layer((layers,))}
  else:
    stack = {f"layer_{i}": layer(()) for i in range(layers)}
  return {
    "encoder": {
      "embeddings": {
        "word": {"embedding": (v, d)},
        "position": {"embedding": (length, d)},
        "type": {"embedding": (2, d)},
        "norm": norm(),
      },
      **stack,
      "pooler": {"kernel": (d, d), "bias": (d,)},
    },
    "mlm": {
      "dense": {"kernel": (d, d), "bias": (d,)},
      "norm": norm(),
      "bias": (v,),
    },
    "nsp": {"kernel": (d, 2), "bias": (2,)},
  }
