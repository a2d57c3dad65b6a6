"""Curvature of convolutions as tensor networks, for BackPACK and curvlinops."""

from tn_extensions import functional, quantities
from tn_extensions.compiler import memory_budget, planning, plans, wisdom
from tn_extensions.conv import Conv, ConvDim
from tn_extensions.diagram import draw, tikz
from tn_extensions.functional.contract import evaluate
from tn_extensions.functional.explain import explain
from tn_extensions.functional.index_pattern import index_pattern
from tn_extensions.network import TensorNetwork, export
from tn_extensions.patch import patch, unpatch
from tn_extensions.tune import tune
from tn_extensions.unfold import Fold, Unfold

__version__ = "0.1.0"

__all__ = [
    "Conv",
    "ConvDim",
    "Fold",
    "TensorNetwork",
    "Unfold",
    "draw",
    "evaluate",
    "explain",
    "export",
    "functional",
    "index_pattern",
    "memory_budget",
    "patch",
    "planning",
    "plans",
    "quantities",
    "tikz",
    "tune",
    "unpatch",
    "wisdom",
]
