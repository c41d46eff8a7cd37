"""Prepared data on disk: its format, manifests, indexes and verification."""
