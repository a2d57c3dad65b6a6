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
