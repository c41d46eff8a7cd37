"""Text to token ids and back: one file for each kind of tokenizer."""
