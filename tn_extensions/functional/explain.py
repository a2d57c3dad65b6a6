"""Explain the evaluation of a network without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tn_extensions.compiler import Plan, plan
from tn_extensions.compiler.cost import Cost
from tn_extensions.errors import describe
from tn_extensions.functional import bias, factors, gradients, linear, moments
from tn_extensions.network import TensorNetwork
from tn_extensions.network.methods import method_of
from tn_extensions.quantities import Quantity
from tn_extensions.recognise import recognise


@dataclass(frozen=True)
class Explanation:
    """A plan, and the function that runs it; prints as a table.

    Args:
        plan: The plan.
    """

    plan: Plan

    @property
    def network(self) -> TensorNetwork:
        """The network that is explained."""
        return self.plan.network

    @property
    def quantity(self) -> Quantity | None:
        """Name of the quantity that the network defines, if there is one."""
        return recognise(self.network)

    @property
    def cost(self) -> Cost:
        """Estimates of the plan: ``flops``, ``bytes``, ``peak``, ``seconds``."""
        return self.plan.cost

    @property
    def primitive(self) -> str:
        """Name of the chosen candidate."""
        return self.plan.candidate.name

    @property
    def rejected(self) -> tuple[tuple[str, Cost], ...]:
        """Names and costs of the other candidates, cheapest first."""
        return tuple((other.name, other.cost) for other in self.plan.rejected)

    @property
    def function(self) -> Callable[..., Tensor] | None:
        """The function of :mod:`tn_extensions.functional` for it, if there is one."""
        modules = (bias, factors, gradients, linear, moments)
        functions = (getattr(module, self.quantity or "", None) for module in modules)
        return next(filter(None, functions), None)

    def __str__(self) -> str:
        lines = [str(self.plan)]
        if self.function is not None:
            lines.append(f"computed by functional.{self.quantity}, up to its scale")
        return "\n".join(lines)

    __repr__ = __str__


@method_of(TensorNetwork)
def explain(
    network: TensorNetwork,
    /,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **sizes: int,
) -> Explanation:
    """Plan the evaluation of a network without running it; print the result to read it.

    Args:
        network: The network.
        dtype: Dtype of the computation. Default: float32.
        device: Device, of which only the type matters, such as ``"cpu"`` or ``"cuda"``.
        **sizes: Sizes of indices that replace the network's, such as ``n=128``.

    Returns:
        The plan with its cost, the costs of other candidates, and the function of
        :mod:`tn_extensions.functional` that computes the network's quantity, if there
        is one.

    Raises:
        TypeError: If ``dtype`` is not a floating point dtype, or a size is not an
            integer.
        ValueError: If the device is unknown, or the network does not have an index or
            reads only a part of it.
    """
    if sizes:
        network = network.resize(sizes)
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
        rule = "be a device or its type, such as 'cpu' or 'cuda'"
        raise ValueError(describe(name, "device", rule, repr(device))) from None
    return Explanation(plan(network, dtype, kind))
