"""Symbolic tensor networks and their rewriting; knows nothing of tensors."""

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Affine, Axis, Operand, Pair, Pattern
from tn_extensions.network.simplify import Step, simplify

__all__ = [
    "Affine",
    "Axis",
    "Operand",
    "Pair",
    "Pattern",
    "Step",
    "TensorNetwork",
    "simplify",
]
