"""Layers: exact but for the weight's gradient, which is what was drawn says it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.dropout.cases import Spy, defined_weight_gradient, gradients
from tests.messages import assert_in_form
from tests.strategies import (
    examples,
    module_input,
    modules,
    noise_tensor,
    with_stale_attributes,
)
from tn_extensions.dropout import (
    TensorDropoutConv1d,
    TensorDropoutConv2d,
    TensorDropoutConv3d,
    TensorDropoutLinear,
    convert,
)
from tn_extensions.sampling import SAMPLERS, Sampler

SHARES = st.sampled_from([0.3, 0.6, 0.9])


def same(first: list[Tensor], second: list[Tensor], skip: int = -1) -> bool:
    return all(
        number == skip or torch.allclose(a, b, rtol=1e-10, atol=1e-10)
        for number, (a, b) in enumerate(zip(first, second, strict=True))
    )


@given(modules(transposed=False), st.sampled_from([1, 3]), st.data())
@examples(150)
def test_convolutions_equal_their_definition(
    case: tuple[Any, tuple[int, ...]], batch: int, data: st.DataObject
) -> None:
    module, sizes = case
    x = module_input(module, sizes, batch)
    if data.draw(st.booleans()) and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    names = ["n", "g", "ci"]
    names += [f"{kind}{j + 1}" for kind in "io" for j in range(len(sizes))]
    keep = data.draw(st.dictionaries(st.sampled_from(names), SHARES, min_size=1))
    sampler = data.draw(st.sampled_from(SAMPLERS))
    exact = gradients(module, x)
    converted = type(module).__name__
    kind = {
        "Conv1d": TensorDropoutConv1d,
        "Conv2d": TensorDropoutConv2d,
        "Conv3d": TensorDropoutConv3d,
    }[converted]
    estimating = copy.deepcopy(module)
    estimating.__class__ = kind
    vars(estimating).update(keep=keep, sampler=sampler, generator=None)
    with Spy() as spy:
        found = gradients(estimating, x)
    assert torch.equal(found[0], exact[0])
    assert same(found, exact, skip=2)
    (sampled,) = spy.sampled
    assert set(sampled.draws) == set(keep)
    expected = defined_weight_gradient(module, x, sampled)
    assert torch.allclose(found[2], expected, rtol=1e-9, atol=1e-9)


@given(
    st.integers(0, 2),
    st.dictionaries(st.sampled_from(["n", "ci", "i1"]), SHARES),
    st.sampled_from(SAMPLERS),
)
@examples(60)
def test_linear_equals_its_definition(
    positions: int, keep: dict[str, float], sampler: Sampler
) -> None:
    module = nn.Linear(5, 3).double()
    x = noise_tensor((4, *range(2, 2 + positions), 5))
    exact = gradients(module, x)
    layer = TensorDropoutLinear(5, 3, keep=keep, sampler=sampler).double()
    layer.load_state_dict(module.state_dict())
    with Spy() as spy:
        found = gradients(layer, x)
    assert torch.equal(found[0], exact[0]) and same(found, exact, skip=2)
    if not keep:
        assert spy.sampled == [] and same(found, exact)
        return
    (sampled,) = spy.sampled
    assert set(sampled.draws) == set(keep) - (set() if positions else {"i1"})
    expected = defined_weight_gradient(module, x, sampled)
    assert torch.allclose(found[2], expected, rtol=1e-9, atol=1e-9)


def conv(keep: dict[str, float], **options: Any) -> TensorDropoutConv2d:
    torch.manual_seed(1)
    options = {"padding": 1, **options}
    return TensorDropoutConv2d(4, 6, 3, keep=keep, **options)


def test_exact_without_training() -> None:
    x = noise_tensor((4, 4, 6, 6))
    layer = conv({"n": 0.5, "i1": 0.5}).double()
    plain = nn.Conv2d(4, 6, 3, padding=1).double()
    plain.load_state_dict(layer.state_dict())
    expected = gradients(plain, x)
    assert all(map(torch.equal, gradients(layer.eval(), x), expected))
    layer.train().keep = {"n": 1.0, "i1": 1}
    assert all(map(torch.equal, gradients(layer, x), expected))
    layer.keep = {"n": 0.5}
    with Spy() as spy, torch.no_grad():
        assert torch.equal(layer(x), plain(x))
    layer.weight.requires_grad_(False)
    layer(x)
    assert spy.sampled == []


def test_reproducible() -> None:
    x = noise_tensor((8, 4, 6, 6))
    layer = conv({"n": 0.5}, generator=torch.Generator()).double()
    runs = []
    for seed in (3, 3, 4):
        assert layer.generator is not None
        layer.generator.manual_seed(seed)
        runs.append(gradients(layer, x)[2])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    layer.generator = None
    torch.manual_seed(5)
    first = gradients(layer, x)[2]
    torch.manual_seed(5)
    assert torch.equal(first, gradients(layer, x)[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    x = noise_tensor((4, 4, 6, 6), torch.float32)
    layer = conv({"n": 0.5, "i1": 0.5, "ci": 0.5})
    plain = nn.Conv2d(4, 6, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", dtype):
        expected = gradients(plain, x)
        with Spy() as spy:
            found = gradients(layer, x)
    assert torch.equal(found[0], expected[0]) and found[0].dtype == dtype
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    for number in (1, 3):
        assert torch.allclose(found[number], expected[number], rtol=3e-2, atol=3e-2)
    double = defined_weight_gradient(plain.double(), x.double(), spy.sampled[0])
    assert torch.allclose(found[2].double(), double, rtol=5e-2, atol=0.1)


def test_half() -> None:
    layer = conv({"n": 0.5, "i1": 0.5}).bfloat16()
    x = noise_tensor((4, 4, 6, 6), torch.bfloat16)
    with Spy() as spy:
        found = gradients(layer, x)
    assert {each.dtype for each in found} == {torch.bfloat16}
    plain = nn.Conv2d(4, 6, 3, padding=1).double()
    expected = defined_weight_gradient(plain, x.double(), spy.sampled[0])
    assert torch.allclose(found[2].double(), expected, rtol=5e-2, atol=0.1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_again(reentrant: bool) -> None:
    x = noise_tensor((4, 4, 6, 6))
    layer = conv({"n": 0.5, "i1": 0.5}).double()
    model = nn.Sequential(layer, nn.Tanh())
    torch.manual_seed(7)
    expected = gradients(model, x)
    torch.manual_seed(7)
    source = x.clone().requires_grad_()
    with Spy() as spy:
        output = checkpoint(model, source, use_reentrant=reentrant)
        cotangent = torch.randn(
            output.shape,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        output.backward(cotangent)
    assert len(spy.sampled) == (1 if reentrant else 2)
    assert source.grad is not None
    assert torch.equal(source.grad, expected[1])
    assert torch.allclose(layer.weight.grad, expected[2])  # type: ignore[arg-type]


def test_checkpointing_with_a_generator_uses_the_second_draw_whole() -> None:
    """Its state is not restored: what is recomputed has positions of its own."""
    x = noise_tensor((4, 4, 6, 6)).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    layer = conv({"n": 0.5}, sampler="fixed", generator=generator).double()
    with Spy() as spy:
        output = checkpoint(layer, x, use_reentrant=False)
        g = torch.randn(
            output.shape,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        output.backward(g)
    first, second = (each.draws["n"].indices for each in spy.sampled)
    assert not torch.equal(first, second)
    plain = nn.Conv2d(4, 6, 3, padding=1).double()
    expected = defined_weight_gradient(plain, x.detach(), spy.sampled[1])
    assert torch.allclose(layer.weight.grad, expected)  # type: ignore[arg-type]


def test_compiled_model_breaks_at_the_layer() -> None:
    layer = conv({"n": 0.5}).double()
    model = nn.Sequential(nn.Tanh(), layer, nn.Tanh())
    x = noise_tensor((4, 4, 6, 6))
    torch.manual_seed(3)
    expected = gradients(model, x)
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(3)
    found = gradients(compiled, x)
    assert same(found, expected)


def test_copies_and_representation() -> None:
    layer = conv({"n": 0.5}, sampler="fixed")
    twin = copy.deepcopy(layer)
    assert twin.keep == layer.keep and twin.keep is not layer.keep
    assert "keep={'n': 0.5}, sampler='fixed'" in repr(layer)
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"keep": 0.5}, TypeError, "keep"),
        ({"keep": {"co": 0.5}}, ValueError, "keep"),
        ({"keep": {"i3": 0.5}}, ValueError, "keep"),
        ({"keep": {1: 0.5}}, ValueError, "keep"),
        ({"keep": {"n": 0}}, ValueError, "keep['n']"),
        ({"keep": {"n": "1"}}, TypeError, "keep['n']"),
        ({"sampler": None}, ValueError, "sampler"),
        ({"generator": 0}, TypeError, "generator"),
    ],
)
def test_bad_input(
    arguments: dict[str, Any], error: type[Exception], argument: str
) -> None:
    with pytest.raises(error) as caught:
        TensorDropoutConv2d(2, 2, 3, **{"keep": {"n": 0.5}, **arguments})
    assert_in_form(caught.value, "TensorDropoutConv2d", argument)


def test_converted_layers_are_these() -> None:
    model = convert(nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(2, 2)), {"n": 0.5})
    kinds = [type(layer) for layer in model]
    assert kinds == [TensorDropoutConv1d, TensorDropoutLinear]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (TensorDropoutConv1d(6, 4, 3, keep={"n": 0.5, "ci": 0.5}), (4, 6, 5)),
        (TensorDropoutLinear(5, 3, keep={"n": 0.5, "ci": 0.5}), (4, 5)),
    ],
)
def test_kernels_that_were_exchanged(layer: Any, shape: tuple[int, ...]) -> None:
    x, found = noise_tensor(shape), []
    for module in (layer.double(), with_stale_attributes(layer)):
        torch.manual_seed(1)
        found.append(gradients(module, x))
    assert same(*found)


def test_complex_layers_are_refused() -> None:
    layer = TensorDropoutLinear(2, 2, keep={"n": 0.5}, dtype=torch.complex64)
    with pytest.raises(TypeError) as caught:
        layer(torch.ones(3, 2, dtype=torch.complex64))
    assert_in_form(caught.value, "TensorDropoutLinear", "weight.dtype")
