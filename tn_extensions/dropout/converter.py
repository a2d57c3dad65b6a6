"""Conversion of a model's layers to layers with estimated weight gradients, and back.

Only the class of a layer changes. Parameters, hooks, names and the structure of the
model stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from tn_extensions.dropout.modules import KINDS, TensorDropout, checked
from tn_extensions.errors import describe
from tn_extensions.layers.module import num_groups
from tn_extensions.layers.names import check_patterns, matches
from tn_extensions.sampling import Sampler
from tn_extensions.sampling.samplers import check_keep

Model = TypeVar("Model", bound=nn.Module)

_CONVERTED: dict[type[nn.Module], type[TensorDropout]] = {
    kind.EXTENDS: kind for kind in KINDS
} | {kind: kind for kind in KINDS}


def convert(
    model: Model,
    keep: Mapping[str, float],
    *,
    sampler: Sampler = "bernoulli",
    generator: torch.Generator | None = None,
    skip: Sequence[str] = (),
) -> Model:
    """Let layers of a model estimate the gradients of their weights, in place.

    It converts layers whose class is exactly ``torch.nn.Conv1d``, ``Conv2d``,
    ``Conv3d`` or ``Linear``, and layers that have been converted before. Others
    (transposed convolutions, lazy, parametrised or complex layers, subclasses) stay
    unchanged.

    Args:
        model: The model, or one layer.
        keep: Share of values to keep, by index, see
            :class:`~tn_extensions.dropout.TensorDropout`. Each layer ignores indices
            that it does not have, and ``"g"`` and ``"ci"`` of size one.
        sampler: Sampling method, see :func:`tn_extensions.sampling.draw`.
        generator: Source of random numbers, shared by the layers (default: torch's CPU
            generator).
        skip: Regular expressions for layers to leave out; they match names or classes
            of layers, or names of modules that contain them.

    Returns:
        The model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If no layer is left to convert, no layer has an index of ``keep``, a
            share is outside of ``(0, 1]``, an expression of ``skip`` matches nothing,
            or there is no such sampler.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> model = convert(model, {"n": 0.5, "ci": 0.5}, skip=["0"])
    >>> [type(layer).__name__ for layer in model]
    ['Conv2d', 'ReLU', 'TensorDropoutConv2d']
    """
    _check_model("convert", model)
    check_patterns("convert", "skip", skip, model)
    layers: list[tuple[nn.Module, type[TensorDropout]]] = [
        (module, _CONVERTED[type(module)])
        for name, module in model.named_modules()
        if type(module) in _CONVERTED
        and not module.weight.is_complex()
        and not any(matches(each, name, module) for each in skip)
    ]
    if not layers:
        names = ", ".join(kind.EXTENDS.__name__ for kind in KINDS)
        rule, got = f"have layers of {names} that are not skipped", type(model).__name__
        raise ValueError(describe("convert", "model", rule, got))
    # check everything before changing anything
    known = {kind.INDICES for _, kind in layers}
    if isinstance(keep, Mapping):
        for index, share in keep.items():
            if not any(re.fullmatch(each, str(index)) for each in known):
                rule = "name indices of converted layers"
                raise ValueError(describe("convert", "keep", rule, repr(index)))
            check_keep("convert", f"keep[{index!r}]", share)
    configurations = [
        checked("convert", kind, _own(module, kind, keep), sampler, generator)
        for module, kind in layers
    ]
    for (module, kind), configuration in zip(layers, configurations, strict=True):
        module.__class__ = kind
        vars(module).update(configuration)
    return model


def revert(model: Model) -> Model:
    """Undo :func:`convert` for all layers of a model, in place.

    Args:
        model: The model, or one layer.

    Returns:
        The model.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    _check_model("revert", model)
    for module in model.modules():
        if isinstance(module, TensorDropout) and type(module) in KINDS:
            for name in ("keep", "sampler", "generator"):
                delattr(module, name)
            original: Any = module.EXTENDS
            module.__class__ = original
    return model


def _own(module: Any, kind: type[TensorDropout], keep: Any) -> Any:
    """Return the shares that apply to a layer."""
    if not isinstance(keep, Mapping):
        return keep
    groups, channels = num_groups(module, "separate"), module.weight.shape[1]
    single = {"g": groups == 1, "ci": channels == 1}
    return {
        index: share
        for index, share in keep.items()
        if re.fullmatch(kind.INDICES, index) and not single.get(index, False)
    }


def _check_model(owner: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        rule, kind = "be a torch.nn.Module", type(model).__name__
        raise TypeError(describe(owner, "model", rule, kind))
