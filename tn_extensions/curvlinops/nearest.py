"""Closest Kronecker products of blocks, from passes over the data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.kronecker.factors import add_gradient_factor, squared_sums
from tn_extensions.kronecker.nearest import gradient_products, nearest_products
from tn_extensions.layers.module import Pairs, Use
from tn_extensions.layers.observe import Uses
from tn_extensions.layers.passes import BackwardPasses

K = TypeVar("K", bound=Hashable)


class Block(NamedTuple):
    """A block of the Fisher or GGN, and the uses that make its gradients.

    Args:
        layer: Name of the layer, or of the uses.
        groups: Groups of channels.
        channels: Channels of the output, of each group.
        has_kernel: Whether it has the kernel.
        has_bias: Whether it has the bias.
        parameters: Names that a use must have to take part. Empty: all uses do.
    """

    layer: str
    groups: int
    channels: int
    has_kernel: bool
    has_bias: bool
    parameters: tuple[str, ...] = ()

    def takes(self, use: Use) -> bool:
        """Tell whether a use takes part."""
        return set(self.parameters) <= set(use.names)


def nearest_factors(
    passes: BackwardPasses,
    blocks: Mapping[K, Block],
    like: Tensor,
    tolerance: float,
    max_sweeps: int,
    on_uses: Callable[[Uses], None] = lambda _: None,
) -> tuple[dict[K, Tensor], dict[K, Tensor]]:
    """Compute factors ``A`` and ``B`` of the closest product ``B (x) A`` of each block.

    That of a bias is the block itself, ``B``. All of them are computed together: each
    step of the iteration is a pass over the data.

    Args:
        passes: Shows gradients.
        blocks: The blocks.
        like: A parameter.
        tolerance: As :func:`nearest_products`.
        max_sweeps: As :func:`nearest_products`.
        on_uses: Called with the uses of each batch.

    Returns:
        ``A`` of the blocks with a kernel, ``[G, D, D]``, and ``B``, ``[G, CO, CO]``.
    """
    by_layer: dict[str, list[K]] = {}
    for key, block in blocks.items():
        by_layer.setdefault(block.layer, []).append(key)

    def sweep(factors: Mapping[K, Tensor], is_left: bool) -> dict[K, Tensor]:
        found: dict[K, Tensor] = {}

        def on_gradients(name: str, pairs: Pairs) -> None:
            for key in by_layer.get(name, []):
                block = blocks[key]
                own = [(use, g) for use, g in pairs if block.takes(use)]
                if key not in factors or not own:
                    continue
                scale = passes.scale(len(own[0][1]))
                if block.has_kernel:
                    new = gradient_products(own, factors[key], is_left, block.has_bias)
                    new *= scale
                    found[key] = found[key].add_(new) if key in found else new
                else:
                    known = found.get(key)
                    found[key] = add_gradient_factor(own, "reduce", known, scale, 0.0)

        passes.run("KFOC matrices", on_uses, on_gradients, by_datum=True, by_term=True)
        names = {
            str(key): [squared_sums(found[key])] for key in factors if key in found
        }
        passes.check_results("gradients", names, _texts(factors))
        return found

    like = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
    biases = {key: like for key, block in blocks.items() if not block.has_kernel}
    gradients = sweep(biases, True) if biases else {}
    sizes = {
        key: (block.groups, block.channels)
        for key, block in blocks.items()
        if block.has_kernel
    }
    if not sizes:
        return {}, gradients
    lefts, rights = nearest_products(sweep, sizes, like, tolerance, max_sweeps)
    return rights, {**gradients, **lefts}


def _texts(keys: Iterable[Hashable]) -> list[str]:
    return [str(key) for key in keys]


def check_iteration(
    owner: str, tolerance: float, max_sweeps: int, options: dict[str, Any]
) -> None:
    """Refuse arguments of operators of closest products.

    Args:
        owner: Whom errors name.
        tolerance: Of the iteration.
        max_sweeps: Of the iteration.
        options: Others.

    Raises:
        ValueError: If one is not among its choices.
    """
    if not tolerance > 0:
        raise ValueError(describe(owner, "tolerance", "be positive", tolerance))
    if max_sweeps < 2:
        rule = "be two or more, for both factors"
        raise ValueError(describe(owner, "max_sweeps", rule, max_sweeps))
    if options.get("fisher_type") == "forward-only":
        rule = "be a kind of gradients"
        raise ValueError(describe(owner, "fisher_type", rule, "'forward-only'"))
