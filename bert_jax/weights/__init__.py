"""Reads and writes the parameters of released models."""
