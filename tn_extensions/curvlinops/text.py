"""Text that describes an operator: a line with size and options, a line per block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tn_extensions.kronecker.factors import is_low_rank


def operator_text(
    name: str,
    shape: Sequence[int],
    options: Mapping[str, Any],
    blocks: Mapping[str, str],
) -> str:
    """Describe an operator.

    Args:
        name: Name of its class.
        shape: Its shape.
        options: Its options by name.
        blocks: A description of each block, by the name of its layer.

    Returns:
        A line for the operator, and an indented line for each block.

    >>> print(operator_text("KFAC", (6, 6), {"groups": "average"}, {"0": "A [3, 3]"}))
    KFAC 6 x 6 (groups='average')
      0: A [3, 3]
    """
    values = ", ".join(f"{key}={value!r}" for key, value in options.items())
    sizes = " x ".join(map(str, shape))
    lines = [f"  {layer}: {parts}" for layer, parts in blocks.items()]
    return "\n".join([f"{name} {sizes} ({values})", *lines])


def tensor_text(**tensors: Tensor | None) -> str:
    """List shapes of factors or eigenvectors by name, without a single group's axis."""

    def shape_of(tensor: Tensor) -> str:
        sizes = tensor.shape[1:] if len(tensor) == 1 else tensor.shape
        note = " (low rank)" if is_low_rank(tensor) else ""
        return f"{list(sizes)}{note}"

    parts = [f"{key} {shape_of(t)}" for key, t in tensors.items() if t is not None]
    return ", ".join(parts) or "not computed"


def plain(value: Any) -> Any:
    """Return an option's value if it is a member of an enumeration."""
    return getattr(value, "value", value)
