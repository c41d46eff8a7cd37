"""Prediction: applies a trained model to new text."""
