"""Estimates equal their definition, on all convolutions; they are unbiased."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.messages import assert_in_form
from tests.sampling.estimates import (
    estimate,
    estimates,
    narrowed_or_whole,
    operands,
)
from tests.strategies import examples
from tn_extensions import Conv, quantities
from tn_extensions.network import Selection
from tn_extensions.sampling import SAMPLERS, Draw, Sampled, Sampler, draw, sample
from tn_extensions.sampling.narrowed import narrow, samplable
from tn_extensions.sampling.norms import slice_norms


@given(estimates(), st.booleans())
@examples(250)
def test_equals_definition(
    case: tuple[Sampled, dict[str, Tensor]], narrowed: bool
) -> None:
    sampled, tensors = case
    expected = estimate(sampled.original, sampled.draws, tensors)
    given_tensors, names = narrowed_or_whole(sampled, tensors, narrowed)
    before = {name: tensor.clone() for name, tensor in given_tensors.items()}
    result = sampled.run(given_tensors, names)
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[name], given_tensors[name]) for name in before)


CONV = Conv.make(4, 6, (3, 2), (7, 6), stride=(1, 2), padding=1, groups=2)
NETWORK = quantities.weight_vjp(CONV, 3)
INDICES = ("n", "g", "ci", "i1", "i2", "o1", "o2")


def test_which_indices_can_be_sampled() -> None:
    assert set(samplable(NETWORK)) == set(INDICES)
    transposed = Conv.make(4, 6, 3, 5, groups=2, transposed=True)
    vjp = quantities.weight_vjp(transposed, 3)
    assert set(samplable(vjp)) == {"n", "g", "ci", "i1", "o1"}
    assert set(samplable(quantities.kfac_expand(CONV, 3))) == {"n", "g"}
    assert set(samplable(quantities.ggn_gram(CONV, 3, 2))) == {"g", "ci", "co"}
    assert "k1" in samplable(quantities.conv(CONV, 3))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("index", INDICES)
def test_unbiased(index: str, sampler: Sampler) -> None:
    tensors = operands(NETWORK)
    exact = estimate(NETWORK, {}, tensors)
    count, total, squares = 10_000, torch.zeros_like(exact), torch.zeros_like(exact)
    # few distinct draws of one index: each is evaluated once
    seen: dict[tuple[int, ...], Tensor] = {}
    norms = slice_norms(NETWORK, index, tensors)
    for _ in range(count):
        kept = draw(NETWORK.sizes[index], 0.6, sampler, norms=norms)
        key = tuple(kept.indices.tolist())
        if key not in seen:
            seen[key] = Sampled(NETWORK, {index: kept}).run(tensors)
        total += seen[key]
        squares += seen[key].square()
    mean = total / count
    variance = squares / count - mean.square()
    error = (variance.clamp(min=0) / count).sqrt()
    assert bool(((mean - exact).abs() <= 4 * error + 1e-9).all())
    assert float(error.max()) > 0
    if sampler == "bernoulli":
        expected = (1 / 0.6 - 1) * slices(index, tensors).square().sum(0)
        assert torch.allclose(variance, expected, rtol=0.1, atol=0.02 * exact.var())


def slices(index: str, tensors: dict[str, Tensor]) -> Tensor:
    """Return what each slice adds to the network, ``[size, *shape]``."""
    size = NETWORK.sizes[index]
    alone = [Draw(torch.tensor([value])) for value in range(size)]
    return torch.stack([estimate(NETWORK, {index: each}, tensors) for each in alone])


def test_several_axes_unbiased_and_of_the_variance_of_the_formula() -> None:
    tensors = operands(NETWORK)
    exact = estimate(NETWORK, {}, tensors)
    keep = {"n": 0.5, "i1": 0.7}
    runs = [sample(NETWORK, keep).run(tensors) for _ in range(3_000)]
    stacked = torch.stack(runs)
    mean, variance = stacked.mean(0), stacked.var(0)
    error = (variance / len(runs)).sqrt()
    assert bool(((mean - exact).abs() <= 4 * error).all())
    n, i1 = 1 / 0.5 - 1, 1 / 0.7 - 1
    both = torch.stack(
        [
            estimate(
                NETWORK,
                {"n": Draw(torch.tensor([a])), "i1": Draw(torch.tensor([b]))},
                tensors,
            )
            for a in range(3)
            for b in range(7)
        ]
    )
    expected = (
        n * slices("n", tensors).square().sum(0)
        + i1 * slices("i1", tensors).square().sum(0)
        + n * i1 * both.square().sum(0)
    )
    spread = (stacked - mean).square().std(0) / len(runs) ** 0.5
    assert bool(((variance - expected).abs() <= 5 * spread).all())


def test_narrowed_operands_are_as_small_as_what_is_kept() -> None:
    keep = {"n": 0.7, "g": 0.5, "i1": 0.5, "i2": 0.5}
    sampled = sample(NETWORK, keep, sampler="fixed")
    x = sampled.narrow("x", operands(NETWORK)["x"])
    assert list(x.shape) == [2, 2, 4, 3]
    rows = sample(NETWORK, {"o1": 0.2}, sampler="fixed")  # one row meets three
    touched = rows.narrow("x", operands(NETWORK)["x"])
    assert touched.shape[2] in (2, 3)


def test_indices_of_patterns_keep_their_size() -> None:
    """Operands carry their sampled positions instead, which selections lead to."""
    narrowed = narrow(NETWORK, (("n", 2), ("ci", 1), ("i1", 3), ("o2", 2)))
    changed = {"n": 2, "ci": 1, "si1": 3, "so2": 2}
    assert narrowed.sizes == {**NETWORK.sizes, **changed}
    shapes = {operand.name: list(operand.shape) for operand in narrowed.operands}
    assert shapes == {"x": [2, 2, 3, 6], "g": [2, 6, 7, 2]}
    assert narrowed.patterns == NETWORK.patterns
    assert set(narrowed.selections) == {Selection("si1", "i1"), Selection("so2", "o2")}


def test_one_plan_serves_all_draws_of_so_many() -> None:
    keep = {"n": 0.5, "i1": 0.5}
    one, other = (sample(NETWORK, keep, sampler="fixed") for _ in range(2))
    assert one.network == other.network


def test_all_kept_is_the_network_itself() -> None:
    sampled = sample(NETWORK, dict.fromkeys(INDICES, 1.0))
    assert sampled.draws == {} and sampled.network == NETWORK and sampled.scale == 1
    tensors = operands(NETWORK)
    assert torch.allclose(sampled.run(tensors), estimate(NETWORK, {}, tensors))


def test_everything_dropped_is_zero() -> None:
    tensors = operands(NETWORK)
    nothing = Sampled(NETWORK, {"n": Draw(torch.tensor([], dtype=torch.int64), 2.0)})
    assert nothing.is_empty
    assert list(nothing.narrow("x", tensors["x"]).shape) == [0, 4, 7, 6]
    result = nothing.run(tensors)
    assert result.shape == NETWORK.shape and not result.any()
    assert result.dtype == torch.float64


def test_norms_of_zero_never_lead_to_nan() -> None:
    tensors = operands(NETWORK)
    tensors["x"].zero_()
    keep = dict.fromkeys(INDICES, 0.5)
    sampled = sample(NETWORK, keep, sampler="norm", tensors=tensors)
    assert not sampled.run(tensors).any()


def test_norms_of_operands_reduce_the_variance() -> None:
    """Two slices out of a hundred are a thousand times as large as the others."""
    network = quantities.weight_vjp(Conv.make(1, 1, 1, 4), 100)
    tensors = operands(network)
    tensors["x"][2:] *= 1e-3
    exact = estimate(network, {}, tensors)

    def error(sampler: Sampler, **known: Tensor) -> float:
        runs = [
            sample(network, {"n": 0.1}, sampler=sampler, tensors=known).run(tensors)
            for _ in range(100)
        ]
        return float((torch.stack(runs) - exact).square().mean().sqrt())

    assert error("norm", x=tensors["x"]) < 0.2 * error("bernoulli")
    assert error("norm", **tensors) < error("norm", x=tensors["x"])
    known = {"x": tensors["x"]}
    norm = sample(network, {"n": 0.1}, sampler="norm", tensors=known)
    assert {0, 1} <= {*norm.draws["n"].indices.tolist()}


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"network": 3}, TypeError, "network"),
        ({"keep": 0.5}, TypeError, "keep"),
        ({"keep": {"z": 0.5}}, ValueError, "keep"),
        ({"keep": {"co": 0.5}}, ValueError, "keep"),
        ({"keep": {"k1": 0.5}}, ValueError, "keep"),
        ({"keep": {"n": 0.0}}, ValueError, "keep['n']"),
        ({"keep": {"n": 1.1}}, ValueError, "keep['n']"),
        ({"keep": {"n": None}}, TypeError, "keep['n']"),
        ({"sampler": "gauss"}, ValueError, "sampler"),
        ({"sampler": "norm"}, ValueError, "tensors"),
        ({"generator": 1}, TypeError, "generator"),
        ({"tensors": {"y": torch.rand(3)}}, ValueError, "tensors"),
        ({"tensors": {"x": torch.rand(3)}}, ValueError, "tensors['x']"),
        (
            {"network": quantities.kfac_expand(CONV, 3), "keep": {"i1": 0.5}},
            ValueError,
            "keep",
        ),
    ],
)
def test_bad_input(
    arguments: dict[str, Any], error: type[Exception], argument: str
) -> None:
    arguments = {"network": NETWORK, "keep": {"n": 0.5}, **arguments}
    with pytest.raises(error) as caught:
        sample(arguments.pop("network"), arguments.pop("keep"), **arguments)
    assert_in_form(caught.value, "sample", argument)
