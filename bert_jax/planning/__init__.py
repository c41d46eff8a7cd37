"""Predicts a run before it starts: memory, time, obstacles."""
