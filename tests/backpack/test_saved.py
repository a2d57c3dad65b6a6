"""Copies of what waits to be backpropagated."""

from __future__ import annotations

import torch

from tn_extensions.backpack.columns import Columns
from tn_extensions.backpack.saved import SavedCopies


def test_saved_for_two_inputs() -> None:
    """Each input has a copy; only the last one left may be overwritten."""
    saved = SavedCopies()
    columns = Columns([torch.ones(1)])
    for key in (1, 2):
        saved.save_quantity(key, columns, lambda a, b: a + b)
    saved.save_quantity(1, columns, lambda a, b: a + b)
    del columns
    first = saved.retrieve_quantity(1, delete_old=True)
    assert first.merged().item() == 2 and first.is_alone
    kept = saved.retrieve_quantity(2, delete_old=False)
    assert not kept.is_alone
    list(kept.take())
    again = saved.retrieve_quantity(2, delete_old=True)
    assert again.merged().item() == 1
    assert saved.retrieve_quantity(2, delete_old=True) is None
