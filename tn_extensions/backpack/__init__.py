"""BackPACK extensions with the stock names, for every convolution."""

from tn_extensions.backpack.approximations import (
    DiagHessianBL89,
    DiagHessianHesScale,
)
from tn_extensions.backpack.firstorder import (
    BatchGrad,
    BatchL2Grad,
    SumGradSquared,
    Variance,
)
from tn_extensions.backpack.gram import BatchDotGrad, GGNGramExact, GGNGramMC
from tn_extensions.backpack.hessian import BatchDiagHessian, DiagHessian
from tn_extensions.backpack.kronecker import KFAC, KFLR, KFRA
from tn_extensions.backpack.secondorder import (
    BatchDiagGGNExact,
    BatchDiagGGNMC,
    DiagGGNExact,
    DiagGGNMC,
    SqrtGGNExact,
    SqrtGGNMC,
)

__all__ = [
    "KFAC",
    "KFLR",
    "KFRA",
    "BatchDiagGGNExact",
    "BatchDiagGGNMC",
    "BatchDiagHessian",
    "BatchDotGrad",
    "BatchGrad",
    "BatchL2Grad",
    "DiagGGNExact",
    "DiagGGNMC",
    "DiagHessian",
    "DiagHessianBL89",
    "DiagHessianHesScale",
    "GGNGramExact",
    "GGNGramMC",
    "SqrtGGNExact",
    "SqrtGGNMC",
    "SumGradSquared",
    "Variance",
]
