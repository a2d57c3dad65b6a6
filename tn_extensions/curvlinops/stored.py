"""Factors as curvlinops has them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping

from torch import Tensor

from tn_extensions.kronecker.factors import dense


class Factors(UserDict[str, Tensor]):
    """Factors of layers as curvlinops has them: ``[D, D]``, ``[G, D, D]`` of groups.

    Reading makes a matrix of what is kept as a root.
    """

    def __getitem__(self, name: str) -> Tensor:
        return unstacked(dense(self.data[name]))

    def __setitem__(self, name: str, factor: Tensor) -> None:
        self.data[name] = stacked(factor)


def kept(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is kept of factors: matrices or roots."""
    return factors.data if isinstance(factors, Factors) else dict(factors)


def stacked(factor: Tensor) -> Tensor:
    """A factor with an axis of groups; layers without groups keep none."""
    return factor if factor.dim() == 3 else factor.unsqueeze(0)


def unstacked(factor: Tensor) -> Tensor:
    """The inverse of :func:`stacked`: as curvlinops has it without groups."""
    return factor[0] if len(factor) == 1 else factor
