"""Named entities from a frozen BERT: its hidden states feed a BiLSTM.

  python -m experiments.feature_ner.run --task=wnut17 --data=DATA \
    --from=WEIGHTS --seeds=3 last concat_last_4

The encoder is not trained: its hidden states of the first piece of every word
are computed once, in the sentence or the document that the word stands in, and
a BiLSTM of two layers with a classifier on top is trained on them. Which hidden
states is the last argument, one or several of the rows of the paper's table 7:

  embeddings, last, second_to_last, concat_last_4, weighted_last_4, weighted_all

The paper says of the tagger that it has two layers of 768 and starts at random,
and no more; here each direction has --hidden units, Adam trains at 1e-3 with
dropout of a half between layers, and the epoch is the best one of the
development set. The hidden states of all words are held in memory: 4 bytes
times their width, times the layers that are weighted, a word. A result is a
line of results.jsonl beside this file, written once the training is finished;
one that is there is not computed again.

Source: section 5.3, table 7.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import progress

from bert_jax.data import task_batches
from bert_jax.models import encoder as encoders
from bert_jax.models.attention import programs
from bert_jax.runtime import runs
from bert_jax.training import finetuning
from bert_jax.training import jobs
from configs import finetune

HERE = Path(__file__).parent

# Row of table 7 -> (layers, None = all but the embeddings, and how they are
# joined).
FEATURES = {
  "embeddings": ((0,), "concat"),
  "last": ((-1,), "concat"),
  "second_to_last": ((-2,), "concat"),
  "concat_last_4": ((-4, -3, -2, -1), "concat"),
  "weighted_last_4": ((-4, -3, -2, -1), "weighted"),
  "weighted_all": (None, "weighted"),
}
# F1 on the development set of CoNLL-2003 with BERT-base, table 7.
PAPER = {
  "embeddings": 91.0,
  "second_to_last": 95.6,
  "last": 94.9,
  "weighted_last_4": 95.9,
  "concat_last_4": 96.1,
  "weighted_all": 95.5,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a tagger is trained.

  Attributes:
    features: a key of FEATURES.
    hidden: units of an LSTM in each direction.
    epochs: passes over the training sentences.
    batch_size: sentences a step.
    learning_rate: of Adam.
    dropout: before each layer.
  """

  features: str
  hidden: int = 768
  epochs: int = 20
  batch_size: int = 32
  learning_rate: float = 1e-3
  dropout: float = 0.5


class Tagger(nn.Module):
  """A BiLSTM of two layers with a classifier.

  Attributes:
    hidden: units in each direction.
    num_labels: of the classifier.
    join: "concat" or "weighted" layers of the encoder.
    dropout: before each layer.
  """

  hidden: int
  num_labels: int
  join: str
  dropout: float

  @nn.compact
  def __call__(self, states, lengths, *, deterministic):
    """Scores the words of sentences.

    Args:
      states: [B, W, K, D] of K layers of the encoder.
      lengths: [B] words of each sentence.
      deterministic: no dropout.

    Returns:
      [B, W, num_labels] logits.
    """
    x: Any
    if self.join == "weighted":
      weights = self.param("layers", nn.initializers.zeros, states.shape[2:3])
      x = jnp.einsum("bwkd,k->bwd", states, nn.softmax(weights))
    else:
      x = states.reshape(*states.shape[:2], -1)
    for _ in range(2):
      x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
      x = nn.Bidirectional(
        nn.RNN(nn.OptimizedLSTMCell(self.hidden)),
        nn.RNN(nn.OptimizedLSTMCell(self.hidden)),
      )(x, seq_lengths=lengths)
    x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
    return nn.Dense(self.num_labels)(x)


# --- hidden states ------------------------------------------------------------


def word_states(job, params, split, layers):
  """Hidden states of the first piece of every word of a split.

  Args:
    job: the fine-tuning of a task of tags; its head is not used.
    params: of the encoder.
    split: of the job.
    layers: numbers of hidden states, 0 = the embeddings; None = all others.

  Returns:
    [W, K, D] float32 for the W words of each example.
  """
  encoder: Any = encoders.Encoder(job.model.config)

  @jax.jit
  def compute(params, batch):
    _, _, states = encoder.apply(
      {"params": params},
      batch["input_ids"],
      batch["input_mask"],
      batch["segment_ids"],
      positions=batch["positions"],
      sequence_ids=batch["sequence_ids"],
      return_layers=True,
    )
    chosen = states[1:] if layers is None else [states[i] for i in layers]
    return jnp.stack(chosen, axis=-2)

  features, data = split.features, job.config.data
  rows = task_batches.TaskSplit(
    features,
    num_rows=job.config.eval.batch_size,
    seq_len=data.seq_len,
    pad_id=job.tokenizer.pad_id,
    pack=data.pack,
    length_unit=programs.program_of(job.model.config).row_unit,
  )
  # Only words are kept: with its document around it, a sentence is a small part
  # of its row.
  kept: dict[tuple[int, int], np.ndarray] = {}
  for i in progress.track(range(len(rows)), f"reading {split.name}"):
    units, layout = rows.units(i)
    source, row, column = rows.rows.token_places(units, layout)
    is_word = features.words[source] >= 0
    batch = {k: v for k, v in rows[i].items() if k not in ("label", "weight")}
    states = np.asarray(compute(params, batch))[row[is_word], column[is_word]]
    lengths = rows.rows.unit_lengths[units]
    examples = np.repeat(features.example[units], lengths)[is_word]
    words = features.words[source][is_word]
    for example, word, state in zip(
      examples.tolist(), words.tolist(), states, strict=True
    ):
      kept[example, word] = state
  return [
    np.stack([kept.pop((i, word)) for word in range(len(example.words))])
    for i, example in enumerate(split.examples)
  ]


# --- training -----------------------------------------------------------------


def _up_to(number, multiple=8):
  return -(-number // multiple) * multiple


def batches(states, labels, size, rng=None):
  """Yields batches of sentences of similar length, in a random order.

  Args:
    states: [W, K, D] of each sentence.
    labels: [W] int of each.
    size: sentences of a batch.
    rng: numpy's; None = shortest first.

  Yields:
    Numbers of the sentences and states [size, W, K, D], labels [size, W] with
    -1 behind the last word, lengths [size]; the last batch has empty ones.
  """
  lengths = np.array([len(x) for x in states])
  noise = rng.random(len(states)) if rng else np.zeros(len(states))
  order = np.lexsort((noise, lengths))
  parts = [order[i : i + size] for i in range(0, len(order), size)]
  if rng:
    rng.shuffle(parts)
  for part in parts:
    width = _up_to(max(int(lengths[part].max()), 1))
    x = np.zeros((size, width, *states[0].shape[1:]), np.float32)
    y = np.full((size, width), -1, np.int32)
    n = np.zeros(size, np.int32)
    for row, i in enumerate(part):
      x[row, : lengths[i]], y[row, : lengths[i]] = states[i], labels[i]
      n[row] = lengths[i]
    yield part, x, y, n


def train_tagger(recipe, train, evaluate, num_labels, seed):
  """Trains a tagger and keeps the epoch that is best.

  Args:
    recipe: how.
    train: (states, labels) of the training sentences.
    evaluate: (a function: states -> tags of each sentence) -> score.
    num_labels: of the classifier.
    seed: of the start, the order and dropout.

  Returns:
    The function of the best epoch, its number from 1, and the scores of all.
  """
  states, labels = train
  join = FEATURES[recipe.features][1]
  model: Any = Tagger(recipe.hidden, num_labels, join, recipe.dropout)
  init_rng, dropout_rng = jax.random.split(jax.random.key(seed))
  optimizer = optax.chain(
    optax.clip_by_global_norm(5.0), optax.adam(recipe.learning_rate)
  )
  params = jax.jit(
    lambda rng, x, n: model.init(rng, x, n, deterministic=True)["params"]
  )(init_rng, jnp.asarray(states[0][None]), jnp.array([len(states[0])]))
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, number, x, y, n):
    def loss_of(params):
      logits = model.apply(
        {"params": params},
        x,
        n,
        deterministic=False,
        rngs={"dropout": jax.random.fold_in(dropout_rng, number)},
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(y, 0)
      )
      return jnp.sum(losses * (y >= 0)) / jnp.maximum(jnp.sum(y >= 0), 1)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  guess = jax.jit(
    lambda params, x, n: jnp.argmax(
      model.apply({"params": params}, x, n, deterministic=True), -1
    )
  )

  def tagger(params):
    def tag(given):
      found = [np.zeros(0, int)] * len(given)
      empty = [np.zeros(len(x), int) for x in given]
      for part, x, _, n in batches(given, empty, recipe.batch_size):
        tags = np.asarray(guess(params, x, n))
        for row, i in enumerate(part):
          found[i] = tags[row, : n[row]]
      return found

    return tag

  rng, number = np.random.default_rng(seed), 0
  best, best_epoch = params, 0
  found: list[float] = []
  for epoch in progress.track(range(recipe.epochs), recipe.features):
    for _, x, y, n in batches(states, labels, recipe.batch_size, rng):
      params, opt_state, loss = step(params, opt_state, number, x, y, n)
      number += 1
    if not np.isfinite(loss):
      raise SystemExit(f"the loss of epoch {epoch + 1} is {loss}")
    found.append(evaluate(tagger(params)))
    if not best_epoch or found[-1] > found[best_epoch - 1]:
      best, best_epoch = params, epoch + 1
  return tagger(best), best_epoch, found


def run(config, recipe, seeds, known=()):
  """Trains a tagger for each seed.

  Args:
    config: of the fine-tuning of the task (configs/finetune.py), from weights.
    recipe: how.
    seeds: one a tagger.
    known: identities of results that there are; they are left out.

  Yields:
    A row of results.jsonl for each.
  """
  job, pretrained = jobs.open_job(config, "")
  assert isinstance(job, finetuning.FineTuning)
  if job.task.kind != "tag" or pretrained is None:
    raise SystemExit(
      f"task {job.task.name} is of the kind {job.task.kind}, and the weights "
      f"are {config.init_from!r}; give a task of tags and --from=WEIGHTS"
    )
  about = runs.describe(job.config, job.data_hash, jax.devices())
  rows = [
    {"task": job.task.name, "seed": seed, "recipe": dataclasses.asdict(recipe)}
    | {k: about[k] for k in ("commit", "dirty", "config", "data_hash")}
    for seed in seeds
  ]
  rows = [row for row in rows if identity(row) not in known]
  if not rows:
    return
  layers, _ = FEATURES[recipe.features]
  params = jax.tree.map(jnp.asarray, pretrained.params["encoder"])
  train, *others = job.task.train_split, *job.eval_splits
  states = {
    name: word_states(job, params, job.split(name), layers)
    for name in (train, *others)
  }
  numbers = {label: i for i, label in enumerate(job.task.labels)}
  labels = [
    np.array([numbers[tag] for tag in example.labels], np.int32)
    for example in job.split(train).examples
  ]

  def score(tag, name):
    guesses = [
      tuple(job.task.labels[i] for i in tags) for tags in tag(states[name])
    ]
    return job.objective.score(job.task, guesses, job.split(name).examples)

  for row in rows:
    start = time.monotonic()
    tag, epoch, curve = train_tagger(
      recipe,
      (states[train], labels),
      lambda tag: score(tag, others[0])["entity_f1"],
      len(numbers),
      row["seed"],
    )
    metrics = {
      ("eval/" if name == others[0] else f"eval/{name}/") + key: value
      for name in others
      for key, value in score(tag, name).items()
    }
    devices = about["devices"]
    yield row | {
      "epoch": epoch,
      "curve": curve,
      "metrics": metrics,
      "seconds": round(time.monotonic() - start, 1),
      "hardware": f"{devices['count']} x {', '.join(devices['kind'])}",
    }


def identity(row):
  """What makes a row a result of its own, whatever it was computed on."""
  keys = ("task", "seed", "recipe", "config", "data_hash", "commit")
  text = json.dumps([row[k] for k in keys], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read(path):
  """The rows of a results.jsonl, none where there is no file."""
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def summary(rows, config, recipe):
  """F1 in per cent of one encoder with one recipe, the newest run of a seed."""
  wanted = json.loads(config.to_json_best_effort())
  found = {}
  for row in rows:
    alike = [
      row["config"]["init_from"] == wanted["init_from"],
      row["config"]["data"]["seq_len"] == wanted["data"]["seq_len"],
      row["recipe"] == dataclasses.asdict(recipe),
      *(
        row["config"]["task"][key] == wanted["task"][key]
        for key in ("name", "dir", "context")
      ),
    ]
    if all(alike):
      found[row["seed"]] = 100 * row["metrics"]["eval/entity_f1"]
  return list(found.values())


def parse_args(argv=None):
  """The command line; a `Recipe` but for `features` is part of it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("features", nargs="+", choices=list(FEATURES))
  parser.add_argument("--task", default="conll2003")
  parser.add_argument("--data", required=True, help="folder of its files")
  parser.add_argument("--from", dest="weights", required=True)
  parser.add_argument(
    "--context", default="document", choices=("document", "sentence")
  )
  parser.add_argument(
    "--seq_len", type=int, default=512, help="tokens of a sentence's context"
  )
  parser.add_argument("--seeds", type=int, default=5)
  for field in dataclasses.fields(Recipe)[1:]:
    parser.add_argument(
      f"--{field.name}", type=type(field.default), default=field.default
    )
  return parser.parse_args(argv)


def main(argv=None, path=HERE / "results.jsonl"):
  """Runs what is asked for, and records it."""
  args = parse_args(argv)
  config = finetune.get_config(f"task={args.task},from={args.weights}")
  config.task.dir, config.task.context = args.data, args.context
  config.data.seq_len = args.seq_len
  for features in args.features:
    settings = [f.name for f in dataclasses.fields(Recipe)[1:]]
    recipe = Recipe(
      features, **{name: getattr(args, name) for name in settings}
    )
    known = {identity(row) for row in read(path)}
    for row in run(config, recipe, range(args.seeds), known):
      with path.open("a") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")
      f1 = 100 * row["metrics"]["eval/entity_f1"]
      beside = f" (the paper: {PAPER[features]})" * (args.task == "conll2003")
      print(f"{features}, seed {row['seed']}: F1 {f1:.1f}{beside}")
    found = summary(read(path), config, recipe)
    if len(found) > 1:
      print(
        f"{features}: mean F1 {np.mean(found):.1f} ({min(found):.1f} to "
        f"{max(found):.1f}) of {len(found)} seeds"
      )


if __name__ == "__main__":
  main()
