"""Every configuration key, once: its type, default, range and meaning.

  class Optim(Group):
    learning_rate: float = of_run(1e-4, 0.0, _FLOAT)
    "The highest learning rate."

A key is one row of a class below, and the string under the row is its meaning.
The function that makes the row says who may choose the value:

  of_weights  A run keeps the value; pre-trained weights decide it if there are
              any. These keys are the shape of the model.
  of_run      A run keeps the value; a resumed run with another is refused.
  of_session  It does not change what is computed, so that a resumed run may
              give another value.
  of_host     It may also differ between the processes of one job.

Everything that has to know a key reads it from here: the defaults of
configs/base.py (`make_config`), the checks before a run starts (`check`), the
rules for resuming (`names`), and the reference page docs/config.md (`page`).
To add a key, add a row; if it came after the first release, also say `since`
and `before`: the version, and what older runs did. A type checker reads the
same rows where code says `config: Config`; a key whose default is None is not
set until a config sets it.
"""

import ast
from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import functools
import inspect
import json
import math
import numbers
import pathlib
import typing
from typing import TYPE_CHECKING, Any

import ml_collections

# Steps, rows and tokens are counted by 32-bit integers on the devices.
_INT32 = 2**31 - 1
# jax.random.key takes a signed 64-bit integer.
_SEED = (-(2**63), 2**63 - 1)
# Tokens of a sequence; attention is quadratic in it.
_LEN = 2**20
# Beyond every vocabulary in use.
_PIECES = 2**24
_NUM_THREADS = 2**12
# A finite number whose square a float32 can still hold.
_FLOAT = 1e18
# Beyond the memory of every machine: 40 TB in float32.
MOST_PARAMETERS = 10**13

# Parameter path (searched as a regular expression) -> mesh axis of each of its
# last dimensions. Layers stacked by scan_layers keep their first axis whole.
SHARDING_RULES = (
  ("embeddings/word/embedding$", ("tensor", "fsdp")),
  ("embeddings/(position|type)/embedding$", (None, "fsdp")),
  ("attention/(query|key|value)/kernel$", ("fsdp", "tensor", None)),
  ("attention/(query|key|value)/bias$", ("tensor", None)),
  ("attention/out/kernel$", ("tensor", None, "fsdp")),
  ("attention/out/bias$", (None,)),
  ("mlp/in/kernel$", ("fsdp", "tensor")),
  ("mlp/in/bias$", ("tensor",)),
  ("mlp/out/kernel$", ("tensor", "fsdp")),
  ("mlp/out/bias$", (None,)),
  ("pooler/kernel$", ("fsdp", None)),
  ("pooler/bias$", (None,)),
  ("mlm/dense/kernel$", ("fsdp", None)),
  ("mlm/dense/bias$", (None,)),
  ("mlm/bias$", ("tensor",)),
  ("nsp/kernel$", ("fsdp", None)),
  ("nsp/bias$", (None,)),
  ("task/kernel$", ("fsdp", None)),
  ("task/bias$", (None,)),
  ("norm/(scale|bias)$", (None,)),
)


FIRST_VERSION = "0.1.0"


@dataclasses.dataclass(frozen=True)
class Key:
  """A configuration key.

  Attributes:
    scope: who may choose the value: "weights", "run", "session" or "host"; see
      the top of this file.
    default: its value where a config file says nothing. None = not set.
    least: the smallest value of a number, or of each in a list of numbers;
      None = there is no bound.
    most: the largest.
    choices: the values that a text may have; () = any.
    since: the version of this package that it came with.
    before: what runs of older versions did, which lack the key; None = every
      run has it.
    name: such as "optim.learning_rate".
    type: of its value, without None.
    item_type: of the items of a list. Words may also be given as numbers, so
      only int and float are checked.
    row: where it stands in this file, as CLASS.NAME.
  """

  scope: str
  default: Any
  least: float | None = None
  most: float | None = None
  choices: tuple[str, ...] = ()
  since: str = FIRST_VERSION
  before: Any = None
  name: str = ""
  type: Any = str
  item_type: Any = None
  row: str = ""

  @property
  def meaning(self) -> str:
    """What the key does, with its unit: the string under its row."""
    return _meanings()[self.row]

  def problem(self, value: Any) -> str:
    """Returns what is wrong with a value; "" if nothing is."""
    wanted = ""
    if self.type in (int, float):
      wanted = self._wanted_number(value, self.type)
    elif self.type is tuple:
      if not isinstance(value, list | tuple):
        wanted = "a list"
      elif self.item_type in (int, float):
        found = (self._wanted_number(item, self.item_type) for item in value)
        wanted = next((f"{x} in each place" for x in found if x), "")
    elif not isinstance(value, self.type):
      wanted = "True or False" if self.type is bool else "text"
    elif self.choices and value not in self.choices:
      wanted = f"one of {', '.join(self.choices)}"
    if not wanted:
      return ""
    return f"{self.name}={value!r:.60}; it must be {wanted}"

  def _wanted_number(self, value: Any, type: Any) -> str:
    """Returns what a number of a type must be instead; "" if it is right."""
    kind: Any = numbers.Integral if type is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
      return "an integer" if type is int else "a number"
    if not isinstance(value, int) and not math.isfinite(value):
      return "a finite number"
    if self.least is not None and value < self.least:
      return f"{self.least} or more"
    if self.most is not None and value > self.most:
      return f"{self.most} or less"
    return ""

  def explain(self) -> str:
    """Returns a sentence about the key: its name, type, default and meaning."""
    default = "not set" if self.default is None else f"{self.default!r:.60}"
    return f"{self.name} ({self.type.__name__}, {default})? {self.meaning}"


# A row is a Key at run time, and for a type checker a value of its key.
of_weights: Any = functools.partial(Key, "weights")
of_run: Any = functools.partial(Key, "run")
of_session: Any = functools.partial(Key, "session")
of_host: Any = functools.partial(Key, "host")


class Group:
  """The keys of one group, which a config holds as a ConfigDict."""

  if TYPE_CHECKING:  # what a ConfigDict offers beside the keys

    def __contains__(self, name: object) -> bool: ...
    def __getitem__(self, name: str) -> Any: ...
    def __setitem__(self, name: str, value: Any) -> None: ...
    def get(self, name: str, default: Any = None) -> Any: ...
    def keys(self) -> Any: ...
    def items(self) -> Any: ...
    def to_dict(self) -> dict[str, Any]: ...
    def update(self, *args: Any, **kwargs: Any) -> None: ...
    def unlocked(self) -> Any: ...
    def copy_and_resolve_references(self) -> Any: ...


class Model(Group):
  """The encoder."""

  vocab_size: int = of_weights(30522, 1, _PIECES)
  """Rows of the word table. The vocabulary of the data must fit."""

  num_layers: int = of_weights(12, 1, 10_000)  # ten times the deepest published
  """Encoder blocks."""

  hidden_size: int = of_weights(768, 1, 2**18)
  """Width D of the hidden states."""

  num_heads: int = of_weights(12, 1, 2**16)
  """Attention heads; each has hidden_size / num_heads dimensions."""

  mlp_dim: int = of_weights(3072, 1, 2**20)
  """Width F inside the MLP."""

  max_len: int = of_weights(512, 1, _LEN)
  """Rows of the position table, in tokens."""

  type_vocab_size: int = of_weights(2, 1, 2**16)
  """Rows of the segment table."""

  hidden_act: str = of_weights("gelu_tanh")
  """The activation inside the MLP. "gelu_tanh": the original since 2019-02.
  "gelu_erf": the original before, and Hugging Face."""

  dropout_rate: float = of_run(0.1, 0.0, 1.0)
  """Dropout of the embeddings and of the outputs of both sublayers."""

  attention_dropout_rate: float = of_run(0.1, 0.0, 1.0)
  """Dropout of the attention probabilities."""

  layer_norm_eps: float = of_weights(1e-12, 0.0, 1.0)
  """What LayerNorm adds inside the square root (original modeling.py)."""

  family: str = of_weights("bert", since="0.2.0", before="bert")
  """The family of encoders, which decides what other programs call the
  parameters, and what files beside the weights say."""

  norm: str = of_weights("layer_norm", since="0.2.0", before="layer_norm")
  """How hidden states are normalized: "layer_norm"."""

  norm_place: str = of_weights("post", since="0.2.0", before="post")
  """Where they are normalized. "post": after each residual sum."""

  positions: str = of_weights("learned", since="0.2.0", before="learned")
  """How a token learns its position. "learned": a table of max_len rows is
  added to the embeddings."""

  feed_forward: str = of_weights("mlp", since="0.2.0", before="mlp")
  """The sublayer after attention. "mlp": two dense layers with an activation
  between them."""

  attention_pattern: str = of_weights("full", since="0.2.0", before="full")
  """Which tokens of its sequence a token attends to. "full": all of them."""

  init_stddev: float = of_run(0.02, 0.0, _FLOAT)
  """Standard deviation of fresh weights: a normal distribution, truncated at
  two standard deviations and not rescaled."""

  dtype: str = of_run("float32")
  """The number format that is computed in: "float32", or "bfloat16" (TPU)."""

  param_dtype: str = of_run("float32")
  """The number format that parameters are stored in."""

  scan_layers: bool = of_run(False)
  """Whether to stack the layers, so that one block is compiled, not all."""

  remat: str = of_run("none")
  """What the backward pass computes again instead of keeping it: "none", "dots"
  (all but the results of matrix products) or "full"."""

  attention: str = of_run("plain")
  """The attention program. "plain": operations that run everywhere. "fused": on
  a TPU, one kernel that keeps the scores on chip, for rows of 128, 256, ...
  1024 tokens (packed tasks get such rows); it equals "plain" up to rounding,
  dropout included. Elsewhere plain operations do the same more slowly, because
  their backward pass computes the scores again. "fused_qkv": "fused" with
  query, key and value from one product. This is faster where matrix units wait
  for memory (v6e) and slower elsewhere; it needs mesh.tensor=1. "splash": on a
  TPU, JAX's kernel of that name, for rows of any multiple of 128 tokens. It
  has no dropout of attention probabilities, so it needs
  model.attention_dropout_rate=0.0 and gives up that regularization."""


class Data(Group):
  """Examples and batches."""

  dir: str = of_host(None)
  """Folder of prepared data, as --mode=prepare makes it."""

  verify: str = of_session("once", choices=("once", "always", "never"))
  """When to check the checksums of data files at the start: "once"
  (DATA/.verified.json notes which were sound), "always" or "never"."""

  seq_len: int = of_run(128, 1, _LEN)
  """Tokens in a row, [CLS] and [SEP] included."""

  batch_size: int = of_run(256, 1, _PIECES)
  """Rows in a step over all devices; for tasks, sequences. Packed rows hold
  several sequences each, and an epoch is as many rows as all examples fill."""

  max_sequences: int = of_run(1, 1, _LEN, before=1)
  """Pre-training: the most sequences that share a row, each of which sees only
  itself. 1 = one sequence in a row, padded. 8 fill 99 % of rows of 512 tokens
  with Wikipedia's lengths."""

  pairing: str = of_run("pairs", choices=("pairs", "full_sentences"))
  """What a pre-training example is. "pairs": two segments, for next-sentence
  prediction. "full_sentences": one run of text, without that task."""

  dupe_factor: int = of_run(10, 1, 10**6)
  """Passes over the corpus, each of which pairs segments anew."""

  short_seq_rate: float = of_run(0.1, 0.0, 1.0)
  """Share of document passes whose target length is shorter than a row."""

  examples_seed: int = of_run(0, *_SEED)
  """Seed of pairing, which is kept apart from the seed of the run."""

  mask_rate: float = of_run(0.15, 0.0, 1.0)
  """Share of the tokens of a sequence to predict."""

  max_predictions: int = of_run(0, 0, _LEN)
  """The most tokens to predict in a sequence; 0 = mask_rate * seq_len, rounded
  up."""

  mask_token_rate: float = of_run(0.8, 0.0, 1.0)
  """Share of the tokens to predict that are replaced by [MASK]."""

  random_token_rate: float = of_run(0.1, 0.0, 1.0)
  """Share of the tokens to predict that are replaced by a random token."""

  whole_word: bool = of_run(False)
  """Whether to choose whole words to predict, not single pieces."""

  static_masks: bool = of_run(False)
  """Whether every epoch has the same masks."""

  prefetch_batches: int = of_host(4, 1, 10**6)
  """Batches to make ahead of the step."""

  num_threads: int = of_host(1, 0, _NUM_THREADS)
  """Threads that make batches."""

  max_bad_records: int = of_session(0, 0, _INT32, before=0)
  """Pre-training: how many damaged examples a process leaves out, with a
  warning that names each; one more is an error. See also data.verify."""

  pack: bool = of_run(True)
  """Tasks: whether sequences share rows; False = one in a row, padded."""

  one_row_len: bool = of_run(False, before=False)
  """Tasks: whether packed rows have one length in all steps, whatever the seed.
  Runs that train together (--member) need this. It adds a little padding."""


class Files(Group):
  """Files of a task whose names are not the official ones."""

  train: str = of_host("")
  """Path of the training file."""

  validation: str = of_host("")
  """Path of the file that is evaluated."""

  test: str = of_host("")
  """Path of a file to predict; it is evaluated if it has labels."""


class Task(Group):
  """The task of fine-tuning.

  A list of words may be given as one word with commas: text=premise,claim.
  """

  name: str = of_run("")
  """A task in bert_jax/tasks, or "my-KIND" for data of your own."""

  dir: str = of_host(None)
  """Folder of its files in the official layout, or tfds:DIR of prepared TFDS
  data."""

  files: Files

  text: tuple[str, ...] = of_run(())
  """Own data: the columns of the text, in the order of the segments."""

  label: str = of_run("")
  """Own data: the column of the label."""

  labels: tuple[str, ...] = of_run(())
  """Own data: the labels; () = those of the training file."""

  label_separator: str = of_run(",", since="0.2.0", before=",")
  """Own data: what stands between several labels in one column."""

  columns: tuple[str, ...] = of_run((), before=[])
  """Own data: the names of all columns, for files without a header."""

  vocab: str = of_host("")
  """Path of a vocab.txt, where init_from has none."""

  eval_splits: tuple[str, ...] = of_session(())
  """The splits to evaluate; () = all that have labels."""

  predict_splits: tuple[str, ...] = of_session(())
  """The splits, also as TASK:SPLIT, whose predictions --mode=evaluate
  writes."""

  max_train_examples: int = of_run(0, 0, _INT32)
  """How many examples to take from the start of the training split; 0 = all."""

  context: str = of_run("sentence")
  """What a tagger sees: "sentence", or "document", the text around it, too."""

  max_query_len: int = of_run(64, 0, _LEN)
  """The most tokens of a question that are kept."""

  doc_stride: int = of_run(128, 1, _LEN)
  """Tokens from the start of a window of a long text to that of the next."""

  n_best: int = of_session(20, 1, _LEN)
  """Candidates for each end of an answer."""

  max_answer_len: int = of_session(30, 1, _LEN)
  """The most tokens of an answer."""

  has_null: bool = of_run(True)
  """Whether a question of own data may have no answer."""

  null_threshold: float = of_session(0.0, -_FLOAT, _FLOAT)
  """There is no answer where its score leads by more than this."""

  thresholds: tuple[float, ...] = of_session(
    (0.5,), 0.0, 1.0, since="0.2.0", before=[0.5]
  )
  """Of several labels: those with a probability above this are given. One
  number from 0 to 1, or one for each label."""


class Prepare(Group):
  """From text to prepared data, by --mode=prepare."""

  format: str = of_session("sentences")
  """How the text is laid out. "sentences": one on a line, a blank line between
  documents (the original's). "paragraphs": plain text, a blank line between
  paragraphs and two between documents. "jsonl": a JSON object on a line.
  "tfds": prepared TFDS data."""

  text_key: str = of_session("text")
  """The field of a JSONL or TFDS record that holds the text."""

  language: str = of_session("en")
  """The language of the sentence splitter, which "sentences" does not use."""

  vocab: str = of_session("")
  """A vocab.txt, a SentencePiece .model or a folder with one; "" = learn a
  vocabulary from the text."""

  vocab_kind: str = of_session(
    "wordpiece", choices=("wordpiece", "sentencepiece")
  )
  """What to learn: "wordpiece" or "sentencepiece"."""

  vocab_size: int = of_session(30522, 1, _PIECES)
  """Pieces to learn."""

  vocab_sample_bytes: int = of_session(200_000_000, 1, 2**48)
  """Bytes of text that a vocabulary is learned from."""

  lower_case: bool = of_session(True)
  """Whether to lower-case text and strip accents (uncased models)."""

  held_out_rate: float = of_session(0.005, 0.0, 1.0)
  """Share of the documents that is kept apart for evaluation."""

  held_out_seed: int = of_session(0, *_SEED)
  """Seed of that choice, which depends on the text of a document only."""

  unit_bytes: int = of_session(8_388_608, 1, 2**40)
  """Bytes of text in a unit of work; a unit makes one shard."""

  num_workers: int = of_session(0, 0, _NUM_THREADS)
  """Processes; 0 = one for each core. The data does not depend on it."""

  runner: str = of_session("processes", choices=("processes", "beam"))
  """What runs the work: "processes", or "beam", which needs that extra."""


class Optim(Group):
  """The optimizer and its schedule."""

  name: str = of_run("bert_adam")
  """The optimizer. "bert_adam": Adam without bias correction (the original's).
  "adamw". "lamb". "lion". "stable_adamw": AdamW whose update is clipped by its
  root mean square."""

  learning_rate: float = of_run(1e-4, 0.0, _FLOAT)
  """The highest learning rate."""

  warmup_rate: float = of_run(0.01, 0.0, 1.0)
  """Share of train.total_steps in which the learning rate rises from 0."""

  schedule: str = of_run("bert")
  """The learning-rate schedule after warm-up. "bert": a linear decay that runs
  from step 0, so that the rate falls a little after warm-up (original
  optimization.py). "linear": a decay without that jump. "cosine". "constant".
  "trapezoid": constant until the cool-down, then 1 - sqrt."""

  cooldown_rate: float = of_run(0.0, 0.0, 1.0, before=0.0)
  """Of "trapezoid": the share of the steps, at the end, in which the learning
  rate falls."""

  weight_decay: float = of_run(0.01, 0.0, _FLOAT)
  """Decoupled weight decay, of everything but biases and LayerNorm."""

  b1: float = of_run(0.9, 0.0, 1.0)
  """Decay of the running mean of gradients."""

  b2: float = of_run(0.999, 0.0, 1.0)
  """Decay of the running mean of squared gradients."""

  eps: float = of_run(1e-6, 0.0, _FLOAT)
  """What is added to the root of the mean of squared gradients."""

  clip_norm: float = of_run(1.0, 0.0, _FLOAT)
  """The largest norm of the global gradient; 0 = no clipping."""

  num_micro_batches: int = of_run(1, 1, _PIECES)
  """Parts of a batch whose gradients are added up within one step."""


class Train(Group):
  """The training loop."""

  total_steps: int = of_run(1_000_000, 0, _INT32)
  """Optimizer steps, after which the schedule ends."""

  num_epochs: float = of_run(0.0, 0.0, 1e9)
  """Tasks: passes over the examples, each of which counts once however many
  windows it has (as in the original); 0 = total_steps counts."""

  log_every_steps: int = of_session(100, 1, _INT32)
  """Steps from one line of metrics.jsonl to the next."""

  tensorboard: bool = of_session(True)
  """Whether to write event files for TensorBoard, too."""

  on_bad_step: str = of_session("stop", choices=("stop", "skip"), before="stop")
  """What to do about a step whose loss or gradient is NaN or infinite, or whose
  loss is a spike: "stop", or "skip" it, so that it changes nothing.
  bad_steps.jsonl has its examples."""

  spike_factor: float = of_session(0.0, 0.0, _FLOAT, before=0.0)
  """A loss above this many times the mean of the losses before is a spike; 0 =
  none is."""

  max_skipped_steps: int = of_session(100, 0, _INT32, before=0)
  """How many steps a run may skip; one more stops it."""

  max_stall_secs: float = of_session(1800.0, 0.0, 1e9, before=1800.0)
  """Several processes: seconds without a finished step, batch of an evaluation,
  save or restore after which the job ends, so that it can be started again; 0 =
  no limit. The longest of these must fit, compiling included."""

  profile_steps: tuple[int, ...] = of_session((), before=[])
  """The first and last step of a trace for TensorBoard's profiler; () = no
  trace."""


class Mesh(Group):
  """How the devices share the work."""

  data: int = of_session(-1, -1, _PIECES)
  """Replicas that split the batch; -1 = all devices that are left."""

  fsdp: int = of_session(1, -1, _PIECES)
  """Devices that split both the batch and the parameters."""

  tensor: int = of_session(1, -1, _PIECES)
  """Devices that split the heads, the MLP and the vocabulary."""

  seed: int = of_session(0, 0, _PIECES, before=0)
  """Devices over which models that train together (--member) are dealt out; 0 =
  as many as there are and divide their number."""

  spread_optimizer: bool = of_session(True, before=False)
  """Whether each copy of the model keeps only a share of the optimizer's
  moments."""

  rules: tuple[tuple[str, tuple[str | None, ...]], ...] = of_session(
    SHARDING_RULES
  )
  """How parameters are sharded: a regular expression for parameter paths, and
  the mesh axes of their last dimensions."""


class Eval(Group):
  """Evaluation on held-out data."""

  every_steps: int = of_session(10_000, 0, _INT32)
  """Steps from one evaluation to the next; 0 = only after the last step."""

  batch_size: int = of_session(256, 1, _PIECES)
  """Rows in a batch of the evaluation."""

  max_examples: int = of_session(10_000, 0, _INT32)
  """How many held-out examples to evaluate; 0 = all."""


class Checkpoint(Group):
  """What is saved, and when."""

  every_steps: int = of_session(10_000, 0, _INT32)
  """Steps from one save to the next; the last step is always saved."""

  max_lost_secs: float = of_session(1800.0, 0.0, 1e9)
  """Seconds of work at risk after which to save all the same; 0 = do not."""

  keep: int = of_session(3, 1, 10**6)
  """How many of the newest checkpoints to keep."""

  best_metric: str = of_session("eval/loss")
  """The metric whose best checkpoint is kept, too; "" = no such."""

  best_mode: str = of_session("min", choices=("min", "max"))
  """Which value of that metric is the best: "min" or "max"."""


class Convert(Group):
  """Weights in another format, by --mode=convert."""

  to: str = of_session("bert_jax")
  """What to write: "bert_jax", "huggingface", "flax" or "tf1"."""

  kind: str = of_session("")
  """What the head of a task is for, where the model does not say it:
  "classify", "multi_label", "regress", "span", "choice" or "tag". "" = as the
  model says."""

  drop_head: bool = of_session(False)
  """Whether to leave the head of a task out."""


class Predict(Group):
  """Predictions for new text, by --mode=predict."""

  kind: str = of_session("")
  """What to do with each line of --input: "fill-mask", "embed", "classify",
  "multi_label", "regress", "answer", "tag" or "choose"; "" = what the model has
  a head for."""

  model: str = of_session(None)
  """Weights to read: an HF directory, a TF1 checkpoint, a workdir (of which
  --checkpoint chooses the step) or WORKDIR/best/STEP. Not set = --workdir."""

  seq_len: int = of_session(0, 0, _LEN)
  """Tokens of a sequence; longer text is cut. 0 = as the run was trained and is
  evaluated, or model.max_len where the weights do not say it."""

  batch_tokens: int = of_session(2048, 1, _INT32)
  """Tokens that are computed together, padding included."""

  top_k: int = of_session(5, 1, _PIECES)
  """fill-mask: candidates for each [MASK]."""

  fields: tuple[str, ...] = of_session(("tokens", "pooled", "mean", "layers"))
  """embed: what to write, of "tokens", "pooled", "mean", "layers" and
  "concat"."""

  layers: tuple[int, ...] = of_session((-1,))
  """embed: which layers; 0 = the embeddings, 1 = the first layer, -1 = the
  last."""

  concat_last: int = of_session(0, 0, 10_000)
  """embed: how many of the last layers to join for each token; 0 = none."""

  decimals: int = of_session(6, 0, 12)
  """embed: digits after the decimal point; 0 = all."""

  allow_null: bool = of_session(None)
  """answer: whether there may be none, as in SQuAD 2. This is another name for
  task.has_null. Not set = as the run was trained and is evaluated, or False."""

  null_threshold: float = of_session(None, -_FLOAT, _FLOAT)
  """answer: there is none where its score leads by more than this. This is
  another name for task.null_threshold. Not set = as the run says, or 0.0."""


class Config(Group):
  """A whole configuration, as code reads it; at run time it is a ConfigDict."""

  seed: int = of_run(0, *_SEED)
  """Seed of the initial weights, of dropout, and of the order of examples and
  their masks."""

  objective: str = of_run("mlm_nsp")
  """What is trained: "mlm_nsp" (masked tokens and next sentence), "mlm" alone,
  or "task": the task that the group `task` describes."""

  init_from: str = of_run(None)
  """Weights to start from: an HF directory, a TF1 checkpoint, a workdir (its
  best step where it keeps one, otherwise its newest) or
  WORKDIR/checkpoints/STEP. They decide the shape of the model and, where a task
  is trained, its vocabulary."""

  init_random: bool = of_run(False)
  """Whether to take only shape and vocabulary from init_from, with fresh
  weights."""

  model: Model
  data: Data
  task: Task
  prepare: Prepare
  optim: Optim
  train: Train
  mesh: Mesh
  eval: Eval
  checkpoint: Checkpoint
  convert: Convert
  predict: Predict


def _read_rows(group: type[Group], prefix: str = "") -> Iterator[Key]:
  """Yields the keys of a group and of the groups in it, in their order."""
  for name, hint in typing.get_type_hints(group).items():
    if isinstance(hint, type) and issubclass(hint, Group):
      yield from _read_rows(hint, f"{prefix}{name}.")
      continue
    yield dataclasses.replace(
      vars(group)[name],
      name=prefix + name,
      type=typing.get_origin(hint) or hint,
      item_type=next(iter(typing.get_args(hint)), None),
      row=f"{group.__name__}.{name}",
    )


@functools.cache
def _meanings() -> dict[str, str]:
  """Returns the string under each row of this file, by CLASS.NAME."""
  found = {}
  for group in ast.parse(pathlib.Path(__file__).read_text("utf-8")).body:
    if isinstance(group, ast.ClassDef):
      for row, text in zip(group.body, group.body[1:], strict=False):
        if (
          isinstance(row, ast.AnnAssign)
          and isinstance(row.target, ast.Name)
          and isinstance(text, ast.Expr)
          and isinstance(text.value, ast.Constant)
        ):
          meaning = " ".join(str(text.value.value).split())
          found[f"{group.name}.{row.target.id}"] = meaning
  return found


KEYS: Mapping[str, Key] = {key.name: key for key in _read_rows(Config)}


def names(*scopes: str) -> frozenset[str]:
  """Returns the names of the keys that are of one of some scopes."""
  return frozenset(key.name for key in KEYS.values() if key.scope in scopes)


# The keys of the group `model` that imported weights decide.
SHAPE_KEYS = tuple(
  key.name.removeprefix("model.")
  for key in KEYS.values()
  if key.scope == "weights"
)


def meaning_of_group(name: str) -> str:
  """Returns what the keys of a group are about, in a sentence or two."""
  return inspect.getdoc(typing.get_type_hints(Config)[name]) or ""


def make_config() -> ml_collections.ConfigDict:
  """Returns a config in which every key has its default."""
  config = ml_collections.ConfigDict()
  for key in KEYS.values():
    group = config
    *parents, name = key.name.split(".")
    for parent in parents:
      if parent not in group:
        group[parent] = ml_collections.ConfigDict()
      group = group[parent]
    group[name] = key.default
    if key.default is None:
      group[name] = ml_collections.config_dict.placeholder(key.type)
  return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """Returns the values of a config or dict by name: {"a": {"b": 1}} -> a.b."""
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if hasattr(value, "items"):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def unflatten(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns the config with these values, by dotted name; see `flatten`.

  Lists become tuples where the key is a tuple, as in a config file.
  """
  config = ml_collections.ConfigDict()
  for name, value in values.items():
    group = config
    *groups, key = name.split(".")
    for inner in groups:
      if inner not in group:
        group[inner] = ml_collections.ConfigDict()
      group = group[inner]
    if name in KEYS and KEYS[name].type is tuple:
      value = _as_tuple(value)
    group[key] = value
  return config


def _as_tuple(value: Any) -> Any:
  """Returns a list, and the lists in it, as tuples."""
  return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def plain(config: Config) -> dict[str, Any]:
  """Returns a config as JSON has it: dicts, lists, numbers and strings."""
  return json.loads(json.dumps(config.to_dict(), default=list))


def check(config: Config | Mapping[str, Any]) -> None:
  """Checks every value of a config by itself, and its sizes together.

  Args:
    config: the whole configuration or a part of it, also of an older run. A key
      that is not there, or not set, is not checked.

  Raises:
    ValueError: a value is none that its key may have, or the model or its
      batches are larger than any machine; names the key.
  """
  values = {k: v for k, v in flatten(config).items() if v is not None}
  for name in KEYS.keys() & values.keys():
    if problem := KEYS[name].problem(values[name]):
      raise ValueError(problem)
  seq_len = values.get("data.seq_len", 1)
  for name in ("data.batch_size", "eval.batch_size"):
    tokens = values.get(name, 1) * seq_len
    if tokens > _INT32:
      raise ValueError(
        f"{name}={values[name]} rows of data.seq_len={seq_len} are {tokens} "
        f"tokens; a step takes at most {_INT32}"
      )
  if "model" in config and num_parameters(config["model"]) > MOST_PARAMETERS:
    sizes = ("num_layers", "hidden_size", "mlp_dim", "vocab_size")
    raise ValueError(
      f"the model has {num_parameters(config['model']):.2g} parameters: "
      + ", ".join(f"model.{k}={config['model'][k]}" for k in sizes)
      + f"; it may have {MOST_PARAMETERS:.0e}"
    )


def check_together(config: Config) -> None:
  """Raises ValueError if one program cannot train several models of a config.

  Only tasks are trained together, and in rows of one length, because rows that
  are packed differ in length from seed to seed.

  Args:
    config: the whole configuration.
  """
  if config.objective != "task":
    raise ValueError(
      f"objective={config.objective}: only tasks are trained together"
    )
  if config.data.pack and not config.data.one_row_len:
    raise ValueError(
      "models train together in rows of one length, which other seeds have, "
      "too: set data.one_row_len=True"
    )


def check_names(config: Config) -> None:
  """Raises ValueError for a key that no row describes.

  The config of a sweep, which lists trials, is not checked.
  """
  for name in {} if "trials" in config else flatten(config):
    if name not in KEYS:
      raise ValueError(
        f"{name}: {unknown(name)}; remove the key or correct its name"
      )


def unknown(name: str) -> str:
  """Returns a message about a key that does not exist, with the one meant."""
  near = _similar(name)
  guess = f". Did you mean {KEYS[near].explain()}" if near else "."
  return f"there is no such key{guess} All keys are in docs/config.md"


def _similar(name: str) -> str:
  """Returns the key that a name may stand for, or ""; lr for learning_rate."""
  leaf = name.rpartition(".")[2]
  for key in KEYS:
    words = key.rpartition(".")[2].split("_")
    if leaf in ("_".join(words), "".join(word[0] for word in words)):
      return key
  near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.7)
  if not near:
    leaves = {key.rpartition(".")[2]: key for key in KEYS}
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)
    near = [leaves[word] for word in near]
  return near[0] if near else ""


def num_parameters(model: Any) -> int:
  """Returns the parameters of an encoder without biases and normalization.

  Args:
    model: the group `model` of a config.
  """
  hidden, mlp = model["hidden_size"], model["mlp_dim"]
  rows = model["vocab_size"] + model["max_len"] + model["type_vocab_size"]
  layer = 4 * hidden * hidden + 2 * hidden * mlp
  return rows * hidden + model["num_layers"] * layer
