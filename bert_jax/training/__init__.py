"""The training loop, evaluation, and what they set up."""
