"""The convolution, its derivatives and its unfolded operands; all differentiable."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tn_extensions.compiler.allocate import memory_of
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.conv import Conv, PaddingMode
from tn_extensions.conv_dim import ConvDim
from tn_extensions.functional.checks import (
    check_conv,
    check_input,
    check_like,
    check_shaped,
    check_tensor,
)
from tn_extensions.functional.evaluate import prepare, result_dtype, run
from tn_extensions.functional.operators import operator
from tn_extensions.padding import source_position, unpad
from tn_extensions.quantities import Quantity


@operator(differentiable=True)
def conv(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Convolve: ``Y = sum_{ci, k} U[ci, k] W[co, ci, k]``. Differentiable.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        weight: Kernel as ``torch.nn`` stores it (:attr:`Conv.weight_shape`).
        conv: Hyper-parameters.

    Returns:
        Output without bias, ``[N, C_out, O1, ...]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: Dangel, "Convolutions and More as Einsum", NeurIPS 2024.
    """
    check_input("conv", x, conv)
    check_shaped("conv", "weight", weight, conv.weight_shape)
    check_like("conv", "weight", weight, x.dtype, x)
    return _plain("conv", {"x": x, "weight": weight}, conv, x.shape[0])


@operator(differentiable=True)
def input_jvp(weight: Tensor, x_dot: Tensor, conv: Conv) -> Tensor:
    """Multiply with the Jacobian by the input: ``Y_dot = sum_{ci, k} U_dot W``.

    This is the convolution of ``x_dot``. Differentiable.

    Args:
        weight: Kernel as ``torch.nn`` stores it (:attr:`Conv.weight_shape`).
        x_dot: Direction in the space of the input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Directional derivative of the output, ``[N, C_out, O1, ...]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_input("input_jvp", x_dot, conv, "x_dot")
    check_shaped("input_jvp", "weight", weight, conv.weight_shape)
    check_like("input_jvp", "weight", weight, x_dot.dtype, x_dot, "x_dot")
    operands = {"x_dot": x_dot, "weight": weight}
    return _plain("input_jvp", operands, conv, x_dot.shape[0])


@operator(differentiable=True)
def weight_jvp(x: Tensor, weight_dot: Tensor, conv: Conv) -> Tensor:
    """Multiply with the Jacobian by the kernel: ``Y_dot = sum_{ci, k} U W_dot``.

    Differentiable.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        weight_dot: Direction in the space of the kernel, shaped like the kernel.
        conv: Hyper-parameters.

    Returns:
        Directional derivative of the output, ``[N, C_out, O1, ...]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_input("weight_jvp", x, conv)
    check_shaped("weight_jvp", "weight_dot", weight_dot, conv.weight_shape)
    check_like("weight_jvp", "weight_dot", weight_dot, x.dtype, x)
    return _plain("weight_jvp", {"x": x, "weight_dot": weight_dot}, conv, x.shape[0])


@operator(differentiable=True)
def weight_vjp(x: Tensor, g: Tensor, conv: Conv) -> Tensor:
    """Compute the gradient of the kernel: ``sum_{n, o} g[n, co, o] U[n, (ci, k), o]``.

    Differentiable.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        g: Gradient with respect to the output, ``[N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Gradient, shaped like the kernel (:attr:`Conv.weight_shape`).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_input("weight_vjp", x, conv)
    check_shaped("weight_vjp", "g", g, _output_shape(conv, x.shape[0]))
    check_like("weight_vjp", "g", g, x.dtype, x)
    return _plain("weight_vjp", {"x": x, "g": g}, conv, x.shape[0])


@operator(differentiable=True)
def input_vjp(weight: Tensor, g: Tensor, conv: Conv) -> Tensor:
    """Compute the gradient of the input.

    It is ``sum_{co, o, k} P[k, o, i] g[n, co, o] W[co, ci, k]``. Unless padding is
    zeros, gradients at padded positions are added to the positions that these copy.
    Differentiable.

    Args:
        weight: Kernel as ``torch.nn`` stores it (:attr:`Conv.weight_shape`).
        g: Gradient with respect to the output, ``[N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Gradient, ``[N, C_in, I1, ...]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.
    """
    _check_backward("input_vjp", weight, g, "g", conv)
    return unpad(
        _plain("input_vjp", {"weight": weight, "g": g}, conv, g.shape[0]), conv
    )


@operator(differentiable=True)
def diagonal_backward(weight: Tensor, h: Tensor, conv: Conv) -> Tensor:
    """Backpropagate the diagonal of a Hessian: ``sum_y (dy / dx)^2 h``.

    This is ``sum_{co, o} h[n, co, o] (sum_k P[k, o, i] W[co, ci, k])^2``: the diagonal
    of the Hessian by the input, if the Hessian by the output is diagonal. It is as
    cheap as :func:`input_vjp` with a kernel of squared entries. Near the border, unless
    padding is zeros, several kernel entries may read copies of one input position; they
    are summed before they are squared. Differentiable.

    Args:
        weight: Kernel as ``torch.nn`` stores it (:attr:`Conv.weight_shape`).
        h: Diagonal of the Hessian by the output, ``[N, C_out, O1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Diagonal of the Hessian by the input, ``[N, C_in, I1, ...]``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes, dtypes or devices do not fit.

    Reference: Becker and Le Cun, "Improving the convergence of back-propagation
    learning with second order methods", 1989.
    """
    _check_backward("diagonal_backward", weight, h, "h", conv)
    batch_size = h.shape[0]
    if not conv.pads_explicitly:
        return _plain("diagonal_backward", {"weight": weight, "h": h}, conv, batch_size)
    padded = conv.explicitly_padded
    dtype = result_dtype(h)
    result = h.new_zeros(batch_size, conv.in_channels, *padded.input_size, dtype=dtype)
    for parts in product(*(_stretches(dim, conv.padding_mode) for dim in conv.dims)):
        merged, some, place = weight, h, result
        for axis, part in enumerate(parts, start=2):
            merged = _summed(merged, axis, part.first_readers)
            some = some.narrow(axis, part.start, part.dim.output_size)
            start = part.dim.stride * part.start
            place = place.narrow(axis, start, part.dim.input_size)
        dims = tuple(part.dim for part in parts)
        own = Conv(conv.in_channels, conv.out_channels, dims, conv.groups)
        operands = {"weight": merged, "h": some}
        place += _plain("diagonal_backward", operands, own, batch_size)
    return unpad(result, conv)


class _Stretch(NamedTuple):
    """Neighbouring outputs for which the same kernel entries read one input position.

    Args:
        start: The first of these outputs.
        dim: Hyper-parameters that compute them from the padded positions they read.
        first_readers: For each kernel entry, the first entry that reads the same input
            position or a copy of it.
    """

    start: int
    dim: ConvDim
    first_readers: tuple[int, ...]


@lru_cache(maxsize=512)
def _stretches(dim: ConvDim, mode: PaddingMode) -> tuple[_Stretch, ...]:
    found: list[tuple[int, tuple[int, ...]]] = []
    for output in range(dim.output_size):
        first = dim.stride * output - dim.padding[0]
        read = [
            source_position(first + dim.dilation * entry, dim.input_size, mode)
            for entry in range(dim.kernel_size)
        ]
        readers = tuple(map(read.index, read))
        if not found or readers != found[-1][1]:
            found.append((output, readers))
    ends = [*(start for start, _ in found[1:]), dim.output_size]
    result = []
    for (start, readers), end in zip(found, ends, strict=True):
        span = dim.stride * (end - start - 1) + dim.dilation * (dim.kernel_size - 1) + 1
        own = ConvDim(span, dim.kernel_size, dim.stride, dim.dilation)
        result.append(_Stretch(start, own, readers))
    return tuple(result)


def _summed(weight: Tensor, axis: int, first_readers: tuple[int, ...]) -> Tensor:
    """Add kernel entries that read the same input position to the first of them."""
    if first_readers == tuple(range(len(first_readers))):
        return weight
    entries = weight.unbind(axis)
    sums = [torch.zeros_like(entry) for entry in entries]
    for entry, first in zip(entries, first_readers, strict=True):
        sums[first] = sums[first] + entry
    return torch.stack(sums, axis)


@operator(differentiable=True)
def unfold_weight(weight: Tensor, conv: Conv) -> Tensor:
    """Create the Toeplitz matrix of the kernel: a sample's Jacobian by the input.

    Differentiable.

    Args:
        weight: Kernel as ``torch.nn`` stores it (:attr:`Conv.weight_shape`).
        conv: Hyper-parameters.

    Returns:
        Matrix, ``[C_out * O, C_in * I]``; blocks between groups are zero.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``weight`` does not fit ``conv``.
    """
    check_conv("unfold_weight", conv)
    check_shaped("unfold_weight", "weight", weight, conv.weight_shape)
    matrix = _plain("unfold_weight", {"weight": weight}, conv, 1)
    if not conv.pads_explicitly:
        return matrix
    sizes = conv.explicitly_padded.input_size
    split = matrix.unflatten(1, (conv.in_channels, *sizes))
    return unpad(split, conv).flatten(1)


@operator(differentiable=True)
def unfold_input(x: Tensor, conv: Conv) -> Tensor:
    """Unfold the input (im2col): ``U[n, (ci, k), o]``. Differentiable.

    Like ``torch.nn.functional.unfold``, but for any number of dimensions, transposed
    convolutions (whose patches are zero where the kernel reads no input), and all
    padding modes. The result is large: to compute factors, gradients or norms, use
    their functions, which need less memory.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Patches, ``[N, C_in * K, O]``; a new tensor.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``x`` does not fit ``conv``.
    """
    check_input("unfold_input", x, conv)
    return _new(run("unfold_input", {"x": prepare(x, conv)}, conv), x)


@operator(differentiable=True)
def fold_output(u: Tensor, conv: Conv) -> Tensor:
    """Fold patches (col2im): ``X[n, ci, i] = sum_{k, o} P[k, o, i] u[n, (ci, k), o]``.

    This is the adjoint of :func:`unfold_input`: each entry of a patch is added to the
    position that it comes from. Like ``torch.nn.functional.fold``, but for any number
    of dimensions, transposed convolutions, and all padding modes (unless padding is
    zeros, padded positions are added to those that they copy). Differentiable.

    Args:
        u: Patches, ``[N, C_in * K, O]``, in the order of torch's unfold.
        conv: Hyper-parameters.

    Returns:
        Sums of patches, ``[N, C_in, I1, ...]``; a new tensor.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``u`` does not fit ``conv``.
    """
    check_conv("fold_output", conv)
    check_tensor("fold_output", "u", u)
    batch_size = u.shape[0] if u.dim() else 0
    patch = conv.in_channels * prod(conv.kernel_size)
    shape = (batch_size, patch, prod(conv.output_size))
    check_shaped("fold_output", "u", u, shape)
    return _new(unpad(_plain("fold_output", {"u": u}, conv, batch_size), conv), u)


def _new(result: Tensor, operand: Tensor) -> Tensor:
    """Return a result that is not a view of its operand."""
    # when operations are recorded, tensors may have no storage to compare
    if torch.compiler.is_compiling() or is_traced((operand, result)):
        return result.clone()
    return result.clone() if memory_of(result) == memory_of(operand) else result


def _plain(
    name: Quantity, operands: dict[str, Tensor], conv: Conv, batch_size: int
) -> Tensor:
    """Evaluate a quantity that is differentiable by its operands."""
    like = next(iter(operands.values()))
    dtype = result_dtype(like)
    operands = {
        operand: prepare(tensor, conv)
        if operand in ("x", "x_dot")
        else tensor.to(dtype)
        for operand, tensor in operands.items()
    }
    return run(name, operands, conv, batch_size=batch_size)


def _check_backward(name: str, weight: Any, g: Any, argument: str, conv: Any) -> None:
    """Check a kernel, and a tensor that is shaped like the output."""
    check_conv(name, conv)
    check_tensor(name, argument, g)
    batch_size = g.shape[0] if g.dim() else 0
    check_shaped(name, argument, g, _output_shape(conv, batch_size))
    check_shaped(name, "weight", weight, conv.weight_shape)
    check_like(name, "weight", weight, g.dtype, g, argument)


def _output_shape(conv: Conv, batch_size: int) -> tuple[int, ...]:
    return (batch_size, conv.out_channels, *conv.output_size)
