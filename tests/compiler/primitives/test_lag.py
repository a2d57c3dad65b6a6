"""Lag: sums over lags along some dimensions, by each kernel, the others unfolded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.compiler.candidates import (
    LARGE,
    TINY,
    USUAL,
    assert_all_evaluate,
    layer,
    matched,
    target,
    with_pairs,
)
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise_tensor
from tn_extensions import Conv, quantities
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.primitives.lag import lag


@examples(60)
@given(convs(), BATCHES, st.sampled_from([LARGE, TINY]))
def test_expand(conv: Conv, batch_size: int, budget: int) -> None:
    network = quantities.kfac_expand(conv, batch_size)
    for count in range(1, conv.num_dims + 1):
        assert_all_evaluate(lag, with_pairs(network, count), budget)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("options", USUAL)
def test_usual_layers(num_dims: int, transposed: bool, options: dict[str, Any]) -> None:
    conv = layer(num_dims, transposed=transposed, **options)
    network = with_pairs(quantities.kfac_expand(conv, 2))
    assert len(network.pairs) == num_dims
    for budget in (LARGE, TINY):
        assert assert_all_evaluate(lag, network, budget) >= 1


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("padding", [1, ((0, 2), (2, 1))])
def test_channels_and_groups(groups: int, channels: int, padding: Any) -> None:
    conv = Conv.make(groups * channels, groups, 3, (7, 5), 1, padding, groups=groups)
    network = quantities.kfac_expand(conv, 3)
    for count in (1, 2):
        for budget in (LARGE, TINY):
            assert assert_all_evaluate(lag, with_pairs(network, count), budget)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("options", [*USUAL, {"kernel_size": 4, "padding": 2}])
def test_one_channel_per_group(
    num_dims: int, groups: int, options: dict[str, Any]
) -> None:
    conv = layer(num_dims, **options)
    conv = replace(conv, in_channels=groups, out_channels=groups, groups=groups)
    network = with_pairs(quantities.kfac_expand(conv, 2))
    (found,) = lag(network, target())
    assert found.name == "lag(depthwise convolution)"
    for budget in (LARGE, TINY):
        assert assert_all_evaluate(lag, network, budget) == 1


def test_kernels_are_candidates() -> None:
    network = quantities.kfac_expand(layer(), 2)
    names = [found.name for found in lag(with_pairs(network), target())]
    assert names == [
        "lag(matrix product)",
        "lag(weight gradient)",
        "lag(weight gradient, channels last)",
    ]
    (one,) = lag(with_pairs(network, 1), target())
    assert one.name == "lag(matrix product)"


@pytest.mark.parametrize("groups", [1, 6])
def test_long_sums_are_cut(groups: int) -> None:
    conv = Conv.make(6, 6, 3, (70, 150), padding=1, groups=groups)
    network = with_pairs(quantities.kfac_expand(conv, 2))
    assert assert_all_evaluate(lag, network)


LAYERS = {
    "3x3": (64, 56, {"padding": 1}),
    "many channels": (256, 14, {"padding": 1}),
    "5x5": (96, 32, {"kernel_size": 5, "padding": 2}),
    "dilated": (64, 28, {"padding": 2, "dilation": 2}),
    "depthwise": (144, 56, {"padding": 1, "groups": 144}),
    "depthwise 7x7": (96, 56, {"kernel_size": 7, "padding": 3, "groups": 96}),
    "grouped": (128, 14, {"padding": 1, "groups": 32}),
}


@pytest.mark.parametrize(("channels", "size", "options"), LAYERS.values(), ids=LAYERS)
def test_calls_few_operators(channels: int, size: int, options: dict[str, Any]) -> None:
    conv = Conv.make(
        channels, channels, **({"kernel_size": 3} | options), input_size=(size, size)
    )  # type: ignore[arg-type]
    network = with_pairs(quantities.kfac_expand(conv, 8))
    x = {"x": torch.ones(8, channels, size, size, device="meta")}
    out = torch.empty(network.shape, device="meta")
    for found in lag(network, target(itemsize=4)):
        with CountOperators() as counted:
            found.run(x, Accumulator(out, 1.0, fresh=True))
        assert counted.operators <= 50, found.label
        assert counted.views <= 200, found.label


class CountOperators(TorchDispatchMode):
    """Counts operators, and apart from them those that return a view."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.views = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        returned = func._schema.returns[0].alias_info if func._schema.returns else None
        is_view = returned is not None and not returned.is_write
        self.views += is_view
        self.operators += not is_view
        return func(*args, **(kwargs or {}))


def test_a_heavy_border_does_not_cancel() -> None:
    network = with_pairs(quantities.kfac_expand(layer(input_size=(12, 12)), 2))
    x = noise_tensor((2, 2, 12, 12)) * 1e4
    x[..., 1:-1, 1:-1] /= 1e4
    expected = torch.from_numpy(dense.evaluate(network, {"x": x.numpy()}))
    (diagonal,) = expected.diagonal(dim1=-2, dim2=-1)
    scale = (diagonal[:, None] * diagonal).sqrt()
    for found in lag(network, target(itemsize=4)):
        out = torch.full(network.shape, torch.nan)
        found.run({"x": x.float()}, Accumulator(out, 1.0, fresh=True))
        assert ((out - expected).abs() / scale).max() < 1e-5, found.label


def test_matches_mirrored_networks_with_pairs() -> None:
    assert matched(lag) == {"kfac_expand, paired"}


def test_estimate_grows_with_the_batch() -> None:
    costs = []
    for batch_size in (1, 8, 64):
        network = with_pairs(quantities.kfac_expand(layer(), batch_size))
        costs.append(min(w.cost.seconds for w in lag(network, target())))
    assert costs == sorted(costs) and costs[0] < costs[-1]
