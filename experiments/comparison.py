"""Compares our KFAC with stock BackPACK's, convolution by convolution."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from backpack import backpack, extend
from backpack.extensions import KFAC as StockKFAC
from backpack.extensions.backprop_extension import BackpropExtension
from backpack.extensions.secondorder.hbp.conv2d import HBPConv2d
from torch import Tensor, nn

from experiments import jacobian
from experiments.contenders import CONTENDERS, plan_summary, prepare_for_memory
from experiments.measure import (
    MemoryNotMeasured,
    medians,
    peak_memory,
    time_side_by_side,
)
from tn_extensions.backpack import KFAC

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}

_HYPER_PARAMETERS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
)

Factors = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Comparison:
    """One layer's factors: ours against stock's.

    Args:
        layer: Name of the layer.
        differences: Largest difference of a factor's entry, relative to the factor's
            largest entry, per dtype.
        remark: What was compared with.
        plan: How we compute the input factor.
        time_ratio: Stock's time for the input factor over ours; ``None`` if stock
            does not support the layer.
        memory_ratio: Likewise for peak memory; ``None`` also if not measured.
    """

    layer: str
    differences: dict[torch.dtype, float]
    remark: str
    plan: str
    time_ratio: float | None = None
    memory_ratio: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether all differences are within rounding."""
        return all(d <= TOLERANCES[dtype] for dtype, d in self.differences.items())


class _StepOverGroups(HBPConv2d):
    """Stock's rule, but a grouped weight gets no factors rather than an error."""

    def weight(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> list[Tensor] | None:
        """Compute the factors if stock can."""
        if module.groups != 1:
            return None
        factors: list[Tensor] = super().weight(ext, module, g_inp, g_out, backproped)
        return factors


def stock_kfac() -> StockKFAC:
    """Stock KFAC for models whose grouped convolutions it does not support."""
    extension = StockKFAC()
    extension.set_module_extension(nn.Conv2d, _StepOverGroups(), overwrite=True)
    return extension


def kfac_factors(
    model: nn.Sequential,
    extension: BackpropExtension,
    inputs: Tensor,
    targets: Tensor,
    seed: int = 0,
) -> Factors:
    """Run a KFAC extension.

    Args:
        model: The model; it stays as it is.
        extension: Stock's extension or ours.
        inputs: Batch of inputs.
        targets: Batch of labels.
        seed: Seed of the Monte-Carlo sample.

    Returns:
        Each parameter's Kronecker factors by its name, where it has any.
    """
    extended = extend(copy.deepcopy(model))
    loss_function = extend(nn.CrossEntropyLoss())
    torch.manual_seed(seed)
    with warnings.catch_warnings(), backpack(extension):
        # BackPACK's hooks do not need the gradient of the images
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        loss_function(extended(inputs), targets).backward()
    return {
        name: list(parameter.kfac)
        for name, parameter in extended.named_parameters()
        if getattr(parameter, "kfac", None) is not None
    }


def convolutions(
    model: nn.Sequential, inputs: Tensor
) -> dict[str, tuple[nn.Conv2d, Tensor]]:
    """The model's convolutions and their inputs by name."""
    found: dict[str, tuple[nn.Conv2d, Tensor]] = {}
    with torch.no_grad():
        for name, module in model.named_children():
            if isinstance(module, nn.Conv2d):
                found[name] = (module, inputs)
            inputs = module(inputs)
    return found


def expected_factors(
    module: nn.Conv2d, name: str, x: Tensor, stock: Factors
) -> list[Tensor]:
    """What a convolution's weight factors must be.

    For groups, stock has no factors of the weight, but the bias's is right: its blocks
    are the groups' output factors. The input factors come from the Jacobian.

    Args:
        module: The convolution.
        name: Its name in the model.
        x: Its input.
        stock: Stock's factors.

    Returns:
        ``[B, A]``, with a leading dimension of groups if there are several.
    """
    if module.groups == 1:
        return stock[f"{name}.weight"]
    blocks = stock[f"{name}.bias"][0].unflatten(0, (module.groups, -1))
    size = blocks.shape[1]
    output_factor = torch.stack(
        [b[:, g * size : (g + 1) * size] for g, b in enumerate(blocks)]
    )
    return [output_factor, jacobian.kfac_expand(module, x)]


def largest_difference(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of an entry, relative to its factor's largest entry.

    Returns:
        The difference; infinite if number or shapes of the factors differ.
    """
    if [a.shape for a in ours] != [b.shape for b in expected]:
        return math.inf
    differences = [
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(ours, expected, strict=True)
    ]
    return math.inf if any(map(math.isnan, differences)) else max(differences)


def compare(
    model: nn.Sequential,
    inputs: Tensor,
    targets: Tensor,
    rounds: int = 7,
    ours: type[BackpropExtension] = KFAC,
) -> list[Comparison]:
    """Compare our KFAC of a model's convolutions with stock's.

    Args:
        model: A sequence of layers that BackPACK supports, in float32.
        inputs: Batch of inputs.
        targets: Batch of labels.
        rounds: Number of rounds of the timings.
        ours: Our extension.

    Returns:
        A comparison for each convolution.
    """
    differences: dict[str, dict[torch.dtype, float]] = defaultdict(dict)
    for dtype in TOLERANCES:
        cast, batch = copy.deepcopy(model).to(dtype), inputs.to(dtype)
        stock = kfac_factors(cast, stock_kfac(), batch, targets)
        own = kfac_factors(cast, ours(), batch, targets)
        for name, (module, x) in convolutions(cast, batch).items():
            expected = expected_factors(module, name, x, stock)
            difference = largest_difference(own[f"{name}.weight"], expected)
            differences[name][dtype] = difference

    comparisons = []
    for name, (module, x) in convolutions(model, inputs).items():
        stock_can = module.groups == 1
        comparisons.append(
            Comparison(
                layer=f"{name}: {describe(module)}",
                differences=differences[name],
                remark="stock"
                if stock_can
                else f"reference (stock: groups = {module.groups} not supported)",
                plan=plan_summary("expand", module, x),
                time_ratio=compare_time(module, x, rounds) if stock_can else None,
                memory_ratio=compare_memory(module, x) if stock_can else None,
            )
        )
    return comparisons


def compare_time(module: nn.Conv2d, x: Tensor, rounds: int) -> float:
    """Stock's time for the input factor over ours."""
    calls = {
        name: CONTENDERS["expand"][name](module, x.contiguous())
        for name in ("ours", "unfold")
    }
    seconds = medians(time_side_by_side(calls, rounds, x.device))
    return seconds["unfold"] / seconds["ours"]


def compare_memory(module: nn.Conv2d, x: Tensor) -> float | None:
    """Stock's peak memory for the input factor over ours; None if not measured."""
    make_module = partial(
        nn.Conv2d, **{name: getattr(module, name) for name in _HYPER_PARAMETERS}
    )
    peaks: dict[str, int] = {}
    for name in ("ours", "unfold"):
        prepare = partial(
            prepare_for_memory, "expand", name, make_module, tuple(x.shape), x.device
        )
        try:
            peaks[name] = peak_memory(prepare, x.device)
        except MemoryNotMeasured as reason:
            warnings.warn(f"memory: {reason}", stacklevel=2)
            return None
    return peaks["unfold"] / peaks["ours"] if peaks["ours"] else math.inf


def describe(module: nn.Conv2d) -> str:
    """Sizes of a convolution in a few letters."""
    text = f"{module.in_channels}-{module.out_channels} k{module.kernel_size[0]}"
    for letter, value in (
        ("s", module.stride[0]),
        ("d", module.dilation[0]),
        ("g", module.groups),
    ):
        if value != 1:
            text += f" {letter}{value}"
    return text


def render(comparisons: Sequence[Comparison]) -> str:
    """A table of all comparisons."""
    dtypes = [str(dtype).removeprefix("torch.") for dtype in TOLERANCES]
    head = ["layer", "compared with", *dtypes, "time", "memory", "plan"]
    rows = [
        [
            c.layer,
            c.remark,
            *(f"{c.differences[dtype]:.1e}" for dtype in TOLERANCES),
            "" if c.time_ratio is None else f"{c.time_ratio:.1f}x",
            "" if c.memory_ratio is None else f"{c.memory_ratio:.1f}x",
            c.plan,
        ]
        for c in comparisons
    ]
    return aligned([head, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for terminals, whose first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = rows
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
