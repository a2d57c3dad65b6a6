"""Factors of all layers, in one go over the data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tn_extensions.kronecker.factors import (
    add_gradient_factor,
    add_input_factor,
    squared_sums,
)
from tn_extensions.layers.module import Pairs, num_groups, out_channels
from tn_extensions.layers.observe import Uses
from tn_extensions.layers.passes import BackwardPasses, ObservedLayers


def compute_factors(
    passes: BackwardPasses,
    layers: ObservedLayers,
    approx: str,
    joint: Iterable[str],
    rank_limit: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute KFAC's factors ``A`` and ``B`` of layers.

    Args:
        passes: The passes.
        layers: The layers that these observe.
        approx: ``"expand"`` or ``"reduce"``.
        joint: Names of layers whose weight and bias are one block.
        rank_limit: Most rows of a low-rank factor, as a part of its columns.

    Returns:
        By name: ``A`` of layers with a weight, ``B`` of all; matrices ``[G, D, D]`` or
        low-rank factors.

    Raises:
        ValueError: If a layer is not called, or a factor is not finite.
    """
    joint = set(joint)
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    with_weight = [name for name, own in layers.parameters.items() if "weight" in own]

    def on_uses(uses: Uses) -> None:
        for name, own in uses.items():
            if name in with_weight:
                scale, bias, known = (
                    1 / passes.num_data,
                    name in joint,
                    inputs.get(name),
                )
                inputs[name] = add_input_factor(
                    own, approx, known, scale, bias, rank_limit
                )
            own[:] = [use.without_input() for use in own]

    def on_gradients(name: str, pairs: Pairs) -> None:
        scale, known = passes.scale(len(pairs[0][1])), gradients.get(name)
        gradients[name] = add_gradient_factor(pairs, approx, known, scale, rank_limit)

    # the outer products of KFAC-expand are the same in whatever order
    passes.run(
        "KFAC matrices",
        on_uses,
        on_gradients,
        by_datum=approx == "reduce",
        by_term=False,
    )
    if passes.fisher == "forward-only":
        gradients = {name: _identity(layers, name) for name in layers.parameters}
    for what, factors, names in (
        ("inputs", inputs, with_weight),
        ("output gradients", gradients, layers.parameters),
    ):
        found = {name: [squared_sums(factor)] for name, factor in factors.items()}
        passes.check_results(what, found, names)
    return inputs, gradients


def _identity(layers: ObservedLayers, name: str) -> Tensor:
    module = layers.modules[name]
    groups = num_groups(module, layers.groups)
    like = next(iter(layers.parameters[name].values()))
    dtype = torch.promote_types(like.dtype, torch.float32)
    size = out_channels(module) // groups
    return torch.eye(size, dtype=dtype, device=like.device).repeat(groups, 1, 1)
