"""The Python API: the numbers of the command, its types and its errors."""

from concurrent import futures
import dataclasses
import functools
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import bert_jax
from bert_jax import weights
from bert_jax.kinds import answers
from bert_jax.kinds import classify
from bert_jax.kinds import table
from bert_jax.prediction import fine_tuning
from bert_jax.prediction import model as model_lib
from bert_jax.prediction import results
from bert_jax.runtime import config_files
from bert_jax.weights import task_heads
from tests.support import small_models
from tests.support import stopped_run
from tests.support.breadth import slow_but

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = ["walked the", "the walk !", "!"]
# Kind of prediction -> arguments of its method, and the records they stand for.
CASES = {
  "fill-mask": (
    (["walk [MASK]", "[MASK] the [MASK]"],),
    [{"text": "walk [MASK]"}, {"text": "[MASK] the [MASK]"}],
  ),
  "embed": (
    (TEXTS, ["!", "walk", "the"]),
    [{"text": a, "text_b": b} for a, b in zip(TEXTS, "! walk the".split())],  # noqa: B905
  ),
  "classify": ((TEXTS,), [{"text": text} for text in TEXTS]),
  "multi_label": ((TEXTS,), [{"text": text} for text in TEXTS]),
  "regress": ((TEXTS,), [{"text": text} for text in TEXTS]),
  "answer": (
    (["walk", "the"], "the walk ! walked"),
    [{"question": q, "context": "the walk ! walked"} for q in ("walk", "the")],
  ),
  "tag": (
    (["the walk", ["walked", "!"]],),
    [{"text": "the walk"}, {"words": ["walked", "!"]}],
  ),
  "choose": (
    (["walk", "the"], [["!", "the"], ["walked"]]),
    [
      {"text": "walk", "choices": ["!", "the"]},
      {"text": "the", "choices": ["walked"]},
    ],
  ),
}
TASKS = {"answer": "span", "choose": "choice", "fill-mask": None, "embed": None}


@functools.cache
def make_model(kind=None):
  changes = {"task.max_query_len": 4, "task.doc_stride": 4}
  return model_lib.Model(small_models.make(kind), "MODEL", changes)


def of_kind(kind):
  """The model for a kind of prediction."""
  return make_model(TASKS.get(kind, kind))


def plain(value):
  """A dataclass as the dict that the command writes, arrays as lists."""
  if dataclasses.is_dataclass(value):
    fields = dataclasses.fields(value)
    found = {f.name: plain(getattr(value, f.name)) for f in fields}
    return {k: v for k, v in found.items() if v is not None}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(
  "kind", slow_but(list(table.ANSWERERS), lambda kind: kind in ("embed", "tag"))
)
def test_answers_are_those_of_the_command(kind):
  arguments, records = CASES[kind]
  got = getattr(of_kind(kind), model_lib.METHODS[kind])(*arguments)
  predictor, _ = of_kind(kind).predictor(
    kind,
    **(
      {"top_k": 5} if kind == "fill-mask"
      else {"fields": ("tokens", "pooled", "mean", "layers"), "layers": (-1,)}
      if kind == "embed" else {}
    ),
  )  # fmt: skip
  wanted = list(predictor(records))
  assert len(got) == len(wanted) == len(records)
  for one, line in zip(got, wanted, strict=True):
    assert type(one) is results.RESULTS[kind]
    found = plain(one)
    if kind == "embed":
      line = {
        k: np.asarray(v).tolist() for k, v in line.items() if k != "layers"
      }
      (layers,) = one.layers
      found.pop("layers")
      assert layers.shape == (
        len(one.tokens),
        small_models.MODEL["hidden_size"],
      )
      np.testing.assert_allclose(layers.mean(0), one.mean, rtol=1e-5, atol=1e-6)
    if not found.get("truncated", True):
      found.pop("truncated")
    assert found == line


def test_a_second_kind_puts_no_second_copy_of_the_encoder_on_the_devices():
  model = of_kind("embed")
  one, _ = model.predictor("embed", fields=("mean",))
  two, _ = model.predictor("embed", fields=("pooled",))
  three, _ = model.predictor("fill-mask")
  table_of = [
    p._params["encoder"]["embeddings"]["word"]["embedding"]
    for p in (one, two, three)
  ]
  assert table_of[0] is table_of[1] is table_of[2]


def test_only_the_fields_that_are_asked_for_are_there():
  (one,) = of_kind("embed").embed(["the walk"], fields=("mean",))
  assert one.mean.dtype == np.float32
  assert one.tokens is one.pooled is one.layers is one.sentence is None


@pytest.mark.slow
def test_layers_come_in_the_order_of_the_question():
  model = of_kind("embed")
  (one,) = model.embed(["the walk"], layers=(-1, 0))
  (other,) = model.embed(["the walk"], layers=(0, 2))
  np.testing.assert_array_equal(one.layers[0], other.layers[1])
  np.testing.assert_array_equal(one.layers[1], other.layers[0])


class _Made:
  """Stands for a predictor, which would take its time."""

  def __init__(self, pretrained, config, *args, **kwargs):
    self.predict = config.predict


def test_the_sets_of_options_that_are_kept_do_not_grow(monkeypatch):
  monkeypatch.setattr(model_lib.predict, "Predictor", _Made)
  model = make_model()
  first, _ = model.predictor("embed", layers=[0])
  assert model.predictor("embed", layers=(0,))[0] is first
  assert first.predict.layers == (0,)
  for number in range(1, 40):
    model.predictor("embed", layers=(number,))
    assert model.predictor("embed", layers=(0,))[0] is first  # asked last
  assert len(model._predictors) == 16
  assert model.predictor("embed", layers=(39,))[0] is not first
  with pytest.raises(answers.PredictError, match="layers"):
    model.predictor("embed", layers=({},))


def test_few_programs_fill_masks_however_many_tokens_are_asked_for():
  model = of_kind("fill-mask")
  size = model.pretrained.tokenizer.vocab_size
  (most,) = model.fill_mask(["the [MASK]"], top_k=size)
  count = len(model._predictors)
  for top_k in range(size // 2 + 1, size + 1):
    if 1 << (top_k - 1).bit_length() < size:
      continue
    (found,) = model.fill_mask(["the [MASK]"], top_k=top_k)
    assert found.masks == (most.masks[0][:top_k],)
  assert len(model._predictors) == count
  for wrong in (0, size + 1, True, 1.5):
    with pytest.raises(ValueError, match="top_k"):
      model.fill_mask(["the [MASK]"], top_k=wrong)


def test_threads_get_the_answers_to_their_own_texts():
  model = of_kind("classify")
  texts = [" ".join(["walk"] * n + ["the"] * (7 - n)) for n in range(8)]
  wanted = [model.classify([text])[0] for text in texts]
  with futures.ThreadPoolExecutor(4) as pool:
    for got in pool.map(lambda _: model.classify(texts), range(8)):
      for one, other in zip(got, wanted, strict=True):
        assert one.label == other.label
        assert one.scores == pytest.approx(other.scores, rel=1e-5)


def test_a_method_without_a_head_names_the_methods_that_have_one():
  with pytest.raises(answers.PredictError, match="classify") as error:
    make_model().classify(TEXTS)
  assert "fill_mask" in str(error.value) and "embed" in str(error.value)
  with pytest.raises(answers.PredictError, match="regress"):
    of_kind("classify").regress(TEXTS)


@pytest.mark.parametrize(
  ("method", "arguments", "message"),
  [
    ("embed", ("one text",), "list"),
    ("embed", (3,), "list"),
    ("embed", ({"text": "a"},), "list"),
    ("embed", ([],), "no texts"),
    ("embed", (["a", 3],), r"text 1.*3"),
    ("embed", (["a", None],), "text 1"),
    ("embed", (["\ud800"],), "surrogate"),
    ("embed", (["a", "b"], ["c"]), "1 of `text_b` for 2"),
    ("embed", (["a"], "c"), "list"),
    ("fill_mask", (["no gap"],), "text 0.*MASK"),
    ("fill_mask", (["[MASK] " * 20],), "tokens"),
  ],
)
def test_bad_arguments_are_refused_before_anything_is_computed(
  method, arguments, message
):
  model = model_lib.Model(small_models.make(), "MODEL")
  with pytest.raises(answers.PredictError, match=message):
    getattr(model, method)(*arguments)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"fields": ("means",)}, "means"),
    ({"fields": "mean"}, "list"),
    ({"layers": (9,)}, "9"),
    ({"layers": 1}, "layers"),
    ({"layers": [[1]]}, "layers"),
    ({"fields": ("sentence",)}, "modules.json"),
  ],
)
def test_vectors_that_do_not_exist_are_refused(options, message):
  with pytest.raises(answers.PredictError, match=message):
    make_model().embed(["the"], **options)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"predict.seqlen": 8}, "predict.seq_len"),
    ({"predict.seq_len": "8"}, "integer"),
    ({"predict.batch_tokens": 0}, "1 or more"),
  ],
)
def test_wrong_settings_are_refused_before_weights_are_read(settings, message):
  with pytest.raises(ValueError, match=message):
    bert_jax.load("no-such-folder", settings)


@pytest.mark.slow
def test_settings_count(tmp_path):
  weights.write(small_models.make(), tmp_path / "hf", "huggingface")
  model = bert_jax.load(tmp_path / "hf", {"predict.seq_len": 6})
  (one,) = model.embed(["the walk the walk the walk the walk"])
  assert one.truncated and len(one.tokens) == 6
  module, variables = model.encoder()
  ids = np.array([[2, 5, 7, 3]], np.int32)
  hidden, pooled = module.apply(variables, ids, np.ones_like(ids), ids * 0)
  (other,) = bert_jax.load(tmp_path / "hf").embed(["walk the"])
  np.testing.assert_allclose(hidden[0], other.layers[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(pooled[0], other.pooled, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_not_finite_are_an_error():
  broken = small_models.make("classify")
  broken.params["task"]["bias"][:] = np.nan
  with pytest.raises(answers.PredictError, match="finite"):
    model_lib.Model(broken, "MODEL").classify(["the"])


def test_the_import_loads_nothing():
  program = (
    "import sys, bert_jax; dir(bert_jax)\n"
    "print(*{'jax', 'numpy', 'flax', 'absl'} & set(sys.modules))"
  )
  found = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert found.stdout.strip() == ""


def test_every_name_of_the_package_is_there():
  assert bert_jax.load is model_lib.load
  assert {*bert_jax.__all__} <= {*dir(bert_jax)}
  for name in bert_jax.__all__:
    assert getattr(bert_jax, name).__name__ == name
  with pytest.raises(AttributeError, match="no_such"):
    bert_jax.no_such  # noqa: B018


def test_a_shipped_config_is_loaded_by_name():
  config = config_files.load("finetune", "task=stsb")
  assert config.task.name == "stsb" and config.data.batch_size == 32


# --- fine-tuning ---

ROWS = [
  {"text": text, "label": label}
  for text, label in [("walk walk", "go"), ("the the", "stay")] * 12
]
NO_ROWS = {"train_rows": None, "validation": None}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"task": "clasify"}, "clasify"),
    ({"train_rows": []}, "no rows"),
    ({"train_rows": ["a text"]}, "row 0"),
    ({"train_rows": [{"text": {1, 2}}]}, "set"),
    ({"task": "mrpc", "train_rows": ROWS}, "benchmark"),
    ({"task": "mrpc", "text": "a"} | NO_ROWS, "text=.*benchmark"),
    ({"task": "mrpc", "label": "a"} | NO_ROWS, "label=.*benchmark"),
    ({"data": "FOLDER"}, "data="),
    ({"validation": [*ROWS, {"text": "\ud800", "label": "go"}]}, "row 24"),
    ({"validation": []}, "validation has no rows"),
    ({"settings": {"optim.lr": 1.0}}, "learning_rate"),
    ({"batch_size": 0}, "1 or more"),
    ({"epochs": -1.0}, "0"),
  ],
)
def test_a_fine_tuning_that_cannot_be_is_refused(tmp_path, arguments, message):
  given = {"train_rows": ROWS, "validation": ROWS} | arguments
  with pytest.raises(ValueError, match=message):
    fine_tuning.fine_tune("MODEL", workdir=tmp_path / "run", **given)
  assert not (tmp_path / "run").exists()


def test_the_metrics_are_those_of_the_step_that_is_loaded(
  tmp_path, finished_run, monkeypatch
):
  workdir = stopped_run.make(finished_run.workdir, tmp_path / "run")
  monkeypatch.setattr(fine_tuning.train, "train", lambda *_: {"eval/loss": 2.5})
  monkeypatch.setattr(fine_tuning.model_lib, "load", lambda _: None)
  tuned = fine_tuning.fine_tune("MODEL", ROWS, ROWS, workdir=workdir)
  assert tuned.metrics == {"eval/loss": 1.0}


TINY = {
  "train.tensorboard": False,
  "mesh.data": 1,
  "mesh.tensor": 1,
  "mesh.fsdp": 8,
  "data.seq_len": 8,
  "data.batch_size": 8,
  "train.num_epochs": 2.0,
}


@pytest.mark.slow
def test_rows_become_a_model_that_answers(tmp_path):
  weights.write(small_models.make(), tmp_path / "hf", "huggingface")
  arguments = {
    "train_rows": ROWS, "validation": ROWS[:4], "workdir": tmp_path / "run",
    "epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "seq_len": 8,
    "settings": TINY,
  }  # fmt: skip
  tuned = bert_jax.fine_tune(tmp_path / "hf", **arguments)
  found = tuned.model.classify([row["text"] for row in ROWS[:4]])
  right = [
    one.label == row["label"] for one, row in zip(found, ROWS[:4], strict=True)
  ]
  assert tuned.metrics["eval/accuracy"] == np.mean(right)
  assert set(found[0].scores) == {"go", "stay"}
  again = bert_jax.fine_tune(tmp_path / "hf", **arguments)
  assert again.metrics == pytest.approx(tuned.metrics)


def test_a_kind_of_ones_own_needs_a_name_of_its_own():
  class Mine(classify.Classify):
    pass

  class Form(classify.Classify):
    name = "mine"
    head = task_heads.TaskHead("mine")

  for kind in (Mine(), Form()):
    with pytest.raises(ValueError, match="name"):
      bert_jax.add_kind(kind)
  assert "mine" not in table.TASK_KINDS


@pytest.mark.slow
def test_the_head_of_the_page_trains_and_answers(tmp_path):
  weights.write(small_models.make(), tmp_path / "hf", "huggingface")
  page = (ROOT / "docs/howto/python.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  (code,) = [block for block in blocks if "MeanClassify" in block]
  assert len([line for line in code.splitlines() if line.strip()]) <= 40
  code = code.replace('"runs/minilm"', repr(str(tmp_path / "hf")))
  code = code.replace('"RUN"', f"{str(tmp_path / 'run')!r}, settings=TINY")
  tables = (
    table.TASK_KINDS, table.KINDS, table.FORMS, table.ANSWERERS,
    task_heads.HEADS,
  )  # fmt: skip
  before = [dict(one) for one in tables]
  names = {"rows": ROWS, "TINY": TINY, "__name__": "page"}
  try:
    exec(compile(code, "python.md", "exec"), names)
    tuned = names["tuned"]
    assert set(tuned.metrics) >= {"eval/accuracy", "eval/loss"}
    again = bert_jax.load(tmp_path / "run")
    assert again.kinds == ("mean_classify", "embed")
    (one,) = again.ask("mean_classify", [{"text": "the the"}])
    assert one["scores"].keys() == {"go", "stay"}
  finally:
    for one, old in zip(tables, before, strict=True):
      one.clear()
      one.update(old)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(tmp_path):
  papermill = pytest.importorskip("papermill")
  pytest.importorskip("ipykernel")
  weights.write(small_models.make(max_len=64), tmp_path / "hf", "huggingface")
  done = papermill.execute_notebook(
    ROOT / "docs/notebooks/support.ipynb",
    tmp_path / "done.ipynb",
    parameters={
      "model": str(tmp_path / "hf"),
      "workdir": str(tmp_path / "run"),
      "epochs": 1,
      "settings": {"train.tensorboard": False},
    },
    cwd=ROOT,
    progress_bar=False,
  )
  assert "eval/accuracy" in str(done.cells[-5]["outputs"])


# --- long texts ---


# A row has 12 tokens, two of them special, and the stride is 4.
WORDS = [("the", "walk", "!")[i % 3] for i in range(23)]


@pytest.mark.parametrize(("how", "pool"), [("mean", np.mean), ("max", np.max)])
def test_vectors_of_windows_are_pooled(how, pool):
  model, words = make_model(), WORDS
  parts = [words[s : s + 10] for s in (0, 4, 8, 12, 16)]
  apart = model.embed([" ".join(part) for part in parts], fields=("mean",))
  short = "the walk !"
  found = model.embed([" ".join(words), short], long_texts=how)
  got, other = found
  np.testing.assert_allclose(
    got.mean, pool([x.mean for x in apart], axis=0), rtol=1e-5, atol=1e-6
  )
  assert not got.truncated and got.tokens is None and got.layers is None
  assert got.pooled.shape == got.mean.shape
  (alone,) = model.embed([short], fields=("mean",))
  np.testing.assert_allclose(other.mean, alone.mean, rtol=1e-5, atol=1e-6)


def test_the_first_window_is_the_start_of_a_text():
  model, words = make_model(), WORDS
  (first,) = model.embed([" ".join(words)], long_texts="first")
  (cut,) = model.embed([" ".join(words)])
  assert first.truncated and cut.truncated
  assert first.tokens.tolist() == cut.tokens.tolist()
  np.testing.assert_allclose(first.mean, cut.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"long_texts": "mean", "fields": ("mean", "layers")}, "layers.*mean"),
    ({"long_texts": "median"}, "median.*cut, mean, max, first"),
  ],
)
def test_windows_have_no_vectors_of_tokens(options, says):
  with pytest.raises(ValueError, match=says):
    make_model().embed(["the"], **options)


@pytest.mark.parametrize("how", ["", "cut", "first", "mean"])
def test_a_server_asks_for_fields_that_windows_have(how):
  from bert_jax.kinds import embed
  from bert_jax.runtime import config_files

  config = config_files.load("predict")
  config.predict.long_texts = how
  first, last = embed.Embed.serving_options(small_models.make(), config.predict)
  assert last["fields"] == first["fields"][:-1]
  assert ("tokens" in first["fields"]) == (how != "mean")


def test_a_command_refuses_windows_of_a_kind_without(tmp_path):
  from bert_jax import weights
  from bert_jax.prediction import predict
  from bert_jax.runtime import config_files

  weights.write(small_models.make(), tmp_path / "hf", "huggingface")
  config = config_files.load("predict")
  config.predict.update({"kind": "fill-mask", "long_texts": "mean"})
  with pytest.raises(answers.PredictError, match=r"long_texts=mean.*fill-mask"):
    predict.predict(config, str(tmp_path / "hf"), [b"{}"], "-")
