"""Slow, obvious twins of what the package computes; nothing here uses its fast paths."""
