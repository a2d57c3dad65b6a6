"""Curvature and per-sample gradients of whole models, without any toolkit.

Each function takes a model, a loss and data, and returns tensors by the names of the
model's parameters or layers. The functions leave the model as it is: its ``.grad``, its
mode and its hooks.
"""

from tn_extensions.model.diagonal import ggn_diagonal
from tn_extensions.model.factors import KroneckerFactors, kfac_factors
from tn_extensions.model.norms import per_sample_grad_norms

__all__ = [
    "KroneckerFactors",
    "ggn_diagonal",
    "kfac_factors",
    "per_sample_grad_norms",
]
