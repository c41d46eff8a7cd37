"""Tests of settings.py: one row a key, and what is read from the rows."""

from bert_jax.runtime import settings


def test_every_key_has_a_meaning_in_whole_sentences():
  for key in settings.KEYS.values():
    assert key.meaning.endswith("."), key.name


def test_a_default_is_a_value_that_its_key_may_have():
  for key in settings.KEYS.values():
    if key.default is not None:
      assert not key.problem(key.default)
      assert key.type is type(key.default), key.name


def test_a_key_of_a_later_version_says_what_runs_did_before():
  first = settings.Key("run", 0).since
  for key in settings.KEYS.values():
    assert key.since == first or key.before is not None, key.name
