"""Rotated gradients and their squares, against Jacobians of torch's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.reference.jacobian import rotated_gradients
from tests.strategies import examples, module_input, modules, noise_tensor
from tn_extensions import Conv, functional, memory_budget

Case = tuple[Any, tuple[int, ...]]


def made(
    case: Case, batch_size: int, bias: bool, lost: int = 0
) -> tuple[Any, tuple[Tensor, ...], Conv]:
    """Make a module, its tensors, with bases that lack some columns, and a Conv."""
    module, sizes = case
    conv = Conv.from_module(module, sizes)
    x = module_input(module, sizes, batch_size)
    g = noise_tensor((batch_size, conv.out_channels, *conv.output_size))
    columns, rows = x.shape[1] // conv.groups, conv.out_channels // conv.groups
    for size in conv.kernel_size:
        columns *= size
    columns += bias
    QA = noise_tensor((conv.groups, columns, max(columns - lost, 1)))
    QB = noise_tensor((conv.groups, rows, max(rows - lost, 1)))
    return module, (x, g, QA, QB), conv


@examples(60)
@given(modules(), st.sampled_from([1, 3]), st.booleans(), st.integers(0, 2))
def test_values(case: Case, batch_size: int, bias: bool, lost: int) -> None:
    module, tensors, conv = made(case, batch_size, bias, lost)
    expected = rotated_gradients(module, *tensors, bias)
    found = functional.rotated_grad(*tensors, conv, bias=bias)
    assert found.is_contiguous()
    assert_close(found, expected)
    moments = functional.kfac_moments(*tensors, conv, bias=bias)
    assert moments.is_contiguous()
    assert_close(moments, expected.square().sum(0))


@examples(20)
@given(modules(max_dims=2), st.booleans())
def test_little_memory(case: Case, bias: bool) -> None:
    """Samples are taken one by one then."""
    module, tensors, conv = made(case, 5, bias)
    expected = rotated_gradients(module, *tensors, bias).square().sum(0)
    with memory_budget(100):
        assert_close(functional.kfac_moments(*tensors, conv, bias=bias), expected)


@examples(20)
@given(modules(max_dims=2), st.booleans())
def test_out_is_added_to_in_place(case: Case, bias: bool) -> None:
    module, tensors, conv = made(case, 2, bias)
    expected = rotated_gradients(module, *tensors, bias)
    out = noise_tensor(expected.shape)
    before = out.clone()
    assert functional.rotated_grad(*tensors, conv, bias=bias, out=out) is out
    assert_close(out, before + expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(bias: bool, size: int, dtype: torch.dtype) -> None:
    """Bases may be of half precision, too, or of float32, as factors are."""
    module = torch.nn.Conv2d(2, 4, 3, groups=2)
    _, tensors, conv = made((module, (size, size)), 2, bias)
    x, g, QA, QB = (t.to(dtype) for t in tensors)
    exact = [t.float() for t in (x, g, QA, QB)]
    expected = functional.kfac_moments(*exact, conv, bias=bias)
    for bases in ((QA, QB), (QA.float(), QB.float())):
        found = functional.kfac_moments(x, g, *bases, conv, bias=bias)
        assert found.dtype == torch.float32
        assert_close(found, expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [3, 5])
def test_empty_batches(bias: bool, size: int) -> None:
    _, tensors, conv = made((torch.nn.Conv1d(2, 3, 3).double(), (size,)), 0, bias)
    found = functional.kfac_moments(*tensors, conv, bias=bias)
    assert torch.equal(found, torch.zeros(1, 3, 6 + bias, dtype=torch.float64))
    assert functional.rotated_grad(*tensors, conv, bias=bias).shape == (
        0,
        1,
        3,
        7 - (not bias),
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [3, 5])
def test_detached(bias: bool, size: int) -> None:
    _, tensors, conv = made((torch.nn.Conv1d(2, 3, 3).double(), (size,)), 2, bias)
    before = [tensor.clone() for tensor in tensors]
    expected = functional.kfac_moments(*tensors, conv, bias=bias)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    found = functional.kfac_moments(*leaves, conv, bias=bias)
    assert not found.requires_grad
    assert_close(found, expected)
    for leaf, own in zip(leaves, before, strict=True):
        assert torch.equal(leaf, own)


X, G = torch.ones(2, 4, 5), torch.ones(2, 6, 3)
QA, QB = torch.ones(2, 6, 6), torch.ones(2, 3, 2)


@pytest.mark.parametrize("name", ["kfac_moments", "rotated_grad"])
@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"x": X[0]}, ValueError, "x.dim()"),
        ({"g": G[:1]}, ValueError, "g.shape"),
        ({"g": torch.ones(1, *G.shape)}, ValueError, "g.shape"),
        ({"g": G.double()}, ValueError, "g.dtype"),
        ({"QA": QA[:1]}, ValueError, "QA.shape"),
        ({"QA": QA[0]}, ValueError, "QA.shape"),
        ({"QA": QA, "bias": True}, ValueError, "QA.shape"),
        ({"QB": QB[:, :2]}, ValueError, "QB.shape"),
        ({"QB": QB.double()}, ValueError, "QB.dtype"),
        ({"QB": None}, TypeError, "QB"),
        ({"conv": None}, TypeError, "conv"),
    ],
    ids=str,
)
def test_bad_input(
    name: str, change: dict[str, Any], error: type[Exception], argument: str
) -> None:
    conv = Conv.make(4, 6, 3, 5, groups=2)
    arguments = {"x": X, "g": G, "QA": QA, "QB": QB, "conv": conv} | change
    with pytest.raises(error) as caught:
        getattr(functional, name)(**arguments)
    assert_in_form(caught.value, name, argument)


def test_bad_target() -> None:
    conv = Conv.make(4, 6, 3, 5, groups=2)
    with pytest.raises(ValueError) as caught:
        functional.rotated_grad(X, G, QA, QB, conv, out=torch.ones(2, 2, 2, 5))
    assert_in_form(caught.value, "rotated_grad", "out.shape")
