"""Tests of demo.py: the text that it gathers, and what it holds out."""

import pytest

from bert_jax import demo
from bert_jax.runtime import errors

DOCSTRING = """Draws samples from a :class:`~scipy.stats.norm` object.

    The mean must be finite. It is not
    changed by the call.

    >>> draw(3)
    This line belongs to an example.

    Parameters
    ----------
    size : int
        The number of samples to draw.

    Args:
      seed: The seed of the generator, which is
        not changed.
      x (int): A number of some size.

    ======  ======
    column  column
    ======  ======

    .. note:: ignored as a directive.

    f(x) = {1, 2} + [3] % 4 == 5 is no text at all here.
    """


def test_sentences_of_a_docstring_are_those_of_its_prose():
  assert list(demo.sentences_of(DOCSTRING)) == [
    "Draws samples from a scipy.stats.norm object.",
    "The mean must be finite.",
    "It is not changed by the call.",
    "This line belongs to an example.",
    "The number of samples to draw.",
    "The seed of the generator, which is not changed.",
    "A number of some size.",
  ]


def test_held_out_packages_are_about_the_share_and_do_not_depend_on_order():
  texts = {f"package{i}": ["x" * (i + 1)] for i in range(100)}
  chosen = demo._choose_held_out(texts)
  share = sum(len(texts[name][0]) for name in chosen) / 5050
  assert demo.HELD_OUT_RATE * 0.8 < share <= demo.HELD_OUT_RATE
  assert chosen == demo._choose_held_out(dict(reversed(texts.items())))


@pytest.mark.parametrize(
  ("other", "kept"),
  [
    ("So one two three four five six seven eight.", False),
    ("So ONE, two three four (five) six seven eight!", False),
    ("One two three four five six seven nine.", True),
  ],
)
def test_a_held_out_sentence_with_a_near_copy_elsewhere_is_dropped(other, kept):
  mine = ["One two three four five six seven eight nine.", "A short one here."]
  (got,) = demo._without_copies([mine], [["Something else."], [other]])
  assert got == (mine if kept else mine[1:])


def test_a_copy_of_a_short_sentence_is_dropped_too():
  (got,) = demo._without_copies([["Return self."]], [["return self"]])
  assert not got


def test_one_word_of_each_sentence_is_masked(tmp_path):
  path = tmp_path / "text.txt"
  sentence = "Returns a dictionary with all the sizes of the files."
  path.write_text(f"too short.\n{sentence}\n\n")
  (record,) = demo.masked(str(path), 5)
  assert record["text"].count("[MASK]") == 1
  assert record["text"].replace("[MASK]", record["answer"]) == sentence


def test_the_demo_leaves_a_folder_of_others_alone(tmp_path):
  (tmp_path / "thesis.txt").write_text("all of it")
  (tmp_path / "text").mkdir()
  with pytest.raises(errors.UserError, match="not made by this demo"):
    demo.run(str(tmp_path))
  assert (tmp_path / "thesis.txt").read_text() == "all of it"
