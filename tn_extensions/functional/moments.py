"""Gradients in a Kronecker-factored basis, and EKFAC's corrected eigenvalues."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from tn_extensions.compiler.budget import slices
from tn_extensions.conv import Conv
from tn_extensions.errors import describe
from tn_extensions.functional.checks import (
    check_input,
    check_like,
    check_out,
    check_tensor,
    check_vectors,
)
from tn_extensions.functional.evaluate import (
    needs_shapes_only,
    prepare,
    result_dtype,
    run,
)
from tn_extensions.functional.linear import unfold_input
from tn_extensions.functional.operators import operator


@operator(differentiable=False)
def kfac_moments(
    x: Tensor, g: Tensor, QA: Tensor, QB: Tensor, conv: Conv, *, bias: bool = False
) -> Tensor:
    """Compute EKFAC's corrected eigenvalues: ``sum_n (QB^T (sum_o g U^T) QA)^2``.

    For a few samples at a time, gradients are formed and rotated, or computed from
    rotated patches, whichever is faster. Not differentiable: all tensors are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        g: Gradient with respect to the output, ``[N, C_out, O1, ...]``.
        QA: Basis for patches, ``[G, D, r]`` with ``D = CI * K`` (plus one with
            ``bias``). It need not be square. If inputs have half precision, bases may
            be float32, like factors.
        QB: Basis for output channels, ``[G, CO, s]``.
        conv: Hyper-parameters.
        bias: Whether to append a one to each patch, for a joint weight and bias. The
            last row of ``QA`` then belongs to the bias.

    Returns:
        Sums of squares over samples, ``[G, s, r]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: George et al., "Fast Approximate Natural Gradient Descent in a
    Kronecker-factored Eigenbasis", NeurIPS 2018.
    """
    _check("kfac_moments", x, g, QA, QB, conv, bias)
    with torch.no_grad():
        if bias and prod(conv.output_size) == 1:
            # with one position, a patch with a one is the input of a pointwise layer
            x, conv = _with_ones(unfold_input(x, conv), conv), _pointwise(conv)
            g, bias = g.flatten(2), False
        if not bias:
            operands = _operands(x, g, QA, QB, conv)
            return run("kfac_moments", operands, conv, arguments=_ranks(QA, QB))
        moments = QA.new_zeros(
            conv.groups, QB.shape[2], QA.shape[2], dtype=result_dtype(QA)
        )
        if needs_shapes_only():  # the number of samples may be a symbol
            return moments
        each = moments.numel() * moments.element_size()
        for chunk in slices(x.shape[0], each):
            rotated = rotated_grad(x[chunk], g[chunk], QA, QB, conv, bias=True)
            moments += rotated.square_().sum(0)
        return moments


@operator(differentiable=False)
def rotated_grad(
    x: Tensor,
    g: Tensor,
    QA: Tensor,
    QB: Tensor,
    conv: Conv,
    *,
    bias: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Rotate per-sample gradients into a basis: ``QB^T (sum_o g U^T) QA``.

    Not differentiable: all tensors are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        g: Gradient with respect to the output, ``[N, C_out, O1, ...]``.
        QA: As for :func:`kfac_moments`.
        QB: As for :func:`kfac_moments`.
        conv: Hyper-parameters.
        bias: As for :func:`kfac_moments`.
        out: If given, the result is added to it in place, for example to sum over
            several uses of a layer. It has the shape and dtype of the result.

    Returns:
        Rotated gradients, ``[N, G, s, r]``; ``out`` if given.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    _check("rotated_grad", x, g, QA, QB, conv, bias)
    if out is not None:
        shape = (x.shape[0], conv.groups, QB.shape[2], QA.shape[2])
        check_out("rotated_grad", out, shape, result_dtype(x), x)
    with torch.no_grad():
        # torch 2.11 does not subtract a bool from a size that is symbolic
        weight, row = QA.tensor_split([QA.shape[1] - int(bias)], 1)
        operands = _operands(x, g, weight, QB, conv)
        result = run("rotated_grad", operands, conv, out=out, arguments=_ranks(QA, QB))
        if bias:
            sums = operands["g"].flatten(2).sum(2).unflatten(1, (conv.groups, -1, 1))
            column = operands["QB"].mT @ sums
            result.flatten(0, 1).baddbmm_(
                column.flatten(0, 1), row.to(column.dtype).repeat(x.shape[0], 1, 1)
            )
    return result


def _with_ones(patches: Tensor, conv: Conv) -> Tensor:
    """Append a one to each group of patches ``[N, G * D, O]``."""
    groups = patches.unflatten(1, (conv.groups, -1))
    return torch.nn.functional.pad(groups, (0, 0, 0, 1), value=1.0).flatten(1, 2)


def _pointwise(conv: Conv) -> Conv:
    """Create a layer that multiplies patches, ending with a one, by a matrix."""
    size = conv.in_channels * prod(conv.kernel_size) + conv.groups
    positions = prod(conv.output_size)
    return Conv.make(size, conv.out_channels, 1, positions, groups=conv.groups)


def _ranks(QA: Tensor, QB: Tensor) -> tuple[int, int]:
    return QA.shape[2], QB.shape[2]


def _operands(
    x: Tensor, g: Tensor, QA: Tensor, QB: Tensor, conv: Conv
) -> dict[str, Tensor]:
    dtype, x = result_dtype(x), prepare(x.detach(), conv)
    others = {"g": g, "QA": QA, "QB": QB}
    return {"x": x} | {name: t.detach().to(dtype) for name, t in others.items()}


def _check(name: str, x: Any, g: Any, QA: Any, QB: Any, conv: Any, bias: bool) -> None:
    check_input(name, x, conv)
    check_vectors(name, g, conv, "g", (1,), x.shape[0])
    check_like(name, "g", g, x.dtype, x)
    columns = conv.in_channels // conv.groups * prod(conv.kernel_size) + bias
    sizes = {"QA": columns, "QB": conv.out_channels // conv.groups}
    for argument, basis in (("QA", QA), ("QB", QB)):
        check_tensor(name, argument, basis)
        dtype = x.dtype if basis.dtype == x.dtype else result_dtype(x)
        check_like(name, argument, basis, dtype, x)
        rows = sizes[argument]
        if basis.dim() != 3 or basis.shape[:2] != (conv.groups, rows):
            rule = f"equal [{conv.groups}, {rows}, r]"
            found = list(basis.shape)
            raise ValueError(describe(name, f"{argument}.shape", rule, found))
