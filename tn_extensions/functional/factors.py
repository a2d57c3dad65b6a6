"""Kronecker factors of the input, and the averages they may be made of."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from numbers import Real

import torch
from torch import Tensor

from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.conv import Conv
from tn_extensions.errors import describe
from tn_extensions.functional.checks import check_input, check_out
from tn_extensions.functional.evaluate import prepare, result_dtype, run
from tn_extensions.quantities import Quantity
from tn_extensions.sampling.samplers import (
    Draw,
    Sampler,
    check_sampler,
    draw,
    share_of_samples,
)


def patch_mean(x: Tensor, conv: Conv) -> Tensor:
    """Average the patches over output positions: ``1/O sum_o U``, differentiable.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Averages, ``[N, G, CI * K]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``x`` does not fit ``conv``.
    """
    check_input("patch_mean", x, conv)
    scale = 1 / max(prod(conv.output_size), 1)
    return run("patch_sum", {"x": prepare(x, conv)}, conv, scale)


def kfac_expand(
    x: Tensor,
    conv: Conv,
    *,
    bias: bool = False,
    scale: float | None = None,
    out: Tensor | None = None,
    keep: Mapping[str, float] | None = None,
    sampler: Sampler = "bernoulli",
    generator: torch.Generator | None = None,
) -> Tensor:
    """KFAC-expand input factor: ``1/N sum_n sum_o U[n, o] U[n, o]^T`` per group.

    The plan never holds the unfolded input of the batch: it pairs the patterns of both
    copies of ``U`` over the output positions, or unfolds a chunk at a time.
    Differentiable, in a way that takes longer and unfolds more: where ``x`` requires a
    gradient that is not wanted, pass ``x.detach()``. What is added to ``out`` is never
    differentiated.

    Args:
        x: Input, ``[N, C_in, I1, ...]``, floating point.
        conv: Hyper-parameters.
        bias: Whether to append a one to each patch, for a joint weight and bias.
        scale: Factor in place of ``1/N``.
        out: If given, the scaled result is added to it in place. Same shape and dtype
            as the result would have.
        keep: ``{"n": share}`` of the samples to estimate the factor from, without bias.
        sampler: How they are drawn, see :func:`tn_extensions.sampling.draw`. ``"norm"``
            draws by squared norms, those of ``x`` and of the ones that are appended.
        generator: Source of random numbers. Default: torch's own, of the CPU.

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
    kept = _draw_samples("kfac_expand", x, conv, bias, keep, sampler, generator)
    return _factor("kfac_expand", x, conv, bias, scale, out, kept)


def kfac_reduce(
    x: Tensor,
    conv: Conv,
    *,
    bias: bool = False,
    scale: float | None = None,
    out: Tensor | None = None,
    keep: Mapping[str, float] | None = None,
    sampler: Sampler = "bernoulli",
    generator: torch.Generator | None = None,
) -> Tensor:
    """KFAC-reduce input factor: ``1/(N O^2) sum_n (sum_o U[n, o])(sum_o U[n, o])^T``.

    Patches are summed by windows of the input, never unfolded. Differentiable as
    :func:`kfac_expand` is.

    Args:
        x: Input, ``[N, C_in, I1, ...]``, floating point.
        conv: Hyper-parameters.
        bias: Whether to append a one to each patch, for a joint weight and bias.
        scale: Factor in place of ``1/(N O^2)``.
        out: If given, the scaled result is added to it in place. Same shape and dtype
            as the result would have.
        keep: ``{"n": share}`` of the samples to estimate the factor from, without bias.
        sampler: How they are drawn, see :func:`tn_extensions.sampling.draw`. ``"norm"``
            draws by squared norms, those of ``x`` and of the ones that are appended.
        generator: Source of random numbers. Default: torch's own, of the CPU.

    Returns:
        Factor, ``[G, D, D]`` with ``D = CI * K`` (plus one with ``bias``); ``out`` if
        given. An empty batch adds zero.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: Eschenhagen et al., "Kronecker-factored approximate curvature for modern
    neural network architectures", NeurIPS 2023.
    """
    kept = _draw_samples("kfac_reduce", x, conv, bias, keep, sampler, generator)
    return _factor("kfac_reduce", x, conv, bias, scale, out, kept)


def _draw_samples(
    name: Quantity,
    x: Tensor,
    conv: Conv,
    bias: bool,
    keep: Mapping[str, float] | None,
    sampler: Sampler,
    generator: torch.Generator | None,
) -> Draw | None:
    """Which samples to keep; None for all. Checks the input, too."""
    check_input(name, x, conv)
    check_sampler(name, sampler, generator)
    share = share_of_samples(name, keep)
    if share == 1:
        return None
    norms = None
    if sampler == "norm":
        axes = list(range(1, x.dim()))
        norms = torch.linalg.vector_norm(x.detach(), dim=axes, dtype=result_dtype(x))
        # in double precision, where no square overflows
        norms = norms.double().square().cpu() + bias * prod(conv.output_size)
    return draw(len(x), share, sampler, generator, norms)


def _factor(
    name: Quantity,
    x: Tensor,
    conv: Conv,
    bias: bool,
    scale: float | None,
    out: Tensor | None,
    kept: Draw | None,
) -> Tensor:
    """Shared frame of the factors: checks, scaling and the bias row and column."""
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real)):
        raise TypeError(describe(name, "scale", "be a number", type(scale).__name__))
    size = _factor_size(conv, bias)
    shape, dtype = (conv.groups, size, size), result_dtype(x)
    if out is not None:
        check_out(name, out, shape, dtype, x)
    num_data, num_outputs = x.shape[0], prod(conv.output_size)
    # a reduced patch is a sum over the output positions, and so is its one
    ones = num_outputs if name == "kfac_reduce" else 1
    if scale is None:
        scale = 1 / (max(num_data, 1) * max(ones, 1) ** 2)
    scale = float(scale)
    roots = None
    if kept is not None:
        x, scale = x[kept.indices.to(x.device)], scale * kept.scale
        if kept.weights is not None:
            roots = kept.weights.sqrt().to(x.device, dtype)
    if out is None and is_traced((x,)):
        return _differentiable(name, x, conv, bias, scale, ones, roots)
    with torch.no_grad():
        if not x.numel():
            return x.new_zeros(shape, dtype=dtype) if out is None else out
        operands = {"x": _weighted(prepare(x.detach(), conv), roots)}
        if not bias:
            return run(name, operands, conv, scale, out)
        result = out
        if result is None:
            result = empty(shape, x.new_empty(0, dtype=dtype))
        accumulate = out is not None
        run(name, operands, conv, scale, result[:, :-1, :-1], accumulate)
        column, border = _border(operands, conv, scale, ones, roots)
        if accumulate:
            result[:, -1].add_(border)
            result[:, :-1, -1].add_(column)
        else:
            result[:, -1], result[:, :-1, -1] = border, column
    return result


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """Samples times weights."""
    return x if weights is None else x * weights.reshape(-1, *[1] * (x.dim() - 1))


def _border(
    operands: dict[str, Tensor],
    conv: Conv,
    scale: float,
    ones: int,
    roots: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The last column without, and the last row with, their common entry.

    Samples have been multiplied by the roots of their weights, their ones have not.
    """
    x = operands["x"]
    column = run("patch_total", {"x": _weighted(x, roots)}, conv, scale * ones)
    count = len(x) if roots is None else float(roots.square().sum())
    total = scale * count * prod(conv.output_size) * ones
    corner = column.new_full((conv.groups, 1), total)
    return column, torch.cat([column, corner], dim=1)


def _differentiable(
    name: Quantity,
    x: Tensor,
    conv: Conv,
    bias: bool,
    scale: float,
    ones: int,
    roots: Tensor | None,
) -> Tensor:
    """A factor that nothing is written into."""
    if not x.numel():
        size = _factor_size(conv, bias)
        zeros = x.new_zeros(conv.groups, size, size, dtype=result_dtype(x))
        return zeros + 0 * x.sum().to(zeros.dtype)
    operands = {"x": _weighted(prepare(x, conv), roots)}
    factor = run(name, operands, conv, scale)
    if not bias:
        return factor
    column, border = _border(operands, conv, scale, ones, roots)
    rows = torch.cat([factor, column[:, :, None]], dim=2)
    return torch.cat([rows, border[:, None]], dim=1)


def _factor_size(conv: Conv, bias: bool) -> int:
    return conv.in_channels // conv.groups * prod(conv.kernel_size) + bias
