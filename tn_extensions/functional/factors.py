"""Kronecker factors of input and output, and means of patches."""

from __future__ import annotations

from contextlib import nullcontext
from math import prod
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.conv import Conv
from tn_extensions.errors import describe
from tn_extensions.functional.checks import (
    check_conv,
    check_input,
    check_out,
    check_vectors,
)
from tn_extensions.functional.evaluate import prepare, result_dtype, run
from tn_extensions.functional.operators import operator
from tn_extensions.quantities import Quantity


@operator(differentiable=True)
def patch_mean(x: Tensor, conv: Conv) -> Tensor:
    """Average the patches over output positions: ``1/O sum_o U``. Differentiable.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Means, ``[N, G, CI * K]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``x`` does not fit ``conv``.
    """
    check_input("patch_mean", x, conv)
    scale = 1 / max(prod(conv.output_size), 1)
    return run("patch_sum", {"x": prepare(x, conv)}, conv, scale)


@operator(differentiable=True)
def kfac_expand(
    x: Tensor,
    conv: Conv,
    *,
    bias: bool = False,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute the KFAC-expand input factor: ``1/N sum_n sum_o U[n, o] U[n, o]^T``.

    It is computed for each group. The plan never holds the unfolded input of the whole
    batch: it pairs the patterns of both copies of ``U`` over output positions, or
    unfolds one chunk at a time. Differentiable; but if ``x`` requires a gradient, the
    plan takes longer and unfolds more, so pass ``x.detach()`` if you do not need the
    gradient. A result that is added to ``out`` is not differentiable.

    Args:
        x: Input, ``[N, C_in, I1, ...]``, floating point.
        conv: Hyper-parameters.
        bias: Whether to append a one to each patch, for a joint weight and bias.
        scale: Factor that replaces ``1/N``.
        out: If given, the scaled result is added to it in place. It has the shape and
            dtype of the result.

    Returns:
        Factor, ``[G, D, D]`` with ``D = CI * K`` (plus one with ``bias``); ``out`` if
        given. An empty batch adds zero.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for
    convolution layers", ICML 2016.

    >>> factor = kfac_expand(torch.ones(2, 1, 4, 4), Conv.make(1, 1, 2, (4, 4)))
    >>> factor[0, 0]
    tensor([9., 9., 9., 9.])
    """
    return _factor("kfac_expand", x, conv, bias, scale, out)


@operator(differentiable=True)
def kfac_reduce(
    x: Tensor,
    conv: Conv,
    *,
    bias: bool = False,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute the KFAC-reduce input factor.

    It is ``1/(N O^2) sum_n (sum_o U[n, o])(sum_o U[n, o])^T`` for each group. Patches
    are summed by windows of the input and never unfolded. Differentiable, see
    :func:`kfac_expand`.

    Args:
        x: Input, ``[N, C_in, I1, ...]``, floating point.
        conv: Hyper-parameters.
        bias: Whether to append a one to each patch, for a joint weight and bias.
        scale: Factor that replaces ``1/(N O^2)``.
        out: If given, the scaled result is added to it in place. It has the shape and
            dtype of the result.

    Returns:
        Factor, ``[G, D, D]`` with ``D = CI * K`` (plus one with ``bias``); ``out`` if
        given. An empty batch adds zero.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: Eschenhagen et al., "Kronecker-factored approximate curvature for modern
    neural network architectures", NeurIPS 2023.
    """
    return _factor("kfac_reduce", x, conv, bias, scale, out)


@operator(differentiable=True)
def gradient_factor_expand(
    g: Tensor, conv: Conv, *, scale: float | None = None, out: Tensor | None = None
) -> Tensor:
    """Compute the KFAC-expand output factor: ``sum_{(v,) n, o} g[n, o] g[n, o]^T``.

    It is computed for each group. The default scale is 1, since the gradients of a mean
    over the batch contain the factor ``1/N`` already; so do square roots ``S`` of the
    loss's Hessian. Differentiable, see :func:`kfac_expand`.

    Args:
        g: Gradients with respect to the output, ``[(V,) N, C_out, O1, ...]``.
        conv: Hyper-parameters.
        scale: Factor that replaces 1.
        out: If given, the scaled result is added to it in place. It has the shape and
            dtype of the result.

    Returns:
        Factor, ``[G, CO, CO]``; ``out`` if given. An empty batch adds zero.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    return _gradient_factor("gradient_factor_expand", g, conv, scale, out)


@operator(differentiable=True)
def gradient_factor_reduce(
    g: Tensor, conv: Conv, *, scale: float | None = None, out: Tensor | None = None
) -> Tensor:
    """Compute the KFAC-reduce output factor: ``sum_{(v,) n} (sum_o g)(sum_o g)^T``.

    Like :func:`gradient_factor_expand`, but gradients are summed over positions first.

    Args:
        g: Gradients with respect to the output, ``[(V,) N, C_out, O1, ...]``.
        conv: Hyper-parameters.
        scale: Factor that replaces 1.
        out: If given, the scaled result is added to it in place. It has the shape and
            dtype of the result.

    Returns:
        Factor, ``[G, CO, CO]``; ``out`` if given. An empty batch adds zero.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    return _gradient_factor("gradient_factor_reduce", g, conv, scale, out)


def _gradient_factor(
    name: Quantity, g: Tensor, conv: Conv, scale: float | None, out: Tensor | None
) -> Tensor:
    check_conv(name, conv)
    num_vectors = check_vectors(name, g, conv, "g", (1, 2))
    size = conv.out_channels // conv.groups
    scale = _check(name, g, (conv.groups, size, size), scale, 1.0, out)
    batch_size = g.shape[-conv.num_dims - 2]
    options = {"batch_size": batch_size, "arguments": (num_vectors,)}
    return _run(name, {"g": g.to(result_dtype(g))}, conv, scale, out, **options)


def _factor(
    name: Quantity,
    x: Tensor,
    conv: Conv,
    bias: bool,
    scale: float | None,
    out: Tensor | None,
) -> Tensor:
    """Compute a factor of the input, with a last row and column for a bias."""
    check_input(name, x, conv)
    num_outputs = prod(conv.output_size)
    # a reduced patch is summed over output positions; its one becomes their number
    ones = num_outputs if name == "kfac_reduce" else 1
    default = 1 / (max(x.shape[0], 1) * max(ones, 1) ** 2)
    size = conv.in_channels // conv.groups * prod(conv.kernel_size) + bias
    scale = _check(name, x, (conv.groups, size, size), scale, default, out)
    operands = {"x": prepare(x, conv)}
    if not bias:
        return _run(name, operands, conv, scale, out)
    with torch.set_grad_enabled(torch.is_grad_enabled() and out is None):
        column = run("patch_total", operands, conv, scale * ones).unsqueeze(2)
        corner = scale * x.shape[0] * num_outputs * ones
        # the number of samples may be a symbol, which `pad` does not support
        row = torch.cat([column.mT, column.new_full((conv.groups, 1, 1), corner)], 2)
    if out is None and is_traced((x,)):
        factor = run(name, operands, conv, scale)
        return torch.cat([torch.cat([factor, column], 2), row], 1)
    result = out
    if result is None:
        result = empty((conv.groups, size, size), row)
        result[:, -1:], result[:, :-1, -1:] = 0, 0
    inner = result[:, :-1, :-1]
    _run(name, operands, conv, scale, inner, accumulate=out is not None)
    result[:, -1:].add_(row)
    result[:, :-1, -1:].add_(column)
    return result


def _run(
    name: Quantity,
    operands: dict[str, Tensor],
    conv: Conv,
    scale: float,
    out: Tensor | None,
    **options: Any,
) -> Tensor:
    """Run a plan; a result that is written into a tensor is not differentiable."""
    with nullcontext() if out is None else torch.no_grad():
        return run(name, operands, conv, scale, out, **options)


def _check(
    name: Quantity,
    like: Tensor,
    shape: tuple[int, ...],
    scale: float | None,
    default: float,
    out: Tensor | None,
) -> float:
    """Check scale and ``out``; return the scale."""
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real)):
        raise TypeError(describe(name, "scale", "be a number", type(scale).__name__))
    if out is not None:
        check_out(name, out, shape, result_dtype(like), like)
    return default if scale is None else float(scale)
