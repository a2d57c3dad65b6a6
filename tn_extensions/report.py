"""Report which quantities a run computed with this package, and for which toolkit."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tn_extensions.compiler.table import milli, ruled
from tn_extensions.conv import Conv
from tn_extensions.functional.evaluate import observers
from tn_extensions.layers.module import CONVOLUTIONS
from tn_extensions.patch import TOOLKITS


class Fault(NamedTuple):
    """A hyper-parameter for which a toolkit's results are silently wrong.

    Args:
        name: The hyper-parameter.
        occurs: Function that tells whether a layer and its input have it.
        quantities: Regular expression that matches the start of the names of affected
            quantities.
    """

    name: str
    occurs: Callable[[Any, Tensor], bool]
    quantities: str = "(?!bias_|gradient_factor)"


def _pads_with_data(layer: Any, x: Tensor) -> bool:
    padding = layer.kernel_size if layer.padding == "same" else layer.padding
    return layer.padding_mode != "zeros" and padding != "valid" and any(padding)


def _has_groups(layer: Any, x: Tensor) -> bool:
    return layer.groups > 1


def _is_uneven(layer: Any, x: Tensor) -> bool:
    spans = zip(layer.dilation, layer.kernel_size, strict=True)
    return layer.padding == "same" and any(d * (k - 1) % 2 for d, k in spans)


def _is_same(layer: Any, x: Tensor) -> bool:
    is_flat = len(layer.kernel_size) < 3
    return _is_uneven(layer, x) or (layer.padding == "same" and is_flat)


def _has_output_padding(layer: Any, x: Tensor) -> bool:
    return any(layer.output_padding)


def _is_channels_last(layer: Any, x: Tensor) -> bool:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return last and not x.is_contiguous()


def _of_conv2d(occurs: Callable[[Any, Tensor], bool]) -> Callable[[Any, Tensor], bool]:
    """Restrict a check to ``Conv2d``: toolkits refuse or skip other convolutions."""
    return lambda layer, x: type(layer) is nn.Conv2d and occurs(layer, x)


_FACTORS = "kfac|patch|unfold|rotated"
_CURVLINOPS = (
    Fault("padding_mode", _of_conv2d(_pads_with_data), _FACTORS),
    Fault("groups", _of_conv2d(_has_groups), _FACTORS),
    Fault("padding='same'", _of_conv2d(_is_uneven), _FACTORS),
)

FAULTS: dict[str, tuple[Fault, ...]] = {
    "backpack": (
        Fault("padding_mode", _pads_with_data),
        Fault("groups", _has_groups, "per_sample_grad_norm"),
        Fault("padding='same'", _is_same, "per_sample_grad$|weight_vjp"),
        Fault("output_padding", _has_output_padding, _FACTORS),
    ),
    "curvlinops": _CURVLINOPS,
    "laplace": _CURVLINOPS,
    "opacus": (
        Fault("padding_mode", _pads_with_data),
        Fault("channels-last input", _of_conv2d(_is_channels_last)),
    ),
    "captum": (Fault("padding_mode", _of_conv2d(_pads_with_data)),),
    "kronfluence": (
        Fault("padding_mode", _of_conv2d(_pads_with_data)),
        Fault("groups", _of_conv2d(_has_groups)),
    ),
    "singd": (Fault("padding_mode", _of_conv2d(_pads_with_data)),),
}
"""Faults by toolkit; docs/support.md and docs/plugs_support.md list all, measured."""

OURS = "tn_extensions"
"""Name in the report for calls that no toolkit made."""

_PLUGS = sorted((toolkit.plug, name) for name, toolkit in TOOLKITS.items())
"""Our modules and their toolkits' names; a module comes before its submodules."""


@dataclass
class _Row:
    calls: int = 0
    seconds: float = 0.0
    convs: set[Conv] = field(default_factory=set)


class Report:
    """Quantities that were computed, by toolkit and name; prints as a table."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], _Row] = {}
        self._faults: set[Fault] = set()
        self._lock = Lock()

    def note(self, quantity: str, conv: Conv, seconds: float) -> None:
        """Count an evaluation of a quantity."""
        with self._lock:
            row = self._rows.setdefault((_calling_toolkit(), quantity), _Row())
            row.calls += 1
            row.seconds += seconds
            row.convs.add(conv)

    def see(self, layer: Any, inputs: Any, named: Any, output: Any) -> None:
        """Check a layer's hyper-parameters for faults, after its forward pass."""
        if torch.compiler.is_compiling() or type(layer) not in CONVOLUTIONS:
            return
        x = inputs[0] if inputs else named["input"]
        for faults in FAULTS.values():
            self._faults |= {fault for fault in faults if fault.occurs(layer, x)}

    def __str__(self) -> str:
        if not self._rows:
            return "tn_extensions: no toolkit has computed anything with this package"
        rows = [
            (
                *key,
                ", ".join(self.wrong_in_stock(*key)),
                str(row.calls),
                str(len(row.convs)),
                milli(row.seconds),
            )
            for key, row in sorted(self._rows.items())
        ]
        head = ("toolkit", "quantity", "wrong in stock", "calls", "layers", "ms")
        return "\n".join(ruled(head, rows, text_columns=3))

    def wrong_in_stock(self, toolkit: str, quantity: str) -> Iterator[str]:
        """Name the faults of a toolkit that observed layers would have run into."""
        for fault in FAULTS.get(toolkit, ()):
            parts = quantity.split(" + ")
            if fault in self._faults and any(
                re.match(fault.quantities, part) for part in parts
            ):
                yield fault.name


@contextmanager
def report() -> Iterator[Report]:
    """Report the quantities that all threads compute within this context."""
    own = Report()
    observers.append(own.note)
    hook = register_module_forward_hook(own.see, with_kwargs=True)
    try:
        yield own
    finally:
        hook.remove()
        observers.remove(own.note)


def _calling_toolkit() -> str:
    """Find the outermost plug on the stack, since some plugs call others."""
    found, frame = OURS, sys._getframe(1).f_back
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        for plug, name in _PLUGS:
            if f"{module}.".startswith(f"{plug}."):
                found = name
        frame = frame.f_back
    return found
