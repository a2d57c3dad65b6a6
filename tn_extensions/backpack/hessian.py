"""The Hessian's diagonal, from square roots with signs that are backpropagated."""

from __future__ import annotations

from typing import Any

from backpack.core.derivatives.elementwise import ElementwiseDerivatives
from backpack.custom_module.branching import SumModule
from backpack.extensions import secondorder as stock
from backpack.extensions.backprop_extension import FAIL_ERROR
from backpack.extensions.module_extension import ModuleExtension
from backpack.extensions.secondorder.diag_hessian.diag_h_base import DiagHBaseModule
from torch.nn import Module

from tn_extensions.backpack.derivatives import ConvDerivatives, SumDerivatives
from tn_extensions.backpack.extension import Extension
from tn_extensions.backpack.modules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    HessianBatchNorm,
    HessianLayer,
    passive,
)
from tn_extensions.backpack.secondorder import BatchDiagonal, Diagonal


class _DiagHessian(Extension):
    in_parameter_dtype = True

    def __init__(
        self,
        savefield: str,
        module_exts: dict[type[Module], ModuleExtension],
        fail_mode: str = FAIL_ERROR,
    ) -> None:
        for extension in module_exts.values():
            _curvature_in_order(getattr(extension, "derivatives", None))
        super().__init__(savefield, module_exts, fail_mode)

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return ours of convolutions, BatchNorm, pooling and sums of branches."""
        convolution = HessianLayer(ConvDerivatives())
        return (
            passive(DiagHBaseModule)
            | {SumModule: DiagHBaseModule(SumDerivatives())}
            | dict.fromkeys(CONVOLUTIONS, convolution)
            | dict.fromkeys(BATCH_NORMS, HessianBatchNorm())
        )


def _curvature_in_order(derivatives: Any) -> None:
    """Make an elementwise module's curvature contiguous, as BackPACK views it flat."""
    if isinstance(derivatives, ElementwiseDerivatives):
        diagonal = derivatives.hessian_diagonal
        derivatives.hessian_diagonal = lambda *args: diagonal(*args).contiguous()


class DiagHessian(stock.DiagHessian, Diagonal, _DiagHessian):
    """The Hessian's diagonal, in ``parameter.diag_h``, shaped like the parameter.

    A drop-in replacement for BackPACK's class, as :class:`DiagGGNExact` is. The Hessian
    is split into square roots with signs; each module that is not piecewise linear adds
    one or two. The dtype is the parameter's.
    """


class BatchDiagHessian(stock.BatchDiagHessian, BatchDiagonal, _DiagHessian):
    """The Hessian's diagonal for each sample, in ``parameter.diag_h_batch``.

    Of shape ``[N, *parameter.shape]``; the sum over samples is the result of
    :class:`DiagHessian`. The dtype is the parameter's.
    """
