"""The stages of a preparation: vocabulary, tokens, examples, their lengths."""
