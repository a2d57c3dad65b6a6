"""Values that extensions share while they run on a module one after another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from torch import Tensor

from tn_extensions.compiler.allocate import address_of

T = TypeVar("T")


class Shared:
    """Values of the current module, which several extensions compute only once.

    Active only if more than one extension runs on the module. Cleared after the module,
    so that no value is kept for the rest of the backward pass.
    """

    def __init__(self) -> None:
        self.active = False
        self._values: dict[Hashable, tuple[Any, list[Tensor]]] = {}

    def once(
        self, name: Hashable, given: Iterable[Tensor], compute: Callable[[], T]
    ) -> T:
        """Return the value that another extension computed, or compute it.

        Args:
            name: Name of the value.
            given: Tensors that it is computed from, besides those of the module.
            compute: Function that computes the value.

        Returns:
            The value.
        """
        if not self.active:
            return compute()
        given = list(given)
        known: T | None = self.find(name, given)
        return self.keep(name, given, compute()) if known is None else known

    def keep(self, name: Hashable, given: Iterable[Tensor], value: T) -> T:
        """Keep a value for later extensions, and return it."""
        if self.active:
            # keep the given tensors alive: others might get the same address
            given = list(given)
            self._values[_key(name, given)] = value, given
        return value

    def find(self, name: Hashable, given: Iterable[Tensor]) -> Any:
        """Find the value that an earlier extension computed; None if there is none."""
        return self._values.get(_key(name, given), (None, None))[0]

    def clear(self) -> None:
        """Forget everything."""
        self.active = False
        self._values.clear()


def _key(name: Hashable, given: Iterable[Tensor]) -> Hashable:
    return name, *((address_of(t), t.numel(), t.dtype) for t in given)


SHARED = Shared()
"""The shared values; global, like BackPACK's context."""
