"""Tests of what the benchmarks compare: the same text on both sides."""

import collections
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bert_jax.data import batching
from bert_jax.data import prepare
from bert_jax.models import flops
from experiments.bench import gpu as bench_gpu
from experiments.bench import predict as bench_predict
from experiments.bench import train as bench_train
from experiments.bench import wikipedia
from tests.support import batch_checks
from tests.support import corpora


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
  """One epoch of the same examples, several to a row and one a row."""
  folder = tmp_path_factory.mktemp("bench")
  documents = corpora.make_documents(60, seed=5, max_sentences=2)
  text = corpora.write_text(folder / "text.txt", documents)
  vocab = corpora.write_vocabulary(folder / "vocab.txt")
  config = corpora.make_config(vocab, data__seq_len=64)
  config.data.dir = str(folder / "data")
  prepare.prepare(config, [text], config.data.dir)
  made = []
  for config.data.max_sequences in (4, 1):
    batch = batching.PretrainBatches(
      config.data, "validation", seed=0, batch_size=64
    )[0]
    made.append(batch)
  return made


def rows_of(fields):
  """Rows of the reference as a multiset, whatever their order."""
  names = sorted(fields)
  count = len(fields["input_ids"])
  return collections.Counter(
    tuple(fields[name][i].tobytes() for name in names) for i in range(count)
  )


def test_the_reference_trains_on_the_sequences_of_packed_rows(batches):
  packed, plain = batches
  used = plain["weight"] > 0
  plain = {name: value[used] for name, value in plain.items()}
  assert (packed["weight"].sum(1) > 1).any()
  got, want = bench_train.one_a_row(packed), bench_train.one_a_row(plain)
  want = {name: value.astype(got[name].dtype) for name, value in want.items()}
  assert rows_of(got) == rows_of(want)
  assert (got["labels"] >= 0).sum() == packed["masked_weights"].sum() > 20


def test_labels_of_the_reference_are_the_masked_tokens(batches):
  _, plain = batches
  fields = bench_train.one_a_row(plain)
  whole = np.where(fields["labels"] >= 0, fields["labels"], fields["input_ids"])
  np.testing.assert_array_equal(whole, batch_checks.restore(plain))


def test_cut_documents_hold_every_sentence_in_order():
  sentences = [f"{'word ' * (i % 30)}number {i}" for i in range(5_000)]
  first, again, other = (
    list(wikipedia.cut(sentences, seed)) for seed in (0, 0, 1)
  )
  assert list(itertools.chain(*first)) == sentences
  assert first == again != other
  words = [sum(len(x.split()) for x in document) for document in first]
  # Log-normal: the mean is far above the median, and some are very long.
  assert np.median(words) < 0.5 * np.mean(words) < 0.1 * max(words)


@pytest.mark.parametrize("by_length", [False, True])
def test_every_sentence_is_in_one_batch_of_the_reference(by_length):
  lengths = [7, 3, 9, 3, 8, 5, 4]
  batches = bench_predict.split_batches(lengths, 3, by_length)
  assert [len(places) for places in batches] == [3, 3, 1]
  order = np.concatenate(batches).tolist()
  assert sorted(order) == list(range(7))
  assert order == ([2, 4, 0, 5, 6, 1, 3] if by_length else list(range(7)))


def test_batches_of_the_reference_are_padded_to_their_longest():
  fields = bench_predict.pad([[5, 6, 7], [8]])
  assert fields["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
  assert fields["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
  assert not fields["token_type_ids"].any()


def test_without_a_text_the_help_pages_of_python_are_embedded(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  sentences = bench_predict.read_sentences(bench_predict.bench_prepare.INPUT)
  assert len(sentences) > 2000
  assert all(text == text.strip() != "" for text in sentences)
  picked = bench_predict.pick_sentences(sentences, 50)
  assert picked == bench_predict.pick_sentences(sentences, 50)
  assert len(set(picked)) > 40
  with pytest.raises(SystemExit, match="but there are"):
    bench_predict.pick_sentences(sentences, 10**6)


@pytest.mark.slow
def test_all_sides_give_the_same_vectors(tmp_path, capsys, monkeypatch):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  monkeypatch.delenv("XLA_FLAGS")
  words = "sun moon star sky rain wind snow hill lake tree bird".split()
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
  model = tmp_path / "model"
  torch.manual_seed(0)
  transformers.BertModel(
    transformers.BertConfig(
      vocab_size=len(pieces),
      num_hidden_layers=2,
      hidden_size=32,
      num_attention_heads=4,
      intermediate_size=64,
      initializer_range=0.5,
    )
  ).save_pretrained(model)
  (model / "vocab.txt").write_text("\n".join(pieces) + "\n")
  text = tmp_path / "text.txt"
  lines = [" ".join(words[: i % 11 + 1]) for i in range(40)]
  text.write_text("\n".join(lines))
  bench_predict.main(
    [f"--model={model}", f"--input={text}", "--sentences=30", "--rounds=1",
     "--batch_size=4", "--threads=1"]
  )  # fmt: skip
  summary = json.loads(capsys.readouterr().out.splitlines()[-1])
  # They are not the same file read five times, nor all zeros.
  assert 0 < summary["largest_difference"] < 1e-5
  for name in bench_predict.SIDES:
    assert summary["median"][name] > 0


# --- on a GPU -----------------------------------------------------------------


def _gpu_args(*argv):
  return bench_gpu.parse_args(["--dry_run", *argv])


@pytest.mark.parametrize("case", bench_gpu.TRAINING)
def test_both_sides_on_a_gpu_train_on_the_same_tokens(case):
  batch = bench_gpu.make_batch(_gpu_args(), case)
  theirs = bench_train.one_a_row(batch)
  assert theirs["attention_mask"].sum() == batch["input_mask"].sum() > 0
  assert (theirs["labels"] >= 0).sum() == batch["masked_weights"].sum() > 0
  assert len(theirs["input_ids"]) == batch["weight"].sum()
  packed = case.startswith("packed")
  assert (len(theirs["input_ids"]) > len(batch["input_ids"])) is packed
  # What the labels hide is what is predicted.
  ours = np.sort(batch["masked_ids"][batch["masked_weights"] > 0])
  labels = theirs["labels"]
  np.testing.assert_array_equal(ours, np.sort(labels[labels >= 0]))


def test_padding_needs_no_work_on_a_gpu():
  args = _gpu_args()
  batch = bench_gpu.make_batch(args, "equal_128")
  full = bench_gpu.needed_flops(args, "equal_128", batch)
  more = {
    name: np.concatenate([value, np.zeros_like(value)])
    for name, value in batch.items()
  }
  assert bench_gpu.needed_flops(args, "equal_128", more) == full
  length = batch["input_ids"].shape[1]
  config = bench_gpu.make_config(args, "equal_128")
  assert full == 4 * flops.pretrain_step_flops(
    config.model, 1, length, bench_gpu.num_masked(length)
  )


def test_drawn_lengths_have_the_published_quantiles():
  drawn = bench_gpu.draw_lengths(200_000, 512, np.random.default_rng(1))
  assert drawn.min() >= 5 and drawn.max() == 512
  np.testing.assert_allclose(
    np.quantile(drawn, [0.25, 0.5, 0.75]), [84, 204, 484], rtol=0.02
  )
  assert abs((drawn == 512).mean() - 0.234) < 0.005


def test_unknown_cases_and_a_missing_card_are_named(capsys, monkeypatch):
  with pytest.raises(SystemExit):
    bench_gpu.parse_args(["--cases=packed_512,other"])
  assert "--cases=other" in capsys.readouterr().err
  monkeypatch.setattr(bench_gpu, "card", lambda: "")
  assert bench_gpu.main(["--cases=equal_128"]) == 2
  assert "--dry_run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
  ("cases", "sides"), [("packed_512,equal_128", "ours"), ("all", "ours,torch")]
)
def test_the_dry_run_on_a_cpu_measures_all_cases(tmp_path, cases, sides):
  if "torch" in sides:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
  names = bench_gpu.CASES if cases == "all" else cases.split(",")
  output = tmp_path / "gpu.json"
  done = subprocess.run(
    [sys.executable, bench_gpu.__file__, "--dry_run", f"--sides={sides}",
     f"--cases={','.join(names)}", f"--output={output}"],
    capture_output=True, text=True, check=False,
    env=dict(os.environ) | {"JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(output.read_text())
  assert [row["case"] for row in found["cases"]] == list(names)
  for row in found["cases"]:
    assert all(row[side]["per_sec"] > 0 for side in sides.split(","))
    assert ("ratio" in row) is ("torch" in sides)
