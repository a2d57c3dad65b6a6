"""The cost of a network, the function that computes it, and its value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.diagram.networks import DEFINED, conv
from tests.messages import assert_in_form
from tn_extensions import Conv, TensorNetwork, functional, quantities

CONV = Conv.make(4, 6, 3, (7, 7), padding=1, groups=2)


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("transposed", [False, True])
def test_names_quantity_and_function(name: str, transposed: bool) -> None:
    explained = DEFINED[name](conv(1, transposed=transposed)).explain()
    assert explained.quantity == name
    assert explained.function is getattr(functional, name, None)


def test_other_networks_have_no_function() -> None:
    half = quantities.unfold_input(CONV, 2)
    other = half.times_copy({"n", "g", "ci", "k1", "k2"}, [("g",), ("ci", "k1")])
    assert other.explain().quantity is None
    assert other.explain().function is None


def test_explains_plan_and_rejected_ways() -> None:
    network = quantities.kfac_expand(CONV, 8)
    explained = network.explain()
    x = torch.rand(8, 4, 7, 7)
    assert explained.plan is functional.plan("kfac_expand", x, CONV)
    assert explained.primitive == explained.plan.candidate.name
    assert explained.cost.flops > 0
    assert explained.cost.bytes > 0
    assert explained.cost.peak > 0
    names = [name for name, _ in explained.rejected]
    assert "einsum" in names
    seconds = [cost.seconds for _, cost in explained.rejected]
    assert all(second > 0 for second in seconds)
    text = str(explained)
    assert "functional.kfac_expand" in text
    for name in [explained.primitive, *names]:
        assert name in text


def test_other_sizes_and_types() -> None:
    network = quantities.kfac_expand(CONV, 8)
    more = network.explain(n=64)
    assert more.network == quantities.kfac_expand(CONV, 64)
    assert more.cost.flops > network.explain().cost.flops
    assert network.explain(torch.float64).plan.target.itemsize == 8
    with pytest.raises(ValueError) as caught:
        network.explain(batch=3)
    assert_in_form(caught.value, "TensorNetwork.resize", "sizes")


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"dtype": "cuda"}, TypeError, "dtype"),
        ({"dtype": "float32"}, TypeError, "dtype"),
        ({"dtype": torch.device("cpu")}, TypeError, "dtype"),
        ({"dtype": torch.int64}, TypeError, "dtype"),
        ({"dtype": torch.complex64}, TypeError, "dtype"),
        ({"dtype": 32}, TypeError, "dtype"),
        ({"device": "gpu"}, ValueError, "device"),
        ({"device": torch.float32}, ValueError, "device"),
    ],
)
def test_wrong_types_and_devices(
    arguments: dict[str, Any], error: type[Exception], argument: str
) -> None:
    network = quantities.kfac_expand(CONV, 8)
    with pytest.raises(error) as caught:
        network.explain(**arguments)
    assert_in_form(caught.value, "TensorNetwork.explain", argument)


def test_devices_of_any_kind() -> None:
    network = quantities.kfac_expand(CONV, 8)
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        assert (
            network.explain(device=device).plan is network.explain(device="cuda").plan
        )
    with pytest.raises(TypeError) as caught:
        network.explain(n=2.0)  # type: ignore[arg-type]
    assert "size of index 'n'" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_evaluates(dtype: torch.dtype) -> None:
    x, weight = torch.rand(2, 4, 7, 7).to(dtype), torch.rand(6, 2, 3, 3).to(dtype)
    result = quantities.conv(CONV, 2).evaluate(x=x, weight=weight)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), None, 1, 1, 1, 2)
    assert torch.allclose(result.double(), exact, rtol=1e-5)


def test_scalar_result() -> None:
    x = torch.rand(2, 4, 7, 7, dtype=torch.float64)
    half = quantities.unfold_input(CONV, 2)
    norm = half.times_copy(half.output_indices, [])
    assert norm.shape == ()
    expected = torch.nn.functional.unfold(x, 3, padding=1).square().sum()
    assert torch.allclose(norm.evaluate(x=x), expected)


def test_differentiates() -> None:
    x = torch.rand(2, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, 2, 3, 3, dtype=torch.float64)
    quantities.conv(CONV, 2).evaluate(x=x, weight=weight).sum().backward()
    ones = torch.ones(2, 6, 7, 7, dtype=torch.float64)
    assert torch.allclose(x.grad, functional.input_vjp(weight, ones, CONV))


def test_wrong_tensors_are_refused() -> None:
    network = quantities.conv(CONV, 2)
    x, weight = torch.rand(2, 4, 7, 7), torch.rand(6, 2, 3, 3)
    for error, tensors, argument in (
        (TypeError, {"x": x}, "operands"),
        (TypeError, {"x": x, "weight": weight, "g": x}, "operands"),
        (ValueError, {"x": x[:1], "weight": weight}, "x.shape"),
        (ValueError, {"x": x, "weight": weight.double()}, "weight.dtype"),
        (TypeError, {"x": x, "weight": weight.long()}, "weight"),
    ):
        with pytest.raises(error) as caught:
            network.evaluate(**tensors)
        assert_in_form(caught.value, "TensorNetwork.evaluate", argument)
    with pytest.raises(ValueError) as caught:
        TensorNetwork((), (), {}).evaluate()
    assert_in_form(caught.value, "TensorNetwork.evaluate", "network")
