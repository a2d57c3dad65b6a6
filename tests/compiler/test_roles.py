"""Which networks are convolutions, and what their operands carry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from tests.strategies import convs, examples
from tn_extensions import Conv, quantities
from tn_extensions.compiler.native import MOST_DIMS
from tn_extensions.compiler.roles import Roles

PLAIN = ("conv", "weight_vjp", "input_vjp", "weight_jvp", "input_jvp")


@pytest.mark.parametrize("name", PLAIN)
@examples(30)
@given(convs())
def test_derivatives_are_convolutions(name: str, conv: Conv) -> None:
    network = getattr(quantities, name)(conv, 2)
    roles = Roles.of(network)
    assert roles is not None
    hit_by = name == "input_vjp"
    if name != "weight_vjp":
        assert roles.transposed == (conv.transposed != hit_by)


@examples(60)
@given(convs(max_dims=1))
def test_padding_that_fits(conv: Conv) -> None:
    roles = Roles.of(quantities.conv(conv, 2))
    assert roles is not None
    (dim,) = roles.dims
    if roles.transposed or dim.left < 0:
        return
    image, kernel = torch.zeros(1, 1, dim.image), torch.zeros(1, 1, dim.kernel)
    if dim.image + 2 * dim.left <= dim.dilation * (dim.kernel - 1):
        return  # torch refuses
    outputs = F.conv1d(image, kernel, None, dim.stride, dim.left, dim.dilation)
    extra = outputs.shape[-1] - dim.outputs
    assert dim.fits == (extra == 0) and dim.nearly_fits == (extra in (0, 1))
    assert dim.swapped.swapped == dim


def test_the_smaller_operand_of_a_transposed_convolution_is_the_kernel() -> None:
    conv = Conv.make(4, 6, 3, (8, 8), transposed=True)
    roles = Roles.of(quantities.conv(conv, 2))
    assert roles is not None and roles.kernel.name == "weight"
    roles = Roles.of(quantities.input_vjp(Conv.make(4, 6, 3, (8, 8)), 2))
    assert roles is not None and roles.kernel.name == "weight"


def test_of_two_small_operands_the_one_with_more_channels_is_the_kernel() -> None:
    conv = Conv.make(8, 6, 3, (4, 4), stride=2, padding=1)  # 2 x 2 outputs
    for batch_size, kernel in ((2, "weight"), (100, "g")):
        roles = Roles.of(quantities.input_vjp(conv, batch_size))
        assert roles is not None and roles.kernel.name == kernel


def test_other_networks_are_none() -> None:
    conv = Conv.make(2, 2, 3, (5,) * (MOST_DIMS + 1))
    assert Roles.of(quantities.conv(conv, 1)) is None
    conv = Conv.make(2, 2, 3, 5)
    for network in (quantities.unfold_input(conv, 2), quantities.kfac_expand(conv, 2)):
        assert Roles.of(network) is None
