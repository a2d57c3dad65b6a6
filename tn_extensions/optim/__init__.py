"""Preconditioned optimizers, from one process to ``torch.distributed``."""

from tn_extensions.optim.kfac import KFAC
from tn_extensions.optim.preconditioner import KFACPreconditioner

__all__ = ["KFAC", "KFACPreconditioner"]
