"""The stages of a preparation: vocabulary, tokens, examples, and lengths."""
