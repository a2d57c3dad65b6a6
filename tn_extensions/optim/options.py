"""Options of the preconditioner, which are checked once.

Each group of options is a dataclass. Its fields are also keyword arguments of the
preconditioner. Numbers may depend on the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any, Literal, Self, TypeVar, get_args

from torch import nn

from tn_extensions.errors import describe
from tn_extensions.layers.losses import LIKELIHOODS
from tn_extensions.sampling.samplers import share_of_samples

Approx = Literal["expand", "reduce"]
Fisher = Literal["empirical", "mc", "type-2"]
DampingMethod = Literal["pi", "fixed", "exact"]
Reduction = Literal["mean", "sum"]
NormLayers = Literal["plain", "unit-wise"]

Number = float | Callable[[int], float]
"""A number, or a function that computes it from the number of steps taken."""

G = TypeVar("G", bound="_Group")

_COUNT = ("be a positive integer", lambda value: value >= 1 and value == int(value))
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "damping": ("be positive", lambda value: value > 0),
    "factor_update_steps": _COUNT,
    "inverse_update_steps": _COUNT,
    "ema_decay": ("be in [0, 1)", lambda value: 0 <= value < 1),
    "kl_clip": ("be positive or None", lambda value: value > 0),
    "mc_samples": _COUNT,
    "lr": ("be non-negative", lambda value: value >= 0),
    "grad_worker_fraction": ("be in [0, 1] or None", lambda value: 0 <= value <= 1),
}
"""Rules for the options that are numbers."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "approx": get_args(Approx),
    "fisher": get_args(Fisher),
    "damping_method": get_args(DampingMethod),
    "loss_reduction": get_args(Reduction),
    "norm_layers": get_args(NormLayers),
}


@dataclass(frozen=True, repr=False)
class _Group:
    """A group of options that checks itself."""

    def __post_init__(self) -> None:
        """Check the options."""
        for own, (name, value) in zip(fields(self), self.short().items(), strict=True):
            check(type(self).__name__, name, value, own.name)

    def __repr__(self) -> str:
        """List the values, with ``callable`` for functions."""
        told = [
            f"{own.name}={'callable' if _is_of_steps(value) else repr(value)}"
            for own, value in zip(fields(self), self.short().values(), strict=True)
        ]
        return f"{type(self).__name__}({', '.join(told)})"

    def short(self) -> dict[str, Any]:
        """Return the values by the names of the keyword arguments."""
        return {
            own.metadata.get("short", own.name): getattr(self, own.name)
            for own in fields(self)
        }


@dataclass(frozen=True, repr=False)
class Damping(_Group):
    """The damping that is added to factors before they are inverted.

    Args:
        value: The damping, or a function that computes it from the number of steps
            taken.
        method: ``"pi"``, ``"fixed"`` or ``"exact"``; see ``KFACPreconditioner``.
    """

    value: Number = field(default=1e-3, metadata={"short": "damping"})
    method: DampingMethod = field(default="pi", metadata={"short": "damping_method"})


@dataclass(frozen=True, repr=False)
class Schedule(_Group):
    """The steps at which factors and inverses are updated.

    Args:
        factor_update_steps: Number of steps between updates of the factors.
        inverse_update_steps: Number of steps between updates of the inverses.
        ema_decay: Weight of the former value in moving averages.
    """

    factor_update_steps: Number = 1
    inverse_update_steps: Number = 1
    ema_decay: Number = 0.95


@dataclass(frozen=True, repr=False)
class Clipping(_Group):
    """The bound on the length of a step.

    Args:
        kl_clip: Bound on ``lr^2`` times the inner product of gradients and
            preconditioned gradients. ``None``: no bound.
        lr: Learning rate.
    """

    kl_clip: Number | None = 1e-3
    lr: Number = 0.1


@dataclass(frozen=True, repr=False)
class Curvature(_Group):
    """The curvature that the factors approximate; see ``KFACPreconditioner``.

    Args:
        approx: ``"expand"`` or ``"reduce"``.
        fisher: ``"empirical"``, ``"mc"`` or ``"type-2"``.
        eigenvalue_correction: Whether to use EKFAC's eigenvalues.
        keep: ``{"n": share}``, the share of the data that factors are estimated from.
        loss_func: The loss whose Fisher ``"mc"`` and ``"type-2"`` compute.
        loss_reduction: Whether the training loss is a ``"mean"`` or a ``"sum"``.
        mc_samples: Number of Monte-Carlo samples per datum and step.
        seed: Seed of all samples.
        norm_layers: ``"plain"`` or ``"unit-wise"``.
    """

    approx: Approx = "expand"
    fisher: Fisher = "empirical"
    eigenvalue_correction: bool = False
    keep: Mapping[str, float] | None = None
    loss_func: nn.Module | None = None
    loss_reduction: Reduction = "mean"
    mc_samples: int = 1
    seed: int = 0
    norm_layers: NormLayers = "plain"


@dataclass(frozen=True, repr=False)
class Distributed(_Group):
    """The distribution of work over several processes.

    Args:
        grad_worker_fraction: Share of the processes that multiply by a layer's inverse.
            ``None``: all processes, or one if parameters are sharded.
        process_group: The processes. ``None``: all processes, or those that share the
            sharded parameters.
    """

    grad_worker_fraction: float | None = None
    process_group: Any = None


@dataclass(frozen=True)
class Options:
    """All groups of options, by their arguments."""

    damping: Damping
    curvature: Curvature
    schedule: Schedule
    clipping: Clipping
    distributed: Distributed

    @classmethod
    def of(cls, owner: str, arguments: Mapping[str, Any]) -> Self:
        """Combine each group with the keyword arguments that are its short form.

        Args:
            owner: Name of the caller, for errors.
            arguments: The arguments by name.

        Returns:
            The options.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If arguments contradict each other, or a value is not allowed.
        """
        return cls(
            _joined(owner, "damping", Damping, arguments),
            _joined(owner, "curvature", Curvature, arguments),
            _joined(owner, "schedule", Schedule, arguments),
            _joined(owner, "clipping", Clipping, arguments),
            _joined(owner, "distributed", Distributed, arguments),
        )


def _joined(
    owner: str, argument: str, kind: type[G], arguments: Mapping[str, Any]
) -> G:
    """Combine a group with its short form, where defaults count as not given."""
    defaults, given = kind().short(), arguments[argument]
    short = {name: arguments[name] for name in defaults}
    if argument in short:
        # a number as damping belongs to the short form
        is_group = isinstance(given, kind)
        short[argument] = defaults[argument] if is_group else given
        given = given if is_group else None
    for name, value in short.items():
        check(owner, name, value)
    if given is None:
        values = zip(fields(kind), short.values(), strict=True)
        return kind(**{own.name: value for own, value in values})
    if not isinstance(given, kind):
        rule = f"be a {kind.__name__} or None"
        raise TypeError(describe(owner, argument, rule, type(given).__name__))
    known = given.short()
    for name, value in short.items():
        if not (_same(value, defaults[name]) or _same(value, known[name])):
            rule = f"not contradict {argument}={kind.__name__}(...)"
            remedy = "Pass only one of them"
            raise ValueError(describe(owner, name, rule, repr(value), remedy))
    return given


def _is_of_steps(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _same(one: Any, other: Any) -> bool:
    # process groups and modules are compared by identity
    return one is other or bool(one == other)


@dataclass(frozen=True)
class LayerOptions:
    """Options that may differ between layers; see ``KFACPreconditioner``."""

    approx: Approx
    damping: Number
    damping_method: DampingMethod
    ema_decay: Number
    eigenvalue_correction: bool
    keep: Mapping[str, float] | None = None
    norm_layers: NormLayers = "plain"

    @classmethod
    def of(cls, options: Options) -> Self:
        """Return the options that layers share."""
        groups = (options.curvature, options.damping, options.schedule)
        values = {name: own for group in groups for name, own in group.short().items()}
        return cls(**{own.name: values[own.name] for own in fields(cls)})

    def overridden(self, owner: str, own: Mapping[str, Any]) -> Self:
        """Check a layer's own options, and override the shared ones with them."""
        names = [field.name for field in fields(self)]
        if isinstance(own.get("damping"), Damping):
            arguments = {**Damping().short(), **own}
            own = {**own, **_joined(owner, "damping", Damping, arguments).short()}
        for name, value in own.items():
            if name not in names:
                rule = f"be among {', '.join(names)}"
                raise ValueError(describe(owner, "an override", rule, repr(name)))
            check(owner, name, value)
        return replace(self, **own)


def check(owner: str, name: str, value: Any, argument: str = "") -> None:
    """Check that an option may have a value.

    Args:
        owner: Name of the caller, for errors.
        name: The option, by its keyword argument.
        value: The value.
        argument: Name of the option in errors. Default: its keyword argument.

    Raises:
        TypeError: If the value is of the wrong kind.
        ValueError: If the value is not allowed.
    """
    if name == "keep":
        share_of_samples(owner, value)
    elif name in CHOICES:
        if value not in CHOICES[name]:
            rule = f"be {' or '.join(map(repr, CHOICES[name]))}"
            raise ValueError(describe(owner, argument or name, rule, repr(value)))
    elif name in RULES and not callable(value):
        _check_number(owner, name, value, argument)


def number_at(owner: str, name: str, value: Number | None, step: int) -> Any:
    """Evaluate an option at a step, and check it.

    Args:
        owner: Name of the caller, for errors.
        name: The option, by its keyword argument.
        value: The number, or a function of the step.
        step: The step.

    Returns:
        The number, or ``None`` if the option allows it.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not allowed.
    """
    if callable(value):
        value = value(step)
        _check_number(owner, name, value)
    return value


def _check_number(owner: str, name: str, value: Any, argument: str = "") -> None:
    rule, holds = RULES[name]
    if value is None and rule.endswith("or None"):
        return
    argument = argument or name
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        kind = None if value is None else type(value).__name__
        raise TypeError(describe(owner, argument, "be a number or a callable", kind))
    if not (isfinite(value) and holds(value)):
        raise ValueError(describe(owner, argument, rule, value))


def check_loss(owner: str, loss: Any) -> None:
    """Check that targets of a loss can be sampled.

    Args:
        owner: Name of the caller, for errors.
        loss: The loss.

    Raises:
        NotImplementedError: If the loss is not supported, or has weights.
    """
    if type(loss) not in LIKELIHOODS or loss.reduction not in CHOICES["loss_reduction"]:
        names = ", ".join(kind.__name__ for kind in LIKELIHOODS)
        rule = f"be one of {names}, with reduction 'mean' or 'sum'"
        raise NotImplementedError(describe(owner, "loss_func", rule, loss))
    weights = [getattr(loss, name, None) for name in ("weight", "pos_weight")]
    if any(weight is not None for weight in weights):
        remedy = "Use fisher='empirical'"
        rule = "have no weights, as they depend on targets"
        raise NotImplementedError(describe(owner, "loss_func", rule, loss, remedy))
