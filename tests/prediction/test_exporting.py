"""Exported programs: without this package, the same numbers."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.models import params as param_trees
from bert_jax.prediction import exporting
from bert_jax.prediction import model as model_lib
from bert_jax.prediction import quantizing
from tests.support import launching
from tests.support import small_models
from tests.support.breadth import slow_but

launch = launching.launch
# The most that an output of onnxruntime may differ from ours, relative to the
# largest number of that output.
TOLERANCE = 1e-4
TASKS = {"answer": "span", "choose": "choice", "fill-mask": None, "embed": None}


def make_model(kind):
  return model_lib.Model(small_models.make(TASKS.get(kind, kind)), "MODEL")


def graph_difference(path, wanted, inputs):
  """The largest difference of a graph's outputs, relative to ours."""
  import onnxruntime

  session = onnxruntime.InferenceSession(
    path, providers=["CPUExecutionProvider"]
  )
  names = {one.name for one in session.get_inputs()}
  given = {k: x.astype(np.int64) for k, x in inputs.items() if k in names}
  found = session.run(list(wanted), given)
  return max(
    float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-6))
    for got, want in zip(found, wanted.values(), strict=True)
  )


def rows(length, batch=3):
  """Rows [B, L] of which the last half is shorter."""
  rng = np.random.default_rng(length)
  ids = rng.integers(5, 9, (batch, length)).astype(np.int32)
  mask = np.ones_like(ids)
  mask[1:, length // 2 :] = 0
  types = np.zeros_like(ids)
  types[:, length // 3 :] = 1
  return ids * mask, mask, types


@pytest.mark.parametrize(
  "kind", slow_but(list(table.ANSWERERS), lambda kind: kind == "embed")
)
def test_a_program_gives_our_numbers_for_any_batch_and_length(kind):
  pytest.importorskip("flatbuffers")
  predictor, _ = make_model(kind).predictor(kind)
  found = exporting.to_stablehlo(predictor)
  program = jax.export.deserialize(found.program.serialize())
  function = jax.jit(exporting.make_function(predictor))
  for length, batch in ((12, 3), (7, 1)):
    given = rows(length, batch)
    got = program.call(found.tensors, *given)
    want = function(predictor.params, *given)
    assert got.keys() == want.keys()
    for name in want:
      assert got[name].shape == want[name].shape
      np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_unpacked_rows_give_the_numbers_of_the_python_api():
  model = make_model("classify")
  predictor, _ = model.predictor("classify")
  function = exporting.make_function(predictor)
  (ids,) = [line.examples[0].ids for line in predictor.parse(
    [("one", {"text": "the walk !"})])]  # fmt: skip
  row = np.array([ids], np.int32)
  logits = np.asarray(
    function(predictor.params, row, np.ones_like(row), row * 0)["logits"]
  )[0]
  (wanted,) = model.classify(["the walk !"])
  exps = np.exp(logits - logits.max())
  got = exps / exps.sum()
  np.testing.assert_allclose(got, list(wanted.scores.values()), rtol=1e-4)


def test_integers_are_within_half_a_step_of_each_channel():
  flat = param_trees.flatten(small_models.make("classify").params)
  found = quantizing.quantize(flat)
  back = {k: np.asarray(v) for k, v in quantizing.dequantize(found).items()}
  assert back.keys() == flat.keys()
  kernel = "encoder/layer_0/mlp/in/kernel"
  step = np.abs(flat[kernel]).max(axis=0) / 127
  assert (np.abs(back[kernel] - flat[kernel]) <= step * 0.5001).all()
  out = "encoder/layer_0/attention/out/kernel"
  assert found[out + quantizing.SCALE].shape == (1, 1, 8)
  word = "encoder/embeddings/word/embedding"
  assert found[word + quantizing.SCALE].shape == (20, 1)
  for path, array in flat.items():
    if path.rpartition("/")[2] not in ("kernel", "embedding"):
      assert back[path] is array or (back[path] == array).all()
    else:
      assert found[path + quantizing.INTEGERS].dtype == np.int8


def test_a_channel_of_zeros_stays_zero():
  found = quantizing.quantize({"a/kernel": np.zeros((3, 2), np.float32)})
  assert not np.asarray(quantizing.dequantize(found)["a/kernel"]).any()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"format": "tflite"}, "stablehlo"),
    ({"format": "onnx", "weights": "int4"}, "int8"),
    ({"format": "stablehlo", "kind": "regress"}, "regress"),
  ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, arguments, message):
  with pytest.raises(answers.PredictError, match=message):
    exporting.export(make_model("classify"), str(tmp_path / "x"), **arguments)
  assert not (tmp_path / "x").exists()


def test_a_folder_with_files_is_not_overwritten(tmp_path):
  (tmp_path / "a").write_text("")
  with pytest.raises(answers.PredictError, match="empty"):
    exporting.export(make_model("classify"), str(tmp_path), "stablehlo")


def test_without_flatbuffers_it_is_refused_and_nothing_stays(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "flatbuffers", None)
  with pytest.raises(exporting.ExportError, match=r"bert_jax\[export\]"):
    exporting.export(
      make_model("embed"), str(tmp_path / "out"), "stablehlo", kind="embed"
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("numbers", exporting.WEIGHTS)
def test_a_folder_runs_without_this_package(tmp_path, launch, numbers):
  pytest.importorskip("flatbuffers")
  weights.write(small_models.make(), tmp_path / "hf", "huggingface")
  status = launch(
    "export", f"--from={tmp_path / 'hf'}", f"--output={tmp_path / 'out'}",
    f"--weights={numbers}", "--config.predict.kind=embed",
  )  # fmt: skip
  assert status == 0
  described = json.loads((tmp_path / "out/export.json").read_text())
  assert described["outputs"][:2] == ["last_hidden_state", "mean"]
  assert (tmp_path / "out/tokenizer.json").exists()
  program = (
    "import sys\nsys.modules['bert_jax'] = None\n"
    "sys.argv = ['run.py', '2', '5', '7', '3']\n"
    "import runpy; runpy.run_path('run.py', run_name='__main__')"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=tmp_path / "out", capture_output=True, text=True, check=True,
  )  # fmt: skip
  (line,) = [x for x in done.stdout.splitlines() if x.startswith("mean")]
  first = [float(x) for x in line.split("[")[1].rstrip("]").split()]
  model = model_lib.load(tmp_path / "hf")
  (wanted,) = model.embed(["walk the"], fields=("mean",))
  tolerance = 1e-4 if numbers == "float32" else 0.1
  np.testing.assert_allclose(first, wanted.mean[:4], atol=tolerance)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(table.ANSWERERS))
def test_a_graph_gives_our_numbers_in_onnxruntime(tmp_path, kind):
  pytest.importorskip("torch")
  pytest.importorskip("onnxruntime")
  model = make_model(kind)
  exporting.export(model, str(tmp_path / "out"), "onnx", kind)
  predictor, _ = model.predictor(kind)
  function = exporting.make_function(predictor)
  for length, batch in ((12, 3), (7, 1)):
    given = rows(length, batch)
    wanted = function(predictor.params, *given)
    wanted = {name: np.asarray(value) for name, value in wanted.items()}
    inputs = dict(zip(exporting.INPUTS, given, strict=True))
    path = str(tmp_path / "out" / exporting.GRAPH)
    if kind in ("embed", "fill-mask", "tag", "answer"):  # not at padding
      wanted.pop("last_hidden_state", None)
      inputs["attention_mask"] = np.ones_like(given[1])
      again = function(
        predictor.params, given[0], inputs["attention_mask"], given[2]
      )
      wanted = {name: np.asarray(again[name]) for name in again}
    assert graph_difference(path, wanted, inputs) < TOLERANCE
