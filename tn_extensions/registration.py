"""Register entries in other toolkits' registries, and remove them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Registration:
    """Put entries into dictionaries, and restore what they replaced.

    Args:
        *entries: Pairs of a dictionary and the entries to put into it.
    """

    def __init__(self, *entries: tuple[dict[Any, Any], Mapping[Any, Any]]) -> None:
        self._entries = entries
        self._former: list[tuple[dict[Any, Any], Any, Any, Any]] = []

    def put(self) -> None:
        """Put the entries in. A second call changes nothing."""
        for registry, entries in self._entries:
            for key, value in entries.items():
                former = registry.get(key, _ABSENT)
                if former is not value:
                    registry[key] = value
                    self._former.append((registry, key, value, former))

    def take_back(self) -> None:
        """Restore the former entries, but leave those that were replaced since."""
        while self._former:
            registry, key, value, former = self._former.pop()
            if registry.get(key) is not value:
                continue
            if former is _ABSENT:
                del registry[key]
            else:
                registry[key] = former


_ABSENT = object()
