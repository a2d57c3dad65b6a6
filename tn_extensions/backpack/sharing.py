"""What extensions that run on a module one after another have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from torch import Tensor

from tn_extensions.compiler.allocate import address_of

T = TypeVar("T")


class Shared:
    """Values of the module at hand, so that several extensions compute each once.

    Active only while more than one extension runs on a module; empty in between, so
    that nothing outlives the module's turn in the backward pass.
    """

    def __init__(self) -> None:
        self.active = False
        self._values: dict[Hashable, tuple[Any, list[Tensor]]] = {}

    def once(
        self, name: Hashable, given: Iterable[Tensor], compute: Callable[[], T]
    ) -> T:
        """The value that another extension computed, or compute it.

        Args:
            name: What it is.
            given: Tensors that it is computed from, beyond those of the module.
            compute: Makes the value.
        """
        if not self.active:
            return compute()
        given = list(given)
        known: T | None = self.find(name, given)
        return self.keep(name, given, compute()) if known is None else known

    def keep(self, name: Hashable, given: Iterable[Tensor], value: T) -> T:
        """Let extensions that follow find a value."""
        if self.active:
            # what is given stays alive, or its memory could come back as another tensor
            given = list(given)
            self._values[_key(name, given)] = value, given
        return value

    def find(self, name: Hashable, given: Iterable[Tensor]) -> Any:
        """What an extension before computed; None if none did."""
        return self._values.get(_key(name, given), (None, None))[0]

    def clear(self) -> None:
        """Forget everything."""
        self.active = False
        self._values.clear()


def _key(name: Hashable, given: Iterable[Tensor]) -> Hashable:
    return name, *((address_of(t), t.numel(), t.dtype) for t in given)


SHARED = Shared()
"""BackPACK's context is global, and so is this."""
