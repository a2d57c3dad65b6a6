"""Draws: unbiased, of the right size, reproducible; bad input is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.messages import assert_in_form
from tests.sampling.estimates import factors
from tests.strategies import examples
from tn_extensions.sampling import SAMPLERS, Sampler, draw
from tn_extensions.sampling.samplers import proportional

NUM_DRAWS = 10_000


def sampled_factors(sampler: Sampler, keep: float, norms: Tensor) -> Tensor:
    size = len(norms)
    draws = [draw(size, keep, sampler, norms=norms) for _ in range(NUM_DRAWS)]
    return torch.stack([factors(each, size) for each in draws])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_factors_have_expectation_one(sampler: Sampler, keep: float) -> None:
    norms = torch.tensor([0.1, 1.0, 2.0, 0.5, 30.0, 1.0, 1.0])
    z = sampled_factors(sampler, keep, norms)
    error = z.std(0) / NUM_DRAWS**0.5
    assert bool(((z.mean(0) - 1).abs() <= 4 * error + 1e-12).all())
    assert bool((error > 0).any())


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_variances_are_those_of_the_formulas(keep: float) -> None:
    norms = torch.linspace(1, 3, 10, dtype=torch.float64)
    p = proportional(norms, keep)
    count = max(1, round(keep * 10))
    for sampler, expected in (
        ("bernoulli", torch.full((10,), 1 / keep - 1).double()),
        ("norm", 1 / p - 1),
        ("fixed", torch.full((10,), 10 / count - 1).double()),
    ):
        squares = (sampled_factors(sampler, keep, norms) - 1).square()  # type: ignore[arg-type]
        error = squares.std(0) / NUM_DRAWS**0.5
        assert bool(((squares.mean(0) - expected).abs() <= 4 * error + 1e-12).all())


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=12), st.floats(0.01, 1))
@examples(200)
def test_proportional_probabilities(values: list[float], keep: float) -> None:
    norms = torch.tensor(values, dtype=torch.float64)
    p = proportional(norms, keep)
    assert bool(((p >= 0) & (p <= 1)).all())
    nonzero = int((norms / norms.max() > 0).sum())
    if not norms.any():
        assert bool((p == keep).all())
        return
    assert bool((p[norms == 0] == 0).all())
    expected = min(keep * len(norms), nonzero)
    assert float(p.sum()) == pytest.approx(expected, rel=1e-9)
    free = (p < 1) & (norms > 1e-270 * norms.max())  # others have few digits
    ratio = p[free] / norms[free]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-9)
    if free.any() and (p == 1).any():  # capped ones would exceed one
        assert bool((ratio[0] * norms[p == 1] >= 1 - 1e-9).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_norms_that_tell_nothing_lead_to_equal_probabilities(bad: float) -> None:
    norms = torch.tensor([1.0, bad, 0.0])
    assert proportional(norms, 0.3).tolist() == [0.3] * 3
    assert proportional(torch.zeros(2), 0.3).tolist() == [0.3] * 2
    assert proportional(torch.zeros(0), 0.3).tolist() == []


def test_fixed_size() -> None:
    for size, keep, count in ((8, 0.5, 4), (7, 0.01, 1), (5, 1.0, 5), (1, 0.4, 1)):
        kept = draw(size, keep, "fixed")
        assert len(kept) == len(set(kept.indices.tolist())) == count
        assert kept.indices.tolist() == sorted(kept.indices.tolist())
        assert kept.scale == size / count
    assert len(draw(0, 0.5, "fixed")) == len(draw(0, 0.5)) == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generators_reproduce(sampler: Sampler) -> None:
    norms = torch.rand(50)
    first, again = (
        draw(50, 0.5, sampler, torch.Generator().manual_seed(3), norms)
        for _ in range(2)
    )
    assert torch.equal(first.indices, again.indices)
    torch.manual_seed(4)
    default = draw(50, 0.5, sampler, None, norms)
    torch.manual_seed(4)
    assert torch.equal(default.indices, draw(50, 0.5, sampler, None, norms).indices)
    assert not torch.equal(default.indices, first.indices)


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"keep": 0.0}, ValueError, "keep"),
        ({"keep": -0.5}, ValueError, "keep"),
        ({"keep": 1.5}, ValueError, "keep"),
        ({"keep": float("nan")}, ValueError, "keep"),
        ({"keep": "half"}, TypeError, "keep"),
        ({"keep": True}, TypeError, "keep"),
        ({"sampler": "gauss"}, ValueError, "sampler"),
        ({"generator": 3}, TypeError, "generator"),
        ({"sampler": "norm"}, ValueError, "norms"),
        ({"sampler": "norm", "norms": torch.rand(3)}, ValueError, "norms"),
    ],
)
def test_bad_input(
    arguments: dict[str, Any], error: type[Exception], argument: str
) -> None:
    with pytest.raises(error) as caught:
        draw(**{"size": 4, "keep": 0.5, **arguments})
    assert_in_form(caught.value, "draw", argument)
