"""BERT pre-training and fine-tuning in JAX and Flax, from text to scores."""

__version__ = "0.3.0"
