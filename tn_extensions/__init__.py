"""Curvature of convolutions as compiled tensor networks, for BackPACK and curvlinops."""

from tn_extensions import functional
from tn_extensions.conv import Conv, ConvDim

__all__ = ["Conv", "ConvDim", "functional"]
