"""Input derivatives of modules, right for all of their hyper-parameters.

The stock derivatives of convolutions and pooling are wrong or unsupported for some
hyper-parameters; these go through torch's own kernels instead.
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
