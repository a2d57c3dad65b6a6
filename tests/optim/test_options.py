"""Options as groups, with keyword arguments as their short form."""

from __future__ import annotations

from typing import Any

import pytest
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.optim.support import network, train
from tn_extensions.optim import (
    KFAC,
    Clipping,
    Curvature,
    Damping,
    Distributed,
    KFACPreconditioner,
    Schedule,
)

SHORT: dict[str, Any] = {
    "damping": 0.1,
    "damping_method": "exact",
    "approx": "reduce",
    "inverse_update_steps": 2,
    "ema_decay": 0.5,
    "kl_clip": None,
}
GROUPS: dict[str, Any] = {
    "damping": Damping(0.1, "exact"),
    "curvature": Curvature(approx="reduce"),
    "schedule": Schedule(inverse_update_steps=2, ema_decay=0.5),
    "clipping": Clipping(kl_clip=None),
    "distributed": Distributed(grad_worker_fraction=1.0),
}


@pytest.mark.parametrize("both", [{}, SHORT])
def test_groups_are_their_short_form(both: dict[str, Any]) -> None:
    model = network()
    expected = train(model, KFACPreconditioner(model, **SHORT), range(3))
    model = network()
    found = KFACPreconditioner(model, **{**both, **GROUPS})
    assert_close(train(model, found, range(3)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"damping": Damping(0.1), "damping_method": "fixed"}, "damping_method"),
        ({"curvature": Curvature(), "approx": "reduce"}, "approx"),
        ({"schedule": Schedule(2), "factor_update_steps": 3}, "factor_update_steps"),
        ({"clipping": Clipping(1e-2), "kl_clip": None}, "kl_clip"),
        (
            {"distributed": Distributed(0.0), "grad_worker_fraction": 0.5},
            "grad_worker_fraction",
        ),
    ],
)
def test_contradictions(options: dict[str, Any], argument: str) -> None:
    model = network()
    with pytest.raises(ValueError, match="not contradict") as error:
        KFACPreconditioner(model, **options)
    assert_in_form(error.value, "KFACPreconditioner", argument)
    assert not any(module._forward_hooks for module in model.modules())


def test_groups_check_themselves() -> None:
    for build, name, argument, kind in (
        (lambda: Damping(0.0), "Damping", "value", ValueError),
        (lambda: Damping(method="none"), "Damping", "method", ValueError),  # type: ignore[arg-type]
        (lambda: Schedule(0), "Schedule", "factor_update_steps", ValueError),
        (lambda: Schedule(ema_decay=1.0), "Schedule", "ema_decay", ValueError),
        (lambda: Clipping(lr=-1.0), "Clipping", "lr", ValueError),
        (lambda: Curvature(keep={"n": 2.0}), "Curvature", "keep['n']", ValueError),
        (lambda: Distributed(2.0), "Distributed", "grad_worker_fraction", ValueError),
    ):
        with pytest.raises(kind) as error:
            build()
        assert_in_form(error.value, name, argument)
    with pytest.raises(TypeError) as type_error:
        KFACPreconditioner(network(), schedule=3)  # type: ignore[arg-type]
    assert_in_form(type_error.value, "KFACPreconditioner", "schedule")


def test_groups_of_single_layers_and_in_the_optimizer() -> None:
    own = {"5": {"damping": Damping(0.5, "fixed")}}
    found = KFACPreconditioner(network(), overrides=own)
    options = found._layers["5"].options
    assert (options.damping, options.damping_method) == (0.5, "fixed")
    assert found._layers["0"].options.damping_method == "pi"
    kfac = KFAC(network(), lr=0.05, clipping=Clipping(1e-2))
    assert kfac.preconditioner._clip_and_lr() == (1e-2, 0.05)
    with pytest.raises(ValueError, match="clipping.lr must equal the optimizer's"):
        KFAC(network(), lr=0.05, clipping=Clipping(1e-2, lr=0.3))


# -- what is told


def test_repr() -> None:
    text = repr(KFACPreconditioner(network(), overrides={"5": {"damping": 0.5}}))
    for line in (
        "KFACPreconditioner(",
        "damping=Damping(value=0.001, method='pi')",
        "0: Conv2d, A [2, 10, 10], B [2, 2, 2]",
        "2: ConvTranspose2d, A [2, 19, 19], B [2, 3, 3]",
        "5: Linear, A [1, 385, 385], B [1, 3, 3], damping=0.5",
    ):
        assert line in map(str.strip, text.splitlines())
    assert "5: Linear" in repr(KFAC(network()))
