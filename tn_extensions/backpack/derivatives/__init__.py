"""Derivatives of modules, correct for all of their hyper-parameters.

For some hyper-parameters of convolutions and pooling, BackPACK's derivatives are wrong
or missing.
"""

from tn_extensions.backpack.derivatives.batchnorm import BatchNormDerivatives
from tn_extensions.backpack.derivatives.conv import ConvDerivatives
from tn_extensions.backpack.derivatives.linear import (
    AnyDtype,
    DenseDerivatives,
    LinearDerivatives,
    LinearModuleDerivatives,
    SumDerivatives,
)
from tn_extensions.backpack.derivatives.maxpool import MaxPoolDerivatives

__all__ = [
    "AnyDtype",
    "BatchNormDerivatives",
    "ConvDerivatives",
    "DenseDerivatives",
    "LinearDerivatives",
    "LinearModuleDerivatives",
    "MaxPoolDerivatives",
    "SumDerivatives",
]
