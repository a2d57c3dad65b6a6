"""Hyper-parameters against torch's own modules."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.strategies import (
    MODULES,
    convs,
    examples,
    module_input,
    modules,
    noise_tensor,
)
from tn_extensions import Conv, functional
from tn_extensions.conv import PADDING_MODES

MAKE: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 6,
    "kernel_size": 3,
    "input_size": (8, 7),
}


@examples(60)
@given(modules())
def test_sizes_are_those_of_the_module(case: tuple[Any, tuple[int, ...]]) -> None:
    module, sizes = case
    conv = Conv.from_module(module, sizes)
    output = module(module_input(module, sizes, 1))
    assert conv.output_size == tuple(output.shape[2:])
    assert conv.out_channels == output.shape[1]
    assert conv.weight_shape == tuple(module.weight.shape)
    assert conv.num_dims == len(sizes)
    assert conv.transposed == module.transposed
    assert conv.groups == module.groups
    assert conv.stride == module.stride
    assert conv.dilation == module.dilation
    assert conv.padding_mode == module.padding_mode


@examples(40)
@given(modules(transposed=True), st.data())
def test_output_size_of_transposed_modules(case: Any, data: st.DataObject) -> None:
    module, sizes = case
    least = Conv.from_module(module, sizes)
    least_sizes = [d.output_size - d.output_padding for d in least.dims]
    wanted = tuple(
        # torch itself is stricter than it says: only the stride bounds output_size
        size + data.draw(st.integers(0, dim.stride - 1))
        for size, dim in zip(least_sizes, least.dims, strict=True)
    )
    conv = Conv.from_module(module, sizes, output_size=wanted)
    output = module(module_input(module, sizes, 1), output_size=wanted)
    assert conv.output_size == tuple(output.shape[2:]) == wanted


@examples(80)
@given(st.data())
def test_outputs_are_as_empty_as_torchs(data: st.DataObject) -> None:
    """Of transposed convolutions, which kernels of torch allow, but not each."""
    num_dims = data.draw(st.integers(1, 3))
    ranges = {
        "input_size": (1, 3),
        "kernel_size": (1, 4),
        "stride": (1, 3),
        "dilation": (1, 2),
        "padding": (0, 3),
    }
    sizes = {
        name: tuple(data.draw(st.integers(*ends)) for _ in range(num_dims))
        for name, ends in ranges.items()
    }
    input_size = sizes.pop("input_size")
    transposed = data.draw(st.booleans())
    module = MODULES[transposed][num_dims - 1](2, 4, groups=2, **sizes)
    try:
        output = module(torch.ones(1, 2, *input_size))
    except RuntimeError:
        output = None
    if output is not None:
        conv = Conv.from_module(module, input_size)
        assert conv.output_size == tuple(output.shape[2:])
        return
    try:
        conv = Conv.from_module(module, input_size)
    except ValueError as error:
        assert_in_form(error, "ConvDim", "output_size")
        remedy = "reduce" if transposed else "Enlarge the input or"
        assert f"{remedy} the padding" in str(error)
    else:
        assert transposed and 0 in conv.output_size


def test_output_sizes_of_modules_whose_own_would_be_negative() -> None:
    module = nn.ConvTranspose1d(1, 1, 1, stride=3, padding=1)
    output = module(torch.ones(1, 1, 1), output_size=[1])
    conv = Conv.from_module(module, (1,), output.shape[2:])
    assert conv.output_size == (1,) and conv.output_padding == (2,)
    with pytest.raises(ValueError) as caught:
        Conv.from_module(module, (1,))
    assert_in_form(caught.value, "ConvDim", "output_size")


SPELLINGS: dict[str, Any] = {
    "tuple": tuple,
    "list": list,
    "Size": torch.Size,
    "NumPy": lambda sizes: tuple(map(np.int64, sizes)),
    "tensors": lambda sizes: tuple(map(torch.tensor, sizes)),
    "one entry": lambda sizes: tuple(sizes[:1]),
    "int": lambda sizes: sizes[0],
    "NumPy scalar": lambda sizes: np.int32(sizes[0]),
    "tensor": lambda sizes: torch.tensor(sizes[0]),
}
"""Ways in which torch's functions take sizes."""


@examples(50)
@given(st.data())
def test_reads_what_forward_uses(data: st.DataObject) -> None:
    draw = data.draw
    num_dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    options = (
        {} if transposed else {"padding_mode": draw(st.sampled_from(PADDING_MODES))}
    )
    padding = 1 if transposed else draw(st.sampled_from([0, 1, "same", "valid"]))
    make = MODULES[transposed][num_dims - 1]
    module: Any = make(2, 4, 3, padding=padding, **options)
    for name, most in (("stride", 3), ("dilation", 2), ("padding", 2)):
        if draw(st.booleans()):
            drawn = [draw(st.integers(int(name != "padding"), most)) for _ in "123"]
            # torch asserts that this one is a tuple
            tuples = {"tuple", "Size", "NumPy", "tensors", "one entry"}
            kinds = tuples if transposed and name == "padding" else set(SPELLINGS)
            spell = SPELLINGS[draw(st.sampled_from(sorted(kinds)))]
            setattr(module, name, spell(drawn[:num_dims]))
    if draw(st.booleans()):
        module.groups = draw(st.sampled_from([1, 2, np.int64(2), torch.tensor(2)]))
        inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        kernel_size = [draw(st.integers(1, 3)) for _ in range(num_dims)]
        lead = (2 * inner, outer) if transposed else (2 * outer, inner)
        module.weight = nn.Parameter(torch.empty(*lead, *kernel_size))
    module.weight.data = noise_tensor(module.weight.shape)
    module.bias = None
    groups = int(module.groups)
    channels = module.weight.shape[0 if transposed else 1] * (
        1 if transposed else groups
    )
    x = noise_tensor((2, channels, *(7, 8, 9)[:num_dims]))
    try:
        expected = module(x)
    except (RuntimeError, ValueError):  # 'same' with a stride, say
        return
    sizes = x.shape[2:]
    for output_size in (None, expected.shape[2:]):
        conv = Conv.from_module(module, sizes, output_size)
        assert conv.weight_shape == tuple(module.weight.shape)
        assert_close(functional.conv(x, module.weight, conv), expected)
        assert all(type(size) is int for dim in conv.dims for size in dim.padding)
        assert type(conv.groups) is int and type(conv.stride[0]) is int


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_computed_kernels_are_not_computed_again(kind: Any) -> None:
    expected = Conv.from_module(kind(4, 6, 3, groups=2), (5, 5))
    module = parametrizations.spectral_norm(kind(4, 6, 3, groups=2))
    before = module.parametrizations.weight[0]._u.clone()
    assert Conv.from_module(module, (5, 5)) == expected
    assert_close(module.parametrizations.weight[0]._u, before, rtol=0, atol=0)
    module = prune.l1_unstructured(kind(4, 6, 3, groups=2), "weight", 3)
    assert Conv.from_module(module, (5, 5)) == expected


def test_flat_pieces_of_a_kernel() -> None:
    """Models that are sharded hold these outside of their forward pass."""
    module = nn.Conv2d(4, 6, 3, groups=2)
    expected = Conv.from_module(module, (5, 5))
    module.weight = nn.Parameter(torch.empty(0))
    assert Conv.from_module(module, (5, 5)) == expected


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("stride", (1, 1, 1), ValueError),
        ("stride", (), ValueError),
        ("dilation", 1.0, TypeError),
        ("padding", [1, 1, 1], ValueError),
        ("padding", True, TypeError),
        ("groups", 1.5, TypeError),
    ],
)
def test_attributes_that_forward_refuses(name: str, value: Any, error: Any) -> None:
    module = nn.Conv2d(2, 2, 3)
    setattr(module, name, value)
    with pytest.raises((RuntimeError, TypeError)):
        module(torch.ones(1, 2, 5, 5))
    with pytest.raises(error) as caught:
        Conv.from_module(module, (5, 5))
    assert_in_form(caught.value, "Conv.from_module", f"module.{name}")


def test_sizes_of_any_kind_are_the_same_convolution() -> None:
    expected = Conv.make(**MAKE, padding=1)
    found = Conv.make(
        np.int64(4),
        np.int32(6),
        np.array([3, 3]),
        torch.tensor([8, 7]),
        stride=torch.tensor(1),
        padding=np.array([1, 1]),
    )
    assert repr(found) == repr(expected)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_input_size_may_be_a_scalar_or_a_torch_size(num_dims: int) -> None:
    module = MODULES[False][num_dims - 1](1, 1, 3)
    size = torch.empty((5,) * num_dims).shape
    conv = Conv.from_module(module, 5)
    assert conv == Conv.from_module(module, size)
    assert conv.input_size == (5,) * num_dims


@examples(40)
@given(convs(max_dims=4, padding_modes=("zeros", "replicate")))
def test_make_collects_what_the_dimensions_hold(conv: Conv) -> None:
    made = Conv.make(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.input_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        transposed=conv.transposed,
        output_padding=conv.output_padding,
        padding_mode=conv.padding_mode,
    )
    assert made == conv
    assert hash(made) == hash(conv)


def test_conv_is_frozen_and_hashable() -> None:
    conv = Conv.make(**MAKE)
    with pytest.raises(FrozenInstanceError):
        conv.groups = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        conv.dims[0].stride = 2  # type: ignore[misc]
    assert {conv: 1}[Conv.make(**MAKE)] == 1
    assert conv != Conv.make(**MAKE, stride=2)


@examples(40)
@given(convs(transposed=False, padding_modes=("reflect", "replicate", "circular")))
def test_explicit_padding_moves_into_the_input(conv: Conv) -> None:
    padded = conv.explicitly_padded
    assert conv.pads_explicitly == any(map(any, conv.padding))
    assert not padded.pads_explicitly
    assert padded.output_size == conv.output_size
    assert padded.input_size == tuple(
        size + sum(pair)
        for size, pair in zip(conv.input_size, conv.padding, strict=True)
    )


@pytest.mark.parametrize(
    ("change", "name", "argument"),
    [
        ({"in_channels": 0}, "Conv", "in_channels"),
        ({"groups": 3}, "Conv", "in_channels"),
        ({"groups": 4}, "Conv", "out_channels"),
        ({"groups": 0}, "Conv", "groups"),
        ({"kernel_size": 0}, "Conv.make", "kernel_size"),
        ({"dilation": 0}, "Conv.make", "dilation"),
        ({"stride": 0}, "ConvDim", "stride"),
        ({"input_size": (0, 3)}, "ConvDim", "input_size"),
        ({"padding": -1}, "ConvDim", "padding[0]"),
        ({"padding": ((0, -1), 0)}, "ConvDim", "padding[1]"),
        ({"padding": ((0, 1, 2), 0)}, "Conv.make", "padding"),
        ({"kernel_size": (3, 3, 3)}, "Conv.make", "input_size"),
        ({"stride": (1,)}, "Conv.make", "stride"),
        ({"kernel_size": 9}, "ConvDim", "output_size"),
        ({"padding": "full"}, "Conv.make", "padding"),
        ({"padding": "same", "stride": 2}, "Conv.make", "stride"),
        ({"padding": "same", "transposed": True}, "Conv.make", "padding"),
        ({"output_padding": 1}, "ConvDim", "output_padding"),
        ({"transposed": True, "output_padding": 1}, "ConvDim", "output_padding"),
        ({"transposed": True, "output_padding": -1}, "ConvDim", "output_padding"),
        ({"transposed": True, "padding": 20}, "ConvDim", "output_size"),
        ({"padding": ()}, "Conv.make", "padding"),
        ({"padding_mode": "mirror"}, "Conv", "padding_mode"),
        ({"padding_mode": "reflect", "transposed": True}, "Conv", "padding_mode"),
        ({"padding_mode": "reflect", "padding": 7}, "Conv", "padding"),
        ({"padding_mode": "circular", "padding": 8}, "Conv", "padding"),
        ({"input_size": (), "kernel_size": ()}, "Conv", "dims"),
    ],
)
def test_impossible_hyper_parameters(
    change: dict[str, Any], name: str, argument: str
) -> None:
    with pytest.raises(ValueError) as caught:
        Conv.make(**(MAKE | change))
    assert_in_form(caught.value, name, argument)


@pytest.mark.parametrize(
    ("change", "name", "argument"),
    [
        ({"in_channels": 4.0}, "Conv", "in_channels"),
        ({"groups": True}, "Conv", "groups"),
        ({"kernel_size": 3.0}, "Conv.make", "kernel_size"),
        ({"stride": "2"}, "ConvDim", "stride"),
        ({"input_size": (8.0, 7)}, "ConvDim", "input_size"),
        ({"padding": 0.5}, "ConvDim", "padding[0]"),
    ],
)
def test_hyper_parameters_of_the_wrong_kind(
    change: dict[str, Any], name: str, argument: str
) -> None:
    with pytest.raises(TypeError) as caught:
        Conv.make(**(MAKE | change))
    assert_in_form(caught.value, name, argument)


@pytest.mark.parametrize("largest", ["reflect", "circular"])
def test_padding_modes_go_as_far_as_torch_does(largest: Any) -> None:
    limit = 4 if largest == "reflect" else 5
    conv = Conv.make(1, 1, 2, 5, padding=limit, padding_mode=largest)
    module = nn.Conv1d(1, 1, 2, padding=limit, padding_mode=largest)
    assert module(torch.ones(1, 1, 5)).shape[2:] == conv.output_size


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.ReLU(), None, 3, nn.Conv2d])
def test_from_module_refuses_other_modules(module: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Conv.from_module(module, (4, 4))
    assert_in_form(caught.value, "Conv.from_module", "module")


@pytest.mark.parametrize(
    ("module", "sizes", "argument"),
    [
        (nn.LazyConv2d(2, 3), {"input_size": (4, 4)}, "module"),
        (nn.Conv2d(2, 2, 3), {"input_size": (4, 4, 4)}, "input_size"),
        (
            nn.Conv2d(2, 2, 3),
            {"input_size": (4, 4), "output_size": (3, 3)},
            "output_size",
        ),
        (
            nn.ConvTranspose2d(2, 2, 3, 2),
            {"input_size": (4, 4), "output_size": (11, 9)},
            "output_size",
        ),
        (
            nn.ConvTranspose2d(2, 2, 3, 2),
            {"input_size": (4, 4), "output_size": (9, 8)},
            "output_size",
        ),
        (
            nn.ConvTranspose2d(2, 2, 3, 2),
            {"input_size": (4, 4), "output_size": (9,)},
            "output_size",
        ),
    ],
)
def test_from_module_refuses_sizes(
    module: Any, sizes: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ValueError) as caught:
        Conv.from_module(module, **sizes)
    assert_in_form(caught.value, "Conv.from_module", argument)


def test_initialised_lazy_module_is_read() -> None:
    module = nn.LazyConv2d(2, 3)
    module(torch.ones(1, 5, 4, 4))
    assert Conv.from_module(module, (4, 4)) == Conv.make(5, 2, 3, (4, 4))


def test_output_size_that_a_plain_convolution_has_is_accepted() -> None:
    module = nn.Conv2d(2, 2, 3)
    assert Conv.from_module(module, (4, 4), (2, 2)) == Conv.from_module(module, (4, 4))
