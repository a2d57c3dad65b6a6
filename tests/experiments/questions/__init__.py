"""Mirrors `experiments/questions`."""
