"""Uses with several rows of each datum on the first axis, put in the data's order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.layers.observe import Uses
from tn_extensions.layers.rows import is_cat

Gradients = Mapping[tuple[str, int], Tensor]
"""Gradients of outputs by name and number of the use."""


def sort_rows(
    owner: str, uses: Uses, first: Gradients, scaled: Gradients, is_long: bool
) -> None:
    """Find which rows belong to which datum, where the first axis does not say.

    Args:
        owner: Whom errors name.
        uses: The uses, in which those of another order are replaced.
        first: Gradients of the first of the :func:`~tn_extensions.layers.rows.probes`.
        scaled: Those of the second one.
        is_long: Whether the model's outputs have several rows for each datum.

    Raises:
        ValueError: If rows belong to several data, or are in no known order.
    """
    num_data = uses.num_data
    assert num_data is not None
    for key, gradient in first.items():
        if not (is_long or key in uses.as_cat):
            continue
        name, number = key
        found = is_cat(gradient, scaled[key], num_data)
        if found is None:
            argument = f"rows of the input of layer {name!r}"
            rule = (
                "belong to one datum each, those of a datum next to each other "
                f"(as after flatten(0, 1)) or {num_data} apart (as after cat)"
            )
            rows = f"{len(gradient)} rows of another order"
            raise ValueError(describe(owner, argument, rule, rows))
        if found:
            uses[name][number] = uses.as_cat[key]()
