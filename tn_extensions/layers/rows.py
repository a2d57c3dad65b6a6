"""Rows of a first axis, and the data they belong to, as gradients tell.

Frames or windows may be folded into the first axis, next to each other
(``flatten(0, 1)``), and views of the same data joined by ``cat``. Shapes do not tell
them apart. Gradients do: if data do not depend on each other, those of a datum's rows
are scaled as the vector at the datum's outputs is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tn_extensions.layers.host import holds, is_finite

_EXPONENTS = 8


def probes(output: Tensor, num_data: int) -> Iterator[Tensor]:
    """Make two vectors to backpropagate, for :func:`is_cat`.

    Args:
        output: Outputs, ``[R, C]``, the rows of a datum next to each other.
        num_data: Number ``N`` of data.

    Yields:
        A random vector, and it with a scale for each datum.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(output.shape, generator=generator).to(output)
    yield vector
    scales = _scales(num_data, output).repeat_interleave(len(output) // num_data)
    yield vector * scales.unsqueeze(1)


def is_cat(gradient: Tensor, scaled: Tensor, num_data: int) -> bool | None:
    """Tell whether rows of a datum lie ``N`` apart, as after ``cat``.

    Args:
        gradient: A gradient, ``[N * R, ...]``, of the first of the :func:`probes`.
        scaled: That of the second one.
        num_data: Number ``N`` of data.

    Returns:
        ``False``: they are next to each other. ``None``: neither, or the gradients of
        some depend on several data.
    """
    if not is_finite(gradient):
        # to be refused as such
        return False
    scales, each = _scales(num_data, gradient), len(gradient) // num_data
    if _is_scaled(gradient, scaled, scales.repeat_interleave(each)):
        return False
    return True if _is_scaled(gradient, scaled, scales.repeat(each)) else None


def _scales(num_data: int, like: Tensor) -> Tensor:
    """A number for each datum: powers of two, so that products are exact."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(max(num_data, _EXPONENTS), generator=generator)[:num_data]
    return torch.exp2(drawn % _EXPONENTS - _EXPONENTS / 2).to(like)


def _is_scaled(gradient: Tensor, scaled: Tensor, scales: Tensor) -> bool:
    """Tell whether rows of one are those of the other, times a number each."""
    expected = gradient.flatten(1) * scales.unsqueeze(1)
    errors = (scaled.flatten(1) - expected).abs().amax(1)
    sizes = expected.abs().amax(1)
    # rounding does not decide: products with powers of two are exact
    epsilon = torch.finfo(gradient.dtype).eps
    return holds((errors <= epsilon**0.5 / 4 * sizes + epsilon * sizes.max()).all())
