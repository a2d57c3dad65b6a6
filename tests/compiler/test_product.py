"""Matrix products by either library: values, accuracy, and when oneDNN is asked."""

from __future__ import annotations

import pytest
import torch

from tn_extensions.compiler import product
from tn_extensions.compiler.product import PIECE, multiply, uses_onednn


@pytest.fixture(params=[True, False], ids=["oneDNN", "default"])
def prefers_onednn(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Decide for one of the libraries."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(product, "_prefers_onednn", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("terms", [1, PIECE - 1, PIECE + 1, 3 * PIECE])
@pytest.mark.parametrize("strided", [False, True])
def test_product_is_right(prefers_onednn: bool, terms: int, strided: bool) -> None:
    left = torch.rand(256, terms, dtype=torch.float64).float()
    right = torch.rand(300, 2 * terms, dtype=torch.float64).float()[:, ::2]
    if not strided:
        right = right.contiguous()
    expected = left.double() @ right.double().mT
    torch.testing.assert_close(
        multiply(left, right).double(), expected, rtol=1e-5, atol=0
    )


def test_product_with_itself(prefers_onednn: bool) -> None:
    half = torch.randn(1, 200, 1000)
    result = multiply(half, half)
    assert result.shape == (1, 200, 200)
    torch.testing.assert_close(result, half @ half.mT, rtol=1e-4, atol=1e-3)


def test_long_sums_stay_accurate(prefers_onednn: bool) -> None:
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


def test_the_choice_is_made_once() -> None:
    product._prefers_onednn.cache_clear()
    assert product._prefers_onednn() is product._prefers_onednn()
    assert product._prefers_onednn.cache_info().misses == 1
