"""Writes a model as a program that runs without this package.

  bert-jax export --from=RUN --to=stablehlo --output=DIR

Format     what its folder holds
stablehlo  model.bin, a program of `jax.export`, and its weights
onnx       model.onnx, for onnxruntime and the like

Both take input_ids, attention_mask and token_type_ids as int32 [B, L] (int64 in
ONNX), of any B and any L up to the most that the model takes, one sequence a
row. What they give is in export.json: "last_hidden_state" [B, L, D] and "mean"
[B, D] of embeddings, "logits" of a head. run.py shows how to run the program.
"""

from collections.abc import Callable, Mapping
import dataclasses
import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bert_jax
from bert_jax.data.tokenizers import pipeline
from bert_jax.kinds import answers
from bert_jax.models import params as param_trees
from bert_jax.prediction import model as model_lib
from bert_jax.prediction import predict
from bert_jax.prediction import quantizing
from bert_jax.runtime import files
from bert_jax.weights import model_card

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
WEIGHTS = ("float32", "int8")
PROGRAM = "model.bin"
TENSORS = "model.safetensors"
GRAPH = "model.onnx"
# Where the program may run.
PLATFORMS = ("cpu", "tpu", "cuda")

# input_ids, attention_mask, token_type_ids -> outputs by name.
Function = Callable[..., dict[str, jax.Array]]


class ExportError(answers.PredictError):
  """The model cannot be written as this program."""


def make_function(predictor: predict.Predictor) -> Function:
  """Returns what a kind of prediction computes, for unpacked rows.

  Args:
    predictor: of the kind.

  Returns:
    A function of the parameters and of INPUTS, each [B, L].
  """
  return predictor.answerer.unpacked


def export(
  model: model_lib.Model, folder: str, format: str, kind: str = "",
  weights: str = "float32",
) -> list[str]:  # fmt: skip
  """Writes a model as a program, in a folder that appears when it is whole.

  Args:
    model: the model.
    folder: the folder to write, which must be new or empty.
    format: a key of FORMATS.
    kind: the kind of prediction; "" means the most specific that it has.
    weights: "float32", or "int8" for matrices of 8-bit integers.

  Returns:
    The names of the files.

  Raises:
    ExportError: The format cannot hold the model, or a package is missing.
    answers.PredictError: The model cannot do that kind of prediction.
  """
  if format not in FORMATS or weights not in WEIGHTS:
    raise ExportError(
      f"--to={format}, --weights={weights}; the formats are "
      f"{', '.join(FORMATS)}, the weights {', '.join(WEIGHTS)}"
    )
  if not files.is_free(folder):
    raise ExportError(f"{folder} exists and is not an empty folder; give a new")
  kind = kind or model.kinds[0]
  predictor, _ = model.predictor(kind)
  with files.whole_folder(folder) as temporary:
    outputs = FORMATS[format](model, predictor, temporary, weights)
    described = _describe(model, predictor, kind, format, weights, outputs)
    path = os.path.join(temporary, "export.json")
    files.write_json(path, described, indent=2, ensure_ascii=False)
    _write_tokenizer(model.pretrained, temporary)
  return sorted(files.list_names(folder))


def _describe(model, predictor, kind, format, weights, outputs) -> dict:
  context = predictor.answerer.context
  template = predictor.tokenizer.template
  return {
    "kind": kind,
    "format": format,
    "weights": weights,
    "inputs": list(INPUTS),
    "outputs": list(outputs),
    "labels": list(model.pretrained.labels),
    "max_len": context.model.max_len,
    "seq_len": context.seq_len,
    "pad_id": predictor.tokenizer.pad_id,
    "num_special_tokens": template.num_special(is_pair=False),
    "model": model.name,
    "bert_jax": bert_jax.__version__,
  }


def _write_tokenizer(pretrained: Any, folder: str) -> None:
  """Writes tokenizer.json, or the vocabulary of a kind that has none."""
  tokenizer = pretrained.tokenizer
  if isinstance(tokenizer, pipeline.PipelineTokenizer):
    path = os.path.join(folder, "tokenizer.json")
    files.write_json(path, tokenizer.pipeline.rules, ensure_ascii=False)
  elif not model_card.write_tokenizer(pretrained, folder):
    tokenizer.save(os.path.join(folder, "vocab"))


# --- StableHLO ---


@dataclasses.dataclass(frozen=True)
class Exported:
  """A program and its weights.

  Attributes:
    program: the program of `jax.export`, of (weights by name, *INPUTS).
    tensors: name -> array.
  """

  program: Any
  tensors: Mapping[str, np.ndarray]


def to_stablehlo(
  predictor: predict.Predictor, weights: str = "float32"
) -> Exported:
  """Returns a kind of prediction as a program for any batch and length.

  Args:
    predictor: of the kind.
    weights: one of WEIGHTS.
  """
  function = make_function(predictor)
  flat = {
    path: np.asarray(leaf)
    for path, leaf in param_trees.flatten(predictor.params).items()
  }
  tensors = quantizing.quantize(flat) if weights == "int8" else flat

  def run(tensors, ids, mask, types):
    params = quantizing.dequantize(tensors) if weights == "int8" else tensors
    return function(param_trees.nest(params), ids, mask, types)

  most = predictor.answerer.context.model.max_len
  shape = jax.export.symbolic_shape("B, L", constraints=[f"L <= {most}"])
  row = jax.ShapeDtypeStruct(shape, jnp.int32)
  specs = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in tensors.items()
  }
  program = jax.export.export(jax.jit(run), platforms=PLATFORMS)(
    specs, row, row, row
  )
  return Exported(program, tensors)


def check_flatbuffers() -> None:
  """Checks that jax can write and read its programs.

  Raises:
    ExportError: the package that it needs is not installed.
  """
  if importlib.util.find_spec("flatbuffers") is None:
    raise ExportError(
      "--to=stablehlo needs the package flatbuffers, which is not installed: "
      "pip install 'bert_jax[export]'"
    )


def _write_stablehlo(model, predictor, folder, weights) -> list[str]:
  from safetensors import numpy as safetensors

  del model
  check_flatbuffers()
  try:
    found = to_stablehlo(predictor, weights)
  except (NotImplementedError, jax.errors.JAXTypeError, TypeError) as error:
    raise ExportError(
      "this model cannot be a program for any length: "
      f"{str(error).splitlines()[0]:.300}"
    ) from error
  files.write_bytes(
    os.path.join(folder, PROGRAM), bytes(found.program.serialize())
  )
  tensors = {k: np.ascontiguousarray(x) for k, x in found.tensors.items()}
  safetensors.save_file(tensors, os.path.join(folder, TENSORS))
  files.write_text(os.path.join(folder, "run.py"), _RUN)
  row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  return list(
    jax.eval_shape(make_function(predictor), predictor.params, row, row, row)
  )


_RUN = '''"""Runs this program; needs jax, numpy, safetensors and flatbuffers.

  python run.py 101 7592 2088 102
"""

import pathlib
import sys

import jax
from jax import export
import numpy as np
from safetensors import numpy as safetensors

HERE = pathlib.Path(__file__).parent
program = export.deserialize(bytearray((HERE / "model.bin").read_bytes()))
weights = safetensors.load_file(HERE / "model.safetensors")


def run(input_ids, attention_mask, token_type_ids):
  """Returns the outputs by name; each input is int32 [B, L]."""
  return program.call(weights, input_ids, attention_mask, token_type_ids)


if __name__ == "__main__":
  ids = np.array([[int(word) for word in sys.argv[1:]]], np.int32)
  for name, value in run(ids, np.ones_like(ids), np.zeros_like(ids)).items():
    print(name, value.shape, np.asarray(value).ravel()[:4])
'''


# --- ONNX ---


def _write_onnx(model, predictor, folder, weights) -> list[str]:
  """Writes the graph that torch exports of the same weights.

  They go through a folder in Hugging Face's format. torch and transformers are
  needed to write the graph, and not to run it.
  """
  from bert_jax.prediction import onnx_graph

  return onnx_graph.write(
    model.pretrained, predictor.answerer, os.path.join(folder, GRAPH), weights
  )


# Format -> (model, predictor, folder, weights) -> the names of the outputs.
FORMATS: dict[str, Callable[..., list[str]]] = {
  "stablehlo": _write_stablehlo,
  "onnx": _write_onnx,
}
