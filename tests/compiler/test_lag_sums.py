"""Sums over boxes: each kernel, and the parts that boxes are cut into."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.compiler.lag_sums import (
    DEPTHWISE,
    GRADIENT,
    GRADIENT_CHANNELS_LAST,
    PRODUCT,
    Kernel,
    kernels,
    pieces,
)
from tn_extensions.compiler.lags import Box, Region, number_of_lags

BOXES: list[Box] = [
    (Region(0, 1, 9, 0, 1, 2),),
    (Region(0, 1, 4, 0, 1, 2), Region(1, 1, 3, -1, 1, 3)),
    (Region(0, 2, 3, 0, 3, 2), Region(3, 2, 4, -2, 2, 3)),
    (Region(0, 1, 2, 1, 1, 2), Region(2, 1, 3, -2, 1, 5)),
    (Region(0, 1, 1, 0, 1, 3), Region(0, 2, 5, 0, 1, 1)),
    (Region(0, 1, 3, 0, 1, 2), Region(1, 1, 2, -1, 2, 2), Region(1, 1, 3, -1, 1, 3)),
]


def expected_sums(x: torch.Tensor, box: Box, groups: int) -> torch.Tensor:
    """Sum ``[rows, I..., G * C]`` lag by lag, for nonnegative lags."""

    def read(lags: tuple[int, ...]) -> torch.Tensor:
        found = x
        for axis, (region, lag) in enumerate(zip(box, lags, strict=True), start=1):
            at = torch.tensor([own + lag for own in region.own])
            found = found.index_select(axis, at)
        return found.flatten(0, -2).unflatten(1, (groups, -1))

    choices = (
        [region.lag + region.spacing * at for at in range(region.lags)]
        for region in box
    )
    kept = [lags for lags in product(*choices) if lags >= (0,) * len(box)]
    sums = [
        torch.einsum("tga,tgb->gab", read((0,) * len(box)), read(lags)) for lags in kept
    ]
    return torch.stack(sums, dim=2).flatten(0, 1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "kernel",
    [PRODUCT, GRADIENT, GRADIENT_CHANNELS_LAST, DEPTHWISE],
    ids=lambda kernel: kernel.name,
)
@pytest.mark.parametrize("box", BOXES)
def test_sums_of_a_box(box: Box, kernel: Kernel, groups: int) -> None:
    channels = 1 if kernel is DEPTHWISE else 3
    # zeros around what is read, which some lags would reach
    x = noise_tensor((2, *[20] * len(box), groups * channels))
    if not kernel.channels_last:
        x = x.movedim(-1, 1).contiguous().movedim(1, -1)
    moved = tuple(Region(r.begin + 4, *list_of(r)) for r in box)
    left = x[(slice(None), *(slice(r.own.start, r.own.stop, r.step) for r in moved))]
    right = x[(slice(None), *(slice(r.read.start, r.read.stop) for r in moved))]
    result = kernel.sums(left, right, moved, groups)
    assert result.shape == (groups * channels, number_of_lags(box), channels)
    assert_close(result, expected_sums(x, moved, groups))


def list_of(region: Region) -> tuple[int, int, int, int, int]:
    """All of a region but its beginning."""
    return region.step, region.count, region.lag, region.spacing, region.lags


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("terms", [1, 7, 10**6])
@pytest.mark.parametrize("lines", [1, 3, 10**6])
def test_pieces_make_up_the_box(rows: int, terms: int, lines: int) -> None:
    box = (Region(1, 2, 9, 0, 1, 2), Region(0, 1, 8, 0, 1, 2))
    parts = pieces(box, rows, terms, lines)
    found = [
        (row, *own)
        for where, part in parts
        for row in range(rows)[where]
        for own in product(*(region.own for region in part))
    ]
    assert sorted(found) == list(product(range(rows), *(region.own for region in box)))
    for where, part in parts:
        count = len(range(rows)[where])
        assert count * prod(region.count for region in part) <= terms
        assert count * prod(region.count for region in part[:-1]) <= lines


def test_native_kernels_where_torch_has_them() -> None:
    assert kernels(4, 8, native=True) == (PRODUCT,)
    assert kernels(2, 8, native=False) == (PRODUCT,)
    assert kernels(2, 1, native=True) == (DEPTHWISE,)
    assert set(kernels(2, 8, native=True)) == {
        PRODUCT,
        GRADIENT,
        GRADIENT_CHANNELS_LAST,
    }
