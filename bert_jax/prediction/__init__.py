"""A trained model on new text."""
