"""Operators that are printed."""

from __future__ import annotations

import pytest
from torch import nn

from tests.curvlinops.test_state import case
from tn_extensions import curvlinops as ours


def test_texts() -> None:
    op, _ = case("KFACLinearOperator", 2, check_deterministic=False)
    options = (
        "(fisher_type='mc', mc_samples=1, kfac_approx='expand', "
        "separate_weight_and_bias=True, groups='separate', num_data=5)"
    )
    assert repr(op).splitlines() == [
        f"KFACLinearOperator 153 x 153 {options}",
        "  0 (weight, bias): not computed",
        "  3 (weight, bias): not computed",
    ]
    op.compute_kronecker_factors()
    found = repr(op).splitlines()
    assert found[1:] == [
        "  0 (weight, bias): A [2, 18, 18], B [2, 3, 3]",
        "  3 (weight, bias): A [5, 12] (low rank), B [3, 3]",
    ]
    inverse = op.inverse(damping=0.1, use_heuristic_damping=True).__repr__()
    assert inverse.splitlines()[1:] == repr(op).splitlines()
    assert "damping=0.1, use_heuristic_damping=True, min_damping=1e-08" in inverse


@pytest.mark.parametrize("kind", ["GGNDiagonalLinearOperator", "GGNGramLinearOperator"])
def test_texts_of_the_ggn(kind: str) -> None:
    op, (model, params, data) = case("KFACLinearOperator", 1)
    found = getattr(ours, kind)(model, nn.CrossEntropyLoss(), params, data, mode="mc")
    size = found.shape[0]
    assert repr(found).splitlines() == [
        f"{kind} {size} x {size} (mode='mc', num_data=5, mc_samples=1)",
        "  0: weight [6, 4, 3, 3], bias [6]",
        "  3: weight [3, 12], bias [3]",
    ]


def test_text_of_eigenvectors() -> None:
    op, _ = case("EKFACLinearOperator", 1, check_deterministic=False)
    assert "  0 (weight, bias): not computed" in repr(op)
    op.compute_kronecker_factors()
    assert "  3 (weight, bias): A [5, 12] (low rank), B [3, 3]" in repr(op)
    op.compute_eigenvalue_correction()
    assert "  3 (weight, bias): Q_A [12, 5], Q_B [3, 3]" in repr(op)
