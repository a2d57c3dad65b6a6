"""Tensor dropout: weight gradients estimated from slices of a layer's input.

See ``docs/dropout.md``.
"""

from tn_extensions.dropout.converter import convert, revert
from tn_extensions.dropout.modules import (
    TensorDropout,
    TensorDropoutConv1d,
    TensorDropoutConv2d,
    TensorDropoutConv3d,
    TensorDropoutLinear,
)
from tn_extensions.sampling import Sampled, sample

__all__ = [
    "Sampled",
    "TensorDropout",
    "TensorDropoutConv1d",
    "TensorDropoutConv2d",
    "TensorDropoutConv3d",
    "TensorDropoutLinear",
    "convert",
    "revert",
    "sample",
]
