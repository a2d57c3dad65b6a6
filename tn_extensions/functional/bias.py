"""Gradients of a bias and quantities of them, which need only output gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tn_extensions.conv import Conv
from tn_extensions.functional.checks import check_conv, check_vectors
from tn_extensions.functional.evaluate import result_dtype, run
from tn_extensions.functional.operators import operator
from tn_extensions.quantities import Quantity


@operator(differentiable=True)
def bias_vjp(g: Tensor, conv: Conv) -> Tensor:
    """Compute the gradient of a bias: ``sum_{n, o} g[n, co, o]``. Differentiable.

    Args:
        g: Gradient with respect to the output, ``[N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Gradient, ``[C_out]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``g`` does not fit ``conv``.
    """
    return _run("bias_vjp", g, conv, "g", (1,))


@operator(differentiable=True)
def bias_per_sample_grad(g: Tensor, conv: Conv) -> Tensor:
    """Compute per-sample gradients of a bias: ``sum_o g[n, co, o]``. Differentiable.

    Args:
        g: Gradients with respect to the output, ``[(V,) N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Gradients, ``[(V,) N, C_out]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``g`` does not fit ``conv``.
    """
    return _run("bias_per_sample_grad", g, conv, "g", (1, 2))


@operator(differentiable=False)
def bias_per_sample_grad_norm(g: Tensor, conv: Conv) -> Tensor:
    """Compute squared norms of a bias's per-sample gradients: ``sum_co (sum_o g)^2``.

    Add them to :func:`per_sample_grad_norm` for the squared norm over kernel and bias.
    Not differentiable: ``g`` is detached.

    Args:
        g: Gradients with respect to the output, ``[(V,) N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Squared norms, ``[(V,) N]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``g`` does not fit ``conv``.
    """
    with torch.no_grad():
        return _run("bias_per_sample_grad_norm", g, conv, "g", (1, 2))


@operator(differentiable=False)
def bias_ggn_diagonal(S: Tensor, conv: Conv, per_sample: bool = False) -> Tensor:
    """Compute the diagonal of a bias's GGN: ``sum_{v, n} (sum_o S[v, n, co, o])^2``.

    Not differentiable: ``S`` is detached.

    Args:
        S: Square root of the loss's Hessian, as for :func:`ggn_diagonal`.
        conv: Hyper-parameters.
        per_sample: Whether to keep the samples instead of summing over them.

    Returns:
        Diagonal, ``[C_out]``; ``[N, C_out]`` if per sample.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``S`` does not fit ``conv``.
    """
    with torch.no_grad():
        return _run("bias_ggn_diagonal", S, conv, "S", (2,), bool(per_sample))


@operator(differentiable=False)
def bias_ggn_gram(S: Tensor, conv: Conv) -> Tensor:
    """Compute inner products of all ``sum_o S[v, n, co, o]``.

    Add them to :func:`ggn_gram` for the Gram matrix of kernel and bias. Not
    differentiable: ``S`` is detached.

    Args:
        S: Square root of the loss's Hessian, as for :func:`ggn_gram`.
        conv: Hyper-parameters.

    Returns:
        Gram matrix, ``[V * N, V * N]``, with rows in the order ``(v, n)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``S`` does not fit ``conv``.
    """
    with torch.no_grad():
        return _run("bias_ggn_gram", S, conv, "S", (2,))


def _run(
    name: Quantity,
    g: Tensor,
    conv: Conv,
    argument: str,
    leading: tuple[int, ...],
    *arguments: Any,
) -> Tensor:
    """Evaluate on vectors with one leading axis, ``N``, or two, ``V`` and ``N``."""
    check_conv(name, conv)
    num_vectors = check_vectors(name, g, conv, argument, leading)
    batch_size = g.shape[-len(conv.output_size) - 2]
    if name != "bias_vjp":
        arguments = (num_vectors, *arguments)
    operands = {"g": g.to(result_dtype(g))}
    return run(name, operands, conv, batch_size=batch_size, arguments=arguments)
