"""What a network will cost, before it is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import get_args

import torch
from torch import Tensor

from tn_extensions import quantities
from tn_extensions.compiler import Plan, plan
from tn_extensions.compiler.cost import Cost
from tn_extensions.conv import Conv
from tn_extensions.conv_dim import ConvDim
from tn_extensions.network import Operand, Pattern, TensorNetwork
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
        return self.plan.lowering.primitive

    @property
    def rejected(self) -> tuple[tuple[str, Cost], ...]:
        """The other ways and their costs, cheapest first."""
        return tuple((way.primitive, way.cost) for way in self.plan.rejected)

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
    network: TensorNetwork, dtype: torch.dtype | None = None, device: str = "cpu"
) -> Explanation:
    """Plan a network; see :meth:`TensorNetwork.explain`."""
    chosen = plan(network, dtype or torch.float32, device)
    return Explanation(network, chosen, recognise(network))


def recognise(network: TensorNetwork) -> Quantity | None:
    """Name of the quantity that has this very network; None if none has."""
    read = _read(network)
    if read is None:
        return None
    conv, sizes = read
    vectors, samples = sizes.get("v"), sizes.get("n", 1)
    for name in get_args(Quantity):
        define = getattr(quantities, name)
        takes = inspect.signature(define).parameters
        options: list[dict[str, object]] = [{}]
        if "num_vectors" in takes:
            needed = takes["num_vectors"].default is inspect.Parameter.empty
            if needed and vectors is None:
                continue
            options = [{"num_vectors": vectors}]
        if "per_sample" in takes:
            options = [{**o, "per_sample": p} for o in options for p in (False, True)]
        if any(define(conv, samples, **option) == network for option in options):
            return name
    return None


def _read(network: TensorNetwork) -> tuple[Conv, dict[str, int]] | None:
    """The convolution that a network's patterns and sizes are those of."""
    sizes = dict(network.sizes)
    transposed = any(
        operand.name == "x" and {"o1", "o1p"} & set(operand.indices)
        for operand in network.operands
    )
    patterns = {pattern.index: pattern for pattern in network.patterns}
    dims: list[ConvDim] = []
    while (pattern := patterns.get(f"i{len(dims) + 1}")) is not None:
        dim = _read_dim(pattern, len(dims) + 1, sizes, transposed)
        if dim is None:
            return None
        dims.append(dim)
    if not dims:
        dims = _bias_dims(network.operands, sizes)
    if not dims:
        return None
    groups = sizes.get("g", 1)
    channels = [groups * sizes.get(name, 1) for name in ("ci", "co")]
    return Conv(channels[0], channels[1], tuple(dims), groups), sizes


def _read_dim(
    pattern: Pattern, number: int, sizes: dict[str, int], transposed: bool
) -> ConvDim | None:
    k, o = f"k{number}", f"o{number}"
    left = -pattern.position.start
    if pattern.position.indices != (k, o) or pattern.summed or left < 0:
        return None
    stride, dilation = pattern.position.stride(o), pattern.position.stride(k)
    narrow, wide, kernel = sizes[o], sizes[pattern.index], sizes[k]
    span = stride * (narrow - 1) + dilation * (kernel - 1) + 1
    right = max(span - wide - left, 0)
    try:
        if transposed:
            extra = wide - (span - left - right)
            args = (narrow, kernel, stride, dilation, (left, right), True, extra)
        else:
            args = (wide, kernel, stride, dilation, (left, right), False, 0)
        return ConvDim(*args)
    except ValueError:  # no convolution has these sizes
        return None


def _bias_dims(operands: tuple[Operand, ...], sizes: dict[str, int]) -> list[ConvDim]:
    """Of what has no patterns, a convolution with the same output positions."""
    if {operand.name for operand in operands} != {"g"}:
        return []
    dims: list[ConvDim] = []
    while (size := sizes.get(f"o{len(dims) + 1}")) is not None:
        dims.append(ConvDim(size, 1))
    return dims
