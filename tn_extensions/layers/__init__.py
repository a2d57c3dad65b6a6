"""Layers of a model: what they compute, and what passes through them.

A use of a layer is seen as a convolution of its input
(:mod:`~tn_extensions.layers.module`). Uses are observed in forward passes, and the
gradients of their outputs in backward passes (:mod:`~tn_extensions.layers.observe`). A
loss becomes the vectors that are backpropagated (:mod:`~tn_extensions.layers.losses`),
for all batches of some data (:mod:`~tn_extensions.layers.passes`).
"""
