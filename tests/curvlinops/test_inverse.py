"""Inverses of KFAC: options of the damping, functions of matrices, singular factors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.curvlinops.test_kfac import APPROX, dense, grouped, operator
from tests.messages import assert_in_form
from tn_extensions import curvlinops as ours


@pytest.mark.parametrize("approx", APPROX)
def test_matrix_functions_and_inverse_with_groups(approx: str) -> None:
    x = images(40, 2, 5, 4)
    model = grouped(x)
    options = {"kfac_approx": approx, "fisher_type": "mc", "mc_samples": 3}
    for separate in (True, False):
        options["separate_weight_and_bias"] = separate
        op = operator(ours, model, [(x, targets(40))], **options)
        matrix = dense(op)
        assert_close(matrix, matrix.T)
        assert_close(op.trace, matrix.trace())
        assert_close(op.frobenius_norm, torch.linalg.norm(matrix))
        damped = matrix + 0.3 * torch.eye(len(matrix), dtype=matrix.dtype)
        exact = op.inverse(damping=0.3, use_exact_damping=True)
        assert_close(dense(exact), torch.linalg.inv(damped))
        for heuristic in (False, True):
            inverse = op.inverse(damping=1e-2, use_heuristic_damping=heuristic)
            assert torch.linalg.eigvalsh(dense(inverse)).min() > 0
        spd = dense(op.inverse(damping=1e-3))
        for name in op._mapping:
            a, b = op._input_covariances[name], op._gradient_covariances[name]
            op._input_covariances[name] = a + 1e-3 * torch.eye(a.shape[-1]).to(a)
            op._gradient_covariances[name] = b + 1e-3 * torch.eye(b.shape[-1]).to(b)
        op._reset_matrix_properties()
        assert_close(spd @ dense(op), torch.eye(len(spd)).to(spd), atol=1e-7, rtol=0)
        assert_close(op.logdet, -torch.logdet(spd))


@pytest.mark.parametrize("least", [0.0, -1e-20])
@pytest.mark.parametrize("attribute", ["_input_covariances", "_gradient_covariances"])
@pytest.mark.parametrize("groups", [1, 2])
def test_singular_factors(groups: int, attribute: str, least: float) -> None:
    """Rounding may leave an eigenvalue of zero negative."""
    x, y = images(5, 4, 4, 3), targets(5)
    model = classifier(nn.Conv2d(4, 6, 2, groups=groups), x=x)
    op = operator(ours, model, [(x, y)])
    op.compute_kronecker_factors()
    for factors in (op._input_covariances, op._gradient_covariances):
        for factor in factors.values():
            factor.copy_(torch.eye(factor.shape[-1]).expand_as(factor))
    assert op.logdet == 0
    op._reset_matrix_properties()
    getattr(op, attribute)["0"][..., 1, 1] = least
    assert op.logdet == -math.inf


WRONG_DAMPING: dict[str, tuple[dict[str, Any], str, Any]] = {
    "negative": ({"damping": -1e-3}, "damping", ValueError),
    "nan": ({"damping": math.nan}, "damping", ValueError),
    "infinite": ({"damping": torch.tensor(torch.inf)}, "damping", ValueError),
    "text": ({"damping": "0.1"}, "damping", TypeError),
    "bool": ({"damping": True}, "damping", TypeError),
    "none": ({"damping": None}, "damping", TypeError),
    "complex": ({"damping": 1 + 0j}, "damping", TypeError),
    "list": ({"damping": [0.1, 0.2]}, "damping", TypeError),
    "one": ({"damping": (0.1,)}, "damping", ValueError),
    "three": ({"damping": (0.1, 0.2, 0.3)}, "damping", ValueError),
    "first": ({"damping": (-0.1, 0.2)}, "damping[0]", ValueError),
    "second": ({"damping": (0.1, "0.2")}, "damping[1]", TypeError),
    "min": ({"min_damping": -1.0}, "min_damping", ValueError),
    "min text": ({"min_damping": "1"}, "min_damping", TypeError),
}


@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
@pytest.mark.parametrize(
    ("options", "argument", "error"), WRONG_DAMPING.values(), ids=WRONG_DAMPING
)
def test_wrong_damping(
    options: dict[str, Any], argument: str, error: Any, kind: str
) -> None:
    x = images(3, 2, 5, 4)
    data = [(x, targets(3))]
    op = operator(ours, grouped(x), data, kind=kind, check_deterministic=False)
    for way in ("use_exact_damping", "use_heuristic_damping"):
        with pytest.raises(error) as refusal:
            op.inverse(**options, **{way: True})
        assert_in_form(refusal.value, "KFACInverseLinearOperator", argument)
    assert not op._gradient_covariances


@pytest.mark.parametrize("is_exact", [True, False])
def test_no_inverse_is_indefinite(is_exact: bool) -> None:
    """Nor is one refused since rounding made an eigenvalue of zero negative."""
    x = images(5, 4, 4, 3)
    op = operator(ours, classifier(nn.Conv2d(4, 6, 2), x=x), [(x, targets(5))])
    factor = op._gradient_covariances["0"]
    factor[0], factor[:, 0] = 0, 0
    for least, is_refused in ((-1e-18, False), (-0.1, True)):
        factor[0, 0] = least
        # numbers of other kinds are numbers
        damping = torch.tensor(1e-9 if is_exact else 1e-3, dtype=torch.float64)
        inverse = op.inverse(damping, use_exact_damping=is_exact)
        if is_refused:
            with pytest.raises(torch.linalg.LinAlgError, match="damping") as refusal:
                dense(inverse)
            assert "layer '0' must be positive definite" in str(refusal.value)
        else:
            assert torch.linalg.eigvalsh(dense(inverse)).min() > 0
