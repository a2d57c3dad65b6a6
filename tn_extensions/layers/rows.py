"""Find the data that rows of a first axis belong to, by gradients.

The rows of a datum may be adjacent (frames or windows that are folded into the batch by
``flatten(0, 1)``) or ``N`` apart (views of the data that are joined by ``cat``). Shapes
do not distinguish these, but gradients do. If data do not depend on each other, scaling
the vector at the outputs of a datum scales the gradients of its rows by the same
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.layers.host import holds, is_finite
from tn_extensions.layers.observe import Uses

_EXPONENTS = 8


def sort_rows(
    owner: str, uses: Uses, output: Tensor, num_data: int, is_long: bool
) -> None:
    """Find the data that rows of uses belong to, if shapes do not determine them.

    Args:
        owner: Name of the caller, for errors.
        uses: The uses. Those whose rows are ``N`` apart are replaced.
        output: Outputs, ``[R, ...]``.
        num_data: Number of data.
        is_long: Whether the model's outputs have several rows per datum.

    Raises:
        ValueError: If a row depends on several data, or the order is not supported.
    """
    if num_data and len(output) % num_data:
        rule, found = (
            f"have rows for each of the {num_data} data",
            f"{len(output)} rows",
        )
        raise ValueError(describe(owner, "outputs", rule, found))
    is_several = any(use.rows > 1 for own in uses.values() for use in own)
    ends = uses.ends(output)
    if num_data < 2 or not ends or not (is_long or is_several):
        return
    first, scaled = (
        _gradients(uses, output, ends, vector)
        for vector in probes(output.detach(), num_data)
    )
    for (name, number), gradient in first.items():
        use = uses[name][number]
        if not is_long and use.rows == 1:
            continue
        apart = is_cat(gradient, scaled[name, number], num_data)
        if apart is None:
            argument = f"rows of the input of layer {name!r}"
            rule = (
                "belong to one datum each; rows of a datum must be adjacent "
                f"(as after flatten(0, 1)) or {num_data} apart (as after cat)"
            )
            rows = f"{len(gradient)} rows in another order"
            raise ValueError(describe(owner, argument, rule, rows))
        if apart:
            uses[name][number] = use.as_cat()


def _gradients(
    uses: Uses, output: Tensor, ends: Sequence[Tensor], vector: Tensor
) -> dict[tuple[str, int], Tensor]:
    """Backpropagate a vector; return output gradients by name and number of the use."""
    found: dict[tuple[str, int], Tensor] = {}

    def on_gradient(name: str, number: int, gradient: Tensor) -> None:
        found[name, number] = gradient

    uses.show(output, ends, vector, True, on_gradient)
    return found


def probes(output: Tensor, num_data: int) -> Iterator[Tensor]:
    """Create two vectors to backpropagate, for :func:`is_cat`.

    Args:
        output: Outputs, ``[R, ...]``; the rows of a datum are adjacent.
        num_data: Number ``N`` of data.

    Yields:
        A random vector, then this vector with a different scale for each datum.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(output.shape, generator=generator).to(output)
    yield vector
    scales = _scales(num_data, output).repeat_interleave(len(output) // num_data)
    yield vector * scales.view(-1, *[1] * (output.dim() - 1))


def is_cat(gradient: Tensor, scaled: Tensor, num_data: int) -> bool | None:
    """Tell whether the rows of a datum are ``N`` apart, as after ``cat``.

    Args:
        gradient: A gradient, ``[N * R, ...]``, for the first of the :func:`probes`.
        scaled: The gradient for the second one.
        num_data: Number ``N`` of data.

    Returns:
        ``True``: they are. ``False``: they are adjacent. ``None``: neither, or a
        gradient depends on several data.
    """
    if not is_finite(gradient):
        # other checks refuse it
        return False
    scales, each = _scales(num_data, gradient), len(gradient) // num_data
    if _is_scaled(gradient, scaled, scales.repeat_interleave(each)):
        return False
    return True if _is_scaled(gradient, scaled, scales.repeat(each)) else None


def _scales(num_data: int, like: Tensor) -> Tensor:
    """Choose a scale for each datum: powers of two, so that products are exact."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(max(num_data, _EXPONENTS), generator=generator)[:num_data]
    return torch.exp2(drawn % _EXPONENTS - _EXPONENTS / 2).to(like)


def _is_scaled(gradient: Tensor, scaled: Tensor, scales: Tensor) -> bool:
    """Tell whether each row of one tensor is a row of the other times its scale."""
    expected = gradient.flatten(1) * scales.unsqueeze(1)
    errors = (scaled.flatten(1) - expected).abs().amax(1)
    sizes = expected.abs().amax(1)
    # the tolerance is uncritical, since products with powers of two are exact
    epsilon = torch.finfo(gradient.dtype).eps
    return holds((errors <= epsilon**0.5 / 4 * sizes + epsilon * sizes.max()).all())
