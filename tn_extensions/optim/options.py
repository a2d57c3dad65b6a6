"""Options of the preconditioner, checked once; numbers may depend on the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Literal, get_args

from tn_extensions.errors import describe
from tn_extensions.layers.losses import LIKELIHOODS
from tn_extensions.sampling.samplers import share_of_samples

Approx = Literal["expand", "reduce"]
Fisher = Literal["empirical", "mc", "type-2"]
DampingMethod = Literal["pi", "fixed", "exact"]
Reduction = Literal["mean", "sum"]

Number = float | Callable[[int], float]
"""A number, or what computes it of the number of steps taken."""

RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "damping": ("be positive", lambda value: value > 0),
    "factor_update_steps": ("be a positive integer", lambda v: v >= 1 and v == int(v)),
    "inverse_update_steps": ("be a positive integer", lambda v: v >= 1 and v == int(v)),
    "ema_decay": ("be in [0, 1)", lambda value: 0 <= value < 1),
    "kl_clip": ("be positive or None", lambda value: value > 0),
    "mc_samples": ("be a positive integer", lambda v: v >= 1 and v == int(v)),
    "lr": ("be non-negative", lambda value: value >= 0),
}
"""What numbers must be."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "approx": get_args(Approx),
    "fisher": get_args(Fisher),
    "damping_method": get_args(DampingMethod),
    "loss_reduction": get_args(Reduction),
}


@dataclass(frozen=True)
class LayerOptions:
    """What may differ between layers; see ``KFACPreconditioner``."""

    approx: Approx
    damping: Number
    damping_method: DampingMethod
    ema_decay: Number
    eigenvalue_correction: bool
    keep: Mapping[str, float] | None = None

    def overridden(self, owner: str, own: Mapping[str, Any]) -> LayerOptions:
        """With a layer's own options, checked."""
        names = [field.name for field in fields(self)]
        for name, value in own.items():
            if name not in names:
                rule = f"be among {', '.join(names)}"
                raise ValueError(describe(owner, "an override", rule, repr(name)))
            check(owner, name, value)
        return replace(self, **own)


@dataclass(frozen=True)
class Schedule:
    """Numbers that concern all layers at once; see ``KFACPreconditioner``."""

    factor_update_steps: Number
    inverse_update_steps: Number
    kl_clip: Number | None
    lr: Number


def check(owner: str, name: str, value: Any) -> None:
    """Refuse a value that an option cannot have.

    Raises:
        TypeError: If it is of the wrong kind.
        ValueError: If it is of the right kind.
    """
    if name == "keep":
        share_of_samples(owner, value)
    elif name in CHOICES:
        if value not in CHOICES[name]:
            rule = f"be {' or '.join(map(repr, CHOICES[name]))}"
            raise ValueError(describe(owner, name, rule, repr(value)))
    elif name in RULES and not callable(value) and value is not None:
        _check_number(owner, name, value)
    elif name in RULES and value is None and name != "kl_clip":
        raise TypeError(describe(owner, name, "be a number or a callable", None))


def number_at(owner: str, name: str, value: Number, step: int) -> float:
    """An option at a step, checked.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is one that the option cannot have.
    """
    if callable(value):
        value = value(step)
        _check_number(owner, name, value)
    return value


def _check_number(owner: str, name: str, value: Any) -> None:
    rule, holds = RULES[name]
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        kind = type(value).__name__
        raise TypeError(describe(owner, name, "be a number or a callable", kind))
    if not (isfinite(value) and holds(value)):
        raise ValueError(describe(owner, name, rule, value))


def check_loss(owner: str, loss: Any) -> None:
    """Refuse a loss of which no targets can be drawn.

    Raises:
        NotImplementedError: If it is none of those supported, or has weights.
    """
    if type(loss) not in LIKELIHOODS or loss.reduction not in CHOICES["loss_reduction"]:
        names = ", ".join(kind.__name__ for kind in LIKELIHOODS)
        rule = f"be one of {names}, of reduction 'mean' or 'sum'"
        raise NotImplementedError(describe(owner, "loss_func", rule, loss))
    weights = [getattr(loss, name, None) for name in ("weight", "pos_weight")]
    if any(weight is not None for weight in weights):
        remedy = "Their gradients are right with fisher='empirical'"
        rule = "have no weights, which depend on targets"
        raise NotImplementedError(describe(owner, "loss_func", rule, loss, remedy))
