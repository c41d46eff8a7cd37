"""Every configuration key, once: its type, default, range and meaning.

  class Optim(Group):
    learning_rate: float = of_run(1e-4, 0.0, _FLOAT)
    "The highest learning rate."

A key is one row of a class below, and the string under the row is its meaning.
The function that makes the row says who may choose the value:

  of_weights  A run keeps the value, and pre-trained weights decide it, if there
              are any. These keys describe the shape of the model.
  of_run      A run keeps the value; a resumed run with another is refused.
  of_session  The value does not change what is computed, so that a resumed run
              may have another one.
  of_host     The value may also differ between the processes of one job.

All other code reads the keys from here: the defaults of configs/base.py
(`make_config`), the checks before a run starts (`check`), the rules for
resuming (`names`), and the reference page docs/config.md. To add a key, add a
row. If older runs lack the key, the row also needs `since`, the version that
added it, and `before`, the value that describes those runs. A type checker
reads the same rows where code says `config: Config`. A key whose default is
None is not set until a config sets it.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import difflib
import functools
import inspect
import json
import math
import numbers
import operator
import os
import pathlib
import typing
from typing import TYPE_CHECKING, Any

import ml_collections

# The devices count steps, rows and tokens with 32-bit integers.
_INT32 = 2**31 - 1
# jax.random.key takes a signed 64-bit integer.
_SEED = (-(2**63), 2**63 - 1)
# Tokens of a sequence; the cost of attention is quadratic in them.
_LEN = 2**20
# More than the pieces of any vocabulary in use.
_PIECES = 2**24
_NUM_THREADS = 2**12
# A number whose square is still finite in float32.
_FLOAT = 1e18
# The pieces of the original's uncased vocabulary: the rows of the word table if
# neither a config, data nor weights decide.
VOCAB_SIZE = 30522
# More than fit the memory of any machine: 40 TB in float32.
MOST_PARAMETERS = 10**13

# A regular expression that is searched for in the path of a parameter, and the
# mesh axes that shard its last dimensions. The first dimension of layers that
# scan_layers has stacked is not sharded.
SHARDING_RULES = (
  ("embeddings/word/embedding$", ("tensor", "fsdp")),
  ("embeddings/(position|type)/embedding$", (None, "fsdp")),
  ("embeddings/projection/kernel$", (None, "fsdp")),
  ("embeddings/projection/bias$", (None,)),
  ("relative/embedding$", (None, "tensor")),
  ("conv/kernel$", (None, None, "fsdp")),
  ("conv/bias$", (None,)),
  ("attention/(query|key|value)/kernel$", ("fsdp", "tensor", None)),
  ("attention/(query|key|value)/bias$", ("tensor", None)),
  ("attention/out/kernel$", ("tensor", None, "fsdp")),
  ("attention/out/bias$", (None,)),
  ("mlp/(in|gate)/kernel$", ("fsdp", "tensor")),
  ("mlp/(in|gate)/bias$", ("tensor",)),
  ("mlp/out/kernel$", ("tensor", "fsdp")),
  ("mlp/out/bias$", (None,)),
  ("fits/(embedding|hidden)/kernel$", (None, None)),
  ("fits/(embedding|hidden)/bias$", (None,)),
  ("pooler/kernel$", ("fsdp", None)),
  ("pooler/bias$", (None,)),
  ("mlm/dense/kernel$", ("fsdp", None)),
  ("mlm/dense/bias$", (None,)),
  ("mlm/bias$", ("tensor",)),
  ("mlm/decoder$", ("tensor", "fsdp")),
  ("(task|rtd)/dense/kernel$", ("fsdp", None)),
  ("(task|rtd)/dense/bias$", (None,)),
  ("rtd/kernel$", ("fsdp", None)),
  ("rtd/bias$", (None,)),
  ("nsp/kernel$", ("fsdp", None)),
  ("nsp/bias$", (None,)),
  # The weights of its loop over tokens are read in every step of it.
  ("task/lstm_[0-9]+/", ()),
  ("task/kernel$", ("fsdp", None)),
  ("task/bias$", (None,)),
  ("norm/(scale|bias)$", (None,)),
  # LoRA's adapters, which are small: not sharded.
  ("lora_[ab]$", ()),
  # The head of a kind of another package: not sharded.
  ("(^|/)head/", ()),
)


FIRST_VERSION = "0.1.0"


@dataclasses.dataclass(frozen=True)
class Key:
  """A configuration key.

  Attributes:
    scope: who may choose the value: "weights", "run", "session" or "host"; see
      the top of this file.
    default: the value if a config file does not set the key; None = not set.
    least: the smallest value of a number, or of each number in a list; None =
      there is no bound.
    most: the largest value of a number, or of each number in a list.
    choices: the values that a text may have; () = any.
    since: the version of this package that added the key.
    before: the value that describes older runs, which lack the key; None = all
      runs have the key.
    can_change: whether a run may go on with another value if --allow_changes
      names the key.
    is_path: whether the value is a path, which run.json stores as an absolute
      one, or relative to the workdir if it lies in there.
    name: the name, such as "optim.learning_rate".
    type: the type of the value, without None.
    item_type: the type of the items of a list. Words may also be given as
      numbers, so only int and float are checked.
    row: the place of the row in this file, as CLASS.NAME.
  """

  scope: str
  default: Any
  least: float | None = None
  most: float | None = None
  choices: tuple[str, ...] = ()
  since: str = FIRST_VERSION
  before: Any = None
  can_change: bool = False
  is_path: bool = False
  name: str = ""
  type: Any = str
  item_type: Any = None
  row: str = ""

  @property
  def meaning(self) -> str:
    """The meaning and the unit of the key: the string under its row."""
    return _meanings()[self.row]

  def problem(self, value: Any) -> str:
    """Returns a message about a value that the key cannot have, or ""."""
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
    """Returns what a number must be if it is wrong, or ""."""
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
    """Returns the key's name, type, default and meaning, as a question."""
    default = "not set" if self.default is None else f"{self.default!r:.60}"
    return f"{self.name} ({self.type.__name__}, {default})? {self.meaning}"


# A row is a Key at run time, and for a type checker a value of its key.
of_weights: Any = functools.partial(Key, "weights")
of_run: Any = functools.partial(Key, "run")
of_session: Any = functools.partial(Key, "session")
of_host: Any = functools.partial(Key, "host")


@typing.dataclass_transform(kw_only_default=True)
class Group:
  """The keys of one group, which a config holds as a ConfigDict.

  A type checker reads the rows of a group as the fields of a dataclass.
  """

  if TYPE_CHECKING:  # the methods of a ConfigDict

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

  vocab_size: int = of_weights(None, 1, _PIECES)
  """Rows of the word table; the vocabulary of the data may not be larger. Not
  set = that of the data: the pieces of a vocabulary that was learned by
  bert-jax prepare, padded to a multiple of 128, or those of one that was given
  to it; and 30522, as in the original, if there is no prepared data. With
  init_from, the weights decide."""

  # The bound is ten times the depth of the deepest published encoder.
  num_layers: int = of_weights(12, 1, 10_000)
  """Encoder blocks."""

  hidden_size: int = of_weights(768, 1, 2**18)
  """Width D of the hidden states."""

  num_heads: int = of_weights(12, 1, 2**16)
  """Attention heads; each has hidden_size / num_heads dimensions."""

  num_kv_heads: int = of_weights(0, 0, 2**16, since="0.3.0", before=0)
  """Heads of keys and values; consecutive heads of queries share one. 0 = each
  head of queries has its own."""

  mlp_dim: int = of_weights(3072, 1, 2**20)
  """Width F inside the MLP."""

  max_len: int = of_weights(512, 1, _LEN)
  """The longest sequence, in tokens, and the rows of a position table."""

  type_vocab_size: int = of_weights(2, 0, 2**16)
  """Rows of the segment table; 0 = the model has no such table."""

  hidden_act: str = of_weights("gelu_tanh")
  """The activation inside the MLP. "gelu_tanh": as in the original code since
  February 2019. "gelu_erf": as in the original code before, and in Hugging
  Face."""

  dropout_rate: float = of_run(0.1, 0.0, 1.0, can_change=True)
  """Dropout of the embeddings and of the outputs of both sublayers."""

  attention_dropout_rate: float = of_run(0.1, 0.0, 1.0, can_change=True)
  """Dropout of the attention probabilities."""

  layer_norm_eps: float = of_weights(1e-12, 0.0, 1.0)
  """The number that LayerNorm adds to the variance (original modeling.py)."""

  family: str = of_weights("bert", since="0.2.0", before="bert")
  """The family of encoders. It decides the names of the parameters in other
  programs' files, and the content of the files beside the weights."""

  norm: str = of_weights("layer_norm", since="0.2.0", before="layer_norm")
  """The normalization of hidden states: "layer_norm", or "rms_norm", which
  subtracts no mean and has no bias."""

  norm_bias: bool = of_weights(True, since="0.3.0", before=True)
  """Whether layer norms have a bias."""

  norm_place: str = of_weights("post", since="0.2.0", before="post")
  """Where hidden states are normalized. "post": after each residual sum.
  "pre": before each sublayer, and once after the last layer."""

  embedding_norm: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the embeddings are normalized."""

  first_norm: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the first layer normalizes the input of its attention; only models
  with norm_place=pre may lack it."""

  positions: str = of_weights("learned", since="0.2.0", before="learned")
  """What is added to the embeddings for a position. "learned": a row of a table
  with max_len rows. "none": nothing."""

  position_offset: int = of_weights(0, 0, 2**16, since="0.3.0", before=0)
  """Rows of the position table before that of the first token (RoBERTa: 2). The
  table has max_len + position_offset rows."""

  attention_positions: str = of_weights("none", since="0.3.0", before="none")
  """How attention knows positions. "none": it does not. "rope": it rotates
  query and key, dimension i with i + head_dim / 2. "rope_pairs": it rotates
  neighboring dimensions. "alibi": each head subtracts its slope times the
  distance. "t5": it adds a learned bias for each head and bucket of
  distances. "disentangled": query and key also attend to the vectors of a table
  of distances."""

  rope_theta: float = of_weights(
    10_000.0, 1.0, _FLOAT, since="0.3.0", before=10_000.0
  )
  """The base of the rotations: dimension i turns by rope_theta**(-2 i /
  head_dim) for each position."""

  local_rope_theta: float = of_weights(
    0.0, 0.0, _FLOAT, since="0.3.0", before=0.0
  )
  """The base of the rotations in layers with local attention; 0 =
  rope_theta."""

  relative_buckets: int = of_weights(32, 4, 2**16, since="0.3.0", before=32)
  """attention_positions=t5: buckets of distances, half of them for each
  direction. attention_positions=disentangled: buckets for each direction."""

  relative_distance: int = of_weights(128, 2, _LEN, since="0.3.0", before=128)
  """attention_positions=t5 or disentangled: distances from here on share the
  last bucket."""

  feed_forward: str = of_weights("mlp", since="0.2.0", before="mlp")
  """The sublayer after attention. "mlp": two dense layers with an activation
  between them. "glu": the activation of one dense layer times another, then a
  third."""

  attention_pattern: str = of_weights("full", since="0.2.0", before="full")
  """Which tokens of its sequence a token attends to. "full": all of them.
  "local": in every full_every-th layer, the first included, all of them; in the
  others those at a distance of at most local_radius. "causal": itself and those
  before it, as objective=ltr needs it."""

  local_radius: int = of_weights(64, 1, _LEN, since="0.3.0", before=64)
  """The longest distance that a layer with local attention sees, in tokens."""

  full_every: int = of_weights(3, 1, 10_000, since="0.3.0", before=3)
  """attention_pattern=local: the period of the layers with full attention."""

  attention_bias: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the four projections of attention have biases."""

  mlp_in_bias: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the dense layers into the inner layer of the MLP have biases."""

  mlp_out_bias: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the dense layer out of the inner layer of the MLP has a bias."""

  embedding_size: int = of_weights(0, 0, 2**18, since="0.3.0", before=0)
  """Width E of the embeddings, which a dense layer then maps to hidden_size;
  0 = hidden_size, without such a layer."""

  layer_groups: int = of_weights(0, 0, 10_000, since="0.3.0", before=0)
  """How many layers have parameters of their own; the others share them, in
  groups of consecutive layers. 0 = every layer has its own."""

  conv_size: int = of_weights(0, 0, 1023, since="0.3.0", before=0)
  """Tokens that a convolution spans, an odd number. It reads the embeddings,
  and its result is added to that of the first layer. 0 = there is none."""

  conv_act: str = of_weights("tanh", since="0.3.0", before="tanh")
  """The activation of the convolution."""

  conv_groups: int = of_weights(1, 1, 2**18, since="0.3.0", before=1)
  """Equal parts of the hidden states that the convolution keeps apart."""

  pooler: bool = of_weights(True, since="0.3.0", before=True)
  """Whether there is a pooler: a dense layer with tanh on the first token."""

  pooling: str = of_weights("first", since="0.3.0", before="first")
  """What a head for whole sequences reads: "first", the first token; "last",
  the last token; "mean", the mean over the tokens; or "late", the mean over
  what the inner layers of the head make of each token."""

  head_lstm_layers: int = of_weights(0, 0, 8, since="0.3.0", before=0)
  """The layers of a bidirectional LSTM between the encoder and the head of a
  task, each as wide as the hidden states. It starts fresh; with weights to
  start from, set it by init_changes=model.head_lstm_layers=1."""

  head_act: str = of_weights("", since="0.3.0", before="")
  """The activation inside the head of masked words; "" = hidden_act."""

  head_bias: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the inner dense layer of heads has a bias."""

  mlm_head: str = of_weights("transform", since="0.3.0", before="transform")
  """The head of masked words before the decoder. "transform": a dense layer,
  an activation and a norm. "bare": nothing."""

  mlm_bias: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the decoder of masked words has a bias."""

  tied_words: bool = of_weights(True, since="0.3.0", before=True)
  """Whether the decoder of masked words is the word table."""

  dropout_places: tuple[str, ...] = of_weights(
    ("embeddings", "attention", "mlp"),
    since="0.3.0",
    before=("embeddings", "attention", "mlp"),
  )
  """Where the dropout of dropout_rate acts: on "embeddings", on the outputs of
  "attention" and of "mlp", on "mlp_inner", the inner layer of the MLP, and on
  "head_input", what DeBERTa's heads for whole sequences read."""

  init_stddev: float = of_run(0.02, 0.0, _FLOAT)
  """Standard deviation of fresh weights: a normal distribution, truncated at
  two standard deviations and not rescaled."""

  dtype: str = of_run("float32")
  """The number format of computations: "float32", or "bfloat16" (TPU)."""

  param_dtype: str = of_run("float32")
  """The number format of the stored parameters."""

  scan_layers: bool = of_run(False)
  """Whether to stack the layers, so that only one block is compiled."""

  remat: str = of_run("none")
  """Which activations the backward pass computes again instead of keeping them:
  "none", "dots" (all but the results of matrix products) or "full"."""

  attention: str = of_run("plain")
  """The implementation of attention. "plain": operations that run on every
  device. "fused": on a TPU, one kernel that keeps the scores on chip, for rows
  of 128, 256, ... 1024 tokens (packed tasks get such rows). Its results equal
  those of "plain" up to rounding, including dropout. On other devices plain
  operations compute the same, but more slowly, because their backward pass
  computes the scores again. "fused_qkv": "fused", with query, key and value
  from one matrix product. This is faster if the matrix units wait for memory
  (v6e), and slower otherwise; it needs mesh.tensor=1. "splash": on a TPU, JAX's
  kernel of that name, for rows of any multiple of 128 tokens. It has no dropout
  of attention probabilities, so it needs model.attention_dropout_rate=0.0.
  "cudnn": on an NVIDIA GPU, cuDNN's flash attention, for model.dtype=bfloat16
  or float16 and heads of a multiple of 8, at most 128 wide (256 on Hopper and
  later). It has no dropout of attention probabilities either."""


class Data(Group):
  """Examples and batches."""

  dir: str = of_host(None, is_path=True)
  """Folder of prepared data, written by bert-jax prepare."""

  mixture: tuple[str, ...] = of_host((), since="0.3.0", before=[])
  """Pre-training: folders of more prepared data, with the same vocabulary. Rows
  come from data.dir and from these in the proportions of mixture_weights.
  Evaluations report the loss on each."""

  mixture_weights: tuple[float, ...] = of_run(
    (), 0.0, _FLOAT, since="0.3.0", before=[]
  )
  """The weight of data.dir and of each folder of data.mixture in the rows; () =
  their numbers of tokens."""

  mixture_power: float = of_run(1.0, 0.0, 1.0, since="0.3.0", before=1.0)
  """The power to which the weights are raised: below 1, small texts get a
  larger share (temperature sampling; 0.7 is usual for languages)."""

  verify: str = of_session("once", choices=("once", "always", "never"))
  """When to verify the checksums of data files at the start: "once"
  (DATA/.verified.json lists the verified files), "always" or "never"."""

  seq_len: int = of_run(128, 1, _LEN)
  """Tokens in a row, including [CLS] and [SEP]."""

  batch_size: int = of_run(256, 1, _PIECES, can_change=True)
  """Pre-training: rows in a step over all devices; if a row contains several
  sequences, an epoch has as many rows as all examples fill. Tasks: sequences in
  a step over all devices, however many of them share a row. The place in the
  data is this times the step: a run that changes it skips or repeats
  examples."""

  batch_warmup_sizes: tuple[int, ...] = of_run(
    (), 1, _PIECES, since="0.3.0", before=[]
  )
  """Pre-training: the rows of a step in the first steps of the run, such as
  64,128,192 before a batch_size of 256. Each size is for an equal part of
  batch_warmup_steps, and compiles a program of its own."""

  batch_warmup_steps: int = of_run(0, 0, _INT32, since="0.3.0", before=0)
  """Pre-training: the number of steps with the sizes of batch_warmup_sizes."""

  first_row: int = of_run(0, 0, 2**48, since="0.3.0", before=0)
  """Pre-training: how many rows of the order of the examples to skip, because
  an earlier run has used them."""

  max_sequences: int = of_run(1, 1, _LEN, before=1)
  """Pre-training: the largest number of sequences in a row. Tokens attend only
  to their own sequence. 1 = one padded sequence in a row. 8 sequences of
  Wikipedia fill 99 % of a row of 512 tokens."""

  pairing: str = of_run(
    "pairs", choices=("pairs", "full_sentences", "documents", "ordered_pairs")
  )
  """The kind of pre-training examples. "pairs": two segments, for next-sentence
  prediction. "full_sentences": one continuous text, without that task, which
  may cross the end of a document. "documents": the same within one document;
  max_sequences fills rows with several. "ordered_pairs": two segments of one
  text, in its order or swapped, for sentence-order prediction."""

  dupe_factor: int = of_run(10, 1, 10**6)
  """Passes over the corpus, each with other pairs of segments."""

  short_seq_rate: float = of_run(0.1, 0.0, 1.0)
  """Share of document passes whose examples are shorter than a row."""

  examples_seed: int = of_run(0, *_SEED)
  """Seed of pairing, independent of the seed of the run."""

  mask_rate: float = of_run(0.15, 0.0, 1.0, can_change=True)
  """Share of the tokens of a sequence to predict."""

  max_predictions: int = of_run(0, 0, _LEN)
  """The largest number of tokens to predict in a sequence; 0 = mask_rate *
  seq_len, rounded up."""

  mask_token_rate: float = of_run(0.8, 0.0, 1.0, can_change=True)
  """Share of the tokens to predict that are replaced by [MASK]."""

  random_token_rate: float = of_run(0.1, 0.0, 1.0, can_change=True)
  """Share of the tokens to predict that are replaced by a random token."""

  whole_word: bool = of_run(False)
  """Whether to predict whole words instead of single pieces. Chinese needs
  prepare.segmenter, which says where words begin."""

  mask_ngrams: int = of_run(1, 1, 100, since="0.3.0", before=1)
  """With whole_word: the most neighboring words to predict together. A run of n
  words is drawn in proportion to 1 / n; ALBERT has 3."""

  static_masks: bool = of_run(False)
  """Whether every epoch has the same masks."""

  prefetch_batches: int = of_host(4, 1, 10**6)
  """Batches that are made before the step needs them."""

  num_threads: int = of_host(1, 0, _NUM_THREADS)
  """Threads that make batches."""

  max_bad_records: int = of_session(0, 0, _INT32, before=0)
  """Pre-training: how many damaged examples a process skips, each with a
  warning; one more is an error. See also data.verify."""

  pack: bool = of_run(True)
  """Tasks: whether several sequences share a row; False = one padded sequence
  in a row."""

  one_row_len: bool = of_run(False, before=False)
  """Tasks: whether packed rows have the same length in all steps and for all
  seeds. Runs that train together (--member) need this. It adds a little
  padding."""


class Files(Group):
  """Files of a task whose names are not the official ones."""

  train: str = of_host("", is_path=True)
  """Path of the training file."""

  validation: str = of_host("", is_path=True)
  """Path of the file that is evaluated."""

  test: str = of_host("", is_path=True)
  """Path of a file to predict, which is also evaluated if it has labels."""


class Task(Group):
  """The task of fine-tuning.

  A list of words may be given as one word with commas: text=premise,claim.
  """

  name: str = of_run("")
  """A task of bert_jax/tasks, or "my-KIND" for your own data."""

  dir: str = of_host(None, is_path=True)
  """Folder of the task's files in the official layout, or tfds:DIR for prepared
  TFDS data."""

  files: Files

  text: tuple[str, ...] = of_run(())
  """Own data: the columns of the text, in the order of the segments. A text
  with columns in braces joins them to one text: "{subject}: {body}"."""

  label: str = of_run("")
  """Own data: the column of the label."""

  labels: tuple[str, ...] = of_run(())
  """Own data: the labels; () = those of the training file."""

  labels_file: str = of_host("", since="0.3.0", before="", is_path=True)
  """Own data: a file with the labels, one on each line, instead of
  task.labels."""

  missing_labels: str = of_run(
    "error", choices=("error", "drop"), since="0.3.0", before="error"
  )
  """Own data: what to do with rows to train on or to score that have no label:
  "error" names their lines, and "drop" leaves them out. In the test split such
  rows, and those with the label -1, are predicted and not scored."""

  tag_scheme: str = of_run(
    "auto", choices=("auto", "chunks", "plain"), since="0.3.0", before="chunks"
  )
  """Own data: whether tags mark chunks such as entities, in IOB, BIOES or BILOU
  ("chunks"), or are each about a word alone, as parts of speech ("plain").
  "auto" decides by the tags of the training file."""

  word_split: str = of_session(
    "auto",
    choices=("auto", "spaces", "punctuation", "characters"),
    since="0.3.0",
    before="spaces",
  )
  """A tagger: how a text is split into words, if it is not given as words: at
  "spaces", also around "punctuation", or into "characters". "auto" decides by
  the words of the training file."""

  first_choice: int = of_run(0, 0, 1, since="0.3.0", before=0)
  """Own data: the number that stands for the first of several choices."""

  train_answers: str = of_run(
    "one",
    choices=("one", "first", "most_frequent", "all"),
    since="0.3.0",
    before="one",
  )
  """What is learned from a question with several answers: the "first", the
  "most_frequent" or "all". "one" refuses such questions. Evaluation always
  compares with all answers."""

  label_separator: str = of_run(",", since="0.2.0", before=",")
  """Own data: the separator between several labels in one column."""

  columns: tuple[str, ...] = of_run((), before=[])
  """Own data: the names of all columns, for files without a header."""

  vocab: str = of_host("", is_path=True)
  """Path of a vocab.txt, if init_from has none."""

  eval_splits: tuple[str, ...] = of_session(())
  """The splits to evaluate; () = all that have labels."""

  predict_splits: tuple[str, ...] = of_session(())
  """The splits, also as TASK:SPLIT, whose predictions bert-jax evaluate
  writes."""

  max_train_examples: int = of_run(0, 0, _INT32)
  """How many examples to use, from the start of the training split; 0 = all."""

  both_orders: bool = of_run(False, since="0.3.0", before=False)
  """Whether each pair of texts is also learned in the other order, for tasks
  whose pairs have none. An epoch then has twice the examples."""

  context: str = of_run("sentence")
  """The input of a tagger: the "sentence" alone, or also the text around it
  ("document")."""

  max_query_len: int = of_run(64, 0, _LEN)
  """The largest number of tokens of a question; longer ones are cut."""

  class_weights: tuple[str, ...] = of_run((), since="0.3.0", before=())
  """The weight of each label in the loss of training, in the order of the
  labels; "balanced" = the more, the rarer the label is in the training file.
  With several labels for a text, it is the weight of the texts that have the
  label. () = all weigh the same. Kinds: classify, tag, multi_label."""

  label_smoothing: float = of_run(0.0, 0.0, 1.0, since="0.3.0", before=0.0)
  """The share of the right answer that is spread over all answers in the loss
  of training. Kinds: classify, tag, choice, multi_label."""

  focal_gamma: float = of_run(0.0, 0.0, 100.0, since="0.3.0", before=0.0)
  """Focal loss: the loss of training is multiplied by (1 - p)^focal_gamma,
  where p is the probability of the right answer, so that easy examples count
  less. Kinds: classify, tag, choice, multi_label."""

  dev_rate: float = of_run(0.0, 0.0, 1.0, since="0.3.0", before=0.0)
  """The share of the training examples that is evaluated instead of the file of
  the evaluation: of each label the same share, drawn by task.dev_seed. Equal
  texts, and questions on one text, stay together. 0 = none."""

  num_folds: int = of_run(0, 0, 10_000, since="0.3.0", before=0)
  """Cross-validation: the training examples are divided into so many parts, as
  by task.dev_rate; the run evaluates part task.fold and trains on the others.
  0 = none."""

  fold: int = of_run(0, 0, 10_000, since="0.3.0", before=0)
  """The part to evaluate, from 0 to task.num_folds - 1."""

  dev_seed: int = of_run(0, *_SEED, since="0.3.0", before=0)
  """The seed of task.dev_rate and task.num_folds."""

  long_texts: str = of_run(
    "cut", choices=("cut", "mean", "max", "first"), since="0.3.0", before="cut"
  )
  """What is read of a text that is longer than a row. "cut": its start. "mean"
  and "max": all of it, in windows that are task.doc_stride tokens apart, of
  whose outputs the mean or the largest counts. "first": the first window. Of a
  pair, the second text is read in windows. Kinds: classify, multi_label,
  regress; tags and questions are always read in windows."""

  doc_stride: int = of_run(128, 1, _LEN)
  """Tokens from the start of a window of a long text to that of the next."""

  n_best: int = of_session(20, 1, _LEN)
  """The number of candidates for the start, and for the end, of an answer."""

  max_answer_len: int = of_session(30, 1, _LEN)
  """The largest number of tokens of an answer."""

  has_null: bool = of_run(True)
  """Own data: whether questions may have no answer."""

  null_threshold: float = of_session(0.0, -_FLOAT, _FLOAT)
  """A question gets no answer if the score of "no answer" exceeds that of the
  best answer by more than this."""

  temperature: float = of_session(1.0, 1e-3, 1e3, since="0.3.0", before=1.0)
  """Classes and choices: what the scores are divided by before they become
  probabilities. evaluate says which value fits the labels of a split. The
  answers stay the same."""

  thresholds: tuple[float, ...] = of_session(
    (0.5,), 0.0, 1.0, since="0.2.0", before=[0.5]
  )
  """Several labels: an example gets the labels whose probability exceeds this.
  One number from 0 to 1, or one for each label."""

  pooling: str = of_run(
    "auto", choices=("auto", "mean", "cls"), since="0.3.0", before="auto"
  )
  """The vector of a text: the "mean" of the vectors of its tokens, or that of
  its first token ("cls"). "auto" is that of the folder of init_from, or else
  the mean. Kinds: contrast, similarity."""

  normalize: bool = of_run(True, since="0.3.0", before=True)
  """Whether vectors are divided by their length, so that texts are compared by
  the cosine and not by the product. Kinds: contrast, similarity."""

  contrast_temperature: float = of_run(
    0.05, 1e-4, 1e4, since="0.3.0", before=0.05
  )
  """What cosines or products are divided by in the loss. Kinds: contrast,
  similarity."""

  matryoshka_sizes: tuple[int, ...] = of_run(
    (), 1, 2**18, since="0.3.0", before=()
  )
  """The loss is the sum of those of the first so many dimensions of the
  vectors, so that users may cut the vectors to one of these sizes; () = all
  dimensions alone. Kinds: contrast, similarity."""

  matryoshka_weights: tuple[float, ...] = of_run(
    (), 0.0, 1e6, since="0.3.0", before=()
  )
  """The weight of the loss of each of task.matryoshka_sizes; () = 1."""

  rank_loss: str = of_run(
    "softmax", choices=("softmax", "pointwise"), since="0.3.0", before="softmax"
  )
  """A reranker: the loss over the candidates of a query ("softmax"), or of each
  pair by itself, right or wrong ("pointwise")."""


class Prepare(Group):
  """Preparing data from text, by bert-jax prepare."""

  format: str = of_session(
    "sentences",
    choices=(
      "sentences", "paragraphs", "jsonl", "json", "csv", "tsv", "parquet",
      "arrow", "tfds",
    ),
  )  # fmt: skip
  """The format of text whose file does not end in .jsonl, .json, .csv, .tsv,
  .parquet or .arrow: these endings decide the format, and an ending such as .gz
  may follow. "sentences": a sentence per line, and a blank line between
  documents, as for the original code. "paragraphs": plain text, with a blank
  line between paragraphs and two between documents. "jsonl": a JSON object per
  line; "json": also an array of them. "csv", "tsv", "parquet" and "arrow": a
  document per row. "tfds": prepared TFDS data."""

  text_key: str = of_session("text")
  """The field of a record, or the column of a table, that contains the text."""

  language: str = of_session("en")
  """The language of the sentence splitter; prepare.format="sentences" needs
  none."""

  vocab: str = of_session("")
  """A vocab.txt, a SentencePiece .model, or a folder with one or with the
  tokenizer of any model of Hugging Face; "" = learn a vocabulary from the
  text."""

  vocab_kind: str = of_session(
    "wordpiece", choices=("wordpiece", "sentencepiece", "byte_bpe")
  )
  """The kind of vocabulary to learn: "wordpiece", "sentencepiece" or
  "byte_bpe"."""

  special_tokens: str = of_session(
    "bert", choices=("bert", "roberta"), since="0.3.0", before="bert"
  )
  """The special tokens of a byte-level BPE that is learned: those of BERT, or
  those of RoBERTa with its form of pairs, <s> A </s></s> B </s>."""

  vocab_size: int = of_session(30522, 1, _PIECES)
  """Pieces to learn."""

  alphabet_size: int = of_session(1000, 1, _PIECES, since="0.3.0", before=1000)
  """WordPiece: how many characters a learned vocabulary has, the most frequent
  ones of the text. A word with any other character is unknown. Chinese needs
  some 6000."""

  segmenter: str = of_session("", since="0.3.0", before="")
  """The words of Chinese for data.whole_word: "jieba", the segmenter of that
  name (extra chinese); "spaces", for text that has spaces between words; or the
  path of a text file with a word on each line, of which the longest that fits
  is taken, from left to right. The ids do not change. "" = no words."""

  vocab_sample_bytes: int = of_session(200_000_000, 1, 2**48)
  """Bytes of text from which a vocabulary is learned."""

  lower_case: bool = of_session(True)
  """Whether to lower-case text and strip accents (uncased models)."""

  strip_accents: bool = of_session(None)
  """WordPiece: whether to strip accents and other combining marks, among them
  the vowel signs of Indic scripts. Not set = as prepare.lower_case."""

  held_out_rate: float = of_session(0.005, 0.0, 1.0)
  """Share of the documents that is used for evaluation only."""

  held_out_seed: int = of_session(0, *_SEED)
  """Seed of the choice of these documents. The choice depends only on the text
  of a document."""

  duplicates: str = of_session(
    "keep",
    choices=("keep", "drop_equal", "drop_near"),
    since="0.3.0",
    before="keep",
  )
  """What to do with documents that repeat an earlier one. "keep" them;
  "drop_equal": leave out those with the same words; "drop_near": also those
  that share 80 % of their runs of five words, by MinHash (extra "dedup")."""

  held_out_input: str = of_session("", since="0.3.0", before="")
  """Files, globs or folders, separated by commas, of text of which every
  document is kept apart for evaluation, besides the share of the input."""

  unit_bytes: int = of_session(8_388_608, 1, 2**40)
  """Bytes of text in a unit of work, which makes one shard."""

  num_workers: int = of_session(0, 0, _NUM_THREADS)
  """Processes; 0 = one for each core. The prepared data do not depend on it."""

  runner: str = of_session("processes", choices=("processes", "beam"))
  """The program that distributes the work: "processes", or "beam", which needs
  the extra of that name."""


class Optim(Group):
  """The optimizer and its schedule."""

  name: str = of_run("bert_adam")
  """The optimizer. "bert_adam": Adam without bias correction, as in the
  original code. "adamw". "lamb". "lion". "stable_adamw": AdamW whose update is
  clipped by its root mean square. "muon": orthogonalised momentum for the
  matrices of the encoder, AdamW for the rest; small models that train for a
  few thousand steps learn faster with it, at 2e-3 to 1e-2 and optim.b1=0.95."""

  learning_rate: float = of_run(1e-4, 0.0, _FLOAT, can_change=True)
  """The highest learning rate."""

  average_decay: float = of_run(0.0, 0.0, 0.999999, since="0.3.0", before=0.0)
  """Keeps an average of the parameters, in which those of a step count
  1 - average_decay and those before it fade by this factor at each step, such
  as 0.999; 0 = none. eval.average evaluates and exports it."""

  warmup_rate: float = of_run(0.01, 0.0, 1.0, can_change=True)
  """Share of train.total_steps in which the learning rate rises from 0."""

  schedule: str = of_run("bert", can_change=True)
  """The learning-rate schedule after warm-up. "bert": a linear decay that
  begins at step 0, so that the rate drops at the end of warm-up (original
  optimization.py). "linear": a linear decay without that drop. "cosine".
  "constant". "trapezoid": constant until the cool-down, then 1 - sqrt."""

  cooldown_rate: float = of_run(0.0, 0.0, 1.0, before=0.0, can_change=True)
  """Schedule "trapezoid": the share of the steps, at the end, in which the
  learning rate falls."""

  weight_decay: float = of_run(0.01, 0.0, _FLOAT, can_change=True)
  """Decoupled weight decay of all parameters except biases and LayerNorm."""

  b1: float = of_run(0.9, 0.0, 1.0, can_change=True)
  """Decay rate of the running mean of gradients."""

  b2: float = of_run(0.999, 0.0, 1.0, can_change=True)
  """Decay rate of the running mean of squared gradients."""

  eps: float = of_run(1e-6, 0.0, _FLOAT, can_change=True)
  """The number that is added to the root of the mean of squared gradients."""

  layer_decay: float = of_run(1.0, 0.0, 1.0, since="0.3.0", before=1.0)
  """The learning rate of a layer relative to that of the layer above it. The
  top layer has optim.learning_rate times this, the embeddings have the lowest,
  and the pooler, the last norm and the head have all of it. 1 = all learn
  alike."""

  head_rate: float = of_run(1.0, 0.0, _FLOAT, since="0.3.0", before=1.0)
  """The learning rate of all that is not the encoder, such as the head of a
  task, relative to optim.learning_rate."""

  frozen_layers: int = of_run(0, 0, 10_000, since="0.3.0", before=0)
  """How many of the lowest layers are not trained. They have no weight decay
  and no part in the norm of the gradient."""

  frozen_embeddings: bool = of_run(False, since="0.3.0", before=False)
  """Whether the embeddings, which pre-training also decodes with, are not
  trained."""

  unfreeze_steps: int = of_run(0, 0, _INT32, since="0.3.0", before=0)
  """Gradual unfreezing: the number of steps after which one more layer is
  trained, from the top down, and the embeddings last. Before, only the head,
  the pooler and the last norm are. 0 = all from the start."""

  lora_rank: int = of_run(0, 0, 10_000, since="0.3.0", before=0)
  """Fine-tuning: the rank of LoRA's adapters. A pair of narrow matrices is then
  trained beside each kernel of optim.lora_targets; of the rest, only the head
  and the pooler are. 0 = all parameters are trained, without adapters."""

  lora_alpha: float = of_run(16.0, 0.0, _FLOAT, since="0.3.0", before=16.0)
  """The product of a pair of adapters is multiplied by this, divided by
  optim.lora_rank."""

  lora_targets: tuple[str, ...] = of_run(
    ("query", "value"), since="0.3.0", before=["query", "value"]
  )
  """The kernels of every layer that have adapters: "query", "key", "value",
  "attention_out", "mlp_in", "mlp_gate", "mlp_out", or "all"."""

  lora_dropout_rate: float = of_run(0.0, 0.0, 1.0, since="0.3.0", before=0.0)
  """The share of the inputs of each adapter that a step leaves out. All tokens
  of a step lack the same ones."""

  lora_norms: bool = of_run(False, since="0.3.0", before=False)
  """Whether the norms of the encoder are trained beside the adapters."""

  clip_norm: float = of_run(1.0, 0.0, _FLOAT)
  """The largest norm of the global gradient; 0 = no clipping."""

  num_micro_batches: int = of_run(1, 1, _PIECES, can_change=True)
  """Into how many parts a batch is split, to add up their gradients in one
  step."""


class Train(Group):
  """The training loop."""

  total_steps: int = of_run(1_000_000, 0, _INT32, can_change=True)
  """The number of optimizer steps, after which the schedule ends."""

  phases: tuple[str, ...] = of_run((), since="0.3.0", before=[])
  """Pre-training in phases, one after another: for each a text of its name and
  the keys in which it differs, such as "longer data.seq_len=1024
  train.total_steps=800 model.rope_theta=160000". A phase starts from the
  weights and moments of the one before it. () = one phase."""

  num_epochs: float = of_run(0.0, 0.0, 1e9, can_change=True)
  """Passes over the examples. An example of a task counts once even if it has
  several windows, as in the original code. 0 = use total_steps."""

  log_every_steps: int = of_session(100, 1, _INT32)
  """Steps from one line of metrics.jsonl to the next."""

  tensorboard: bool = of_session(True)
  """Whether to write event files for TensorBoard."""

  trackers: tuple[str, ...] = of_session((), since="0.3.0", before=[])
  """Services that also get the metrics: "wandb", "mlflow". Each needs the extra
  of its name, and is set up by its own environment variables. "mlperf" writes
  WORKDIR/mlperf.log in MLPerf's format, for configs/mlperf.py. A service that
  fails does not stop the run."""

  patience: int = of_run(0, 0, _INT32, since="0.3.0", before=0, can_change=True)
  """Early stopping: the run ends after so many evaluations in a row without a
  better checkpoint.best_metric. The best checkpoint is kept, and evaluate,
  predict and convert read it. 0 = all steps are trained."""

  stop_at: str = of_run("", since="0.3.0", before="", can_change=True)
  """The run ends after the first evaluation with this result, such as
  "eval/mlm_accuracy>=0.72" or "eval/loss<=1.3". "" = all steps are trained."""

  on_bad_step: str = of_session("stop", choices=("stop", "skip"), before="stop")
  """What to do if the loss or a gradient of a step is NaN or infinite, or if
  its loss is a spike: "stop" the run, or "skip" the step, so that it changes
  nothing. bad_steps.jsonl lists its examples."""

  spike_factor: float = of_session(0.0, 0.0, _FLOAT, before=0.0)
  """A loss is a spike if it exceeds the mean of the earlier losses by this
  factor; 0 = no loss is."""

  max_skipped_steps: int = of_session(100, 0, _INT32, before=0)
  """How many steps a run may skip; one more stops it."""

  max_stall_secs: float = of_session(1800.0, 0.0, 1e9, before=1800.0)
  """Several processes: the job ends, so that it can be started again, if for so
  many seconds it finishes no step, batch of an evaluation, save or restore; 0 =
  no limit. The longest of these, including compiling, must be shorter."""

  export: str = of_session(
    "",
    choices=("", "same", "huggingface", "flax", "tf1"),
    since="0.3.0",
    before="",
  )
  """After the last step, also write the weights to WORKDIR/export in this
  format. "same": that of init_from. "" = write none."""

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

  num_slices: int = of_session(0, 0, _PIECES, since="0.3.0", before=0)
  """Slices that only a slow network connects, each with whole copies of the
  model: 0 = as many as the TPUs say, otherwise one. On other devices, a slice
  is a group of processes, in their order."""

  seed: int = of_session(0, 0, _PIECES, before=0)
  """Devices over which models that train together (--member) are distributed; 0
  = the largest number of devices that divides the number of models."""

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

  average: bool = of_session(False, since="0.3.0", before=False)
  """Whether the average of the parameters (optim.average_decay) is evaluated,
  and not those of the last step. What reads the weights of the run, such as an
  export, a prediction or a run that starts from it, then takes the average,
  too; convert.weights chooses otherwise."""

  every_steps: int = of_session(10_000, 0, _INT32)
  """Steps from one evaluation to the next; 0 = only after the last step."""

  every_epochs: float = of_session(0.0, 0.0, 1e9, since="0.3.0", before=0.0)
  """Epochs from one evaluation to the next, rounded to whole steps, instead of
  eval.every_steps; 0 = as eval.every_steps says."""

  at_start: bool = of_session(False, since="0.3.0", before=False)
  """Whether to evaluate also before the first step."""

  batch_size: int = of_session(256, 1, _PIECES)
  """Rows in a batch of an evaluation."""

  bootstrap: int = of_session(0, 0, 10**6, since="0.3.0", before=0)
  """Tasks, by bert-jax evaluate: how often the examples are drawn with
  replacement, for an interval of 95 % around each score; 0 = no intervals."""

  mask_rate: float = of_session(0.0, 0.0, 1.0, since="0.3.0", before=0.0)
  """Pre-training: the share of the tokens of a sequence to predict in an
  evaluation; 0 = data.mask_rate. Losses at different rates do not compare."""

  max_examples: int = of_session(10_000, 0, _INT32)
  """How many held-out examples to evaluate; 0 = all."""


class Distill(Group):
  """What objective=distill learns from a teacher."""

  teacher: str = of_run("", since="0.3.0", before="", is_path=True)
  """The teacher: a model in any format with a head for masked words, or its
  name on the hub."""

  temperature: float = of_run(2.0, 1e-3, _FLOAT, since="0.3.0", before=2.0)
  """The number by which the scores of words are divided when both are
  compared."""

  soft_weight: float = of_run(5.0, 0.0, _FLOAT, since="0.3.0", before=5.0)
  """The factor of the divergence from the teacher's words."""

  mlm_weight: float = of_run(2.0, 0.0, _FLOAT, since="0.3.0", before=2.0)
  """The factor of the loss of masked words."""

  cosine_weight: float = of_run(1.0, 0.0, _FLOAT, since="0.3.0", before=1.0)
  """The factor of the cosine distance of the last hidden states; 0 = leave it
  out, for a student of another width."""

  hidden_weight: float = of_run(0.0, 0.0, _FLOAT, since="0.3.0", before=0.0)
  """The factor of the squared error of the hidden states of each layer of the
  student, against those of evenly spread layers of the teacher (TinyBERT). A
  student of another width learns a projection, which is left out of its
  weights; 0 = leave the term out."""

  embedding_weight: float = of_run(0.0, 0.0, _FLOAT, since="0.3.0", before=0.0)
  """The factor of the squared error of the outputs of the embeddings, likewise;
  0 = leave it out."""

  attention_weight: float = of_run(0.0, 0.0, _FLOAT, since="0.3.0", before=0.0)
  """The factor of the divergence from the teacher's probabilities of attention,
  layer by layer, with model.attention=plain and as many heads; 0 = leave it
  out."""

  positions: str = of_run(
    "all", choices=("all", "masked"), since="0.3.0", before="all"
  )
  """Where words are compared: at "all" tokens, as DistilBERT, or at the
  "masked" ones, which takes a fraction of the memory."""

  teacher_dtype: str = of_run(
    "float32",
    choices=("float32", "bfloat16"),
    since="0.3.0",
    before="float32",
  )
  """The number format of the teacher and of its computations."""


class Generator(Group):
  """The generator of objective=rtd, which is trained beside the model."""

  width_rate: float = of_run(0.25, 0.0, 1.0, since="0.3.0", before=0.25)
  """Its heads, hidden size and MLP as a share of those of the model."""

  depth_rate: float = of_run(1.0, 0.0, 1.0, since="0.3.0", before=1.0)
  """Its layers as a share of those of the model."""

  sharing: str = of_run(
    "embeddings",
    choices=("embeddings", "disentangled", "none"),
    since="0.3.0",
    before="embeddings",
  )
  """What both models share. "embeddings": all tables of the embeddings, and
  their norm, as in ELECTRA. "disentangled": the word table of the generator,
  which the model does not train and adds a table of its own to, as in
  DeBERTa-v3. "none": nothing."""

  rtd_weight: float = of_run(50.0, 0.0, _FLOAT, since="0.3.0", before=50.0)
  """The factor of the model's loss beside that of the generator."""


class Probe(Group):
  """What the encoder is worth to tasks, measured while it pre-trains.

  Each list names tasks of bert_jax/tasks; a list may be given as one word with
  commas. The baselines are the untrained weights and the most frequent label.
  """

  every_steps: int = of_session(0, 0, _INT32, since="0.3.0", before=0)
  """Steps from one probe to the next; 0 = never."""

  dir: str = of_host(None, since="0.3.0", before="", is_path=True)
  """Folder with the files of these tasks, or with the folder of each task."""

  similarity: tuple[str, ...] = of_session((), since="0.3.0", before=[])
  """Tasks such as stsb, whose pairs of texts are compared by the cosine of
  their mean token vectors; nothing is trained."""

  linear: tuple[str, ...] = of_session((), since="0.3.0", before=[])
  """Tasks with one label for each text or pair, such as sst2, for which a
  linear classifier of the mean token vectors is trained."""

  finetune: tuple[str, ...] = of_session((), since="0.3.0", before=[])
  """Tasks for which the whole encoder is trained for a short time."""

  max_train_examples: int = of_session(
    1000, 0, _INT32, since="0.3.0", before=1000
  )
  """How many examples a probe trains on, from the start of the training split;
  0 = all."""

  num_epochs: float = of_session(3.0, 0.0, 1e9, since="0.3.0", before=3.0)
  """Passes of a fine-tuning over these examples."""

  learning_rate: float = of_session(
    1e-4, 0.0, _FLOAT, since="0.3.0", before=1e-4
  )
  """The highest learning rate of a fine-tuning, which falls to 0."""


class Checkpoint(Group):
  """When checkpoints are saved, and which are kept."""

  every_steps: int = of_session(10_000, 0, _INT32)
  """Steps from one save to the next; the last step is always saved."""

  max_lost_secs: float = of_session(1800.0, 0.0, 1e9)
  """Save also when the work since the last save took so many seconds; 0 = do
  not."""

  keep: int = of_session(3, 1, 10**6)
  """How many of the newest checkpoints to keep."""

  best_metric: str = of_session("eval/loss")
  """The metric whose best checkpoint is also kept; "" = keep no best
  checkpoint."""

  best_mode: str = of_session("min", choices=("min", "max"))
  """Which value of that metric is the best: "min" or "max"."""

  local_dir: str = of_host("", since="0.3.0", before="")
  """Folder on a disk of each machine for saves between those to the workdir. A
  machine that is lost then costs the steps since the last of them. "" = off."""

  local_every_steps: int = of_session(0, 0, _INT32, since="0.3.0", before=0)
  """Steps from one save to checkpoint.local_dir to the next; 0 = off."""


class Convert(Group):
  """Converting weights to another format, by bert-jax convert."""

  to: str = of_session("bert_jax")
  """The format to write: "bert_jax", "huggingface", "flax" or "tf1"."""

  kind: str = of_session("")
  """The kind of the task that the model's head is for, if the model does not
  say it: "classify", "multi_label", "regress", "span", "choice" or "tag". "" =
  as the model says."""

  drop_head: bool = of_session(False)
  """Whether to leave the head of a task out."""

  max_len: int = of_session(0, 0, _LEN, since="0.3.0", before=0)
  """A longer longest row, in tokens; 0 = as it is."""

  new_positions: str = of_session(
    "tile", choices=("tile", "interpolate"), since="0.3.0", before="tile"
  )
  """convert.max_len: what a longer table of positions holds. "tile": copies of
  the old table. "interpolate": the old table, stretched."""

  vocab_size: int = of_session(0, 0, _PIECES, since="0.3.0", before=0)
  """More rows of the word table; 0 = as it is."""

  add_tokens: tuple[str, ...] = of_session((), since="0.3.0", before=())
  """Tokens to add to the vocabulary; each is read whole and gets a row of the
  word table."""

  rename_tokens: tuple[str, ...] = of_session((), since="0.3.0", before=())
  """Pieces of a WordPiece vocabulary to spell in another way, each as OLD=NEW,
  such as "[unused1]=covid". They keep their ids and their rows of the word
  table."""

  weights: str = of_session(
    "evaluated",
    choices=("evaluated", "last", "average"),
    since="0.3.0",
    before="evaluated",
  )
  """Which parameters of a run are converted: those that it evaluated
  (eval.average), those of the "last" step that is read, or their decayed
  "average" (optim.average_decay)."""

  average_last: int = of_session(0, 0, 10**6, since="0.3.0", before=0)
  """Of a run: the mean of the weights of so many of its newest steps, which
  checkpoint.keep keeps; 0 = one step alone."""

  new_rows: str = of_session(
    "mean", choices=("mean", "normal"), since="0.3.0", before="mean"
  )
  """What new rows of the word table hold. "mean": the mean of the old ones.
  "normal": random numbers of standard deviation 0.02."""

  rope_theta: float = of_session(0.0, 0.0, _FLOAT, since="0.3.0", before=0.0)
  """Another base of rotations in layers with full attention; 0 = as it is."""


class Predict(Group):
  """Predictions for new text, by bert-jax predict."""

  kind: str = of_session("")
  """The kind of prediction for each line of --input: "fill-mask", "embed",
  "classify", "multi_label", "regress", "answer", "tag" or "choose"; "" = that
  of the model's head."""

  model: str = of_session(None, is_path=True)
  """Weights to read: an HF directory or the name of a model of the hub, a TF1
  checkpoint, a workdir (of which --checkpoint chooses the step) or
  WORKDIR/best/STEP. Not set = --workdir."""

  seq_len: int = of_session(0, 0, _LEN)
  """Tokens of a sequence; longer text is cut. 0 = the length of the run's
  training and evaluation, or model.max_len if the weights do not say it."""

  batch_tokens: int = of_session(2048, 1, _INT32)
  """Tokens that are computed together, padding included."""

  top_k: int = of_session(5, 1, _PIECES)
  """fill-mask: the number of candidates for each [MASK]."""

  fields: tuple[str, ...] = of_session(("tokens", "pooled", "mean", "layers"))
  """embed: which fields to write, of "tokens", "pooled", "mean", "layers",
  "concat" and "sentence", the vector by modules.json of the folder. By default,
  a model without a pooler gives no "pooled"."""

  layers: tuple[int, ...] = of_session((-1,))
  """embed: which layers; 0 = the embeddings, 1 = the first layer, -1 = the
  last."""

  concat_last: int = of_session(0, 0, 10_000)
  """embed: how many of the last layers to join for each token; 0 = none."""

  decimals: int = of_session(6, 0, 12)
  """embed: digits after the decimal point; 0 = all."""

  long_texts: str = of_session(
    "", choices=("", "cut", "mean", "max", "first"), since="0.3.0", before=""
  )
  """embed, classify, multi_label, regress: another name for task.long_texts,
  the vectors of whose windows embed pools, too. Windows have no "tokens",
  "layers" or "concat". "" = "cut" for embed, else the value of the run."""

  allow_null: bool = of_session(None)
  """answer: whether a question may have no answer, as in SQuAD 2. This is
  another name for task.has_null. Not set = the value of the run, or False."""

  null_threshold: float = of_session(None, -_FLOAT, _FLOAT)
  """answer: a question gets no answer if the score of "no answer" exceeds that
  of the best answer by more than this. This is another name for
  task.null_threshold. Not set = the value of the run, or 0.0."""


class Serve(Group):
  """Answers over HTTP, by bert-jax serve."""

  kinds: tuple[str, ...] = of_session((), since="0.3.0", before=())
  """The kinds of prediction that are answered, and compiled at the start; ()
  means all that a model has the parts for."""

  request_texts: int = of_session(2048, 1, _INT32, since="0.3.0", before=2048)
  """The most texts of a request; one with more gets the status 413."""

  request_bytes: int = of_session(
    1 << 24, 1, _INT32, since="0.3.0", before=1 << 24
  )
  """The most bytes of the body of a request; a larger one gets the status
  413."""

  queue_texts: int = of_session(4096, 1, _INT32, since="0.3.0", before=4096)
  """The most texts that wait or are computed at a time; a request that would
  exceed it gets the status 429."""

  grace_secs: float = of_session(30.0, 0.0, 86400.0, since="0.3.0", before=30.0)
  """Seconds that requests in progress may still take when the server is told to
  stop."""


class Config(Group):
  """A whole configuration, as code reads it; at run time it is a ConfigDict."""

  seed: int = of_run(0, *_SEED)
  """Seed of the initial weights, of dropout, and of the order of examples and
  their masks."""

  objective: str = of_run("mlm_nsp")
  """The objective of training: "mlm_nsp" (masked tokens and next sentence),
  "mlm" (masked tokens alone), "mlm_sop" (masked tokens and the order of two
  segments), "ltr" (the next token, from left to right), "rtd" (replaced tokens,
  with a generator), "distill" (masked tokens and what a teacher says), or
  "task": that of the group `task`."""

  init_from: str = of_run(None, is_path=True)
  """Weights to start from: an HF directory or the name of a model of the hub
  (OWNER/NAME or OWNER/NAME@REVISION), a TF1 checkpoint, a workdir (its best
  step if it keeps one, otherwise its newest) or WORKDIR/checkpoints/STEP. They
  decide the shape of the model and, for a task, its vocabulary."""

  init_layers: int = of_run(0, 0, 10_000, since="0.3.0", before=0)
  """How many layers of init_from to keep, evenly spread from the first to the
  last; 0 = all."""

  init_changes: tuple[str, ...] = of_run((), since="0.3.0", before=[])
  """Keys of the model that differ from those of init_from and need no other
  parameters, such as "model.rope_theta=160000"."""

  init_moments: bool = of_run(False, since="0.3.0", before=False)
  """Whether the optimizer starts from its moments in init_from, which must be a
  run of ours; otherwise it starts from zeros."""

  init_random: bool = of_run(False)
  """Whether to use only the shape and the vocabulary of init_from, and random
  weights."""

  reinit_layers: int = of_run(0, 0, 10_000, since="0.3.0", before=0)
  """How many of the top layers of init_from, and with them the pooler, start
  from random weights instead."""

  model: Model
  data: Data
  task: Task
  prepare: Prepare
  optim: Optim
  train: Train
  mesh: Mesh
  eval: Eval
  generator: Generator
  distill: Distill
  probe: Probe
  checkpoint: Checkpoint
  convert: Convert
  predict: Predict
  serve: Serve


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
  """Returns the names of the keys that have one of the given scopes."""
  return frozenset(key.name for key in KEYS.values() if key.scope in scopes)


# The keys of the group `model` that imported weights decide.
SHAPE_KEYS = tuple(
  key.name.removeprefix("model.")
  for key in KEYS.values()
  if key.scope == "weights"
)


def check_changes(names: Iterable[str]) -> None:
  """Raises ValueError if a run cannot go on with another value of a key."""
  for name in names:
    if name not in KEYS:
      raise ValueError(f"--allow_changes={name}: {unknown(name)}")
    if not KEYS[name].can_change:
      can = ", ".join(key for key, row in KEYS.items() if row.can_change)
      raise ValueError(
        f"--allow_changes={name}: a run keeps this key, or changes it freely; "
        f"the keys that it changes only if you name them are {can}"
      )


def meaning_of_group(name: str) -> str:
  """Returns the description of a group: the docstring of its class."""
  return inspect.getdoc(typing.get_type_hints(Config)[name]) or ""


def make_config() -> ml_collections.ConfigDict:
  """Returns a config in which every key has its default."""
  not_set = ml_collections.config_dict.placeholder
  return unflatten(
    {
      key.name: not_set(key.type) if key.default is None else key.default
      for key in KEYS.values()
    }
  )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """Returns the values of a nested config by name: {"a": {"b": 1}} -> a.b."""
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
    if value is None and name in KEYS:  # not set, and of this type
      value = ml_collections.config_dict.placeholder(KEYS[name].type)
    elif name in KEYS and KEYS[name].type is tuple:
      value = as_tuple(value)
    group[key] = value
  return config


def as_tuple(value: Any) -> Any:
  """Returns a list, and the lists in it, as tuples."""
  return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def absolute(path: str) -> str:
  """Returns the absolute form of a path, whose ~ is the user's home."""
  if "://" in path:
    return path
  return os.path.abspath(os.path.expanduser(path))


def map_paths(
  config: Mapping[str, Any], change: Callable[[str], str]
) -> dict[str, Any]:
  """Returns a config, as from `plain`, with other paths.

  Args:
    config: the nested config, which may lack keys and is not changed.
    change: returns the new path for a path of the file system. It is not asked
      about values that are not set, and not about addresses such as gs://.
  """
  changed = json.loads(json.dumps(config))
  for key in (key for key in KEYS.values() if key.is_path):
    *groups, name = key.name.split(".")
    group = changed
    for inner in groups:
      group = group.get(inner) if isinstance(group, dict) else None
    value = group.get(name) if isinstance(group, dict) else None
    if not isinstance(value, str) or not value or "://" in value:
      continue
    scheme = "tfds:" if value.startswith("tfds:") else ""
    if path := value.removeprefix(scheme):
      group[name] = scheme + change(path)
  return changed


def plain(config: Config) -> dict[str, Any]:
  """Returns a config as a JSON value: dicts, lists, numbers and strings."""
  return json.loads(json.dumps(config.to_dict(), default=list))


def check(config: Config | Mapping[str, Any]) -> None:
  """Checks every value of a config, and the product of its sizes.

  Args:
    config: the whole configuration or a part of it, also of an older run. A key
      that is missing or not set is not checked.

  Raises:
    ValueError: a key cannot have its value, or the model or its batches are
      larger than any machine; the message names the key.
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
        f"tokens; a step can have at most {_INT32}"
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
  for key in ("patience", "stop_at"):
    if config["train"].get(key):
      raise ValueError(
        f"train.{key}={config.train[key]}: models that train together end at "
        "the same step; train each alone, or leave the key out"
      )
  if config["checkpoint"].get("local_every_steps"):
    raise ValueError(
      f"checkpoint.local_every_steps={config.checkpoint.local_every_steps} is "
      "for a run that trains alone; set it to 0 and checkpoint.local_dir to ''"
    )
  if config.init_moments:
    raise ValueError(
      "init_moments=True is for a run that trains alone; set it to False"
    )
  if config.data.pack and not config.data.one_row_len:
    raise ValueError(
      "models that train together need rows of the same length for all seeds: "
      "set data.one_row_len=True"
    )


def check_names(config: Config) -> None:
  """Raises ValueError for a key that does not exist.

  The config of a sweep, which lists trials, is not checked.
  """
  for name in {} if "trials" in config else flatten(config):
    if name not in KEYS:
      raise ValueError(
        f"{name}: {unknown(name)}; remove the key or correct its name"
      )


def set_keys(config: Any, values: Mapping[str, Any]) -> None:
  """Sets keys of a config, without a check.

  Args:
    config: the whole configuration, which is changed.
    values: dotted names of keys -> their values; lists stand for tuples.
  """
  for name, value in values.items():
    *groups, leaf = name.split(".")
    functools.reduce(operator.getitem, groups, config)[leaf] = as_tuple(value)


def unknown(name: str) -> str:
  """Returns a message about a key that does not exist, with a similar key."""
  near = _similar(name)
  guess = f". Did you mean {KEYS[near].explain()}" if near else "."
  return f"there is no such key{guess} All keys are in docs/config.md"


def _similar(name: str) -> str:
  """Returns the key that a name may stand for, or ""; lr for learning_rate."""
  leaf = name.rpartition(".")[2]
  if leaf == "lr":  # not model.local_radius
    return "optim.learning_rate"
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
  """Returns the number of parameters in the tables and kernels of an encoder.

  Args:
    model: the group `model` of a config.
  """
  hidden, mlp = model["hidden_size"], model["mlp_dim"]
  width = model.get("embedding_size") or hidden
  num_layers = model.get("layer_groups") or model["num_layers"]
  rows = (
    (model["vocab_size"] or VOCAB_SIZE)
    + model["max_len"]
    + model["type_vocab_size"]
  )
  matrices = 3 if model.get("feed_forward") == "glu" else 2
  heads = model["num_heads"]
  shared = (model.get("num_kv_heads") or heads) / heads
  layer = round((2 + 2 * shared) * hidden * hidden) + matrices * hidden * mlp
  conv = model.get("conv_size", 0) * hidden * hidden
  conv //= model.get("conv_groups", 1)
  return rows * width + num_layers * layer + conv
