"""The quantities of :mod:`tn_extensions.quantities` on tensors.

Each function checks its arguments, then runs the cached plan of its network. All take
convolutions of any number of dimensions, transposed or not, with groups and every
padding mode, and inputs of any strides (channels-last, say). Half-precision inputs
(float16, bfloat16) are computed and returned in float32.

Symbols: ``N`` batch, ``G`` groups, ``CI`` input channels per group, ``K`` and ``O``
total number of kernel entries and output positions, ``U`` the unfolded input, ``[N, G,
CI * K, O]``, its patches in torch's order.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from numbers import Real
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tn_extensions import quantities
from tn_extensions.compiler import Plan
from tn_extensions.compiler import plan as plan_network
from tn_extensions.conv import Conv
from tn_extensions.errors import describe
from tn_extensions.network import TensorNetwork
from tn_extensions.quantities import Quantity

__all__ = [
    "conv",
    "kfac_expand",
    "kfac_reduce",
    "patch_mean",
    "plan",
    "unfold_input",
]


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
    _check_input("conv", x, conv)
    _check_tensor("conv", "weight", weight)
    if tuple(weight.shape) != conv.weight_shape:
        raise ValueError(
            describe(
                "conv",
                "weight.shape",
                f"equal {list(conv.weight_shape)}",
                list(weight.shape),
            )
        )
    _check_like("conv", "weight", weight, x.dtype, x)
    x, weight = _prepare(x, conv), weight.to(_result_dtype(x))
    if not x.numel():
        return x.new_zeros(x.shape[0], conv.out_channels, *conv.output_size)
    return _run("conv", {"x": x, "weight": weight}, conv)


def unfold_input(x: Tensor, conv: Conv) -> Tensor:
    """Unfold the input (im2col): ``U[n, (ci, k), o]``, differentiable.

    Like ``torch.nn.functional.unfold``, for any number of dimensions, transposed
    convolutions (whose patches are zero where the kernel meets no input), and all
    padding modes. Nothing else in this package holds it in memory.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.

    Returns:
        Patches, ``[N, C_in * K, O]``; a new tensor.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shape of ``x`` does not fit ``conv``.
    """
    _check_input("unfold_input", x, conv)
    padded = _prepare(x, conv)
    if not x.numel():
        columns = conv.in_channels * prod(conv.kernel_size)
        return padded.new_zeros(x.shape[0], columns, prod(conv.output_size))
    result = _run("unfold_input", {"x": padded}, conv)
    shared = result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return result.clone() if shared else result


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
    _check_input("patch_mean", x, conv)
    x = _prepare(x, conv)
    if not x.numel():
        return x.new_zeros(x.shape[0], conv.groups, _factor_size(conv, bias=False))
    return _run("patch_sum", {"x": x}, conv, scale=1 / prod(conv.output_size))


def kfac_expand(
    x: Tensor,
    conv: Conv,
    *,
    bias: bool = False,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """KFAC-expand input factor: ``1/N sum_n sum_o U[n, o] U[n, o]^T`` per group.

    The plan never holds the unfolded input of the batch: it pairs the patterns of both
    copies of ``U`` over the output positions, or unfolds a chunk at a time.
    Not differentiable: ``x`` is detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``, floating point.
        conv: Hyper-parameters.
        bias: Whether to append a one to each patch, for a joint weight and bias.
        scale: Factor in place of ``1/N``.
        out: If given, the scaled result is added to it in place. Same shape and dtype
            as the result would have.

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


def kfac_reduce(
    x: Tensor,
    conv: Conv,
    *,
    bias: bool = False,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """KFAC-reduce input factor: ``1/(N O^2) sum_n (sum_o U[n, o])(sum_o U[n, o])^T``.

    Patches are summed by windows of the input, never unfolded. Not differentiable:
    ``x`` is detached.

    Args:
        x: Input, ``[N, C_in, I1, ...]``, floating point.
        conv: Hyper-parameters.
        bias: Whether to append a one to each patch, for a joint weight and bias.
        scale: Factor in place of ``1/(N O^2)``.
        out: If given, the scaled result is added to it in place. Same shape and dtype
            as the result would have.

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


def plan(quantity: Quantity, x: Tensor, conv: Conv) -> Plan:
    """How a quantity is (or would be) evaluated; print it.

    Args:
        quantity: Name of a function in :mod:`tn_extensions.quantities`.
        x: Input, ``[N, C_in, I1, ...]``; its shape, dtype and device matter.
        conv: Hyper-parameters.

    Returns:
        The plan, chosen by cost within the memory budget.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the quantity does not exist or ``x`` does not fit ``conv``.
    """
    if quantity not in get_args(Quantity):
        rule = f"be one of {', '.join(map(repr, get_args(Quantity)))}"
        raise ValueError(describe("plan", "quantity", rule, repr(quantity)))
    _check_input("plan", x, conv)
    network = _network(quantity, conv, x.shape[0])
    return plan_network(network, _result_dtype(x), x.device.type)


def _factor(
    name: Quantity,
    x: Tensor,
    conv: Conv,
    bias: bool,
    scale: float | None,
    out: Tensor | None,
) -> Tensor:
    """Shared frame of the factors: checks, scaling and the bias row and column."""
    _check_input(name, x, conv)
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real)):
        raise TypeError(describe(name, "scale", "be a number", type(scale).__name__))
    size = _factor_size(conv, bias)
    shape, dtype = (conv.groups, size, size), _result_dtype(x)
    if out is not None:
        _check_out(name, out, shape, dtype, x)
    num_data, num_outputs = x.shape[0], prod(conv.output_size)
    # a reduced patch is a sum over the output positions, and so is its one
    ones = num_outputs if name == "kfac_reduce" else 1
    if scale is None:
        scale = 1 / (max(num_data, 1) * ones**2)
    scale = float(scale)
    with torch.no_grad():
        if not x.numel():
            return x.new_zeros(shape, dtype=dtype) if out is None else out
        operands = {"x": _prepare(x.detach(), conv)}
        if not bias:
            return _run(name, operands, conv, scale, out)
        result = x.new_empty(shape, dtype=dtype) if out is None else out
        accumulate = out is not None
        _run(name, operands, conv, scale, result[:, :-1, :-1], accumulate)
        column = _run("patch_total", operands, conv, scale * ones)
        corner = column.new_full((1,), scale * num_data * num_outputs * ones)
        border = torch.cat([column, corner.expand(conv.groups, 1)], dim=1)
        if accumulate:
            result[:, -1].add_(border)
            result[:, :-1, -1].add_(column)
        else:
            result[:, -1], result[:, :-1, -1] = border, column
    return result


def _factor_size(conv: Conv, bias: bool) -> int:
    return conv.in_channels // conv.groups * prod(conv.kernel_size) + bias


def _run(
    name: Quantity,
    operands: dict[str, Tensor],
    conv: Conv,
    scale: float = 1.0,
    out: Tensor | None = None,
    accumulate: bool = True,
) -> Tensor:
    x = operands["x"]
    chosen = plan_network(_network(name, conv, x.shape[0]), x.dtype, x.device.type)
    if torch.is_autocast_enabled(x.device.type):
        # the plan's precision was decided above
        with torch.autocast(x.device.type, enabled=False):
            return chosen.run(operands, scale, out, accumulate)
    return chosen.run(operands, scale, out, accumulate)


@lru_cache(maxsize=4096)
def _network(name: Quantity, conv: Conv, batch_size: int) -> TensorNetwork:
    if conv.pads_explicitly:
        conv = conv.explicitly_padded
    network: TensorNetwork = getattr(quantities, name)(conv, batch_size)
    return network


def _result_dtype(x: Tensor) -> torch.dtype:
    """Half precision is too coarse to accumulate in."""
    return torch.promote_types(x.dtype, torch.float32)


def _prepare(x: Tensor, conv: Conv) -> Tensor:
    """The input in the result's dtype, with padding that holds data made explicit."""
    x = x.to(_result_dtype(x))
    if not conv.pads_explicitly or not x.numel():
        return x
    if conv.num_dims <= 3:  # as far as torch goes at once
        flat = [side for pair in reversed(conv.padding) for side in pair]
        return F.pad(x, flat, mode=conv.padding_mode)
    for axis, pair in enumerate(conv.padding, start=2):
        moved = x.movedim(axis, -1)
        rows = moved.reshape(1, -1, moved.shape[-1])
        padded = F.pad(rows, pair, mode=conv.padding_mode)
        x = padded.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return x


def _check_tensor(name: str, argument: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(describe(name, argument, "be a torch.Tensor", kind))
    if not value.is_floating_point():
        rule = "be a floating point tensor"
        raise TypeError(
            describe(
                name, argument, rule, value.dtype, f"Convert with {argument}.float()"
            )
        )


def _check_input(name: str, x: Any, conv: Any) -> None:
    if not isinstance(conv, Conv):
        raise TypeError(
            describe(
                name,
                "conv",
                "be a Conv",
                type(conv).__name__,
                "Make one with Conv.from_module(module, x.shape[2:])",
            )
        )
    _check_tensor(name, "x", x)
    given = f"(x.shape = {list(x.shape)})"
    if x.dim() != conv.num_dims + 2:
        rule = f"equal {conv.num_dims + 2} for {conv.num_dims} spatial dimension(s)"
        remedy = "Pass a batch [N, C_in, I1, ...]"
        raise ValueError(describe(name, "x.dim()", rule, f"{x.dim()} {given}", remedy))
    if x.shape[1] != conv.in_channels:
        rule = f"equal C_in = {conv.in_channels}"
        remedy = "Pass the layer's input, not its output"
        raise ValueError(
            describe(name, "x.shape[1]", rule, f"{x.shape[1]} {given}", remedy)
        )
    if tuple(x.shape[2:]) != conv.input_size:
        rule = f"equal conv.input_size = {conv.input_size}"
        remedy = "Make a Conv for this spatial size"
        raise ValueError(
            describe(name, "x.shape[2:]", rule, tuple(x.shape[2:]), remedy)
        )


def _check_like(
    name: str, argument: str, value: Tensor, dtype: torch.dtype, x: Tensor
) -> None:
    if value.dtype != dtype:
        raise ValueError(
            describe(name, f"{argument}.dtype", f"equal {dtype}", value.dtype)
        )
    if value.device != x.device:
        rule = f"equal x.device = {x.device}"
        raise ValueError(describe(name, f"{argument}.device", rule, value.device))


def _check_out(
    name: str, out: Any, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor
) -> None:
    if not isinstance(out, Tensor):
        kind = type(out).__name__
        raise TypeError(describe(name, "out", "be a torch.Tensor", kind))
    if tuple(out.shape) != shape:
        rule = f"equal {list(shape)}"
        raise ValueError(describe(name, "out.shape", rule, list(out.shape)))
    _check_like(name, "out", out, dtype, x)
    if out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and x.numel():
        raise ValueError(describe(name, "out", "have memory of its own", "memory of x"))
