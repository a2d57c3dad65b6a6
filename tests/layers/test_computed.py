"""Calls of torch's functions, and gradients through computed kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.backpack.run import images
from tn_extensions import memory_budget
from tn_extensions.layers.calls import Calls
from tn_extensions.layers.computed import parameter_gradients
from tn_extensions.layers.module import Use

CALLS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (F.linear, (3, 2, 4), (5, 4), {}),
    "conv1d": (F.conv1d, (3, 4, 6), (6, 2, 3), {"groups": 2, "stride": 2}),
    "conv2d": (F.conv2d, (3, 2, 4, 5), (3, 2, 2, 3), {"padding": "same"}),
    "conv3d": (torch.conv3d, (2, 1, 3, 3, 3), (2, 1, 2, 1, 2), {"dilation": (1, 2, 2)}),
    "transposed": (
        F.conv_transpose2d,
        (3, 4, 3, 2),
        (4, 3, 2, 3),
        {"stride": (2, 3), "groups": 2, "padding": [1, 0], "output_padding": (1, 2)},
    ),
}


@pytest.mark.parametrize("budget", [1, 2**28])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gradients_through_calls(call: Any, budget: int) -> None:
    function, input_shape, shape, options = call
    x, raw = images(*input_shape), images(*shape).requires_grad_()
    is_transposed = function is F.conv_transpose2d
    channels = shape[1] * 2 if is_transposed else shape[0]
    raw_bias = images(channels).requires_grad_()
    pairs = []

    def on_call(func: Any, arguments: dict[str, Any]) -> Tensor:
        computed = arguments["weight"], arguments["bias"]
        output: Tensor = func(*arguments.values())
        use = Use.of_call(arguments, output, "separate", len(x), computed=computed)
        g = images(*output.shape)
        pairs.append((use, use.gradient(g)))
        cotangents.append(g)
        return output

    cotangents: list[Tensor] = []
    # the bias is computed from the weight's parameter, too
    bias = raw_bias.tanh() * raw.mean()
    with Calls(on_call):
        output = function(x, bias=bias, weight=raw.sin(), **options)
    expected = function(x, raw.sin(), bias, **options)
    assert_close(output, expected)
    with memory_budget(budget):
        chunks = [*parameter_gradients(pairs, [raw, raw_bias])]
    assert len(chunks) == (len(x) if budget == 1 else 1)
    for n in range(len(x)):
        own = [torch.cat(parts)[n] for parts in zip(*chunks, strict=True)]
        reference = torch.autograd.grad(
            expected[n], [raw, raw_bias], cotangents[0][n], retain_graph=True
        )
        assert_close(own, [*reference])
