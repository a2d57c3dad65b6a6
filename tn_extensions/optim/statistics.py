"""A step's statistics of a layer, while they are being summed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tn_extensions.kronecker.factors import averaged, rescale, squared_sums
from tn_extensions.layers.host import holds

RANK_LIMIT = 0.5
"""Rows of a low-rank factor, at most, as a part of its columns."""

Statistics = dict[str, Tensor]
"""A step's ``"inputs"`` and ``"gradients"`` (factors), and ``"moments"``."""


@dataclass
class Gathered:
    """Statistics that are being summed.

    Args:
        sums: The sums.
        num_data: Number of the data.
        num_rows: Rows of outputs whose loss was differentiated in passes of their own.
    """

    sums: Statistics = field(default_factory=dict)
    num_data: int = 0
    num_rows: int = 0

    def add(self, other: Gathered) -> None:
        """Add other sums, which may be changed."""
        self.num_data += other.num_data
        self.num_rows += other.num_rows
        for what, own in other.sums.items():
            known = self.sums.get(what)
            if known is None:
                self.sums[what] = own
            elif what == "moments":
                known.add_(own)
            else:
                # twice the mean is the sum
                self.sums[what] = rescale(averaged(known, own, 0.5, RANK_LIMIT), 2.0)


def all_finite(statistics: Statistics) -> bool:
    """Tell whether all of a step's statistics are."""
    sums = [
        (own if what == "moments" else squared_sums(own)).sum()
        for what, own in statistics.items()
    ]
    return not sums or holds(torch.stack(sums).isfinite().all())
