"""Mirrors `experiments/harness`."""
