"""Curvature of convolutions as tensor networks, for BackPACK and curvlinops."""

from tn_extensions import functional, quantities
from tn_extensions.compiler import memory_budget, planning, wisdom
from tn_extensions.conv import Conv, ConvDim
from tn_extensions.network import TensorNetwork
from tn_extensions.tune import tune

__version__ = "0.1.0.dev0"

__all__ = [
    "Conv",
    "ConvDim",
    "TensorNetwork",
    "functional",
    "memory_budget",
    "planning",
    "quantities",
    "tune",
    "wisdom",
]
