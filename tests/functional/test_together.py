"""Several quantities at once, against each function on its own gradients."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.functional.test_gradients import VECTORS, Case, made
from tests.messages import assert_in_form
from tests.strategies import examples, modules, noise_tensor
from tn_extensions import Conv, functional, memory_budget

OF_KERNEL = (
    "per_sample_grad",
    "per_sample_grad_norm",
    "ggn_diagonal",
    ("ggn_diagonal", {"per_sample": True}),
    "ggn_gram",
)
OTHERS = (
    "bias_per_sample_grad",
    "bias_per_sample_grad_norm",
    "bias_ggn_diagonal",
    ("bias_ggn_diagonal", {"per_sample": True}),
    "bias_ggn_gram",
    ("kfac_expand", {"bias": True, "scale": 2.0}),
    "kfac_reduce",
    "gradient_factor_expand",
    "gradient_factor_reduce",
)
CONV = Conv.make(4, 6, 3, (7, 8), padding=1, groups=2)


def operands(conv: Conv, batch_size: int = 3) -> dict[str, Tensor]:
    g = noise_tensor((batch_size, conv.out_channels, *conv.output_size))
    S = noise_tensor((VECTORS, *g.shape))
    return {
        "x": noise_tensor((batch_size, conv.in_channels, *conv.input_size)),
        "g": g,
        "S": S,
    }


@examples(40)
@given(modules(), st.sampled_from([1, 3]), st.sampled_from([2**28, 1000]))
def test_quantities_of_a_kernel(case: Case, batch_size: int, budget: int) -> None:
    """Of several vectors, by automatic differentiation."""
    x, S, gradients, conv = made(case, batch_size)
    rows = gradients.flatten(0, 1).flatten(1)
    squares = gradients.square()
    with memory_budget(budget):
        found = functional.together(*OF_KERNEL, x=x, g=S, conv=conv)
    expected = [
        gradients,
        squares.flatten(2).sum(2),
        squares.sum((0, 1)),
        squares.sum(0),
        rows @ rows.T,
    ]
    assert_close(found, expected)


@examples(40)
@given(modules(), st.sampled_from([1, 3]), st.booleans())
def test_gradients_without_an_axis(
    case: Case, batch_size: int, with_gradients: bool
) -> None:
    """They take the place of a square root."""
    x, S, gradients, conv = made(case, batch_size)
    gradients = gradients[0]
    asked = [*OF_KERNEL, "weight_vjp"][0 if with_gradients else 1 :]
    found = functional.together(*asked, x=x, g=S[0], conv=conv)
    rows, squares = gradients.flatten(1), gradients.square()
    expected = [
        gradients,
        squares.flatten(1).sum(1),
        squares.sum(0),
        squares,
        rows @ rows.T,
        gradients.sum(0),
    ]
    assert_close(found, expected[0 if with_gradients else 1 :])


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("batch_size", [0, 3])
def test_each_function(mode: Any, batch_size: int) -> None:
    conv = Conv.make(4, 6, 3, (7, 8), padding=1, groups=2, padding_mode=mode)
    given = operands(conv, batch_size)
    asked = [*OF_KERNEL, "weight_vjp", "bias_vjp", *OTHERS]
    found = functional.together(*asked, **given, conv=conv)
    for one, result in zip(asked, found, strict=True):
        name, options = one if isinstance(one, tuple) else (one, {})
        function = getattr(functional, name)
        own = {*inspect.signature(function).parameters}
        arguments = {key: given[key] for key in own & {*given}}
        assert_close(result, function(**arguments, conv=conv, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision(dtype: torch.dtype) -> None:
    given = {key: t.to(dtype) for key, t in operands(CONV).items()}
    wide = {key: t.double() for key, t in given.items()}
    asked = [*OF_KERNEL, *OTHERS]
    found = functional.together(*asked, **given, conv=CONV)
    expected = functional.together(*asked, **wide, conv=CONV)
    assert {result.dtype for result in found} == {torch.float32}
    assert_close([result.double() for result in found], expected, rtol=1e-3, atol=1e-3)


def test_memory_of_their_own() -> None:
    """Also of what is asked for twice, and of sums over a single sample."""
    given = operands(CONV, 1)
    asked = ["per_sample_grad", "weight_vjp", "per_sample_grad", "bias_vjp"]
    asked += ["bias_per_sample_grad"]
    found = functional.together(*asked, x=given["x"], g=given["g"], conv=CONV)
    before = [one.clone() for one in found]
    for number, one in enumerate(found):
        one.zero_()
        assert_close(found[number + 1 :], before[number + 1 :])
    assert given["g"].abs().sum() > 0


def test_layouts_and_gradients() -> None:
    given = operands(CONV)
    x = given["x"].contiguous(memory_format=torch.channels_last).requires_grad_()
    g = given["g"].transpose(2, 3).contiguous().transpose(2, 3)
    found = functional.together(*OF_KERNEL, x=x, g=g, conv=CONV)
    plain = functional.together(*OF_KERNEL, x=given["x"], g=given["g"], conv=CONV)
    assert_close(found, plain)
    assert all(one.is_contiguous() and not one.requires_grad for one in found)


def test_what_is_not_needed_does_not_matter() -> None:
    given = operands(CONV)
    (found,) = functional.together(
        "bias_vjp", x=torch.ones(1), g=given["g"], S=torch.ones(1), conv=CONV
    )
    assert_close(found, given["g"].sum((0, 2, 3)))


def test_nothing() -> None:
    assert functional.together(conv=CONV) == []


def test_plan() -> None:
    conv = Conv.make(32, 32, 3, (28, 28), padding=1)
    given = operands(conv)
    asked = ("per_sample_grad", "per_sample_grad_norm", "ggn_diagonal")
    found = functional.plan_together(*asked, x=given["x"], g=given["g"], conv=conv)
    assert found.sharing is not None
    assert found.sharing.title == "per_sample_grad, at once"
    assert "per_sample_grad_norm" in str(found)


@pytest.mark.parametrize(
    ("asked", "change", "argument", "kind"),
    [
        (["conv"], {}, "quantities", ValueError),
        ([1], {}, "quantities", TypeError),
        ([("ggn_gram", "x")], {}, "quantities", TypeError),
        ([("ggn_gram", {"bias": True})], {}, "bias", TypeError),
        ([("kfac_reduce", {"out": 1})], {}, "out", TypeError),
        (["kfac_reduce"], {"x": None}, "x", TypeError),
        (["per_sample_grad"], {"g": None}, "g", TypeError),
        (["ggn_gram"], {"g": None, "S": None}, "g", TypeError),
        (["ggn_gram"], {"S": torch.ones(3, 6, 7, 8)}, "S.shape", ValueError),
        (["weight_vjp"], {"g": torch.ones(2, 3, 6, 7, 8)}, "g.shape", ValueError),
        (["per_sample_grad"], {"g": torch.ones(3, 6, 7, 8)}, "g.dtype", ValueError),
        (["per_sample_grad"], {"x": torch.ones(3, 5, 7, 8)}, "x.shape[1]", ValueError),
        (["bias_vjp"], {"conv": 1}, "conv", TypeError),
    ],
)
def test_refused(
    asked: list[Any], change: dict[str, Any], argument: str, kind: type[Exception]
) -> None:
    arguments = {**operands(CONV), "conv": CONV, **change}
    with pytest.raises(kind) as caught:
        functional.together(*asked, **arguments)
    assert_in_form(caught.value, "together", argument)


def test_factors_have_plans_of_their_own() -> None:
    with pytest.raises(ValueError) as caught:
        functional.plan_together("kfac_expand", **operands(CONV), conv=CONV)
    assert_in_form(caught.value, "plan_together", "quantities")
