"""What layers compute of slices of their input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.dropout.cases import gradients
from tests.dropout.test_modules import conv, same
from tests.strategies import (
    noise_tensor,
)
from tn_extensions.dropout import (
    TensorDropoutConv2d,
)


@pytest.mark.parametrize("shape", [(0, 4, 6, 6), (4, 6, 6), (1, 4, 6, 6)])
def test_few_samples(shape: tuple[int, ...]) -> None:
    layer = conv({"n": 0.5, "i2": 0.5}).double()
    x = noise_tensor(shape)
    found = gradients(layer, x)
    exact = gradients(layer.eval(), x)
    assert same(found, exact, skip=2)
    assert found[2].shape == exact[2].shape


def test_nothing_kept_is_zero() -> None:
    layer = conv({"n": 1e-9}).double()
    found = gradients(layer, noise_tensor((4, 4, 6, 6)))
    assert not found[2].any() and found[1].any() and found[3].any()


def test_output_positions_need_the_inputs_that_they_see() -> None:
    x = torch.rand(2, 4, 28, 28, requires_grad=True)
    layer = conv({"o1": 0.1}, sampler="fixed")  # 3 of 28 rows, which see 9 at most
    assert saved(layer, x) / x.nbytes <= 0.05 + 9 / 28
    pointwise = conv({"o1": 0.5}, sampler="fixed", padding=0)
    pointwise = TensorDropoutConv2d(4, 4, 1, keep={"o1": 0.5}, sampler="fixed")
    assert saved(pointwise, x) / x.nbytes == pytest.approx(0.5, rel=0.05)


def saved(layer: nn.Module, x: Tensor) -> int:
    """Bytes saved for the backward pass beyond parameters."""
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        if tensor.data_ptr() not in own:
            total += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return total
