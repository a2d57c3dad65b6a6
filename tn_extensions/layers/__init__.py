"""Layers of a model: what they compute, and what passes through them.

A layer is seen as a convolution of its input (:mod:`~tn_extensions.layers.module`), and
observed in forward and backward passes (:mod:`~tn_extensions.layers.observe`); a loss
becomes the vectors that are backpropagated (:mod:`~tn_extensions.layers.losses`), for
all batches of some data (:mod:`~tn_extensions.layers.passes`).
"""
