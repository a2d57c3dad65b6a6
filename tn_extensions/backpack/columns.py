"""Square roots of curvature matrices that are backpropagated by pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from tn_extensions.backpack.sharing import SHARED
from tn_extensions.compiler.allocate import memory_of
from tn_extensions.compiler.budget import current_budget


class Columns:
    """A square root ``[V, N, ...]`` in pieces along ``V``, which are freed one by one.

    Square roots take most of the memory of second-order extensions. By pieces, a module
    needs memory for the larger of its two square roots, at output and input, and for
    one piece.

    Args:
        pieces: The pieces.
        coupled: Whether a module coupled the samples, so that each sample has its own
            columns (see :func:`column_per_sample`).
    """

    def __init__(self, pieces: Iterable[Tensor], coupled: bool = False) -> None:
        self.pieces = list(pieces)
        self.coupled = coupled
        self._holders = WeakSet([self])

    def copy(self) -> Columns:
        """Copy the list of pieces, so that both lists can be consumed independently."""
        twin = Columns(self.pieces, self.coupled)
        twin._hold_with(self)
        return twin

    def through(self, step: Callable[[Columns], Iterator[Tensor]]) -> Columns:
        """Apply a step that consumes the pieces; it may reuse their memory."""
        memory = self._memory()
        result = Columns(step(self), self.coupled)
        if memory & result._memory():
            result._hold_with(self)
        return result

    def _hold_with(self, other: Columns) -> None:
        self._holders = other._holders
        self._holders.add(self)

    def _memory(self) -> set[int]:
        return {memory_of(piece) for piece in self.pieces}

    def shares_memory(self, value: Any) -> bool:
        """Tell whether a value is a tensor in the memory of a piece."""
        if not isinstance(value, Tensor):
            return False
        return memory_of(value) in self._memory()

    @property
    def is_alone(self) -> bool:
        """Tell whether nothing else uses the pieces: they may be overwritten."""
        return len(self._holders) == 1

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def take(self, growth: float = 1.0) -> Iterator[Tensor]:
        """Yield the pieces in order, and drop each of them.

        Args:
            growth: Size of what is computed from a piece, divided by the piece's size.

        Yields:
            Pieces, cut so that each result takes at most a quarter of the memory
            budget.
        """
        while self.pieces:
            piece = self.pieces.pop(0)
            num_bytes = growth * piece.numel() * piece.element_size()
            count = min(len(piece), -(-num_bytes // (current_budget() / 4)))
            yield from piece.tensor_split(int(count)) if count > 1 else (piece,)

    def merged(self) -> Tensor:
        """Concatenate the pieces to one, and return it."""
        if len(self.pieces) > 1:
            whole = SHARED.once("merged", self.pieces, partial(torch.cat, self.pieces))
            self.pieces = [whole]
        return self.pieces[0]

    def per_sample(self) -> Columns:
        """Give each sample its own columns, unless it has them already."""
        if self.coupled:
            return self
        return Columns(map(column_per_sample, self.take()), coupled=True)

    def __add__(self, other: Columns) -> Columns:
        """Sum the square roots of two branches."""
        left, right = self, other
        if left.coupled != right.coupled:
            left, right = left.per_sample(), right.per_sample()

        def total() -> Columns:
            return Columns(_added(left.copy().pieces, right.copy().pieces))

        result = SHARED.once("sum", left.pieces + right.pieces, total).copy()
        result.coupled = left.coupled
        return result


def _added(left: list[Tensor], right: list[Tensor]) -> Iterator[Tensor]:
    """Add two lists of pieces that may be cut differently."""
    while left:
        a, b = left.pop(0), right.pop(0)
        size = min(len(a), len(b))
        for pieces, piece in ((left, a), (right, b)):
            if len(piece) > size:
                pieces.insert(0, piece[size:])
        yield a[:size] + b[:size]


def column_per_sample(sqrt: Tensor) -> Tensor:
    """Give each sample its own columns: ``[V, N, ...]`` to ``[V * N, N, ...]``.

    Args:
        sqrt: Square root of a GGN that is block-diagonal in the samples.

    Returns:
        A square root of the same GGN. Column ``(v, n)`` is zero outside sample ``n``.
    """
    num_data = sqrt.shape[1]
    sample = torch.arange(num_data, device=sqrt.device)
    columns = sqrt.new_zeros(len(sqrt), num_data, *sqrt.shape[1:])
    columns[:, sample, sample] = sqrt
    return columns.flatten(0, 1)
