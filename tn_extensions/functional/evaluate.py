"""From a quantity's name and tensors to the cached plan of its network."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from tn_extensions import quantities
from tn_extensions.compiler import Plan
from tn_extensions.compiler import plan as plan_network
from tn_extensions.conv import Conv, PaddingMode
from tn_extensions.conv_dim import ConvDim, as_int
from tn_extensions.errors import describe
from tn_extensions.functional.checks import check_input
from tn_extensions.network import TensorNetwork
from tn_extensions.padding import pad
from tn_extensions.quantities import Quantity


def plan(quantity: Quantity, x: Tensor, conv: Conv, **arguments: Any) -> Plan:
    """How a quantity is (or would be) evaluated; print it.

    Args:
        quantity: Name of a function in :mod:`tn_extensions.quantities`.
        x: Input, ``[N, C_in, I1, ...]``; its shape, dtype and device matter.
        conv: Hyper-parameters.
        **arguments: What the quantity takes beyond hyper-parameters and batch size, for
            instance ``num_vectors``.

    Returns:
        The plan, chosen by cost within the memory budget.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the quantity does not exist or ``x`` does not fit ``conv``.
    """
    if quantity not in get_args(Quantity):
        rule = f"be one of {', '.join(map(repr, get_args(Quantity)))}"
        raise ValueError(describe("plan", "quantity", rule, repr(quantity)))
    check_input("plan", x, conv)
    _check_arguments(quantity, arguments)
    chosen = network(quantity, conv, x.shape[0], **arguments)
    return plan_network(chosen, result_dtype(x), x.device.type)


def _check_arguments(quantity: Quantity, arguments: dict[str, Any]) -> None:
    """Refuse to go on without what a quantity takes beyond the hyper-parameters."""
    signature = inspect.signature(getattr(quantities, quantity))
    _, _, *known = signature.parameters.values()
    for name in arguments:
        if name not in [parameter.name for parameter in known]:
            names = [parameter.name for parameter in known]
            rule = f"be left out: quantity = {quantity!r} takes {names or 'nothing'}"
            raise TypeError(describe("plan", name, rule, repr(arguments[name])))
    for parameter in known:
        value = arguments.get(parameter.name)
        if value is None and parameter.default is inspect.Parameter.empty:
            rule = f"be given for quantity = {quantity!r}"
            raise TypeError(describe("plan", parameter.name, rule, value))
    if arguments.get("num_vectors") is not None:
        as_int("plan", "num_vectors", arguments["num_vectors"], minimum=1)


def run(
    name: Quantity,
    operands: dict[str, Tensor],
    conv: Conv,
    scale: float = 1.0,
    out: Tensor | None = None,
    accumulate: bool = True,
    batch_size: int | None = None,
    arguments: tuple[Any, ...] = (),
) -> Tensor:
    """Run the cached plan of a quantity.

    Args:
        name: The quantity.
        operands: Tensors by the names of the network's operands, prepared.
        conv: Hyper-parameters.
        scale: Factor of the result.
        out: Where the result goes.
        accumulate: Whether to add to ``out``.
        batch_size: Number of samples. Default: that of ``x``.
        arguments: What the quantity takes beyond hyper-parameters and batch size.
    """
    like = next(iter(operands.values()))
    if batch_size is None:
        batch_size = operands["x"].shape[0]
    defined = network(name, conv, batch_size, *arguments)
    if 0 in defined.sizes.values():  # no data, or no output
        return _zero(defined, operands, out, accumulate)
    chosen = plan_network(defined, like.dtype, like.device.type)
    if torch.is_autocast_enabled(like.device.type):
        # the plan's precision was decided above
        with torch.autocast(like.device.type, enabled=False):
            result = chosen.run(operands, scale, out, accumulate)
    else:
        result = chosen.run(operands, scale, out, accumulate)
    if result is out or name in _LAID_OUT_BY_TORCH:
        return result
    if name in _SYMMETRIC and result.mT.is_contiguous():
        return result.mT
    return result.contiguous()


_LAID_OUT_BY_TORCH = (
    "conv",
    "weight_vjp",
    "input_vjp",
    "weight_jvp",
    "input_jvp",
    "diagonal_backward",
)
"""Quantities whose memory format is that of the operands, as in torch's own kernels."""
_SYMMETRIC = (
    "kfac_expand",
    "kfac_reduce",
    "gradient_factor_expand",
    "gradient_factor_reduce",
    "ggn_gram",
    "bias_ggn_gram",
)
"""Quantities that are their own transpose, in the last two axes."""


def _zero(
    network: TensorNetwork,
    operands: dict[str, Tensor],
    out: Tensor | None,
    accumulate: bool,
) -> Tensor:
    """Value of a network without any term; as differentiable as others."""
    if out is not None:
        return out if accumulate else out.zero_()
    nothing = torch.stack([tensor[:0].sum() for tensor in operands.values()]).sum()
    return nothing.expand(network.shape).clone()


def run_compiled(
    name: Quantity, operands: dict[str, Tensor], conv: Conv, batch_size: int
) -> Tensor:
    """What :func:`run` does, inside of ``torch.compile``: no break of the graph."""
    dims = tuple(
        (
            dim.input_size,
            dim.kernel_size,
            dim.stride,
            dim.dilation,
            dim.padding,
            dim.transposed,
            dim.output_padding,
        )
        for dim in conv.dims
    )
    rest = (conv.in_channels, conv.out_channels, conv.groups, conv.padding_mode)
    return _run_opaque(name, operands, dims, rest, batch_size)


@torch.compiler.nonstrict_trace
def _run_opaque(
    name: Quantity,
    operands: dict[str, Tensor],
    dims: tuple[tuple[Any, ...], ...],
    rest: tuple[int, int, int, PaddingMode],
    batch_size: int,
) -> Tensor:
    """The compiler records the operations of a plan but does not look into it.

    It takes tensors and plain values only.
    """
    inputs, outputs, groups, mode = rest
    spatial = tuple(ConvDim(*dim) for dim in dims)
    conv = Conv(inputs, outputs, spatial, groups, mode)
    return run(name, operands, conv, batch_size=batch_size)


@lru_cache(maxsize=4096)
def network(
    name: Quantity, conv: Conv, batch_size: int, *arguments: Any, **named: Any
) -> TensorNetwork:
    """A quantity's network; of padding that holds data, on the padded input."""
    if conv.pads_explicitly:
        conv = conv.explicitly_padded
    define = getattr(quantities, name)
    result: TensorNetwork = define(conv, batch_size, *arguments, **named)
    return result


def result_dtype(x: Tensor) -> torch.dtype:
    """Half precision is too coarse to accumulate in."""
    return torch.promote_types(x.dtype, torch.float32)


def prepare(x: Tensor, conv: Conv) -> Tensor:
    """The input in the result's dtype, with padding that holds data made explicit."""
    return pad(x.to(result_dtype(x)), conv)
