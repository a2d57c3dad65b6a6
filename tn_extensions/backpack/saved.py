"""Quantities that BackPACK saves until they are backpropagated further."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backpack.extensions.saved_quantities import SavedQuantities

from tn_extensions.backpack.columns import Columns
from tn_extensions.backpack.signed_roots import SignedRoots


class SavedCopies(SavedQuantities):
    """Saved quantities, each of them a copy.

    BackPACK saves the same object for each input of a module. Since pieces of square
    roots are consumed, each input needs its own copy.
    """

    def save_quantity(
        self, key: int, quantity: Any, accumulation_function: Callable[[Any, Any], Any]
    ) -> None:
        """Save a copy, or add it to the quantity that is saved already."""
        super().save_quantity(key, _copied(quantity), accumulation_function)

    def retrieve_quantity(self, key: int, delete_old: bool) -> Any:
        """Return a saved quantity, or a copy of it if it remains saved."""
        found = super().retrieve_quantity(key, delete_old)
        return found if delete_old else _copied(found)


def _copied(quantity: Any) -> Any:
    known = isinstance(quantity, Columns | SignedRoots)
    return quantity.copy() if known else quantity
