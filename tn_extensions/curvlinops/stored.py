"""Factors and eigenvectors as operators keep them, and as curvlinops' users read them.

They are those of layers by name, or of groups of parameters by their names. Reading
gives what curvlinops keeps, and that is what the operator uses from then on, so
that changes in place are not lost: damping, say, that is added to the factors.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from tn_extensions.kronecker.factors import completed, dense


class Factors(UserDict[Any, Tensor]):
    """Factors of layers as curvlinops has them: ``[D, D]``, ``[G, D, D]`` of groups.

    Reading replaces what is kept as a low-rank factor by its matrix.
    """

    def __getitem__(self, name: Any) -> Tensor:
        self.data[name] = self._whole(self.data[name])
        return unstacked(self.data[name])

    @staticmethod
    def _whole(factor: Tensor) -> Tensor:
        return dense(factor)

    def __setitem__(self, name: Any, factor: Tensor) -> None:
        self.data[name] = stacked(factor)


class Bases(Factors):
    """Eigenvectors of factors as curvlinops has them, ``[(G,) D, D]``.

    Reading completes a basis of fewer vectors, ``[(G,) D, r]``.
    """

    @staticmethod
    def _whole(factor: Tensor) -> Tensor:
        return completed(factor)


class Eigenvalues(UserDict[Any, Any]):
    """Corrected eigenvalues of layers as curvlinops has them.

    ``[(G,) CO, D]`` of a joint block; else, by the position of the parameter,
    ``[(G,) CO, D]`` of weights and ``[(G,) CO]`` of biases.

    Reading completes the layer's bases, and adds zeros for their new vectors.

    Args:
        values: Those of the vectors that are kept, by layer.
        left: Bases of the layers' outputs.
        right: Bases of the layers' inputs.
    """

    def __init__(
        self,
        values: Mapping[Any, Any],
        left: Mapping[Any, Tensor],
        right: Mapping[Any, Tensor],
    ) -> None:
        self._left, self._right = left, right
        super().__init__(values)

    def __getitem__(self, name: Any) -> Any:
        left, right = self._left[name], self._right.get(name)
        groups = left.dim() - 2
        sizes = [each.shape[-1] for each in (left, right) if each is not None]

        def whole(values: Tensor) -> Tensor:
            return padded(values, sizes[: values.dim() - groups])

        found = self.data[name]
        if isinstance(found, Tensor):
            found = whole(found)
        else:
            found = {position: whole(values) for position, values in found.items()}
        self.data[name] = found
        return found


def padded(values: Tensor, sizes: Sequence[int], rest: float = 0.0) -> Tensor:
    """Values with others behind them, so that the last axes have the given sizes."""
    held = values.shape[-len(sizes) :]
    missing = [size - known for size, known in zip(sizes, held, strict=True)]
    assert min(missing) >= 0, "values of vectors that the bases lack"
    if not any(missing):
        return values
    behind = [each for number in reversed(missing) for each in (0, number)]
    return pad(values, behind, value=rest)


def kept(stored: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return what is kept: matrices, low-rank factors, eigenvectors of the range."""
    return stored.data if isinstance(stored, UserDict) else dict(stored)


def state(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is kept, without the axis of groups where there are none."""
    return {name: unstacked(stacked(own)) for name, own in kept(stored).items()}


def stacked(factor: Tensor) -> Tensor:
    """A factor with an axis of groups; layers without groups keep none."""
    return factor if factor.dim() == 3 else factor.unsqueeze(0)


def unstacked(factor: Tensor) -> Tensor:
    """The inverse of :func:`stacked`: as curvlinops has it without groups."""
    return factor[0] if len(factor) == 1 else factor
