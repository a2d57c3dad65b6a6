"""Sums over boxes: by the native kernel, by products, and in parts."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.compiler.candidates import assert_all_evaluate, layer, with_pairs
from tests.strategies import noise_tensor
from tn_extensions import Conv, quantities
from tn_extensions.compiler import lag_sums
from tn_extensions.compiler.lag_sums import is_thin, pieces, sum_box
from tn_extensions.compiler.lags import Region
from tn_extensions.compiler.primitives.correlate import correlate


def read(x: torch.Tensor, box: list[Region], lags: tuple[int, ...]) -> torch.Tensor:
    """The operand ``[rows, I..., C]`` at the positions of a box, shifted."""
    for axis, (region, lag) in enumerate(zip(box, lags, strict=True), start=1):
        shift = region.spacing * lag
        x = x[(slice(None),) * axis + ([at + shift for at in region.own],)]
    return x.flatten(0, -2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("part_bytes", [3 * 2**19, 500])
@pytest.mark.parametrize(
    "box",
    [
        [Region(0, 1, 9, 0, 1, 2)],
        [Region(0, 1, 9, 0, 1, 2), Region(1, 1, 8, 0, 1, 3)],
        [Region(0, 2, 8, 0, 3, 2), Region(1, 1, 9, 0, 2, 2)],
        [Region(0, 1, 8, 0, 1, 2), Region(0, 1, 8, 0, 1, 1), Region(0, 1, 8, 0, 1, 2)],
        [Region(0, 1, 1, 0, 1, 3), Region(0, 2, 9, 0, 1, 2)],
    ],
)
def test_sums_of_a_box(
    groups: int,
    part_bytes: int,
    box: list[Region],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lag_sums, "_PART_BYTES", part_bytes)
    sizes = [region.read.stop - region.lag for region in box]
    x = noise_tensor((2, *sizes, 6 * groups))
    own = [slice(r.own.start, r.own.stop, r.step) for r in box]
    reads = [slice(r.read.start - r.lag, r.read.stop - r.lag) for r in box]
    thin = is_thin(box)
    parts = x[(slice(None), *own)], x[(slice(None), *reads)]
    result = sum_box(*parts, box, groups, thin)
    assert result.shape == (groups, 6, 6, *(region.lags for region in box))
    for lags in torch.cartesian_prod(*(torch.arange(r.lags) for r in box)).view(
        -1, len(box)
    ):
        where = tuple(lags.tolist())
        left, right = read(x, box, (0,) * len(box)), read(x, box, where)
        left, right = (t.unflatten(1, (groups, 6)) for t in (left, right))
        expected = torch.einsum("tga,tgb->gab", left, right)
        assert_close(result[(..., *where)], expected)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("terms", [1, 7, 10**6])
@pytest.mark.parametrize("lines", [1, 3, 10**6])
def test_pieces_make_up_the_box(
    rows: int, terms: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag_sums, "_TERMS", terms)
    monkeypatch.setattr(lag_sums, "_LINES", lines)
    box = [Region(1, 2, 9, 0, 1, 2), Region(0, 1, 8, 0, 1, 2)]
    found = [
        (row, at)
        for part, (first, second) in pieces(box, rows)
        for row in range(rows)[part]
        for at in first.own
        if second == box[1]
    ]
    assert sorted(found) == [(row, at) for row in range(rows) for at in box[0].own]


def test_borders_are_thin() -> None:
    large, small = Region(0, 1, 50, 0, 1, 2), Region(0, 1, 1, 0, 1, 2)
    assert is_thin([small, large]) and is_thin([large, small])
    assert not is_thin([large, large])


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_correlate_by_the_native_kernel(
    num_dims: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag_sums, "_THIN", 1)
    monkeypatch.setattr(lag_sums, "_TERMS", 40)
    monkeypatch.setattr(lag_sums, "_LINES", 5)
    for conv in (
        layer(num_dims, stride=stride),
        layer(num_dims, stride=stride, kernel_size=5, padding=2),
    ):
        network = with_pairs(quantities.kfac_expand(conv, 3))
        assert assert_all_evaluate(correlate, network)


def test_correlate_a_map_with_an_interior() -> None:
    conv = Conv.make(5, 1, 3, (12, 11), padding=1)
    network = with_pairs(quantities.kfac_expand(conv, 3))
    assert assert_all_evaluate(correlate, network)
