"""The convolution, its derivatives and its unfolded operands; all differentiable."""

from __future__ import annotations

from torch import Tensor

from tn_extensions.compiler.allocate import memory_of
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.conv import Conv
from tn_extensions.functional.checks import (
    check_conv,
    check_input,
    check_like,
    check_shaped,
    check_tensor,
)
from tn_extensions.functional.evaluate import prepare, result_dtype, run
from tn_extensions.functional.operators import operator
from tn_extensions.padding import unpad
from tn_extensions.quantities import Quantity


@operator(differentiable=True)
def conv(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Convolve: ``Y = sum_{ci, k} U[ci, k] W[co, ci, k]``, differentiable.

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
    """Change of the output with the input: ``Y_dot = sum_{ci, k} U_dot W``.

    The convolution of the change, differentiable like all of these.

    Args:
        weight: Kernel as ``torch.nn`` stores it (:attr:`Conv.weight_shape`).
        x_dot: Change of the input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Change of the output, ``[N, C_out, O1, ...]``.

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
    """Change of the output with the kernel: ``Y_dot = sum_{ci, k} U W_dot``.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        weight_dot: Change of the kernel, shaped like it.
        conv: Hyper-parameters.

    Returns:
        Change of the output, ``[N, C_out, O1, ...]``.

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
    """Gradient of the kernel: ``sum_{n, o} g[n, co, o] U[n, (ci, k), o]``.

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
    """Gradient of the input: ``sum_{co, o, k} P[k, o, i] g[n, co, o] W[co, ci, k]``.

    Padding that holds data adds up at the positions that it was copied from.

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
    check_conv("input_vjp", conv)
    check_tensor("input_vjp", "g", g)
    batch_size = g.shape[0] if g.dim() else 0
    check_shaped("input_vjp", "g", g, _output_shape(conv, batch_size))
    check_shaped("input_vjp", "weight", weight, conv.weight_shape)
    check_like("input_vjp", "weight", weight, g.dtype, g, "g")
    return unpad(
        _plain("input_vjp", {"weight": weight, "g": g}, conv, g.shape[0]), conv
    )


@operator(differentiable=True)
def unfold_weight(weight: Tensor, conv: Conv) -> Tensor:
    """Toeplitz matrix of the kernel: the Jacobian of a sample's output by its input.

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
    """Unfold the input (im2col): ``U[n, (ci, k), o]``, differentiable.

    Like ``torch.nn.functional.unfold``, for any number of dimensions, transposed
    convolutions (whose patches are zero where the kernel meets no input), and all
    padding modes. It takes as many entries as the result has: what is computed from it
    (factors, gradients, norms) is better computed by the other functions.

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
    result = run("unfold_input", {"x": prepare(x, conv)}, conv)
    if is_traced((x, result)):  # a view may have no storage to compare
        return result.clone()
    return result.clone() if memory_of(result) == memory_of(x) else result


def _plain(
    name: Quantity, operands: dict[str, Tensor], conv: Conv, batch_size: int
) -> Tensor:
    """A quantity that is linear in each of its operands."""
    like = next(iter(operands.values()))
    dtype = result_dtype(like)
    operands = {
        operand: prepare(tensor, conv)
        if operand in ("x", "x_dot")
        else tensor.to(dtype)
        for operand, tensor in operands.items()
    }
    return run(name, operands, conv, batch_size=batch_size)


def _output_shape(conv: Conv, batch_size: int) -> tuple[int, ...]:
    return (batch_size, conv.out_channels, *conv.output_size)
