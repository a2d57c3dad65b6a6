"""Storage for factors and eigenvectors, which users of curvlinops can read.

Keys are names of layers, or of the parameters in a group. Operators store a compact
form. Reading converts it to curvlinops' form and stores the result, so that changes in
place, such as a damping that is added to factors, are not lost.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from tn_extensions.kronecker.factors import completed, dense


class Factors(UserDict[Any, Tensor]):
    """Factors of layers, read as in curvlinops: ``[D, D]``, or ``[G, D, D]`` of groups.

    Reading replaces a low-rank factor by its matrix.
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
    """Eigenvectors of factors, read as in curvlinops: ``[(G,) D, D]``.

    Reading completes a basis that is not full, ``[(G,) D, r]``.
    """

    @staticmethod
    def _whole(factor: Tensor) -> Tensor:
        return completed(factor)


class Eigenvalues(UserDict[Any, Any]):
    """Corrected eigenvalues of layers, read as in curvlinops.

    A joint block has ``[(G,) CO, D]``. Otherwise, a layer has a dictionary by the
    position of the parameter: ``[(G,) CO, D]`` for weights, ``[(G,) CO]`` for biases.

    Reading completes the layer's bases, and adds zeros for the new vectors.

    Args:
        values: By layer, eigenvalues of the eigenvectors that are stored.
        left: By layer, the basis ``Q_B``.
        right: By layer, the basis ``Q_A``.
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
    """Append entries to the last axes of values, up to the given sizes."""
    held = values.shape[-len(sizes) :]
    missing = [size - known for size, known in zip(sizes, held, strict=True)]
    assert min(missing) >= 0, "values of vectors that the bases lack"
    if not any(missing):
        return values
    behind = [each for number in reversed(missing) for each in (0, number)]
    return pad(values, behind, value=rest)


def kept(stored: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the compact form that is stored, without converting it."""
    return stored.data if isinstance(stored, UserDict) else dict(stored)


def state(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the compact form, without the axis of groups if there is one group."""
    return {name: unstacked(stacked(own)) for name, own in kept(stored).items()}


def stacked(factor: Tensor) -> Tensor:
    """Add an axis of groups to a factor that has none."""
    return factor if factor.dim() == 3 else factor.unsqueeze(0)


def unstacked(factor: Tensor) -> Tensor:
    """Remove the axis of groups if there is one group, as in curvlinops."""
    return factor[0] if len(factor) == 1 else factor
