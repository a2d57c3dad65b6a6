"""States of inverses, also as earlier versions wrote them."""

from __future__ import annotations

import pytest
import torch

from tests.strategies import noise_tensor
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.optim.state import from_state, to_state

FORMER = {"KroneckerProduct": "Product", "EigendecomposedMatrix": "Rotated"}


@pytest.mark.parametrize("is_former", [False, True])
@pytest.mark.parametrize(
    "inverse",
    [
        KroneckerProduct(noise_tensor([2, 3, 3]), LowRank(noise_tensor([2, 2, 4]))),
        EigendecomposedMatrix(
            noise_tensor([2, 3, 2]), None, noise_tensor([2, 2, 1]), 0.5
        ),
    ],
)
def test_round_trip(
    inverse: KroneckerProduct | EigendecomposedMatrix, is_former: bool
) -> None:
    state = to_state(inverse)
    if is_former:
        state["type"] = FORMER[state["type"]]
    found = from_state(state)
    assert type(found) is type(inverse)
    columns = 4 if isinstance(inverse, KroneckerProduct) else 1
    vectors = noise_tensor([2, 3, columns, 1])
    assert torch.equal(found @ vectors, inverse @ vectors)
