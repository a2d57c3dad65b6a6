"""Operators that are saved, loaded and printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tn_extensions import curvlinops as ours

KINDS = ["KFACLinearOperator", "EKFACLinearOperator", "KFOCLinearOperator"]


def case(kind: str, groups: int, **options: Any) -> tuple[Any, Any]:
    """Make an operator, and return it with its arguments."""
    x, y = images(5, 4, 4, 3), targets(5)
    model = classifier(nn.Conv2d(4, 6, 3, groups=groups), nn.Tanh(), x=x)
    weight = torch.tensor([0.5, 2, 3]).double()
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    arguments = model, list(model.parameters()), [(x, y)]
    options["separate_weight_and_bias"] = kind != "KFOCLinearOperator"
    params, data = arguments[1:]
    return getattr(ours, kind)(model, loss, params, data, **options), arguments


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, groups: int, tmp_path: Path) -> None:
    """Without code of the file's own: ``weights_only=True``."""
    op, arguments = case(kind, groups)
    vector = [torch.ones_like(p) for p in op._params]
    expected = op @ vector
    torch.save(op.state_dict(), tmp_path / "operator.pt")
    state = torch.load(tmp_path / "operator.pt", weights_only=True)
    loaded = getattr(ours, kind).from_state_dict(state, *arguments)
    assert_close(loaded @ vector, expected, rtol=0, atol=0)
    damped = {"damping": 0.1}
    if kind == "EKFACLinearOperator":
        damped["use_exact_damping"] = True
    assert_close(loaded.inverse(**damped) @ vector, op.inverse(**damped) @ vector)
    assert repr(loaded) == repr(op)


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
