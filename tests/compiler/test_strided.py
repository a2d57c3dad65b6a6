"""Operands as strided views."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from tests.network.rules.identities import NETWORKS, arrays_of
from tests.reference import dense
from tests.strategies import examples
from tn_extensions import TensorNetwork
from tn_extensions.compiler.strided import View, arrangement, pad
from tn_extensions.network import Axis, Operand, simplify


@examples(30)
@given(NETWORKS)
def test_view_reads_the_affine_positions(network: TensorNetwork) -> None:
    network = simplify(network)
    arrays = arrays_of(network)
    for operand in network.operands:
        # strides and an offset of its own, as in a slice of something larger
        padded = torch.zeros([size + 2 for size in operand.shape[::-1]]).double()
        tensor = padded[tuple(slice(1, -1) for _ in operand.shape)].permute(
            *reversed(range(len(operand.shape)))
        )
        tensor.copy_(torch.from_numpy(arrays[operand.name]))
        result = View(operand, operand.indices, network.sizes)(tensor)
        expected = dense.operand(operand, arrays[operand.name], network.sizes)
        assert_close(result, torch.from_numpy(expected))
        assert (
            result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        )


def test_absent_indices_have_size_one() -> None:
    operand = Operand("x", (Axis.of(6, ("a", 2), ("b", 3)),))
    sizes = {"a": 2, "b": 3, "c": 5}
    result = View(operand, ("b", "c", "a"), sizes)(torch.arange(6))
    assert result.tolist() == [[[0, 3]], [[1, 4]], [[2, 5]]]


def test_empty_operands() -> None:
    operand = Operand("x", (Axis.of(0, ("a", 0)), Axis.of(3, ("b", 3))))
    result = View(operand, ("b", "a"), {"a": 0, "b": 3})(torch.empty(0, 3))
    assert result.shape == (3, 0)


def test_pad_fills_zeros_on_the_sides() -> None:
    ones = torch.ones(2, 3)
    assert pad(ones, {}) is ones
    assert pad(ones, {0: (0, 0), 1: (0, 0)}) is ones
    result = pad(ones, {1: (1, 2)})
    assert result.tolist() == [[0, 1, 1, 1, 0, 0]] * 2
    assert pad(ones, {0: (0, 1), 1: (2, 0)}).shape == (3, 5)
    assert pad(ones, {0: (0, 1)}).tolist() == [[1] * 3, [1] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("a bc d", (2, 12, 5)),
        (" abcd", (1, 120)),
        ("d cab", (5, 24)),
        ("ba dc", (6, 20)),
    ],
)
@pytest.mark.parametrize("given", [(2, 3, 4, 5), (6, 20), (120,)])
def test_axes_are_permuted_and_merged(
    axes: str, shape: tuple[int, ...], given: tuple[int, ...]
) -> None:
    sizes = {"a": 2, "b": 3, "c": 4, "d": 5}
    groups = [tuple(axis) for axis in axes.split(" ")]
    tensor = torch.arange(120).reshape(2, 3, 4, 5)
    expected = tensor.permute(["abcd".index(j) for axis in groups for j in axis])
    result = arrangement("abcd", groups, sizes)(tensor.reshape(given))
    assert result.shape == shape
    assert torch.equal(result.flatten(), expected.flatten())
