"""Measure the plans of a model's layers beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tn_extensions import functional
from tn_extensions.compiler import Plan, planning
from tn_extensions.compiler.plan import forget_plans
from tn_extensions.compiler.table import aligned
from tn_extensions.errors import describe
from tn_extensions.layers.hooks import on_call
from tn_extensions.layers.module import SUPPORTED, Use, reason_against
from tn_extensions.quantities import Quantity

_OPERANDS = ("x", "g", "S", "weight")
"""Operands that are made here for functions of :mod:`tn_extensions.functional`."""


@dataclass(frozen=True)
class Tuned:
    """Measurements of a quantity of a layer.

    Args:
        layers: Names of all layers that have this plan.
        quantity: The quantity.
        plan: Its plan. ``plan.estimated`` is the candidate with the lowest estimate,
            ``plan.candidate`` the fastest one; ``plan.measured`` maps the labels of
            measured candidates to seconds.
    """

    layers: tuple[str, ...]
    quantity: str
    plan: Plan

    @property
    def gain(self) -> float:
        """Seconds of the estimated choice divided by seconds of the measured one."""
        chosen, estimated = self.plan.candidate.label, self.plan.estimated.label
        measured = self.plan.measured
        return measured[estimated] / measured[chosen] if estimated in measured else 1.0


class Report(tuple[Tuned, ...]):
    """Measurements of :func:`tune`; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        head = ("layer", "quantity", "estimated choice", "measured choice", "gain")
        rows = []
        for one in self:
            estimated, chosen = one.plan.estimated, one.plan.candidate
            name = chosen.name
            if name == estimated.name and chosen.label != estimated.label:
                name = f"{name}, other sizes"
            first, *others = one.layers
            layers = f"{first} (and {len(others)} more)" if others else first
            rows.append(
                (layers, one.quantity, estimated.name, name, f"{one.gain:.2f}x")
            )
        return "\n".join(aligned([head, *rows], text_columns=4))

    __repr__ = __str__


def tune(
    model: nn.Module,
    inputs: Any,
    quantities: Iterable[str] = ("kfac_expand", "kfac_reduce"),
    *,
    num_vectors: int = 10,
    progress: bool = True,
) -> Report:
    """Measure the candidates of all layers' plans, and remember the fastest.

    Runs the model once, without gradients and on copies of its buffers, to find the
    inputs of its layers. Then it measures each quantity of each layer; layers that have
    the same plan are measured once. From now on, this process uses the fastest
    candidates wherever it evaluates these quantities: for inputs of the same shapes and
    dtype, on the same device and number of threads. So do later processes, which read
    them from the file of :mod:`tn_extensions.wisdom`.

    Args:
        model: A model with linear layers and convolutions. Layers that compute their
            kernel, or have a ``forward`` of their own, are left out.
        inputs: A typical batch: a tensor, a tuple of arguments or a mapping of keyword
            arguments.
        quantities: Names of functions in :mod:`tn_extensions.functional`. They may take
            the layer's input ``x``, its kernel ``weight``, the gradient ``g`` of its
            output, or the columns ``S`` of the square root of the loss's Hessian.
        num_vectors: Number ``V`` of columns of ``S``.
        progress: Whether to show a progress bar.

    Returns:
        A row for each quantity and each group of layers with the same plan.

    Raises:
        RuntimeError: If torch uses deterministic algorithms: nothing is measured then.
        TypeError: If ``model`` is not a module.
        ValueError: If a quantity is unknown, or the model uses no layer that can be
            tuned.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    >>> report = tune(model, torch.rand(2, 3, 8, 8), progress=False)
    >>> len(report)
    4
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(describe("tune", "model", "be a torch.nn.Module", kind))
    names = tuple(quantities)
    for name in names:
        if name not in _functions():
            rule = f"be among {sorted(_functions())}"
            raise ValueError(describe("tune", "quantities", rule, repr(name)))
    if torch.are_deterministic_algorithms_enabled():
        rule = "be off, as nothing is measured otherwise"
        option = "torch.use_deterministic_algorithms"
        raise RuntimeError(describe("tune", option, rule, "on"))
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SUPPORTED) and not reason_against(module)
    }
    uses = _uses(model, layers, inputs)
    if not uses:
        rule = "use linear layers or convolutions"
        raise ValueError(describe("tune", "model", rule, type(model).__name__))
    tuned = []
    with planning("measure"), torch.no_grad():
        work = list(product(uses.items(), names))
        for (use, owners), name in tqdm(work, disable=not progress, desc="tune"):
            plan = _measured(name, use, owners[0], layers, num_vectors)
            tuned.append(Tuned(tuple(dict.fromkeys(owners)), name, plan))
    forget_plans()
    return Report(tuned)


def _functions() -> dict[str, tuple[str, ...]]:
    """List the operands of each quantity that can be tuned."""
    found = {}
    for name in functional.__all__:
        parameters = inspect.signature(getattr(functional, name)).parameters.values()
        needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        if "conv" in needed and {*needed} <= {*_OPERANDS, "conv"}:
            found[name] = tuple(name for name in needed if name != "conv")
    return found


class _Shaped:
    """A use of a layer; it equals other uses that have the same plans."""

    def __init__(self, use: Use) -> None:
        self.use = use
        self._key = (use.conv, use.x.shape, use.x.dtype, use.x.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shaped) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _uses(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any
) -> dict[_Shaped, list[str]]:
    """Run the model and collect the uses of its layers, with names of equal ones."""
    found: dict[_Shaped, list[str]] = {}

    def see(name: str, module: Any, x: Tensor, output: Tensor) -> None:
        use = _Shaped(Use.of(module, x, output, "separate"))
        found.setdefault(use, []).append(name)

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    arguments, keywords = _arguments(inputs)
    with ExitStack() as stack, torch.random.fork_rng(), torch.no_grad():
        for name, module in layers.items():
            stack.callback(on_call(module, partial(see, name)).remove)
        torch.func.functional_call(model, buffers, arguments, keywords)
    return found


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


def _measured(
    name: str,
    shaped: _Shaped,
    owner: str,
    layers: Mapping[str, nn.Module],
    num_vectors: int,
) -> Plan:
    """Evaluate a quantity, which measures its plan; return the plan."""
    use = shaped.use
    conv, x = use.conv, use.x
    output = (len(x), conv.out_channels, *conv.output_size)
    generator = torch.Generator(x.device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=x.dtype, device=x.device, generator=generator)

    operands, options = _functions()[name], {}
    made = {"x": x}
    if "g" in operands:
        made["g"] = noise(*output)
    if "S" in operands:
        made["S"] = noise(num_vectors, *output)
        options["num_vectors"] = num_vectors
    if "weight" in operands:
        made["weight"] = noise(*conv.weight_shape)
    function = getattr(functional, name)
    arguments: dict[str, Any] = {key: made[key] for key in operands}
    if "bias" in inspect.signature(function).parameters:
        arguments["bias"] = getattr(layers[owner], "bias", None) is not None
    function(**arguments, conv=conv)
    return functional.plan(cast(Quantity, name), x, conv, **options)
