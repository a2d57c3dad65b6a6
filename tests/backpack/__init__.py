"""Tests of the BackPACK extensions."""
