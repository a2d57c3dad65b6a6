"""Find a network's quantity, to print it with the network or its plan."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from typing import get_args

from tn_extensions import quantities
from tn_extensions.conv import Conv
from tn_extensions.conv_dim import ConvDim
from tn_extensions.network import Pattern, TensorNetwork
from tn_extensions.quantities import Quantity


@lru_cache(maxsize=4096)
def recognise(network: TensorNetwork) -> Quantity | None:
    """Find the quantity that this network defines; ``None`` if there is none."""
    for transposed in (False, True):
        conv = _read(network, transposed)
        for name in get_args(Quantity) if conv else ():
            define = getattr(quantities, name)
            options = _options(inspect.signature(define).parameters, network.sizes)
            samples = network.sizes.get("n", 1)
            if any(define(conv, samples, **option) == network for option in options):
                return name
    return None


_SIZED = {"rank_a": "a", "rank_b": "b", "num_products": "b"}
"""Arguments of quantities that are sizes, and their indices."""


def _options(
    parameters: Mapping[str, inspect.Parameter], sizes: Mapping[str, int]
) -> list[dict[str, int | None]]:
    """List the options that a quantity may have been defined with."""
    options: list[dict[str, int | None]] = [{}]
    if "num_vectors" in parameters:
        vectors = sizes.get("v")
        required = parameters["num_vectors"].default is inspect.Parameter.empty
        options = [] if required and vectors is None else [{"num_vectors": vectors}]
    for argument, index in _SIZED.items():
        if argument in parameters:
            options = [{**one, argument: sizes.get(index)} for one in options]
    if "per_sample" in parameters:
        options = [{**one, "per_sample": kept} for one in options for kept in (0, 1)]
    return options


def _read(network: TensorNetwork, transposed: bool) -> Conv | None:
    """Read a convolution from patterns and sizes, if there is one."""
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
                # the quantities of a bias have output positions only
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
