"""Find the layers of a model that are preconditioned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from warnings import warn

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrize import ParametrizationList

from tn_extensions.errors import describe
from tn_extensions.layers.module import SUPPORTED, reason_against
from tn_extensions.layers.names import check_patterns, matches
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.norms import NORMS, NormLayer
from tn_extensions.optim.options import LayerOptions


def find_layers(
    owner: str,
    model: nn.Module,
    options: LayerOptions,
    skip_layers: Sequence[str],
    overrides: Mapping[str, Mapping[str, Any]],
) -> dict[str, Layer]:
    """Find the layers with trained parameters.

    Args:
        owner: Name of the caller, for errors.
        model: The model.
        options: Options of the layers.
        skip_layers: Patterns of layers to leave out.
        overrides: Options of single layers, by pattern.

    Returns:
        The layers, by name.

    Raises:
        TypeError: If ``skip_layers`` is a string.
        ValueError: If there are no layers, or an override matches none or has a wrong
            option.
        NotImplementedError: If a parameter is not a plain or sharded tensor, or belongs
            to two layers.
    """
    check_patterns(owner, "skip_layers", skip_layers, model)
    layers: dict[str, Layer] = {}
    used: set[str] = set()
    unsupported: dict[str, None] = {}
    others: list[str] = []
    for name, module in model.named_modules():
        is_skipped = any(matches(each, name, module) for each in skip_layers)
        is_known = isinstance(module, (*SUPPORTED, *NORMS))
        # parameters that a kernel is computed from may belong to a submodule
        own = dict(module.named_parameters(recurse=is_known))
        keys = [key for key, parameter in own.items() if parameter.requires_grad]
        if not keys or is_skipped or isinstance(module, ParametrizationList):
            continue
        patterns = [each for each in overrides if matches(each, name, module)]
        mine = options
        for pattern in patterns:
            mine = mine.overridden(owner, overrides[pattern])
        is_norm = isinstance(module, NORMS) and mine.norm_layers == "unit-wise"
        kind = NormLayer if is_norm else Layer
        if not isinstance(module, kind.kinds):
            unsupported[type(module).__name__] = None
            continue
        used.update(patterns)
        reason = reason_against(module, kind.kinds)
        if reason is None and any(own[key].is_complex() for key in keys):
            reason = "has complex parameters"
        if reason is not None:
            others.append(f"layer {name!r} {reason}")
            continue
        _check_kind(owner, {f"{name}.{key}": own[key] for key in keys})
        order = tuple(key for key in ("weight", "bias") if key in keys)
        layers[name] = kind(name, module, order, mine, owner)
    supported = ", ".join(kind.__name__ for kind in SUPPORTED)
    unused = [pattern for pattern in overrides if pattern not in used]
    if unused:
        rule = "match layers of the model"
        raise ValueError(describe(owner, "overrides", rule, ", ".join(unused)))
    if not layers:
        rule = f"have trained layers of {supported}"
        found = "; ".join([type(model).__name__, *others])
        raise ValueError(describe(owner, "model", rule, found))
    _check_untied(owner, layers)
    if unsupported:
        warn(
            f"{owner}: layers of {', '.join(unsupported)} keep their plain gradient. "
            f"Supported are {supported}.",
            stacklevel=3,
        )
    if others:
        warn(
            f"{owner}: {'; '.join(others)}: they keep their plain gradient.",
            stacklevel=3,
        )
    return layers


def _check_kind(owner: str, parameters: Mapping[str, Any]) -> None:
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            remedy = "Pass a batch through the model first"
            raise ValueError(describe(owner, name, "have a shape", "none", remedy))
        if type(parameter.data) not in (torch.Tensor, FakeTensor, DTensor):
            kind = type(parameter.data).__name__
            rule = "be a plain or sharded tensor"
            remedy = "Name the layer in skip_layers"
            raise NotImplementedError(describe(owner, name, rule, kind, remedy))


def _check_untied(owner: str, layers: Mapping[str, Layer]) -> None:
    holders: defaultdict[int, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        for parameter in layer.parameters.values():
            holders[id(parameter)].append(name)
    tied = [" and ".join(names) for names in holders.values() if len(names) > 1]
    if tied:
        rule, found = "belong to one layer each", f"some of layers {', '.join(tied)}"
        remedy = "Name the layers in skip_layers, or use a single layer several times"
        raise NotImplementedError(describe(owner, "parameters", rule, found, remedy))
