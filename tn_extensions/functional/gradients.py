"""Per-sample gradients of the kernel, and what is made of them."""

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
from tn_extensions.quantities import Quantity


def per_sample_grad(x: Tensor, g: Tensor, conv: Conv) -> Tensor:
    """Gradients of the kernel: ``sum_o g[n, co, o] U[n, (ci, k), o]`` for each sample.

    Differentiable.

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


def per_sample_grad_norm(x: Tensor, g: Tensor, conv: Conv) -> Tensor:
    """Squared norms of per-sample gradients, ``sum_{co, ci, k} (sum_o g U)^2``.

    The gradients are formed for a few samples at a time, or not at all: then it is the
    inner product of the Gram matrices of ``g`` and of the patches over positions.
    Not differentiable: ``x`` and ``g`` are detached.

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


def ggn_diagonal(x: Tensor, S: Tensor, conv: Conv, per_sample: bool = False) -> Tensor:
    """Diagonal of the kernel's GGN: ``sum_{v, n} (sum_o S[v, n, co, o] U[n, o])^2``.

    Not differentiable: ``x`` and ``S`` are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        S: Square root of the loss Hessian, backpropagated to the output, ``[V, N,
            C_out, O1, ...]``. It holds the averaging over the batch.
        conv: Hyper-parameters.
        per_sample: Whether to keep the samples.

    Returns:
        Diagonal, shaped as the kernel; ``[N, *conv.weight_shape]`` if per sample.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    num_vectors = _check("ggn_diagonal", x, S, conv, "S")
    with torch.no_grad():
        x, S = x.detach(), S.detach()
        return _run("ggn_diagonal", x, S, conv, (num_vectors, bool(per_sample)))


def ggn_gram(x: Tensor, S: Tensor, conv: Conv) -> Tensor:
    """Inner products of all ``sum_o S[v, n, co, o] U[n, (ci, k), o]``.

    The kernel's GGN is ``J^T J`` with these as rows of ``J``; its Gram matrix ``J J^T``
    has the same nonzero spectrum. Not differentiable: ``x`` and ``S`` are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        S: Square root of the loss Hessian, backpropagated to the output, ``[V, N,
            C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Gram matrix, ``[V * N, V * N]``, rows ordered as ``(v, n)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    num_vectors = _check("ggn_gram", x, S, conv, "S")
    with torch.no_grad():
        return _run("ggn_gram", x.detach(), S.detach(), conv, (num_vectors,))


def ggn_matvec(x: Tensor, S: Tensor, vectors: Tensor, conv: Conv) -> Tensor:
    """Multiply the kernel's GGN with vectors: ``sum_{v, n} J_vn <J_vn, vector>``.

    ``J_vn = sum_o S[v, n, co, o] U[n, (ci, k), o]``. These gradients are formed only if
    that is cheaper than to go forward from a vector to the output, and back. Not
    differentiable: all tensors are detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        S: Square root of the loss Hessian, backpropagated to the output, ``[V, N,
            C_out, O1, ...]``.
        vectors: Vectors in the space of the kernel, ``[(B,) *conv.weight_shape]``.
        conv: Hyper-parameters.

    Returns:
        Products, shaped as the vectors.

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
    arguments = (num_vectors, len(vectors) if many else None)
    with torch.no_grad():
        x, S, vectors = x.detach(), S.detach(), vectors.detach()
        return _run("ggn_matvec", x, S, conv, arguments, weight_dot=vectors)


def _check(
    name: str, x: Any, g: Any, conv: Any, argument: str, leading: tuple[int, ...] = (2,)
) -> int | None:
    """Refuse what does not fit; the number of vectors, or None without their axis."""
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
