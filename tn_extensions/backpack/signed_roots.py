"""Square roots with signs, as which BackPACK backpropagates the Hessian."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class SignedRoots(dict[str, list[Any]]):
    """``sum_i signs[i] matrices[i] matrices[i]^T``, the Hessian at a tensor.

    The form that BackPACK's module extensions take, each of which adds a square root
    for a curvature of its own. Each root remembers where it comes from: at a branching
    point, roots of one origin came along several ways and add up; others come from a
    branch, and stay apart.

    Args:
        matrices: Square roots ``[V, N, ...]``.
        signs: Their signs.
        origins: Where they come from.
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
        """What a module extension made of roots: the same, and new ones at the end."""
        origins: list[object] = [] if before is None else list(before.origins)
        new = len(roots["matrices"]) - len(origins)
        origins += [object() for _ in range(new)]
        return cls(roots["matrices"], roots["signs"], origins)

    def copy(self) -> SignedRoots:
        """The same roots in lists that can be added to."""
        return SignedRoots(self["matrices"], self["signs"], self.origins)

    def __add__(self, other: SignedRoots) -> SignedRoots:
        """Sum what comes from two branches."""
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
