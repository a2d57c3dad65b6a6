"""Symbolic tensor networks and their rewriting, without any tensors."""

from tn_extensions.network.build import build
from tn_extensions.network.export import Exported, Given, export
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Affine, Axis, Operand, Pair, Pattern, Selection
from tn_extensions.network.simplify import Rule, simplify
from tn_extensions.network.trace import Step, Trace

__all__ = [
    "Affine",
    "Axis",
    "Exported",
    "Given",
    "Operand",
    "Pair",
    "Pattern",
    "Rule",
    "Selection",
    "Step",
    "TensorNetwork",
    "Trace",
    "build",
    "export",
    "simplify",
]
