"""Targets of results: a fresh tensor or an existing one, to which they are added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tn_extensions.compiler.product import multiply, sums_one_by_one, uses_onednn


@dataclass(slots=True)
class Accumulator:
    """Target of a plan.

    Args:
        out: The tensor that is written to.
        scale: Factor of everything that is written.
        fresh: Whether ``out`` is uninitialised, so that the first write replaces its
            entries. Primitives that write in several rounds set it to false after one.
    """

    out: Tensor
    scale: float
    fresh: bool

    def put(self, target: Tensor, value: Tensor) -> None:
        """Write (or add) a scaled value to a view of the target."""
        if self.fresh:
            torch.mul(value, self.scale, out=target)
        else:
            target.add_(value, alpha=self.scale)

    def put_product(self, target: Tensor, left: Tensor, right: Tensor) -> None:
        """Write (or add) the scaled product ``left @ right^T`` to a view."""
        if sums_one_by_one(left, right) or uses_onednn(left, right):
            # oneDNN cannot write to a given tensor
            self.put(target, multiply(left, right))
            return
        add = torch.addmm if target.dim() == 2 else torch.baddbmm
        beta = 0 if self.fresh else 1
        add(target, left, right.mT, beta=beta, alpha=self.scale, out=target)
