"""BackPACK extensions with the stock names, for every convolution."""

from tn_extensions.backpack.kronecker import KFAC, KFLR, KFRA

__all__ = ["KFAC", "KFLR", "KFRA"]
