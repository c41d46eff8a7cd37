"""Every configuration key once: its meaning, unit and source.

The other files of this folder start from here and change values, never keys,
so a mistyped `--config.group.key` is an error in all of them.
"""

import ml_collections

# name: (num_layers, hidden_size, num_heads). The MLP is 4 x hidden_size wide.
# tiny .. medium and every "L_H" are the 24 released small models
# (arXiv:1908.08962, table 1); base and large are the paper's (section 3).
SIZES = (
  {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
  }
  | {
    f"L{layers}_H{hidden}": (layers, hidden, hidden // 64)
    for layers in (2, 4, 6, 8, 10, 12)
    for hidden in (128, 256, 512, 768)
  }
  | {
    # The rest of the paper's size ablation (table 6).
    "L3_H768": (3, 768, 12),
    "L6_H768_A3": (6, 768, 3),
    "L12_H1024": (12, 1024, 16),
    # 1.3 billion parameters.
    "L24_H2048": (24, 2048, 32),
  }
)

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


def set_size(config: ml_collections.ConfigDict, size: str) -> None:
  """Sets the encoder's shape to a named size."""
  if size not in SIZES:
    raise ValueError(f"size={size} is not known; use one of {', '.join(SIZES)}")
  layers, hidden, heads = SIZES[size]
  config.model.num_layers = layers
  config.model.hidden_size = hidden
  config.model.num_heads = heads
  config.model.mlp_dim = 4 * hidden


def arguments(text: str | None, **defaults):
  """Parses what follows the colon in `--config=configs/X.py:key=value,...`.

  Args:
    text: the part after the colon, or None.
    **defaults: every argument the file takes, with its default; the default's
      type is the argument's type.

  Returns:
    The defaults as a ConfigDict, with the values given in `text` put in.
  """
  args = ml_collections.ConfigDict(defaults)
  for pair in filter(None, (text or "").split(",")):
    key, sep, value = pair.partition("=")
    if not sep or key not in args:
      raise ValueError(
        f"config argument {pair!r} is not known; "
        f"use key=value with a key of {', '.join(defaults)}"
      )
    kind = type(defaults[key])
    if kind is bool:
      if value.lower() not in ("true", "false"):
        raise ValueError(f"config argument {pair!r}: use true or false")
      args[key] = value.lower() == "true"
    else:
      try:
        args[key] = kind(value)
      except ValueError as error:
        raise ValueError(
          f"config argument {pair!r}: {value!r} is no {kind.__name__}"
        ) from error
  return args


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """BERT-base, pre-training at length 128, as the paper did it."""
  arguments(text)
  c = ml_collections.ConfigDict()
  c.seed = 0  # of initialisation, dropout, order of examples and masks
  # What is trained: "mlm_nsp", "mlm" alone, or "task": that of the group task.
  c.objective = "mlm_nsp"
  # Weights to start from: an HF directory, a TF1 checkpoint, a workdir (its
  # best step where it keeps one, else its newest) or WORKDIR/checkpoints/STEP.
  # They decide the shape of the model, and its vocabulary where a task is
  # trained.
  c.init_from = ml_collections.config_dict.placeholder(str)
  c.init_random = False  # shape and vocabulary of init_from, but fresh weights

  c.model = m = ml_collections.ConfigDict()
  m.vocab_size = 30522  # rows of the word table; the data's vocabulary fits
  m.num_layers = 12  # encoder blocks
  m.hidden_size = 768  # width D of the hidden states
  m.num_heads = 12  # attention heads; head_dim = hidden_size / num_heads
  m.mlp_dim = 3072  # width F inside the MLP
  m.max_len = 512  # rows of the position table, tokens
  m.type_vocab_size = 2  # rows of the segment table
  # "gelu_tanh": the original since 2019-02. "gelu_erf": before, and in HF.
  m.hidden_act = "gelu_tanh"
  m.dropout_rate = 0.1  # of embeddings and of both sublayers' outputs
  m.attention_dropout_rate = 0.1  # of attention probabilities
  m.layer_norm_eps = 1e-12  # inside the square root (original modeling.py)
  m.init_stddev = 0.02  # truncated normal at 2 sigma, not rescaled
  m.dtype = "float32"  # computation: "float32" or "bfloat16" (on TPU)
  m.param_dtype = "float32"  # storage of parameters: master weights
  m.scan_layers = False  # stack the layers: compile one block, not all
  m.remat = "none"  # "none", "dots" or "full": recompute in the backward pass
  # The attention program. "plain". "fused": on a TPU, one kernel that keeps the
  # scores on chip, for rows of 128, 256, ... 1024 tokens (packed tasks get such
  # rows); equal up to rounding, dropout included. Elsewhere plain operations do
  # the same, slower: their backward pass computes the scores again.
  # "fused_qkv": that, with query, key and value from one product. Faster where
  # matrix units wait for memory (v6e), slower elsewhere; needs mesh.tensor=1.
  # "splash": on a TPU, JAX's kernel of that name, for rows of any multiple of
  # 128 tokens. It has no dropout of attention probabilities: that part of the
  # paper's regularisation is given up, by attention_dropout_rate = 0.0.
  m.attention = "plain"

  c.data = d = ml_collections.ConfigDict()
  d.dir = ml_collections.config_dict.placeholder(str)  # made by --mode=prepare
  # Check the files' hashes at start: "once" (DATA/.verified.json notes what was
  # found good), "always" or "never".
  d.verify = "once"
  d.seq_len = 128  # tokens a row, [CLS] and [SEP] included
  # Rows a step over all devices. Packed rows hold several sequences each; an
  # epoch is as many rows as all examples fill. Of tasks: sequences.
  d.batch_size = 256
  # Pre-training: sequences that share a row at most, each seeing only itself;
  # 1 = one a row, padded. 8 fill 99 % of rows of 512 with Wikipedia's lengths.
  d.max_sequences = 1
  # "pairs": two segments and NSP. "full_sentences": one run of text, no NSP.
  d.pairing = "pairs"
  d.dupe_factor = 10  # passes over the corpus, each with its own pairs
  d.short_seq_rate = 0.1  # share of document passes with a shorter target
  d.examples_seed = 0  # of pairing, kept apart from the run's seed
  d.mask_rate = 0.15  # share of a sequence's tokens to predict
  # Tokens to predict in a sequence, at most; 0 = mask_rate * seq_len, up.
  d.max_predictions = 0
  d.mask_token_rate = 0.8  # of the chosen: replaced by [MASK]
  d.random_token_rate = 0.1  # of the chosen: replaced by a random token
  d.whole_word = False  # choose words, not pieces
  d.static_masks = False  # the same masks in every epoch
  d.prefetch_batches = 4  # batches made ahead of the step
  d.num_threads = 1  # threads that make batches
  # Pre-training: damaged examples that are left out, each named in a warning;
  # one more, in a process, is an error. See also data.verify.
  d.max_bad_records = 0

  d.pack = True  # tasks: sequences share rows; False = one a row, padded
  # Tasks: packed rows have one length in all steps, whatever the seed, which
  # what trains together (--member) needs. It computes a little more padding.
  d.one_row_len = False

  c.task = q = ml_collections.ConfigDict()
  q.name = ""  # a row of bert_jax/tasks, or "my-KIND" for data of your own
  # Folder of its files in the official layout, or tfds:DIR of prepared TFDS.
  q.dir = ml_collections.config_dict.placeholder(str)
  q.files = f = ml_collections.ConfigDict()  # where names are not official
  f.train = ""  # path of the training file
  f.validation = ""  # path of the file that is evaluated
  f.test = ""  # path of a file to predict, or to evaluate if it has labels
  # Lists of words may be given as one, with commas, as in text=premise,claim.
  q.text = ()  # own data: columns of the text, in the order of the segments
  q.label = ""  # own data: column of the label
  q.labels = ()  # own data: the labels; () = those of the training file
  q.columns = ()  # own data: names of all columns, of files without a header
  q.vocab = ""  # vocab.txt, where init_from has none
  q.eval_splits = ()  # to report; () = all that have labels
  q.predict_splits = ()  # --mode=evaluate writes predictions of; TASK:SPLIT too
  q.max_train_examples = 0  # the first ones of the training split; 0 = all
  q.context = "sentence"  # of tags: "sentence", or "document" around it
  q.max_query_len = 64  # tokens of a question that are kept
  q.doc_stride = 128  # tokens between the windows of a long text
  q.n_best = 20  # candidates for each end of an answer
  q.max_answer_len = 30  # tokens
  q.has_null = True  # own questions may have no answer
  q.null_threshold = 0.0  # no answer where its score leads by more than this

  c.prepare = p = ml_collections.ConfigDict()
  # "sentences": one a line, blank line between documents (the original's).
  # "paragraphs": plain text, blank line between paragraphs, two between
  # documents. "jsonl": a JSON object a line. "tfds": prepared TFDS data.
  p.format = "sentences"
  p.text_key = "text"  # field of a JSONL or TFDS record that holds the text
  p.language = "en"  # of the sentence splitter (not used by "sentences")
  # A vocab.txt, a SentencePiece .model, a folder with one, or "" to learn one.
  p.vocab = ""
  p.vocab_kind = "wordpiece"  # to learn: "wordpiece" or "sentencepiece"
  p.vocab_size = 30522  # pieces to learn
  p.vocab_sample_bytes = 200_000_000  # text read to learn a vocabulary from
  p.lower_case = True  # lower-case and strip accents (uncased)
  p.held_out_rate = 0.005  # share of documents kept apart for evaluation
  p.held_out_seed = 0  # of the choice, which depends on a document's text only
  p.unit_bytes = 8_388_608  # text a work unit; a unit makes one shard
  p.num_workers = 0  # processes; 0 = one a core. The bytes do not depend on it
  p.runner = "processes"  # or "beam", with the extra of that name

  c.optim = o = ml_collections.ConfigDict()
  # "bert_adam": no bias correction (the original's). "adamw". "lamb". "lion".
  # "stable_adamw": AdamW whose update is clipped by its root mean square.
  o.name = "bert_adam"
  o.learning_rate = 1e-4  # the highest
  o.warmup_rate = 0.01  # share of train.total_steps that warms up, from 0
  # "bert": decay runs from step 0, so the rate falls a little after warm-up
  # (original optimization.py). "linear": no jump. "cosine". "constant".
  # "trapezoid": constant until the cool-down, then 1 - sqrt.
  o.schedule = "bert"
  o.cooldown_rate = 0.0  # trapezoid: share of the steps that fall, at the end
  o.weight_decay = 0.01  # decoupled; not of biases and LayerNorm
  o.b1 = 0.9  # decay of the mean of gradients
  o.b2 = 0.999  # decay of the mean of squared gradients
  o.eps = 1e-6  # added to sqrt(v)
  o.clip_norm = 1.0  # of the global gradient; 0 = off
  o.num_micro_batches = 1  # gradient accumulation within a step

  c.train = t = ml_collections.ConfigDict()
  t.total_steps = 1_000_000  # optimizer steps, where the schedule ends
  # Tasks: passes over the examples, each counted once however many windows it
  # has (as the original does); 0 = total_steps counts.
  t.num_epochs = 0.0
  t.log_every_steps = 100  # steps between lines of metrics.jsonl
  t.tensorboard = True  # also write TensorBoard event files
  # A step whose loss or gradient is no finite number, or a spike: "stop", or
  # "skip" it, so that it changes nothing. bad_steps.jsonl has its examples.
  t.on_bad_step = "stop"
  # A loss above so many times the mean of those before is a spike; 0 = none is.
  t.spike_factor = 0.0
  t.max_skipped_steps = 100  # of a run; one more stops it
  # Of a job of several processes: seconds without a finished step, batch of an
  # evaluation, save or restore after which it ends, so that it can be started
  # again; 0 = no limit. The longest of these has to fit, compiling included.
  t.max_stall_secs = 1800.0
  # First and last step of a trace for TensorBoard's profiler; () = none.
  t.profile_steps = ()

  c.mesh = h = ml_collections.ConfigDict()
  h.data = -1  # replicas that split the batch; -1 = all devices left
  h.fsdp = 1  # split the batch and the parameters
  h.tensor = 1  # split heads, MLP and vocabulary
  # Devices over which models that train together (--member) are dealt out; 0 =
  # as many as there are and divide their number.
  h.seed = 0
  # Each copy of the model keeps a share of the optimizer's moments, not all.
  h.spread_optimizer = True
  h.rules = SHARDING_RULES  # parameter path -> mesh axes; see above

  c.eval = e = ml_collections.ConfigDict()
  e.every_steps = 10_000  # 0 = only after the last step
  e.batch_size = 256  # rows
  e.max_examples = 10_000  # of the held-out split; 0 = all

  c.checkpoint = k = ml_collections.ConfigDict()
  k.every_steps = 10_000  # between saves; the last step is always saved
  # Also save when about this much work is at risk, seconds; 0 = do not.
  k.max_lost_secs = 1800.0
  k.keep = 3  # newest checkpoints to keep
  k.best_metric = "eval/loss"  # also keep the best by this; "" = no
  k.best_mode = "min"  # "min" or "max"

  c.convert = v = ml_collections.ConfigDict()
  v.to = "bert_jax"  # what to write: "bert_jax", "huggingface", "flax", "tf1"
  # What the head of a task is for, where the model does not say it: "classify",
  # "regress", "span", "choice", "tag". "" = as the model says.
  v.kind = ""
  v.drop_head = False  # leave the head of a task out

  c.predict = r = ml_collections.ConfigDict()
  # What to do with each line of --input: "fill-mask", "embed", "classify",
  # "regress", "answer", "tag" or "choose"; "" = what the model has a head for.
  r.kind = ""
  # Weights to read: an HF directory, a TF1 checkpoint, a workdir (the step that
  # --checkpoint says) or WORKDIR/best/STEP; --workdir if not set.
  r.model = ml_collections.config_dict.placeholder(str)
  # Tokens a sequence; longer text is cut. 0 = as the run was trained and is
  # evaluated; where the weights do not say it, model.max_len.
  r.seq_len = 0
  r.batch_tokens = 2048  # tokens computed together, padding included
  r.top_k = 5  # fill-mask: candidates for each [MASK]
  # embed: what to write, of "tokens", "pooled", "mean", "layers", "concat".
  r.fields = ("tokens", "pooled", "mean", "layers")
  r.layers = (-1,)  # embed: 0 = the embeddings, 1 = first layer, -1 = last
  r.concat_last = 0  # embed: also the last n layers of each token joined
  r.decimals = 6  # embed: digits after the point; 0 = all
  # answer: there may be none, as in SQuAD 2. Another name for task.has_null:
  # not set = as the run was trained and is evaluated, else False.
  r.allow_null = ml_collections.config_dict.placeholder(bool)
  # answer: no answer where its score leads by more than this. Another name for
  # task.null_threshold: not set = as the run says, else 0.0.
  r.null_threshold = ml_collections.config_dict.placeholder(float)
  return c
