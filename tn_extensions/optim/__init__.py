"""Preconditioned optimizers, for one process and for ``torch.distributed``.

``SINGD`` needs the extra ``singd``.
"""

from typing import TYPE_CHECKING, Any

from tn_extensions.optim.kfac import KFAC
from tn_extensions.optim.metrics import StepMetrics
from tn_extensions.optim.options import (
    Clipping,
    Curvature,
    Damping,
    Distributed,
    Schedule,
)
from tn_extensions.optim.preconditioner import KFACPreconditioner

if TYPE_CHECKING:
    from tn_extensions.optim.singd import SINGD

__all__ = [
    "KFAC",
    "SINGD",
    "Clipping",
    "Curvature",
    "Damping",
    "Distributed",
    "KFACPreconditioner",
    "Schedule",
    "StepMetrics",
]


def __getattr__(name: str) -> Any:
    if name != "SINGD":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from tn_extensions.optim.singd import SINGD
    except ModuleNotFoundError as error:
        message = "SINGD: singd must be installed. Install tn-extensions[singd]."
        raise ImportError(message) from error
    return SINGD
