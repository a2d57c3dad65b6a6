"""Square roots with signs, in which form BackPACK backpropagates the Hessian."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class SignedRoots(dict[str, list[Any]]):
    """The Hessian by a tensor, ``sum_i signs[i] matrices[i] matrices[i]^T``.

    BackPACK's module extensions take this form, and each module with curvature adds a
    square root. Its origin identifies a root: at a branching point, roots with the same
    origin, which arrive by several branches, are summed; all others are kept.

    Args:
        matrices: Square roots, ``[V, N, ...]``.
        signs: Their signs.
        origins: Their origins.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        signs: Iterable[float],
        origins: Iterable[object],
    ) -> None:
        super().__init__(matrices=list(matrices), signs=list(signs))
        self.origins = list(origins)

    @classmethod
    def after(cls, before: SignedRoots | None, roots: dict[str, Any]) -> SignedRoots:
        """Create roots from a module extension's: the known ones, then new ones."""
        origins: list[object] = [] if before is None else list(before.origins)
        new = len(roots["matrices"]) - len(origins)
        origins += [object() for _ in range(new)]
        return cls(roots["matrices"], roots["signs"], origins)

    def copy(self) -> SignedRoots:
        """Copy the lists of roots, so that roots can be added to the copy."""
        return SignedRoots(self["matrices"], self["signs"], self.origins)

    def __add__(self, other: SignedRoots) -> SignedRoots:
        """Sum the Hessians of two branches."""
        result = self.copy()
        for matrix, sign, origin in zip(
            other["matrices"], other["signs"], other.origins, strict=True
        ):
            if origin in result.origins:
                i = result.origins.index(origin)
                result["matrices"][i] = result["matrices"][i] + matrix
            else:
                result["matrices"].append(matrix)
                result["signs"].append(sign)
                result.origins.append(origin)
        return result
