"""Writes a model as an ONNX graph, by the exporter of torch."""

import dataclasses
import inspect
import os
import tempfile
from typing import Any
import warnings

from bert_jax import weights as weights_lib
from bert_jax.kinds import answers
from bert_jax.runtime import files

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxError(answers.PredictError):
  """The model cannot be written as an ONNX graph."""


def write(
  pretrained: weights_lib.Pretrained,
  answerer: answers.Answerer,
  path: str,
  weights: str,
) -> list[str]:
  """Writes a graph with any batch and length; returns its outputs.

  Args:
    pretrained: the model.
    answerer: of the kind of prediction.
    path: the file to write.
    weights: "float32", or "int8" for integer matrices, whose inputs are rounded
      to 8 bits for each product.

  Raises:
    OnnxError: A package is missing, or transformers has no such head.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise OnnxError(
      f"--to=onnx needs {error.name}, which is not installed; install the "
      "extra: pip install 'bert_jax[reference]'"
    ) from error
  name = answerer.transformers_class
  if not name:
    raise OnnxError(
      f"transformers has no head for {answerer.name}; give --to=stablehlo"
    )
  with tempfile.TemporaryDirectory() as folder:
    kept = pretrained
    if not isinstance(answerer, answers.TaskAnswerer):
      parts = ("encoder", "mlm")
      params = {k: v for k, v in pretrained.params.items() if k in parts}
      kept = dataclasses.replace(
        pretrained, params=params, kind=None, labels=()
      )
    source = os.path.join(folder, "hf")
    weights_lib.write(kept, source, "huggingface")
    transformers.logging.set_verbosity_error()
    automatic: Any = getattr(transformers, name)
    kwargs = {"attn_implementation": "eager"}
    reference = automatic.from_pretrained(source, **kwargs).eval()
    outputs = _export(torch, reference, answerer, path)
    if weights == "int8":
      _quantize(path, folder)
  return outputs


def _export(torch: Any, reference: Any, answerer: Any, path: str) -> list[str]:
  """Writes the graph of a model of transformers; returns its outputs."""
  # Decorators of transformers hide the names from the code of the function.
  takes = inspect.signature(reference.forward).parameters
  takes_types = "token_type_ids" in takes
  names: list[str] = []  # as the model returns them

  class Outputs(torch.nn.Module):
    """The model, with the outputs of `exporting.make_function`."""

    def __init__(self):
      super().__init__()
      self.model = reference

    def forward(self, input_ids, attention_mask, token_type_ids):
      more = {"token_type_ids": token_type_ids} if takes_types else {}
      given = {"input_ids": input_ids, "attention_mask": attention_mask, **more}
      found = self.model(**answerer.for_transformers(given))
      outputs = answerer.of_transformers(found, attention_mask)
      names[:] = list(outputs)
      return tuple(
        torch.stack(one, -1) if isinstance(one, tuple) else one
        for one in outputs.values()
      )

  module = Outputs()
  row = torch.ones((2, 8), dtype=torch.int64)
  inputs = (row, row, torch.zeros_like(row))
  with torch.no_grad():
    module(*inputs)
  outputs = list(names)
  lengths = answerer.token_outputs
  axes = {name: {0: "B", 1: "L"} for name in _INPUTS}
  axes |= {
    name: {0: "B", 1: "L"} if name in lengths else {0: "B"} for name in outputs
  }
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # this exporter is older than the default
    torch.onnx.export(
      module, inputs, path, dynamo=False, opset_version=17,
      input_names=list(_INPUTS), output_names=outputs, dynamic_axes=axes,
    )  # fmt: skip
  return outputs


def _quantize(path: str, folder: str) -> None:
  """Replaces the matrices of a graph by 8-bit integers, a scale a channel."""
  try:
    from onnxruntime import quantization
  except ImportError as error:
    raise OnnxError(
      f"--weights=int8 needs {error.name}, which is not installed; install the "
      "extra: pip install 'bert_jax[reference]'"
    ) from error
  target = os.path.join(folder, "int8.onnx")
  quantization.quantize_dynamic(
    path, target, per_channel=True, weight_type=quantization.QuantType.QInt8
  )
  files.write_bytes(path, files.read_bytes(target))
