"""Find and run the cached plan of a quantity's network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache, wraps
from math import prod
from time import perf_counter
from typing import Any, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from tn_extensions import quantities
from tn_extensions.compiler import Plan
from tn_extensions.compiler import plan as plan_network
from tn_extensions.compiler.measure import wait
from tn_extensions.compiler.tracing import holds_data, is_capturing
from tn_extensions.conv import Conv
from tn_extensions.conv_dim import as_int
from tn_extensions.errors import describe
from tn_extensions.functional.checks import check_input
from tn_extensions.network import TensorNetwork
from tn_extensions.padding import pad
from tn_extensions.quantities import Quantity

P = ParamSpec("P")
T = TypeVar("T")


def plan(quantity: Quantity, x: Tensor, conv: Conv, **arguments: Any) -> Plan:
    """Plan the evaluation of a quantity; print the plan to read it.

    Args:
        quantity: Name of a function in :mod:`tn_extensions.quantities`.
        x: Input, ``[N, C_in, I1, ...]``. Only its shape, dtype and device matter.
        conv: Hyper-parameters.
        **arguments: Arguments of the quantity besides hyper-parameters and batch size,
            such as ``num_vectors``.

    Returns:
        The plan. Its candidate is the cheapest one within the memory budget.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the quantity is unknown, or ``x`` does not fit ``conv``.
    """
    if quantity not in get_args(Quantity):
        rule = f"be one of {', '.join(map(repr, get_args(Quantity)))}"
        raise ValueError(describe("plan", "quantity", rule, repr(quantity)))
    check_input("plan", x, conv)
    _check_arguments(quantity, arguments)
    chosen = network(quantity, conv, x.shape[0], **arguments)
    return plan_network(chosen, result_dtype(x), x.device.type)


def _check_arguments(quantity: Quantity, arguments: dict[str, Any]) -> None:
    """Check a quantity's arguments besides hyper-parameters and batch size."""
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
        operands: Prepared tensors, by the names of the network's operands.
        conv: Hyper-parameters.
        scale: Factor of the result.
        out: Tensor for the result.
        accumulate: Whether to add to ``out``.
        batch_size: Number of samples. Default: that of ``x``.
        arguments: Arguments of the quantity besides hyper-parameters and batch size.

    Returns:
        The result; ``out`` if given.
    """
    like = next(iter(operands.values()))
    if batch_size is None:
        batch_size = operands["x"].shape[0]
    if needs_shapes_only():
        return like.new_empty(_shape(name, operands, conv, arguments))
    defined = network(name, conv, batch_size, *arguments)
    if 0 in defined.sizes.values():  # no data, or no output
        return _zero(defined, operands, out, accumulate)
    with observed(name, conv, like):
        chosen = plan_network(defined, like.dtype, like.device.type)
        if torch.is_autocast_enabled(like.device.type):
            # the plan has a fixed dtype
            with torch.autocast(like.device.type, enabled=False):
                result = chosen.run(operands, scale, out, accumulate)
        else:
            result = chosen.run(operands, scale, out, accumulate)
    if result is out or name in _LAID_OUT_BY_TORCH:
        return result
    if name in _SYMMETRIC and result.mT.is_contiguous():
        return result.mT
    return result.contiguous()


observers: list[Callable[[str, Conv, float], None]] = []
"""Functions that are called after each evaluation, with the quantity (or several,
joined by `` + ``), the convolution, and the seconds to plan and run."""

_UNOBSERVED = nullcontext()


def observed(name: str, conv: Conv, like: Tensor) -> AbstractContextManager[None]:
    """Measure the time of a context for observers, if there are any.

    Args:
        name: The quantity.
        conv: Its hyper-parameters.
        like: A tensor on the device to wait for.

    Returns:
        The context.
    """
    return _observed(name, conv, like) if observers else _UNOBSERVED


@contextmanager
def _observed(name: str, conv: Conv, like: Tensor) -> Iterator[None]:
    has_clock = holds_data(like) and not is_capturing(like)
    if has_clock:
        wait(like.device)
    start = perf_counter()
    yield
    if has_clock:
        wait(like.device)
    seconds = perf_counter() - start
    for observe in tuple(observers):
        observe(name, conv, seconds)


_only_shapes = ContextVar("only_shapes", default=False)


def needs_shapes_only() -> bool:
    """Tell whether a function runs within :func:`only_shapes`."""
    return _only_shapes.get()


def only_shapes(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function compute only the shapes of its results, from tensors without data.

    Args:
        function: Function that calls :func:`run`.

    Returns:
        The function, for which :func:`run` returns uninitialised tensors. Sizes may be
        symbols of a compiler.
    """

    @wraps(function)
    def shaped(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _only_shapes.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _only_shapes.reset(token)

    return shaped


def _shape(
    name: Quantity,
    operands: dict[str, Tensor],
    conv: Conv,
    arguments: tuple[Any, ...],
) -> list[int]:
    """Compute the shape of a quantity's network from the shapes of its operands."""
    known = (1 if isinstance(value, torch.SymInt) else value for value in arguments)
    defined = network(name, conv, 1, *known)
    sizes = dict(defined.sizes)
    for operand in defined.operands:
        shape = operands[operand.name].shape
        for axis, size in zip(operand.axes, shape, strict=True):
            if len(axis.position.terms) == 1:
                sizes[axis.position.terms[0][0]] = size
    return [prod(sizes[index] for index in axis) for axis in defined.output]


_LAID_OUT_BY_TORCH = (
    "conv",
    "weight_vjp",
    "input_vjp",
    "weight_jvp",
    "input_jvp",
    "diagonal_backward",
)
"""Quantities with the memory format of their operands, as in torch's own kernels."""
_SYMMETRIC = (
    "kfac_expand",
    "kfac_reduce",
    "gradient_factor_expand",
    "gradient_factor_reduce",
    "ggn_gram",
    "bias_ggn_gram",
)
"""Quantities that are symmetric in the last two axes."""


def _zero(
    network: TensorNetwork,
    operands: dict[str, Tensor],
    out: Tensor | None,
    accumulate: bool,
) -> Tensor:
    """Return zeros for a network without terms; differentiable, like other results."""
    if out is not None:
        return out if accumulate else out.zero_()
    nothing = torch.stack([tensor[:0].sum() for tensor in operands.values()]).sum()
    return nothing.expand(network.shape).clone()


@lru_cache(maxsize=4096)
def network(
    name: Quantity, conv: Conv, batch_size: int, *arguments: Any, **named: Any
) -> TensorNetwork:
    """Define a quantity's network; unless padding is zeros, on the padded input."""
    if conv.pads_explicitly:
        conv = conv.explicitly_padded
    define = getattr(quantities, name)
    result: TensorNetwork = define(conv, batch_size, *arguments, **named)
    return result


def result_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of results: at least float32, in which sums are accurate."""
    return torch.promote_types(x.dtype, torch.float32)


def prepare(x: Tensor, conv: Conv) -> Tensor:
    """Convert the input to the result's dtype, and pad it unless padding is zeros."""
    return pad(x.to(result_dtype(x)), conv)
