"""Serving: answers HTTP requests with loaded models."""
