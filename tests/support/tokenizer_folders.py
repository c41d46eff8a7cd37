"""Folders of tokenizers as Hugging Face and SentencePiece write them."""

import io
import json

import sentencepiece
import tokenizers

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")
# layout -> name of the class, name of the file, options of the trainer.
UNIGRAM = {
  "xlm_roberta": ("XLMRobertaTokenizer", "sentencepiece.bpe.model", {}),
  "camembert": ("CamembertTokenizer", "sentencepiece.bpe.model", {}),
  "albert": (
    "AlbertTokenizer",
    "spiece.model",
    dict(
      pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="<pad>",
      control_symbols="[CLS],[SEP]", user_defined_symbols="[MASK],(,),-",
    ),
  ),
  "deberta_v2": (
    "DebertaV2Tokenizer",
    "spm.model",
    dict(
      pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]",
      bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    ),
  ),
  "xlnet": (
    "XLNetTokenizer",
    "spiece.model",
    dict(
      unk_id=0, bos_id=1, eos_id=2,
      control_symbols="<cls>,<sep>,<pad>,<mask>,<eod>,<eop>",
    ),
  ),
}  # fmt: skip


def train_unigram(texts, vocab_size=120, **options):
  """Returns the content of a .model file."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size,
    minloglevel=2, hard_vocab_limit=False, **options,
  )  # fmt: skip
  return model.getvalue()


def write_unigram(folder, layout, texts, vocab_size=120):
  """Writes a folder without tokenizer.json; returns the .model's bytes."""
  name, file, options = UNIGRAM[layout]
  folder.mkdir(exist_ok=True)
  content = train_unigram(texts, vocab_size, **options)
  (folder / file).write_bytes(content)
  write_json(folder / "tokenizer_config.json", {"tokenizer_class": name})
  return content


def write_json(path, content):
  path.write_text(json.dumps(content))


def train_bpe(texts, vocab_size=400, special=(*ROBERTA, "<mask>")):
  """Returns a byte-level BPE as the reference's learner makes it."""
  learner = tokenizers.Tokenizer(tokenizers.models.BPE())
  cut = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  learner.pre_tokenizer = cut
  learner.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  learner.train_from_iterator(texts, trainer)
  return learner


def write_bpe(folder, texts, vocab_size=400):
  """Writes vocab.json and merges.txt of RoBERTa's form."""
  folder.mkdir(exist_ok=True)
  train_bpe(texts, vocab_size).model.save(str(folder))
  write_json(
    folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}
  )


def write_modernbert(folder, texts, vocab_size=400):
  """Writes a tokenizer.json with BERT's tokens after the vocabulary.

  Like the released one, it has added tokens of spaces, and the mask token takes
  the space before it.
  """
  folder.mkdir(exist_ok=True)
  learner = train_bpe(texts, vocab_size, special=("|||IP|||",))
  learner.add_tokens([tokenizers.AddedToken("   ", normalized=True)])
  learner.add_special_tokens(
    ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    + [tokenizers.AddedToken("[MASK]", lstrip=True)]
  )
  ids = {name: learner.token_to_id(name) for name in ("[CLS]", "[SEP]")}
  learner.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS]:0 $A:0 [SEP]:0",
    pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    special_tokens=list(ids.items()),
  )
  learner.save(str(folder / "tokenizer.json"))
  roles = ("unk", "cls", "sep", "pad", "mask")
  config = {
    **{f"{role}_token": f"[{role.upper()}]" for role in roles},
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", "attention_mask"],
  }
  write_json(folder / "tokenizer_config.json", config)
