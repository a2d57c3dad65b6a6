"""What a network will cost, before it is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from typing import get_args

import torch
from torch import Tensor

from tn_extensions import quantities
from tn_extensions.compiler import Plan, plan
from tn_extensions.compiler.cost import Cost
from tn_extensions.conv import Conv
from tn_extensions.conv_dim import ConvDim
from tn_extensions.errors import describe
from tn_extensions.network import Pattern, TensorNetwork
from tn_extensions.quantities import Quantity


@dataclass(frozen=True)
class Explanation:
    """How a network is evaluated, and at what cost; print it.

    Args:
        network: What was asked for.
        plan: The chosen plan.
        quantity: Name of the quantity that the network is, if it is one.
    """

    network: TensorNetwork
    plan: Plan
    quantity: Quantity | None

    @property
    def cost(self) -> Cost:
        """Estimates of the plan: ``flops``, ``bytes``, ``peak``, ``seconds``."""
        return self.plan.cost

    @property
    def primitive(self) -> str:
        """The primitive that was chosen."""
        return self.plan.candidate.name

    @property
    def rejected(self) -> tuple[tuple[str, Cost], ...]:
        """The other ways and their costs, cheapest first."""
        return tuple((way.name, way.cost) for way in self.plan.rejected)

    @property
    def function(self) -> Callable[..., Tensor] | None:
        """The function of :mod:`tn_extensions.functional` for it, if there is one."""
        functional = import_module("tn_extensions.functional")
        return getattr(functional, self.quantity or "", None)

    def __str__(self) -> str:
        lines = [str(self.plan)]
        if self.function is not None:
            lines.append(f"  as       functional.{self.quantity}, up to its scale")
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    network: TensorNetwork,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Explanation:
    """Plan a network; see :meth:`TensorNetwork.explain`."""
    name = "TensorNetwork.explain"
    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        rule, remedy = "be a floating point torch.dtype", ""
        if isinstance(dtype, (str, torch.device)):
            remedy = f"Is it a device? Pass device={str(dtype)!r}"
        raise TypeError(describe(name, "dtype", rule, repr(dtype), remedy))
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        rule = "be a device or its type, for instance 'cpu' or 'cuda'"
        raise ValueError(describe(name, "device", rule, repr(device))) from None
    chosen = plan(network, dtype, kind)
    return Explanation(network, chosen, recognise(network))


def recognise(network: TensorNetwork) -> Quantity | None:
    """Name of the quantity that has this very network; None if none has."""
    for transposed in (False, True):
        conv = _read(network, transposed)
        for name in get_args(Quantity) if conv else ():
            define = getattr(quantities, name)
            options = _options(inspect.signature(define).parameters, network.sizes)
            samples = network.sizes.get("n", 1)
            if any(define(conv, samples, **option) == network for option in options):
                return name
    return None


def _options(
    parameters: Mapping[str, inspect.Parameter], sizes: Mapping[str, int]
) -> list[dict[str, int | None]]:
    """What a quantity may have been called with beyond hyper-parameters."""
    options: list[dict[str, int | None]] = [{}]
    if "num_vectors" in parameters:
        vectors = sizes.get("v")
        required = parameters["num_vectors"].default is inspect.Parameter.empty
        options = [] if required and vectors is None else [{"num_vectors": vectors}]
    if "per_sample" in parameters:
        options = [{**one, "per_sample": kept} for one in options for kept in (0, 1)]
    return options


def _read(network: TensorNetwork, transposed: bool) -> Conv | None:
    """A convolution with the network's patterns and sizes, if there is one."""
    sizes = network.sizes
    found = {(p.index, *p.position.indices): p for p in network.patterns}
    dims: list[ConvDim] = []
    try:
        for number in count(1):
            i, k, o = f"i{number}", f"k{number}", f"o{number}"
            output = i if transposed else o
            if (i, k, o) in found:
                dims.append(_read_dim(found[i, k, o], (i, k, o), sizes, transposed))
            elif output in sizes and not network.patterns:
                # a bias only sees the output positions
                dims.append(ConvDim(sizes[output], 1, transposed=transposed))
            else:
                break
        groups = sizes.get("g", 1)
        inputs, outputs = (groups * sizes.get(name, 1) for name in ("ci", "co"))
        return Conv(inputs, outputs, tuple(dims), groups) if dims else None
    except (TypeError, ValueError):  # no convolution has these sizes
        return None


def _read_dim(
    pattern: Pattern,
    indices: tuple[str, str, str],
    sizes: Mapping[str, int],
    transposed: bool,
) -> ConvDim:
    wide, kernel, narrow = (sizes[index] for index in indices)
    dilation, stride = map(pattern.position.stride, indices[1:])
    left = -pattern.position.start
    span = stride * (narrow - 1) + dilation * (kernel - 1) + 1
    right = max(span - wide - left, 0)
    padding = (left, right)
    if transposed:
        extra = wide - (span - left - right)
        return ConvDim(narrow, kernel, stride, dilation, padding, True, extra)
    return ConvDim(wide, kernel, stride, dilation, padding)
