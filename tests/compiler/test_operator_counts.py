"""A call is a few large operators: each is a launch, and wakes threads."""

from __future__ import annotations

import pytest
import torch

from experiments.contenders.quantities import QUANTITIES, Asked
from experiments.questions.calls import count
from experiments.subjects.layers import Layer
from tn_extensions import Conv

MOST_OPERATORS, MOST_VIEWS = 50, 200

# what real networks have, on fewer channels or pixels
LAYERS = {
    "first": Conv.make(3, 16, 7, (64, 64), 2, 3),
    "3x3": Conv.make(64, 64, 3, (28, 28), 1, 1),
    "many channels": Conv.make(192, 192, 3, (7, 7), 1, 1),
    "strided": Conv.make(32, 64, 3, (28, 28), 2, 1),
    "5x5": Conv.make(16, 32, 5, (13, 13), 1, 2),
    "dilated": Conv.make(16, 16, 3, (14, 14), 1, 2, dilation=2),
    "pointwise": Conv.make(64, 64, 1, (14, 14)),
    "depthwise": Conv.make(48, 48, 3, (28, 28), 1, 1, groups=48),
    "depthwise 7x7": Conv.make(32, 32, 7, (28, 28), 1, 3, groups=32),
    "32 groups": Conv.make(64, 64, 3, (14, 14), 1, 1, groups=32),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_few_operators(layer: str, quantity: str) -> None:
    conv = LAYERS[layer]
    if quantity == "unfold_weight":  # a matrix from all inputs to all outputs
        conv = Conv.make(4, 4, conv.kernel_size, (9, 9), conv.stride, 1, groups=4)
    asked = Asked(quantity, Layer(layer, conv))
    with torch.no_grad():
        found = count(asked.call(asked.tensors(torch.device("cpu"))))
    assert found["operators"] <= MOST_OPERATORS, found
    assert found["views"] <= MOST_VIEWS, found


def test_counts_views_apart() -> None:
    x = torch.ones(2, 3)
    found = count(lambda: (x.mT @ x).unsqueeze(0).add_(1))
    assert (found["operators"], found["views"]) == (2, 2)
