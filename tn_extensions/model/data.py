"""Check losses, batches of data and numbers of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.layers.losses import LIKELIHOODS, Fisher

Data = Iterable[tuple[Any, Tensor]] | tuple[Any, Tensor]
"""Batches of inputs and targets, or a single batch."""


def batches(owner: str, data: Any) -> Iterator[tuple[Any, Tensor]]:
    """Iterate over the batches.

    Args:
        owner: Name of the caller, for errors.
        data: The data.

    Yields:
        Inputs and targets of each batch.

    Raises:
        TypeError: If a batch is not a pair of an input and a target.
        ValueError: If there is no batch.
    """
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    pair = [data] if is_pair and isinstance(data[1], Tensor) else data
    is_empty = True
    for batch in pair:
        is_batch = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not (is_batch and isinstance(batch[1], Tensor)):
            rule, kind = "be pairs of an input and a target", type(batch).__name__
            raise TypeError(describe(owner, "data", rule, kind))
        is_empty = False
        yield batch[0], batch[1]
    if is_empty:
        raise ValueError(describe(owner, "data", "have at least one batch", "none"))


def check_loss(owner: str, loss: Any) -> None:
    """Check that a loss is supported.

    Args:
        owner: Name of the caller, for errors.
        loss: The loss.

    Raises:
        NotImplementedError: If the loss is not supported.
        ValueError: If the loss is neither a mean nor a sum.
    """
    if type(loss) not in LIKELIHOODS:
        rule = f"be one of {', '.join(kind.__name__ for kind in LIKELIHOODS)}"
        found = getattr(loss, "__name__", type(loss).__name__)
        raise NotImplementedError(describe(owner, "loss", rule, found))
    if loss.reduction not in ("mean", "sum"):
        rule = "have the reduction 'mean' or 'sum'"
        raise ValueError(describe(owner, "loss", rule, repr(loss.reduction)))


def check_samples(owner: str, fisher_type: Fisher, mc_samples: Any) -> None:
    """Check a number of Monte-Carlo samples.

    Args:
        owner: Name of the caller, for errors.
        fisher_type: Type of Fisher.
        mc_samples: The number.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is not positive, or not 1 although nothing is sampled.
    """
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, int):
        kind = type(mc_samples).__name__
        raise TypeError(describe(owner, "mc_samples", "be an int", kind))
    if mc_samples < 1 or (fisher_type != "mc" and mc_samples != 1):
        rule = "be positive, and 1 unless fisher_type is 'mc'"
        raise ValueError(describe(owner, "mc_samples", rule, mc_samples))
