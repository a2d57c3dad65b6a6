"""Products are the same whichever library multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.compiler import allocate, product
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.product import multiply, uses_onednn


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("shape", [(96, 80, 100), (200, 150, 1500), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["rows", "columns", "batch of one", "batch"])
def test_product(
    onednn: bool,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    available = torch.backends.mkldnn.is_available()
    monkeypatch.setattr(product, "_prefers_onednn", lambda: onednn and available)
    rows, columns, terms = shape
    left = noise_tensor((rows, terms)).to(dtype)
    right = noise_tensor((columns, terms)).to(dtype)
    if layout == "columns":
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    elif layout.startswith("batch"):
        size = 1 if layout == "batch of one" else 2
        left, right = left.expand(size, -1, -1), right.expand(size, -1, -1)
    expected = left.double() @ right.double().mT
    result = multiply(left, right)
    assert result.dtype == dtype
    assert_close(result.double(), expected, rtol=1e-5, atol=1e-6 * terms)
    assert_close(
        multiply(left, left).double(),
        left.double() @ left.double().mT,
        rtol=1e-5,
        atol=1e-6 * terms,
    )


@pytest.mark.parametrize("onednn", [True, False])
def test_long_sums_stay_accurate(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    available = torch.backends.mkldnn.is_available()
    monkeypatch.setattr(product, "_prefers_onednn", lambda: onednn and available)
    half = torch.rand(128, 40_000)
    exact = half.double() @ half.double().mT
    error = (multiply(half, half) - exact).abs().max() / exact.max()
    assert error < 1e-6


def test_onednn_is_for_large_float32_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_prefers_onednn", lambda: True)
    large = torch.rand(512, 400)
    assert uses_onednn(large, large)
    assert not uses_onednn(large.double(), large.double())
    assert not uses_onednn(large[None], large[None])
    assert not uses_onednn(large[:4], large[:4])
    assert not uses_onednn(large[:, :8], large[:, :8])
    assert not uses_onednn(torch.rand(4, 10_000), torch.rand(512, 10_000))
    variable = large.clone().requires_grad_()
    assert not uses_onednn(large, variable) and not uses_onednn(variable, large)
    with torch.no_grad():
        assert uses_onednn(large, variable)


def test_the_choice_is_made_once() -> None:
    product._prefers_onednn.cache_clear()
    assert product._prefers_onednn() is product._prefers_onednn()
    assert product._prefers_onednn.cache_info().misses == 1


@pytest.mark.parametrize("raises", [AttributeError, RuntimeError])
def test_builds_without_onednn(
    raises: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(left: Tensor, right: Tensor) -> Tensor:
        raise raises

    prefers = product._prefers_onednn.__wrapped__
    monkeypatch.setattr(product, "_onednn", missing)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert not prefers()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not prefers()


@pytest.mark.parametrize("lead", [(), (2,), (3, 1)])
def test_large_results_of_any_batch(
    lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocate, "_ALWAYS_FRESH", 0)
    left, right = noise_tensor((2, 3, 5)), noise_tensor((*lead, 4, 5))
    assert_close(multiply(left, right), left @ right.mT)


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("terms", [513, 2**18 + 5])
@pytest.mark.parametrize("rows_last", [True, False])
def test_long_sums_of_few_rows_keep_their_digits(
    rows_last: bool, terms: int, lead: tuple[int, ...], columns: int
) -> None:
    """Terms that are alike, whose sum one by one is off by up to 1e-3."""
    shapes = ((*lead, 3, terms), (*lead, columns, terms))
    left, right = (torch.full(shape, 0.7) for shape in shapes)
    if not rows_last:
        left, right = (each.mT.contiguous().mT for each in (left, right))
    expected = left.double() @ right.double().mT
    assert_close(multiply(left, right).double(), expected, rtol=2e-5, atol=0)
    out = torch.ones(*lead, 3, columns)
    Accumulator(out, 0.5, fresh=False).put_product(out, left, right)
    assert_close(out.double(), 1 + expected / 2, rtol=2e-5, atol=0)
