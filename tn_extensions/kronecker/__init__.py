"""Kronecker-factored curvature of layers: factors, blocks, moments, whoever uses them.

A layer's uses are observed in forward and backward passes; its factors are made of
them, kept as matrices or as few vectors, multiplied and inverted.
"""
