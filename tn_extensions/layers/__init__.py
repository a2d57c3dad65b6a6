"""Layers of a model, and forward and backward passes through them.

Each use of a layer is described as a convolution of its input
(:mod:`~tn_extensions.layers.module`). Forward passes observe uses, and backward passes
observe the gradients of their outputs (:mod:`~tn_extensions.layers.observe`). A loss
defines the vectors that are backpropagated (:mod:`~tn_extensions.layers.losses`), for
all batches of some data (:mod:`~tn_extensions.layers.passes`).
"""
