"""Writes golden.npz: what Hugging Face's BERT computes, to compare with.

  python tests/models/make_golden.py

Needs torch and transformers; the tests that read the file do not. It holds, for
a tiny model with random weights, the weights (converted, under "params/..."),
one batch with padding, and the outputs for both forms of gelu.
"""

import pathlib

import numpy as np

PATH = pathlib.Path(__file__).with_name("golden.npz")
# Our name of the activation: theirs.
ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "gelu_new"}
TINY = {
  "vocab_size": 120,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 64,
  "max_position_embeddings": 16,
}


def convert(weights, num_heads):
  """Converts a state dict (as numpy) of BertForPreTraining to our tree."""

  def norm(name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

  def dense(name):
    kernel = weights[f"{name}.weight"].T
    return {"kernel": kernel, "bias": weights[f"{name}.bias"]}

  def heads(name):
    out = dense(name)
    shape = (num_heads, out["bias"].size // num_heads)
    kernel = out["kernel"].reshape(-1, *shape)
    return {"kernel": kernel, "bias": out["bias"].reshape(shape)}

  def layer(name):
    attention = {
      key: heads(f"{name}.attention.self.{key}")
      for key in ("query", "key", "value")
    }
    out = dense(f"{name}.attention.output.dense")
    shape = attention["query"]["kernel"].shape
    out["kernel"] = out["kernel"].reshape(*shape[1:], shape[0])
    return {
      "attention": attention | {"out": out},
      "attention_norm": norm(f"{name}.attention.output.LayerNorm"),
      "mlp": {
        "in": dense(f"{name}.intermediate.dense"),
        "out": dense(f"{name}.output.dense"),
      },
      "mlp_norm": norm(f"{name}.output.LayerNorm"),
    }

  tables = "bert.embeddings.{}_embeddings.weight"
  encoder = {
    "embeddings": {
      "word": {"embedding": weights[tables.format("word")]},
      "position": {"embedding": weights[tables.format("position")]},
      "type": {"embedding": weights[tables.format("token_type")]},
      "norm": norm("bert.embeddings.LayerNorm"),
    },
    "pooler": dense("bert.pooler.dense"),
  }
  i = 0
  while f"bert.encoder.layer.{i}.output.dense.bias" in weights:
    encoder[f"layer_{i}"] = layer(f"bert.encoder.layer.{i}")
    i += 1
  head = "cls.predictions"
  mlm = {
    "dense": dense(f"{head}.transform.dense"),
    "norm": norm(f"{head}.transform.LayerNorm"),
    "bias": weights[f"{head}.bias"],
  }
  return {"encoder": encoder, "mlm": mlm, "nsp": dense("cls.seq_relationship")}


def make_batch(vocab_size, batch_size, length, num_masked):
  """Returns a random batch whose rows are padded, but for the first."""
  rng = np.random.default_rng(0)
  lengths = np.linspace(length, length // 3, batch_size).astype(int)
  shape = (batch_size, length)
  positions = [rng.integers(0, n, num_masked) for n in lengths]
  batch = {
    "input_ids": rng.integers(0, vocab_size, shape),
    "input_mask": np.arange(length)[None] < lengths[:, None],
    "segment_ids": rng.integers(0, 2, shape),
    "masked_positions": np.stack(positions),
  }
  return {name: value.astype(np.int32) for name, value in batch.items()}


def run_reference(sizes, hidden_act, batch, noise):
  """Runs a random model of Hugging Face.

  Args:
    sizes: arguments of its `BertConfig`.
    hidden_act: our name of the activation.
    batch: see `make_batch`.
    noise: standard deviation of what is added to every initial weight, so that
      biases and scales are not trivial.

  Returns:
    (our parameter tree, outputs by name), both numpy.
  """
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.BertConfig(
    **sizes,
    hidden_act=ACTIVATIONS[hidden_act],
    attn_implementation="eager",
  )
  model = transformers.BertForPreTraining(config).eval()
  inputs = {
    "input_ids": batch["input_ids"],
    "attention_mask": batch["input_mask"],
    "token_type_ids": batch["segment_ids"],
  }
  inputs = {key: torch.tensor(value).long() for key, value in inputs.items()}
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(noise * torch.randn_like(parameter))
    out = model(**inputs, output_hidden_states=True)
    pooled = model.bert(**inputs).pooler_output
  weights = {key: value.numpy() for key, value in model.state_dict().items()}
  outputs = {
    "layers": np.stack([layer.numpy() for layer in out.hidden_states]),
    "pooled": pooled.numpy(),
    "mlm_logits": np.take_along_axis(
      out.prediction_logits.numpy(), batch["masked_positions"][:, :, None], 1
    ),
    "nsp_logits": out.seq_relationship_logits.numpy(),
  }
  return convert(weights, config.num_attention_heads), outputs


def flatten(tree, prefix):
  """Yields (path, array) of a tree of dicts."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from flatten(value, f"{prefix}/{key}")
    else:
      yield f"{prefix}/{key}", value


def unflatten(arrays, prefix):
  """The inverse of `flatten`, of the paths that start with `prefix`."""
  tree = {}
  for path, value in arrays.items():
    first, *keys = path.split("/")
    if first == prefix:
      node = tree
      for key in keys[:-1]:
        node = node.setdefault(key, {})
      node[keys[-1]] = value
  return tree


def main():
  batch = make_batch(TINY["vocab_size"], 3, 12, 4)
  arrays = dict(flatten(batch, "batch"))
  for hidden_act in ACTIVATIONS:
    params, outputs = run_reference(TINY, hidden_act, batch, 0.2)
    arrays |= flatten(params, "params")  # the same for both: one seed
    arrays |= flatten(outputs, hidden_act)
  np.savez_compressed(PATH, **arrays)
  print(f"{PATH}: {len(arrays)} arrays, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
  main()
