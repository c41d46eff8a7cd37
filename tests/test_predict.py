"""Tests of predict.py: filling masks, line by line."""

import io
import json

import numpy as np
import pytest

from bert_jax import predict

TEXTS = [
  "sun sun [MASK] sun",
  "[MASK]",
  "moon [MASK] moon [MASK] [MASK] moon",
  "wind wind wind wind wind wind wind wind wind [MASK]",
  "rain[MASK]rain",
]


@pytest.fixture(scope="module")
def predictor(finished_run):
  return predict.Predictor(finished_run.workdir, finished_run.config.mesh)


def fill(predictor, texts, batch_size, top_k=3):
  return list(
    predict.fill_masks(predictor, texts, batch_size=batch_size, top_k=top_k)
  )


@pytest.fixture(scope="module")
def answers(predictor):
  return fill(predictor, TEXTS, 8)


def test_every_mask_of_every_text_is_answered_in_order(answers):
  assert [len(masks) for masks in answers] == [1, 1, 3, 1, 1]
  assert all(len(best) == 3 for masks in answers for best in masks)


def test_the_batch_does_not_change_the_answers(predictor, answers):
  """Nor does the order of the lines."""
  for batch_size, texts in ((2, TEXTS), (8, TEXTS[::-1])):
    got = fill(predictor, texts, batch_size)
    got = got if texts == TEXTS else got[::-1]
    for masks, wanted in zip(got, answers, strict=True):
      for best, want in zip(masks, wanted, strict=True):
        assert [x["token"] for x in best] == [x["token"] for x in want]
        np.testing.assert_allclose(
          [x["score"] for x in best], [x["score"] for x in want], rtol=1e-5
        )


def test_scores_are_probabilities_best_first(predictor, answers):
  for best in (best for masks in answers for best in masks):
    scores = [x["score"] for x in best]
    assert scores == sorted(scores, reverse=True)
    assert 0 < sum(scores) < 1
  # The whole vocabulary together, without the spare rows of the model's table.
  size = predictor.config.model.vocab_size
  assert size > predictor.tokenizer.vocab_size
  ((everything,),) = fill(
    predictor, ["sun [MASK]"], 8, top_k=predictor.tokenizer.vocab_size
  )
  np.testing.assert_allclose(sum(x["score"] for x in everything), 1, 1e-5)
  assert len({x["id"] for x in everything}) == len(everything)


def test_tokens_are_those_of_the_ids(predictor, answers):
  for best in (best for masks in answers for best in masks):
    for x in best:
      assert x["token"] == predictor.tokenizer.token(x["id"])


def run(finished_run, tmp_path, lines, **changes):
  source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text("".join(line + "\n" for line in lines))
  config = finished_run.config.copy_and_resolve_references()
  config.predict.update(changes)
  predict.predict(config, finished_run.workdir, str(source), str(target))
  return [json.loads(line) for line in target.read_text().splitlines()]


def test_a_line_in_is_a_line_out(finished_run, tmp_path, answers):
  lines = [json.dumps({"text": text, "id": 1}) for text in TEXTS]
  lines.insert(2, "")  # an empty line is no example
  got = run(finished_run, tmp_path, lines, top_k=3, batch_size=8)
  assert got == [{"masks": masks} for masks in answers]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 2 of the input: .*give"),
    ("[1]", "line 2 of the input"),
    ('{"txt": "[MASK]"}', "line 2 of the input: KeyError.'text'"),
    ('{"text": 3}', "line 2 of the input"),
    ('{"text": "no gap"}', r"line 2 of the input: .*has no \[MASK\]"),
    (
      json.dumps({"text": "sun " * 20 + "[MASK]"}),
      "'sun sun .*has 23 tokens, the model takes 16; shorten it",
    ),
  ],
)
def test_a_bad_line_is_named_and_nothing_is_overwritten(
  line, message, finished_run, tmp_path
):
  target = tmp_path / "out.jsonl"
  target.write_text("of old\n")
  good = json.dumps({"text": TEXTS[0]})
  with pytest.raises(ValueError, match=message):
    run(finished_run, tmp_path, [good, line], batch_size=8, top_k=3)
  assert target.read_text() == "of old\n"
  assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kind": "classify"}, "predict.kind='classify'; there is: fill-mask"),
    ({"top_k": 0}, "predict.top_k=0; give 1 to 21"),
    ({"top_k": 22}, "predict.top_k=22; give 1 to 21"),
    ({"batch_size": 0}, "predict.batch_size=0; it must be 1 or more"),
    ({"model": "/nowhere"}, "/nowhere holds no run"),
  ],
)
def test_settings_that_cannot_be_are_refused(
  changes, message, finished_run, tmp_path
):
  with pytest.raises(ValueError, match=message):
    run(finished_run, tmp_path, [], **changes)
  assert not (tmp_path / "out.jsonl").exists()


def test_standard_input_and_output_stay_open(finished_run, monkeypatch, capsys):
  monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "sun [MASK]"}\n'))
  config = finished_run.config.copy_and_resolve_references()
  config.predict.top_k, config.predict.batch_size = 3, 8
  predict.predict(config, finished_run.workdir, "-", "")
  print("still open")
  answer, last = capsys.readouterr().out.splitlines()
  assert len(json.loads(answer)["masks"][0]) == 3
  assert last == "still open"
