"""Make other toolkits use this package wherever their public names are looked up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tn_extensions.errors import describe
from tn_extensions.registration import Registration


@dataclass(frozen=True)
class Toolkit:
    """A toolkit that can be patched.

    Args:
        distribution: Its name on PyPI.
        releases: Supported releases, by their first numbers.
        plug: Our module for the toolkit.
        places: Modules of the toolkit whose names are replaced, with these names;
            ``None`` stands for all names that the plug exports. If there are no such
            modules, the plug has functions ``register`` and ``unregister`` instead.
    """

    distribution: str
    releases: tuple[str, ...]
    plug: str
    places: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)

    def is_known(self, release: str) -> bool:
        """Tell whether the plug supports a release."""
        return any(f"{release}.".startswith(f"{known}.") for known in self.releases)

    def functions(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return the functions that patch and restore the toolkit.

        Returns:
            The two functions.

        Raises:
            ImportError: If the plug cannot be imported with the installed release.
        """
        plug: Any = import_module(self.plug)
        if not self.places:
            return plug.register, plug.unregister
        entries = []
        for place, names in self.places.items():
            space = vars(import_module(place))
            known = [n for n in names or plug.__all__ if n in space]
            entries.append((space, {name: getattr(plug, name) for name in known}))
        registration = Registration(*entries)
        return registration.put, registration.take_back


TOOLKITS = {
    "backpack": Toolkit(
        "backpack-for-pytorch",
        ("1.7",),
        "tn_extensions.backpack",
        dict.fromkeys(
            (
                "backpack.extensions",
                "backpack.extensions.firstorder",
                "backpack.extensions.secondorder",
                "backpack.extensions.secondorder.diag_ggn",
                "backpack.extensions.secondorder.diag_hessian",
                "backpack.extensions.secondorder.hbp",
                "backpack.extensions.secondorder.sqrt_ggn",
            )
        ),
    ),
    "curvlinops": Toolkit(
        "curvlinops-for-pytorch",
        ("3.0", "4"),
        "tn_extensions.curvlinops",
        {
            "curvlinops": (
                "EKFACLinearOperator",
                "KFACInverseLinearOperator",
                "KFACLinearOperator",
            )
        },
    ),
    "opacus": Toolkit("opacus", ("1.6",), "tn_extensions.opacus"),
    "captum": Toolkit("captum", ("0.9",), "tn_extensions.captum"),
    "kronfluence": Toolkit("kronfluence", ("1.0",), "tn_extensions.kronfluence"),
    "laplace": Toolkit(
        "laplace-torch",
        ("0.3",),
        "tn_extensions.curvlinops.laplace",
        {
            "laplace": ("KronLaplace",),
            "laplace.curvature": ("CurvlinopsEF", "CurvlinopsGGN"),
            # the default is looked up here
            "laplace.baselaplace": ("CurvlinopsEF", "CurvlinopsGGN"),
        },
    ),
    "singd": Toolkit(
        "singd",
        ("0.0.5",),
        "tn_extensions.optim.singd",
        {"singd.optim.optimizer": ("SINGD",)},
    ),
}
"""The toolkits, by their names in :func:`patch`."""

_patched: dict[str, Callable[[], None]] = {}
"""Functions that restore the patched toolkits, by name, in the order of patching."""


def patch(only: Iterable[str] | None = None) -> tuple[str, ...]:
    """Make installed toolkits use this package.

    Replaces public names in the toolkits' modules. Call it before these names are
    imported: after it, ``from backpack.extensions import KFAC`` imports ours. Toolkits
    with a registry of layers (Opacus, captum, kronfluence) use this package for models
    that exist already, too. A second call changes nothing. To patch for a script
    without changing it, run ``python -m tn_extensions script.py``.

    Args:
        only: Names of toolkits: ``"backpack"``, ``"curvlinops"``, ``"opacus"``,
            ``"captum"``, ``"kronfluence"``, ``"laplace"`` or ``"singd"``. ``None``: all
            that are installed, except releases that are not supported, for which it
            warns.

    Returns:
        Names of all toolkits that are patched now.

    Raises:
        TypeError: If ``only`` is a string.
        ValueError: If a name is unknown. Nothing is patched then.
        ImportError: If a toolkit in ``only`` is not installed, or its release is not
            supported. The others in ``only`` are patched.
    """
    named = _named(only)
    refused = []
    for name in named if named is not None else TOOLKITS:
        if name in _patched:
            continue
        reason, is_installed = _patch_one(name)
        if reason is not None and (is_installed or named is not None):
            refused.append(reason)
    if refused and named is not None:
        raise ImportError("\n".join(refused))
    for reason in refused:
        warnings.warn(reason, stacklevel=2)
    return tuple(_patched)


def unpatch() -> None:
    """Restore all toolkits. Names that were imported while patched remain ours."""
    while _patched:
        _, restore = _patched.popitem()
        restore()


def _named(only: Any) -> tuple[str, ...] | None:
    """Check names of toolkits."""
    if only is None:
        return None
    if isinstance(only, str):
        rule = "be a list of toolkits"
        raise TypeError(describe("patch", "only", rule, repr(only), f"Pass [{only!r}]"))
    named = tuple(only)
    for name in named:
        if name not in TOOLKITS:
            rule = f"have names among {', '.join(map(repr, TOOLKITS))}"
            raise ValueError(describe("patch", "only", rule, repr(name)))
    return named


def _patch_one(name: str) -> tuple[str | None, bool]:
    """Patch a toolkit; return why it failed, if it did, and whether it is installed."""
    toolkit = TOOLKITS[name]
    try:
        release = version(toolkit.distribution)
    except PackageNotFoundError:
        rule, remedy = "be installed", f"Install 'tn-extensions[{name}]'"
        return describe("patch", name, rule, "nothing", remedy), False
    if not toolkit.is_known(release):
        rule = f"be of release {' or '.join(toolkit.releases)}"
        return describe("patch", name, rule, release), True
    try:
        put, restore = toolkit.functions()
    except ImportError as error:
        return describe("patch", name, "be importable", repr(error)), True
    put()
    _patched[name] = restore
    return None, True
