"""Per-sample gradients of the kernel, and quantities of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tn_extensions.conv import Conv
from tn_extensions.errors import describe
from tn_extensions.functional.checks import (
    check_input,
    check_like,
    check_tensor,
    check_vectors,
)
from tn_extensions.functional.evaluate import prepare, result_dtype, run
from tn_extensions.functional.operators import operator
from tn_extensions.quantities import Quantity


@operator(differentiable=True)
def per_sample_grad(x: Tensor, g: Tensor, conv: Conv) -> Tensor:
    """Compute per-sample gradients of the kernel.

    They are ``sum_o g[n, co, o] U[n, (ci, k), o]`` for each sample. Differentiable.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        g: Gradients with respect to the output, ``[(V,) N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Gradients, ``[(V,) N, *conv.weight_shape]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: Rochette, Manoel and Tramel, "Efficient per-example gradient computations
    in convolutional neural networks", 2019.
    """
    num_vectors = _check("per_sample_grad", x, g, conv, "g", (1, 2))
    return _run("per_sample_grad", x, g, conv, (num_vectors,))


@operator(differentiable=False)
def per_sample_grad_norm(x: Tensor, g: Tensor, conv: Conv) -> Tensor:
    """Compute squared norms of per-sample gradients: ``sum_{co, ci, k} (sum_o g U)^2``.

    The gradients are formed for a few samples at a time, or not at all: a squared norm
    is also the inner product of two Gram matrices over positions, of ``g`` and of the
    patches. Not differentiable: ``x`` and ``g`` are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        g: Gradients with respect to the output, ``[(V,) N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Squared norms, ``[(V,) N]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    num_vectors = _check("per_sample_grad_norm", x, g, conv, "g", (1, 2))
    with torch.no_grad():
        x, g = x.detach(), g.detach()
        return _run("per_sample_grad_norm", x, g, conv, (num_vectors,))


@operator(differentiable=False)
def ggn_diagonal(x: Tensor, S: Tensor, conv: Conv, per_sample: bool = False) -> Tensor:
    """Compute the diagonal of the kernel's GGN.

    It is ``sum_{v, n} (sum_o S[v, n, co, o] U[n, (ci, k), o])^2``. Not differentiable:
    ``x`` and ``S`` are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        S: Square root of the loss's Hessian, backpropagated to the output, ``[V, N,
            C_out, O1, ...]``. It contains the scaling of the loss.
        conv: Hyper-parameters.
        per_sample: Whether to keep the samples instead of summing over them.

    Returns:
        Diagonal, shaped like the kernel; ``[N, *conv.weight_shape]`` if per sample.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    num_vectors = _check("ggn_diagonal", x, S, conv, "S")
    with torch.no_grad():
        x, S = x.detach(), S.detach()
        return _run("ggn_diagonal", x, S, conv, (num_vectors, bool(per_sample)))


@operator(differentiable=False)
def ggn_gram(x: Tensor, S: Tensor, conv: Conv) -> Tensor:
    """Compute inner products of all ``sum_o S[v, n, co, o] U[n, (ci, k), o]``.

    Let these be the rows of ``J``. The kernel's GGN is ``J^T J``, and the Gram matrix
    ``J J^T`` has the same nonzero eigenvalues. Not differentiable: ``x`` and ``S`` are
    detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        S: Square root of the loss's Hessian, backpropagated to the output, ``[V, N,
            C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Gram matrix, ``[V * N, V * N]``, with rows in the order ``(v, n)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    num_vectors = _check("ggn_gram", x, S, conv, "S")
    with torch.no_grad():
        return _run("ggn_gram", x.detach(), S.detach(), conv, (num_vectors,))


@operator(differentiable=False)
def ggn_matvec(x: Tensor, S: Tensor, vectors: Tensor, conv: Conv) -> Tensor:
    """Multiply the kernel's GGN with vectors: ``sum_{v, n} J_vn <J_vn, vector>``.

    The gradients ``J_vn = sum_o S[v, n, co, o] U[n, (ci, k), o]`` are formed only if
    this is cheaper than a forward and a backward product with ``U``. Not
    differentiable: all tensors are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        S: Square root of the loss's Hessian, backpropagated to the output, ``[V, N,
            C_out, O1, ...]``.
        vectors: Vectors in the space of the kernel, ``[(B,) *conv.weight_shape]``.
        conv: Hyper-parameters.

    Returns:
        Products, shaped like the vectors.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: Schraudolph, "Fast curvature matrix-vector products for second-order
    gradient descent", Neural Computation 2002.
    """
    num_vectors = _check("ggn_matvec", x, S, conv, "S")
    check_tensor("ggn_matvec", "vectors", vectors)
    many = vectors.dim() > len(conv.weight_shape)
    if tuple(vectors.shape[many:]) != conv.weight_shape:
        rule = f"equal [(B,) {', '.join(map(str, conv.weight_shape))}]"
        shape = list(vectors.shape)
        raise ValueError(describe("ggn_matvec", "vectors.shape", rule, shape))
    check_like("ggn_matvec", "vectors", vectors, x.dtype, x)
    arguments = (num_vectors, vectors.shape[0] if many else None)
    with torch.no_grad():
        x, S, vectors = x.detach(), S.detach(), vectors.detach()
        return _run("ggn_matvec", x, S, conv, arguments, weight_dot=vectors)


def _check(
    name: str, x: Any, g: Any, conv: Any, argument: str, leading: tuple[int, ...] = (2,)
) -> int | None:
    """Check arguments; return the number of vectors, or None without their axis."""
    check_input(name, x, conv)
    num_vectors = check_vectors(name, g, conv, argument, leading, x.shape[0])
    check_like(name, argument, g, x.dtype, x)
    return num_vectors


def _run(
    name: Quantity,
    x: Tensor,
    g: Tensor,
    conv: Conv,
    arguments: tuple[Any, ...],
    **others: Tensor,
) -> Tensor:
    dtype = result_dtype(x)
    operands = {"x": prepare(x, conv), "g": g.to(dtype)}
    operands |= {operand: tensor.to(dtype) for operand, tensor in others.items()}
    return run(name, operands, conv, arguments=arguments)
