"""Text to documents to tokens to examples to batches; imports no jax."""
