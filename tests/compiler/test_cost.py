"""The cost model: additive, monotone, and no better than its rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tn_extensions.compiler.cost import RATES, Cost, rates

SIDES = st.integers(1, 500)


def test_costs_add_up() -> None:
    one, two = Cost(1, 2, 3, 4, 5), Cost(10, 20, 30, 40, 50)
    assert one + two == two + one == Cost(11, 22, 33, 44, 55)


def test_repetition_reuses_the_temporaries() -> None:
    assert Cost(1, 2, 3, 4, 5).times(3) == Cost(3, 6, 9, 4, 15)
    assert Cost(1, 2, 3, 4, 5).holding(7) == Cost(1, 2, 3, 7, 5)


@pytest.mark.parametrize("device", RATES)
@given(SIDES, SIDES, SIDES, st.sampled_from([2, 4, 8]))
def test_products_are_no_faster_than_the_device(
    device: str, rows: int, columns: int, inner: int, itemsize: int
) -> None:
    speed = rates(device)
    cost = speed.product(rows, columns, inner, itemsize=itemsize)
    assert cost.flops == rows * columns * inner
    entries = rows * inner + inner * columns + rows * columns
    assert cost.bytes == itemsize * entries
    assert cost.seconds >= cost.flops / speed.gemm + speed.call
    assert cost.seconds >= cost.bytes / speed.cached_copy + speed.call
    larger = speed.product(rows + 1, columns, inner, itemsize=itemsize)
    assert larger.seconds >= cost.seconds
    batch = speed.product(rows, columns, inner, batch=3, itemsize=itemsize)
    assert batch.flops == 3 * cost.flops
    assert batch.seconds >= batch.flops / speed.gemm + speed.call


@pytest.mark.parametrize("device", RATES)
@given(SIDES, st.integers(1, 64))
def test_copies_pay_for_short_runs(device: str, elements: int, run: int) -> None:
    speed = rates(device)
    cost = speed.move(elements, 4, run)
    assert cost.bytes == 2 * 4 * elements
    assert cost.flops == 0
    assert cost.seconds >= cost.bytes / speed.copy
    assert speed.move(elements, 4, run + 1).seconds <= cost.seconds
    assert speed.move(elements, 8, run).seconds >= cost.seconds


def test_unknown_devices_are_priced_as_a_processor() -> None:
    assert rates("cpu") is RATES["cpu"]
    assert rates("meta") is rates("cpu")
