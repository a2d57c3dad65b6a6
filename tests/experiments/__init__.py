"""Tests of the experiments: what they measure is right, not how fast it is."""
