"""Products of an operand with another one that is unfolded at some positions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from tn_extensions.compiler.product import multiply
from tn_extensions.sampling.meetings import Positions

PIECE = 2**20
"""Elements that are unfolded at a time: fewer than a cache holds, on a CPU."""


def piece(like: Tensor) -> int:
    """Elements to unfold at a time; elsewhere, calls cost more and memory is faster."""
    return PIECE if like.device.type == "cpu" else 16 * PIECE


def joint(tables: Sequence[Positions], extents: Sequence[int]) -> Positions:
    """Positions of several dimensions as flat ones; past their end where one has none.

    Args:
        tables: By dimension, positions ``[kept, free]``, -1 for none.
        extents: Sizes of the dimensions.

    Returns:
        ``[all kept, all free]``.
    """
    end = prod(extents)
    flat = np.zeros((), dtype=np.int32)  # there are many
    for number, table in enumerate(tables):
        own = np.where(table < 0, end, table * prod(extents[number + 1 :]))
        own = own.astype(np.int32)
        shape = [1] * (2 * len(tables))
        shape[number], shape[len(tables) + number] = table.shape
        flat = flat + own.reshape(shape)
    count = prod(len(table) for table in tables)
    return np.minimum(flat, end).reshape(count, -1)


def with_zero(tensor: Tensor) -> Tensor:
    """``[batch, samples, columns, positions]`` as rows, and one of zeros per sample."""
    batch, samples, columns, length = tensor.shape
    rows = tensor.new_empty(batch, samples, length + 1, columns)
    rows[:, :, :-1].copy_(tensor.mT)
    rows[:, :, -1].zero_()
    return rows


class Product:
    """``sum_j  kept[c, j]  read[r, table[j, k]]`` of each batch, as ``[c, (k, r)]``.

    Args:
        kept: The first operand, ``[batch, samples, rows, positions]``.
        at: Which of its positions take part, ascending.
        table: Where the second operand is read, ``[positions, values]``.
    """

    def __init__(self, kept: Tensor, at: Positions, table: Positions) -> None:
        if len(at) < kept.shape[3]:
            where = torch.from_numpy(at).to(kept.device, torch.int64)
            kept = kept.gather(3, where.expand(*kept.shape[:3], -1))
        self._left = kept.transpose(1, 2).flatten(2)
        self._table = torch.from_numpy(table).to(kept.device)
        self._index = self._table[:0]
        self._memory = kept.new_empty(0)
        self.total: Tensor | None = None

    @property
    def num_reads(self) -> int:
        """How often a sample of the second operand is read."""
        return self._table.numel()

    def add(self, rows: Tensor, start: int) -> None:
        """Add some samples.

        Args:
            rows: The second operand's, see :func:`with_zero`.
            start: The first of them.
        """
        batch, samples, length, columns = rows.shape
        count, values = self._table.shape
        if len(self._index) < samples * count:
            starts = length * torch.arange(samples).to(self._table)
            self._index = (starts[:, None, None] + self._table).flatten(0, 1)
        index = self._index[: samples * count]
        left = self._left[:, :, start * count : (start + samples) * count]
        size = max(1, piece(rows) // (batch * values * columns))
        for part, reads in zip(left.split(size, 2), index.split(size), strict=True):
            unfolded = self._unfolded(rows.flatten(1, 2), reads)
            product = multiply(part, unfolded.mT)
            if self.total is None:  # in single precision at least
                wide = torch.promote_types(product.dtype, torch.float32)
                self.total = product.to(wide)
            else:
                self.total.add_(product)

    def _unfolded(self, rows: Tensor, reads: Tensor) -> Tensor:
        """Rows side by side, ``[batch, positions, (values, columns)]``."""
        batch, _, columns = rows.shape
        size = batch * reads.numel() * columns
        if len(self._memory) < size:
            self._memory = rows.new_empty(size)
        result = self._memory[:size].view(batch, reads.numel(), columns)
        torch.index_select(rows, 1, reads.flatten(), out=result)
        return result.view(batch, len(reads), -1)
