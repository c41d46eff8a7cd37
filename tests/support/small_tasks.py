"""Tasks of one's own that a small model can learn in seconds."""

import json
import random

from configs import finetune

WORDS = "sun moon star sky rain wind snow hill lake tree bird".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def lines(form, count, seed):
  """Examples of a form, of which a small model can learn the rule."""
  rng = random.Random(seed)

  def words(number):
    return [rng.choice(WORDS[2:]) for _ in range(number)]

  for _ in range(count):
    text = words(rng.randrange(1, 6))
    place = rng.randrange(len(text) + 1)
    special = rng.choice(WORDS[:2])  # sun or moon decides
    text.insert(place, special)
    line = " ".join(text)
    if form == "classify":
      yield {"text": line, "label": special}
    elif form == "pairs":
      yield {"text": line, "other": " ".join(words(2)), "label": special}
    elif form == "regress":
      yield {"text": line, "label": float(special == "sun")}
    elif form == "tag":
      tags = ["B-X" if w == "sun" else "O" for w in text]
      yield {"text": text, "label": tags}
    elif form == "choice":
      right = rng.randrange(2)
      ends = ["sun" if i == right else "moon" for i in range(2)]
      yield {"text": words(2) and "hill", "a": ends[0], "b": ends[1],
             "label": right}  # fmt: skip
    elif form == "span":
      yield {"text": "hill", "context": line, "label": special}


COLUMNS = {
  "classify": ("text",),
  "pairs": ("text", "other"),
  "regress": ("text",),
  "tag": ("text",),
  "choice": ("text", "a", "b"),
  "span": ("text", "context"),
}


def make_config(folder, form="classify", **changes):
  """A config of a run on data of a form, which it puts into a folder."""
  for split, count, seed in (("train", 96, 0), ("validation", 40, 1)):
    with open(folder / f"{split}.jsonl", "w") as f:
      for line in lines(form, count, seed):
        f.write(json.dumps(line) + "\n")
  (folder / "test.jsonl").write_text('{"text": "sun hill"}\n')
  (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  c = finetune.get_config(f"task=my-{form}")
  c.task.dir = str(folder)
  c.task.files.train = str(folder / "train.jsonl")
  c.task.text = COLUMNS[form]
  c.task.label = "label"
  c.task.vocab = str(folder / "vocab.txt")
  c.model.update(
    vocab_size=len(VOCAB), num_layers=1, hidden_size=32, num_heads=8,
    mlp_dim=64, max_len=16, dropout_rate=0.0, attention_dropout_rate=0.0,
    init_stddev=0.1,
  )  # fmt: skip
  c.data.seq_len = 16
  c.task.max_query_len = 8
  c.data.batch_size = 16
  c.optim.learning_rate = 3e-3
  c.train.num_epochs = 8.0
  c.train.total_steps = 0
  c.train.log_every_steps = 4
  c.train.tensorboard = False
  c.eval.batch_size = 8
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return c
