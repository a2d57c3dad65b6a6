"""The planning mode: by estimates or by measurements."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Literal, get_args

from tn_extensions.errors import describe

Mode = Literal["estimate", "measure"]

VARIABLE = "TN_EXTENSIONS_PLANNING"
"""Environment variable for the mode in which a process starts."""


def _checked(mode: object, argument: str) -> Mode:
    if mode not in get_args(Mode):
        rule = f"be one of {', '.join(map(repr, get_args(Mode)))}"
        raise ValueError(describe("planning", argument, rule, repr(mode)))
    return mode  # type: ignore[return-value]


_INITIAL = _checked(os.environ.get(VARIABLE, "estimate"), VARIABLE)
_set: dict[planning, None] = {}
"""Calls that have set a mode, in order."""
_entered: dict[planning, None] = {}
"""Open ``with`` blocks of all threads, in order."""


class planning:
    """Choose how plans are made, from now on or within a ``with`` block.

    ``"estimate"`` ranks the candidates of a network by a cost model; remembered
    measurements take precedence. ``"measure"`` runs the best candidates by estimate
    when a network is first evaluated, uses the fastest, and remembers the times (see
    :mod:`tn_extensions.wisdom`). The results of candidates differ only by rounding.

    The mode applies to all threads. A process starts in the mode of the environment
    variable ``TN_EXTENSIONS_PLANNING`` (default: ``"estimate"``). Nothing is measured
    under ``torch.use_deterministic_algorithms(True)``.

    Args:
        mode: ``"estimate"`` or ``"measure"``.

    Raises:
        ValueError: If the mode is neither of them.

    >>> with planning("measure"):
    ...     current_mode()
    'measure'
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = _checked(mode, "mode")
        _set[self] = None

    def __enter__(self) -> None:
        _set.pop(self, None)
        _entered[self] = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _entered.pop(self, None)


def current_mode() -> Mode:
    """Return the mode in force, which the block that was entered last has set."""
    for modes in (_entered, _set):
        if modes:
            return next(reversed(modes)).mode
    return _INITIAL
