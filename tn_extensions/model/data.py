"""Losses and batches of data whose Fisher or GGN is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.layers.losses import LIKELIHOODS, Fisher

Data = Iterable[tuple[Any, Tensor]] | tuple[Any, Tensor]
"""Batches of inputs and targets, or a single one."""


def batches(owner: str, data: Any) -> Iterator[tuple[Any, Tensor]]:
    """Go over the batches.

    Args:
        owner: Whom errors name.
        data: The data.

    Raises:
        TypeError: If a batch is no pair of an input and a target.
        ValueError: If there are none.
    """
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    pair = [data] if is_pair and isinstance(data[1], Tensor) else data
    is_empty = True
    for batch in pair:
        is_batch = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not (is_batch and isinstance(batch[1], Tensor)):
            rule, kind = "hold pairs of an input and a target", type(batch).__name__
            raise TypeError(describe(owner, "data", rule, kind))
        is_empty = False
        yield batch[0], batch[1]
    if is_empty:
        raise ValueError(describe(owner, "data", "hold at least one batch", "none"))


def check_loss(owner: str, loss: Any) -> None:
    """Refuse losses of which the Hessian is not known.

    Raises:
        NotImplementedError: If it is of another kind.
        ValueError: If it is neither a mean nor a sum.
    """
    if type(loss) not in LIKELIHOODS:
        rule = f"be a {', '.join(kind.__name__ for kind in LIKELIHOODS)}"
        found = getattr(loss, "__name__", type(loss).__name__)
        raise NotImplementedError(describe(owner, "loss", rule, found))
    if loss.reduction not in ("mean", "sum"):
        rule = "have the reduction 'mean' or 'sum'"
        raise ValueError(describe(owner, "loss", rule, repr(loss.reduction)))


def check_samples(owner: str, fisher_type: Fisher, mc_samples: Any) -> None:
    """Refuse a number of draws that is not positive, or has no meaning.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is not positive, or not one where nothing is drawn.
    """
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, int):
        kind = type(mc_samples).__name__
        raise TypeError(describe(owner, "mc_samples", "be an int", kind))
    if mc_samples < 1 or (fisher_type != "mc" and mc_samples != 1):
        rule = "be positive, and 1 unless fisher_type is 'mc'"
        raise ValueError(describe(owner, "mc_samples", rule, mc_samples))
