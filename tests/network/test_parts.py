"""Parts of networks, against the whole networks without rewriting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network.parts import stored, substitute

CONV = Conv.make(4, 6, 3, (5, 4), padding=1, groups=2)

Define = Callable[[Conv, int], TensorNetwork]

CASES: dict[str, tuple[Define, Define, int]] = {
    "sum": (quantities.weight_vjp, quantities.per_sample_grad, 1),
    "itself": (quantities.per_sample_grad, quantities.per_sample_grad, 1),
    "norm": (quantities.per_sample_grad_norm, quantities.per_sample_grad, 2),
    "diagonal": (
        lambda conv, n: quantities.ggn_diagonal(conv, n, 2),
        lambda conv, n: quantities.per_sample_grad(conv, n, 2),
        2,
    ),
    "Gram matrix": (
        lambda conv, n: quantities.ggn_gram(conv, n, 2),
        lambda conv, n: quantities.per_sample_grad(conv, n, 2),
        2,
    ),
    "diagonal of a Gram matrix": (
        lambda conv, n: quantities.per_sample_grad_norm(conv, n, 2),
        lambda conv, n: quantities.ggn_gram(conv, n, 2),
        1,
    ),
    "diagonal of a Gram matrix, names taken": (
        lambda conv, n: quantities.per_sample_grad_norm(conv, n, 2).relabel(
            lambda index: {"co": "np", "ci": "vp"}.get(index, index)
        ),
        lambda conv, n: quantities.ggn_gram(conv, n, 2),
        1,
    ),
    "factor": (quantities.kfac_reduce, quantities.patch_sum, 2),
    "one of two operands": (quantities.per_sample_grad, quantities.unfold_input, 1),
}
"""A network, its part, and how often that occurs."""


@pytest.mark.parametrize("case", CASES)
@examples(10)
@given(conv=convs(), batch_size=BATCHES)
def test_values(case: str, conv: Conv, batch_size: int) -> None:
    define, define_part, _ = CASES[case]
    network, part = define(conv, batch_size), define_part(conv, batch_size)
    arrays = {one.name: noise(one.shape) for one in network.operands}
    found = substitute(network, part, "p")
    assert found is not None
    value = dense.evaluate(part, arrays)
    result = dense.evaluate(found[0], {**arrays, "p": value})
    np.testing.assert_allclose(result, dense.evaluate(network, arrays), atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_occurrences(case: str) -> None:
    define, define_part, number = CASES[case]
    found = substitute(define(CONV, 3), define_part(CONV, 3), "p")
    assert found is not None
    names = [operand.name for operand in found[0].operands]
    assert names.count("p") == number == len(found[1])


@pytest.mark.parametrize(
    ("define", "define_part"),
    [
        (quantities.kfac_expand, quantities.patch_sum),  # its positions are needed
        (quantities.per_sample_grad, quantities.weight_vjp),  # so are samples
        (quantities.kfac_reduce, quantities.per_sample_grad),  # of another operand
    ],
)
def test_no_occurrence(define: Define, define_part: Define) -> None:
    assert substitute(define(CONV, 3), define_part(CONV, 3), "p") is None


def test_other_names_of_indices() -> None:
    part = quantities.per_sample_grad(CONV, 3)
    renamed = part.relabel(lambda index: f"{index}x")
    found = substitute(quantities.per_sample_grad_norm(CONV, 3), renamed, "p")
    expected = substitute(quantities.per_sample_grad_norm(CONV, 3), part, "p")
    assert found is not None and expected is not None
    assert found[0] == expected[0]


@given(st.sampled_from([2, 4]))
def test_other_sizes(batch_size: int) -> None:
    part = quantities.per_sample_grad(CONV, batch_size)
    assert substitute(quantities.weight_vjp(CONV, 3), part, "p") is None


def test_stored() -> None:
    operand = stored("p", quantities.unfold_input(CONV, 3))
    assert operand.shape == (3, 4 * 9, 20)
    assert operand.indices == ("n", "g", "ci", "k1", "k2", "o1", "o2")
