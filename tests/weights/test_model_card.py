"""What a converted folder tells of its run, and its tokenizer.json."""

import json

import pytest
import tokenizers

from bert_jax import weights
from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import wordpiece
from bert_jax.weights import convert
from bert_jax.weights import model_card
from configs import convert as convert_config
from tests.support import small_models
from tests.support import stopped_run

TEXTS = ["Walked the WALK!", "é walk  [MASK] x", "", "the [one] walk [SEP]"]


def test_a_converted_run_has_its_record(tmp_path, finished_run, capsys):
  config = convert_config.get_config("to=huggingface")
  target = tmp_path / "hf"
  convert.convert(config, finished_run.workdir, str(target))
  assert "README.md, tokenizer.json" in capsys.readouterr().out
  _, head, text = (target / "README.md").read_text().split("---\n", 2)
  fields = dict(line.split(": ", 1) for line in head.splitlines())
  assert json.loads(fields["library_name"]) == "transformers"
  assert json.loads(fields["pipeline_tag"]) == "fill-mask"
  loss = finished_run.result["eval/loss"]
  assert f"| eval/loss | {loss:.6g} |" in text
  assert "| `optim.learning_rate` | 0.01 |" in text
  again = weights.read(target)
  first = weights.read(finished_run.workdir)
  assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
  small_models.assert_same(again.params, first.params)


def test_a_card_has_the_scores_of_the_step_of_its_weights(
  tmp_path, finished_run
):
  workdir = stopped_run.make(finished_run.workdir, tmp_path / "run")
  text = model_card.text_of(small_models.make(), workdir, "name")
  assert "| eval/loss | 1 |" in text and "step 4" in text
  mean = model_card.text_of(small_models.make(), workdir, "name", 2)
  assert "eval/loss" not in mean and "mean of the 2" in mean
  (tmp_path / "run" / "best" / "4").rename(tmp_path / "run" / "best" / "5")
  other = model_card.text_of(small_models.make(), workdir, "name")
  assert "eval/loss" not in other and "not evaluate step 5" in other


@pytest.mark.parametrize(
  "settings",
  [
    {"lower_case": True},
    {"lower_case": False},
    {"lower_case": True, "strip_accents": False},
    {"lower_case": True, "max_input_chars_per_word": 4},
    {"lower_case": True, "added": ("[one]",)},
  ],
)
def test_tokenizer_json_gives_the_same_ids(tmp_path, settings):
  added = [
    added_tokens.AddedToken(text, normalized=False, special=True)
    for text in settings.pop("added", ())
  ]
  found = small_models.make()
  pieces = [*small_models.PIECES, "Walk"]  # some have capitals
  pieces = pieces[: None if not settings["lower_case"] else -1]
  found.tokenizer = wordpiece.WordPieceTokenizer(
    pieces, added=added, **settings
  )
  weights.write(found, tmp_path / "hf", "huggingface")
  model_card.write(found, "", str(tmp_path / "hf"))
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json"))
  again = weights.read(tmp_path / "hf").tokenizer
  for text in TEXTS:
    ours = found.tokenizer.template.build(
      found.tokenizer, found.tokenizer.encode_masked(text, "[MASK]")
    )[0]
    if "[SEP]" not in text:  # text never becomes a mark for the model here
      assert theirs.encode(text).ids == ours
    assert again.encode(text) == found.tokenizer.encode(text)


def test_a_card_of_a_head_names_labels_and_task(tmp_path):
  text = model_card.text_of(small_models.make("tag"), "", "name")
  assert '"token-classification"' in text and "`O`, `B`, `I`" in text
  assert "## Recipe" not in text
