"""Which networks are convolutions, and what their operands carry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from tests.strategies import convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler.native import MOST_DIMS
from tn_extensions.compiler.roles import Roles
from tn_extensions.network import Axis, Operand, Pattern

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
    plain = quantities.conv(conv, 2)
    # an index of the kernel alone is summed
    summed = plain.replace(output=[("n",), ("o1",)])
    assert Roles.of(summed) is None


def test_patterns_of_a_convolution_hit_the_same_operand() -> None:
    patterns = [
        Pattern.of("i1", {"o1": 1, "k1": 1}),
        Pattern.of("i2", {"o2": 1, "k2": 1}),
    ]
    sizes = {"i1": 5, "i2": 5, "o1": 3, "o2": 3, "k1": 3, "k2": 3}

    def network(x: str, weight: str) -> TensorNetwork:
        operands = [
            Operand(name, tuple(Axis.of(sizes[j], (j, sizes[j])) for j in indices))
            for name, *indices in (["x", "i1", x], ["weight", "k1", weight])
        ]
        return TensorNetwork([*operands, *patterns], [["o1"], ["o2"]], sizes)

    assert Roles.of(network("i2", "k2")) is not None
    assert Roles.of(network("k2", "i2")) is None
