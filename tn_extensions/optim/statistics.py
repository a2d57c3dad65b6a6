"""Sums of a layer's statistics since the last step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tn_extensions.kronecker.factors import averaged, rescale, squared_sums
from tn_extensions.layers.host import holds

RANK_LIMIT = 0.5
"""Largest number of rows of a low-rank factor, as a fraction of its columns."""

Statistics = dict[str, Tensor]
"""A step's factors, ``"inputs"`` and ``"gradients"``, and ``"moments"``."""


@dataclass
class Gathered:
    """Sums of statistics.

    Args:
        sums: The sums.
        num_data: Number of data.
        num_rows: Number of output rows in separate backward passes.
    """

    sums: Statistics = field(default_factory=dict)
    num_data: int = 0
    num_rows: int = 0

    def add(self, other: Gathered) -> None:
        """Add other sums; these may be overwritten."""
        self.num_data += other.num_data
        self.num_rows += other.num_rows
        for what, own in other.sums.items():
            known = self.sums.get(what)
            if known is None:
                self.sums[what] = own
            elif what == "moments":
                known.add_(own)
            else:
                # the sum is twice the mean
                self.sums[what] = rescale(averaged(known, own, 0.5, RANK_LIMIT), 2.0)


def all_finite(statistics: Statistics) -> bool:
    """Tell whether all of a step's statistics are finite."""
    sums = [
        (own if what == "moments" else squared_sums(own)).sum()
        for what, own in statistics.items()
    ]
    return not sums or holds(torch.stack(sums).isfinite().all())
