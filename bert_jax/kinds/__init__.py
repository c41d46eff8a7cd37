"""The kinds of training and of prediction: heads, losses, decoding, answers."""
