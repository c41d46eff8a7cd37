"""Tests of tasks/glue.py: the traps of each file."""

import pytest

from bert_jax.tasks import TASKS
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec
from bert_jax.tasks.spec import PairExample


def read(tmp_path, name, split, text):
  path = tmp_path / "file.tsv"
  path.write_bytes(text.encode("utf-8"))
  return read_examples(TASKS[name], "", split, files={split: str(path)})


def test_cola_has_a_header_in_the_test_file_only(tmp_path):
  rows = "gj04\t1\t\tSentence one.\r\ngj04\t0\t*\tTwo bad."
  wanted = [
    PairExample("0", "Sentence one.", None, 1),
    PairExample("1", "Two bad.", None, 0),
  ]
  assert read(tmp_path, "cola", "train", rows) == wanted
  assert read(tmp_path, "cola", "validation", rows) == wanted
  assert read(tmp_path, "cola", "test", "index\tsentence\n0\tA.\n") == [
    PairExample("0", "A.", None, None)
  ]


def test_mnli_columns_are_found_by_name_whatever_stands_between(tmp_path):
  head = "index promptID pairID genre b1 b2 p1 p2 sentence1 sentence2".split()
  row = ["0", "1", "1n", "x", "", "", "", "", 'The "premise', "Hypothesis"]
  train = "\t".join([*head, "label1", "gold_label"])
  dev = "\t".join([*head, *(f"label{i}" for i in range(1, 6)), "gold_label"])
  dev_row = "\t".join([*row, *["entailment"] * 5, "contradiction"])
  train_row = "\t".join([*row, "neutral", "neutral"])
  pair = ("0", 'The "premise', "Hypothesis")
  assert read(tmp_path, "mnli", "train", f"{train}\n{train_row}\n") == [
    PairExample(*pair, 2)
  ]
  assert read(
    tmp_path, "mnli", "validation_mismatched", f"{dev}\n{dev_row}"
  ) == [PairExample(*pair, 0)]
  test = "\t".join(head) + "\n" + "\t".join(row)
  assert read(tmp_path, "mnli", "test_matched", test) == [
    PairExample(*pair, None)
  ]
  assert read(
    tmp_path, "ax", "test", "index\tsentence1\tsentence2\n0\ta\tb\n"
  ) == [PairExample("0", "a", "b", None)]


def test_mrpc_has_a_byte_order_mark_and_stray_quotes(tmp_path):
  head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
  rows = '1\t11\t12\t"He said\tShe\r\n0\t13\t14\tA\tB "c'
  assert read(tmp_path, "mrpc", "train", head + rows) == [
    PairExample("0", '"He said', "She", 1),
    PairExample("1", "A", 'B "c', 0),
  ]


def test_stsb_scores_are_numbers_from_0_to_5(tmp_path):
  names = "index genre filename year old_index source1 source2".split()
  head = "\t".join([*names, "sentence1", "sentence2", "score"]) + "\n"
  row = "\t".join(["3", "g", "f", "2012", "1", "none", "none", "a", "b"])
  assert read(tmp_path, "stsb", "validation", f"{head}{row}\t3.800") == [
    PairExample("3", "a", "b", 3.8)
  ]
  for bad, message in (
    ("x", "file.tsv:2: score 'x' is not a finite number"),
    ("nan", "score 'nan' is not a finite number"),
    ("5.5", "file.tsv:2: score 5.5 is not between 0 and 5"),
  ):
    with pytest.raises(spec.TaskError, match=message):
      read(tmp_path, "stsb", "validation", f"{head}{row}\t{bad}\n")


@pytest.mark.parametrize(
  ("name", "head", "row", "label"),
  [
    ("sst2", "sentence label", "a 1", 1),
    ("qnli", "index question sentence label", "0 a b not_entailment", 1),
    ("rte", "index sentence1 sentence2 label", "0 a b entailment", 0),
    ("wnli", "index sentence1 sentence2 label", "0 a b 1", 1),
    ("qqp", "id qid1 qid2 question1 question2 is_duplicate", "0 1 2 a b 0", 0),
  ],
)
def test_labels_of_the_other_files(tmp_path, name, head, row, label):
  text = "\n".join([head, row]).replace(" ", "\t")
  (example,) = read(tmp_path, name, "train", text)
  second = None if name == "sst2" else "b"
  assert example == PairExample("0", "a", second, label)


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path, caplog):
  head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
  rows = "5\t1\t2\ta\tb\t1\n6\t1\t2\tbroken\n7\t1\t2\tc\td\t0\n"
  examples = read(tmp_path, "qqp", "train", head + rows)
  assert [e.id for e in examples] == ["5", "7"]
  assert "left out 1 rows" in caplog.text
  with pytest.raises(
    spec.TaskError, match=":5: 4 columns, wanted 6.*truncated"
  ):
    read(tmp_path, "qqp", "train", head + rows + "8\t1\t2\te")


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "rte", "stsb"])
def test_a_file_that_was_cut_off_is_told(tmp_path, name, caplog):
  """By a row without all columns, or else by a last line without an end."""
  texts = {
    "cola": "s\t1\t\tHe ate.\ns\t0\t*\tHe ate and slept.\n",
    "sst2": "sentence\tlabel\na film\t1\nanother film\t0\n",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
            "1\t1\t2\ta b\tc d\n0\t3\t4\te f\tg h\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n"
           "0\ta b\tc d\tentailment\n1\te f\tg h\tnot_entailment\n",
    "stsb": "index\tsentence1\tsentence2\tscore\n"
            "0\ta b\tc d\t3.2\n1\te f\tg h\t4.25\n",
  }  # fmt: skip
  whole = texts[name]
  read(tmp_path, name, "train", whole)
  assert "no line end" not in caplog.text
  last = whole.rstrip("\n").rfind("\n") + 1
  for cut in range(last + 1, len(whole)):
    caplog.clear()
    try:
      read(tmp_path, name, "train", whole[:cut])
    except spec.TaskError as error:
      assert f":{whole.count(chr(10))}: " in str(error)  # the line
    else:
      assert "its last line has no line end" in caplog.text


def test_numbers_that_repeat_are_replaced_by_places(tmp_path):
  text = "index\tsentence\n0\ta\n0\tb\n"
  examples = read(tmp_path, "sst2", "test", text)
  assert [e.id for e in examples] == ["0", "1"]


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("sst2", "sentence\tlabel\na\t2\n", "file.tsv:2: label '2' .*known: 0, 1"),
    ("sst2", "text\tlabel\na\t1\n", "no column 'sentence'; .* are text, l"),
    ("sst2", "index\tsentence\n0\ta\n", "no column 'label'"),
    ("cola", "gj04\t1\tA sentence.\n", "file.tsv:1: 3 columns, wanted 4"),
    ("rte", "sentence1\tsentence2\tlabel\na\tb\t-\n", "label '-' is not known"),
    ("rte", "", "file.tsv is empty"),
  ],
)
def test_bad_files_are_refused(tmp_path, name, text, message):
  with pytest.raises(spec.TaskError, match=message):
    read(tmp_path, name, "train", text)
