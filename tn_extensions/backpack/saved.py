"""What waits to be backpropagated further."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backpack.extensions.saved_quantities import SavedQuantities

from tn_extensions.backpack.columns import Columns
from tn_extensions.backpack.signed_roots import SignedRoots


class SavedCopies(SavedQuantities):
    """Copies of what waits at tensors.

    BackPACK saves one object at each input of a module; each needs a copy that can be
    taken apart.
    """

    def save_quantity(
        self, key: int, quantity: Any, accumulation_function: Callable[[Any, Any], Any]
    ) -> None:
        """Save a copy, or add to what is there."""
        super().save_quantity(key, _copied(quantity), accumulation_function)

    def retrieve_quantity(self, key: int, delete_old: bool) -> Any:
        """Fetch what was saved; a copy, if it stays."""
        found = super().retrieve_quantity(key, delete_old)
        return found if delete_old else _copied(found)


def _copied(quantity: Any) -> Any:
    known = isinstance(quantity, Columns | SignedRoots)
    return quantity.copy() if known else quantity
