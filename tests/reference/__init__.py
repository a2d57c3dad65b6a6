"""Slow, obvious twins of what the package computes; its fast paths are not used."""
