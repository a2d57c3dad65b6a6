"""The planning mode in force: by estimates, or by measuring."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Literal, get_args

from tn_extensions.errors import describe

Mode = Literal["estimate", "measure"]

VARIABLE = "TN_EXTENSIONS_PLANNING"
"""Environment variable with the mode that a process starts with."""


def _checked(mode: object, argument: str) -> Mode:
    if mode not in get_args(Mode):
        rule = f"be one of {', '.join(map(repr, get_args(Mode)))}"
        raise ValueError(describe("planning", argument, rule, repr(mode)))
    return mode  # type: ignore[return-value]


_INITIAL = _checked(os.environ.get(VARIABLE, "estimate"), VARIABLE)
_set: dict[planning, None] = {}
"""The calls that have set a mode, in order."""
_entered: dict[planning, None] = {}
"""The contexts that are open, of all threads, in order."""


class planning:
    """Choose how plans are made, from now on or within a ``with`` block.

    ``"estimate"`` ranks the candidates of a network by a cost model; measurements that
    are remembered go first. ``"measure"`` runs the best-ranked ones when a network is
    first evaluated, takes the fastest, and remembers it (see
    :mod:`tn_extensions.wisdom`). Results differ by rounding only.

    The mode holds in all threads. A process starts with that of the environment
    variable ``TN_EXTENSIONS_PLANNING``, else with ``"estimate"``. Nothing is measured
    under ``torch.use_deterministic_algorithms(True)``.

    Args:
        mode: ``"estimate"`` or ``"measure"``.

    Raises:
        ValueError: If there is no such mode.

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
    """The mode in force: that of the block which was entered last."""
    for modes in (_entered, _set):
        if modes:
            return next(reversed(modes)).mode
    return _INITIAL
