"""Factors, eigenvalues and closest products of blocks, from passes over the data.

This module does not depend on curvlinops. A block may be one of a layer or of a group
of parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from tn_extensions.curvlinops.stored import Bases, unstacked
from tn_extensions.curvlinops.text import plain
from tn_extensions.errors import describe
from tn_extensions.kronecker.factors import (
    add_gradient_factor,
    add_input_factor,
    eigenbasis,
    squared_sums,
)
from tn_extensions.kronecker.moments import bias_moments, kernel_moments
from tn_extensions.kronecker.nearest import gradient_products, nearest_products
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.observe import Observed, Uses
from tn_extensions.layers.passes import BackwardPasses

K = TypeVar("K", bound=Hashable)


class Block(NamedTuple):
    """A block of the Fisher or GGN, and the uses that contribute to its gradients.

    Args:
        layer: Name of the layer, or of the uses.
        text: Name of the block in errors.
        groups: Number of groups of channels.
        channels: Number of output channels per group.
        has_kernel: Whether the kernel is part of the block.
        has_bias: Whether the bias is part of the block; it is the last column if the
            kernel is, too.
        parameters: Names of parameters: uses of all of them contribute. Empty: all uses
            contribute.
    """

    layer: str
    text: str
    groups: int
    channels: int
    has_kernel: bool
    has_bias: bool
    parameters: tuple[str, ...] = ()

    def pairs(self, pairs: Pairs) -> Pairs:
        """Select the uses that contribute."""
        return [(use, g) for use, g in pairs if {*self.parameters} <= {*use.names}]

    def identity(self, like: Tensor) -> Tensor:
        """Create identity matrices of the size of output channels, ``[G, CO, CO]``."""
        one = torch.eye(self.channels, dtype=_wide(like), device=like.device)
        return one.repeat(self.groups, 1, 1)


@dataclass
class BlockFactors(Generic[K]):
    """Compute the matrices that approximate blocks.

    Args:
        passes: Passes that observe the uses.
        blocks: The blocks.
        like: A parameter, for dtype and device.
        on_uses: Function that is called first, with the uses of each batch. It may add
            blocks.
    """

    passes: BackwardPasses
    blocks: Mapping[K, Block]
    like: Tensor
    on_uses: Callable[[Uses], None] = field(default=lambda _: None)

    def kfac(
        self, approx: str, rank_limit: float
    ) -> tuple[dict[K, Tensor], dict[K, Tensor]]:
        """Compute KFAC's factors ``A`` and ``B``.

        Args:
            approx: ``"expand"`` or ``"reduce"``.
            rank_limit: Largest number of rows of a low-rank factor, as a fraction of
                its columns.

        Returns:
            ``A`` of blocks with a kernel, and ``B`` of all blocks: matrices ``[G, D,
            D]`` or low-rank factors. Blocks with the same uses share ``B``.

        Raises:
            ValueError: If a block has no uses, or a factor is not finite.
        """
        inputs: dict[K, Tensor] = {}
        sums: dict[tuple[str, tuple[str, ...]], Tensor] = {}
        passes = self.passes

        def on_uses(uses: Uses) -> None:
            self.on_uses(uses)
            scale = 1 / passes.num_data
            for key, block in self.blocks.items():
                own, known = uses.get(block.layer), inputs.get(key)
                if own and block.has_kernel:
                    bias = block.has_bias
                    inputs[key] = add_input_factor(
                        own, approx, known, scale, bias, rank_limit
                    )
            for name, own in uses.items():
                uses[name] = [use.without_input() for use in own]

        def on_gradients(name: str, pairs: Pairs) -> None:
            # most biases have the same uses as their kernel
            sources = {b.parameters: b for _, b in self._of_layer(name)}
            for parameters, block in sources.items():
                own, source = block.pairs(pairs), (name, parameters)
                if own:
                    known, scale = sums.get(source), passes.scale(len(own[0][1]))
                    sums[source] = add_gradient_factor(
                        own, approx, known, scale, rank_limit
                    )

        # KFAC-expand sums over rows, so their order does not matter
        is_reduced = approx == "reduce"
        passes.run(
            "KFAC matrices", on_uses, on_gradients, by_datum=is_reduced, by_term=False
        )
        gradients = {
            key: sums[block.layer, block.parameters]
            for key, block in self.blocks.items()
            if (block.layer, block.parameters) in sums
        }
        if passes.fisher == "forward-only":
            gradients = {k: b.identity(self.like) for k, b in self.blocks.items()}
        with_kernel = [key for key, block in self.blocks.items() if block.has_kernel]
        self._check("inputs", inputs, with_kernel)
        self._check("output gradients", gradients, self.blocks)
        return inputs, gradients

    def eigenvectors(
        self, inputs: dict[Any, Tensor], gradients: dict[Any, Tensor], approx: str
    ) -> tuple[Bases, Bases]:
        """Compute eigenvectors of KFAC's factors ``A`` and ``B``; drop the factors."""
        # gradients may have components in the null space of a KFAC-reduce factor, and
        # of a KFAC-expand factor of gradients if each loss term has its own gradient
        is_reduced = approx == "reduce"
        is_complete = is_reduced or self.passes.splits_terms
        return _eigenvectors(inputs, is_reduced), _eigenvectors(gradients, is_complete)

    def moments(
        self, bases_of: Callable[[K], tuple[Tensor, Tensor | None]]
    ) -> dict[K, Tensor]:
        """Compute EKFAC's corrected eigenvalues: second moments of gradients.

        Args:
            bases_of: Function that returns ``Q_B``, ``[G, CO, s]``, and ``Q_A``, ``[G,
                D, r]``, of a block.

        Returns:
            Moments, ``[(G,) s, r]``, or ``[(G,) s]`` for biases.

        Raises:
            ValueError: As for :meth:`kfac`.
        """
        moments: dict[K, Tensor] = {}

        def on_uses(uses: Uses) -> None:
            self.on_uses(uses)
            with_kernel = {b.layer for b in self.blocks.values() if b.has_kernel}
            for name in uses.keys() - with_kernel:
                uses[name] = [use.without_input() for use in uses[name]]

        def on_gradients(name: str, pairs: Pairs) -> None:
            for key, block in self._of_layer(name):
                own = block.pairs(pairs)
                if not own:
                    continue
                left, right = bases_of(key)
                if block.has_kernel and right is not None:
                    found = kernel_moments(own, left, right, block.has_bias)
                else:
                    found = bias_moments(own, left)
                _add(moments, key, found.mul_(self.passes.scale(len(own[0][1]))))

        purpose = "Eigenvalue correction"
        self.passes.run(purpose, on_uses, on_gradients, by_datum=True, by_term=True)
        self._check("gradients", moments, self.blocks)
        for key, own in moments.items():
            of_bias = not self.blocks[key].has_kernel
            moments[key] = unstacked(own.squeeze(2) if of_bias else own)
        return moments

    def nearest(
        self, tolerance: float, max_sweeps: int
    ) -> tuple[dict[K, Tensor], dict[K, Tensor]]:
        """Compute the product ``B (x) A`` that is closest to each block.

        The block of a bias is its own closest product, ``B``. Each step of the
        iteration is one pass over the data for all blocks.

        Args:
            tolerance: As for :func:`nearest_products`.
            max_sweeps: As for :func:`nearest_products`.

        Returns:
            ``A`` of blocks with a kernel, ``[G, D, D]``, and ``B`` of all blocks, ``[G,
            CO, CO]``.

        Raises:
            ValueError: As for :meth:`kfac`.
        """

        def sweep(factors: Mapping[K, Tensor], is_left: bool) -> dict[K, Tensor]:
            found: dict[K, Tensor] = {}

            def on_gradients(name: str, pairs: Pairs) -> None:
                for key, block in self._of_layer(name):
                    own = block.pairs(pairs)
                    if key not in factors or not own:
                        continue
                    scale = self.passes.scale(len(own[0][1]))
                    if block.has_kernel:
                        new = gradient_products(
                            own, factors[key], is_left, block.has_bias
                        )
                        _add(found, key, new.mul_(scale))
                    else:
                        known = found.get(key)
                        found[key] = add_gradient_factor(
                            own, "reduce", known, scale, 0.0
                        )

            purpose = "KFOC matrices"
            options = {"by_datum": True, "by_term": True}
            self.passes.run(purpose, self.on_uses, on_gradients, **options)
            self._check("gradients", found, factors)
            return found

        like = self.like.new_empty(0, dtype=_wide(self.like))
        biases = {key: like for key, b in self.blocks.items() if not b.has_kernel}
        gradients = sweep(biases, True) if biases else {}
        sizes = {
            key: (block.groups, block.channels)
            for key, block in self.blocks.items()
            if block.has_kernel
        }
        if not sizes:
            return {}, gradients
        lefts, rights = nearest_products(sweep, sizes, like, tolerance, max_sweeps)
        return rights, {**gradients, **lefts}

    def _of_layer(self, name: str) -> list[tuple[K, Block]]:
        return [(key, own) for key, own in self.blocks.items() if own.layer == name]

    def _check(self, what: str, results: Mapping[K, Tensor], keys: Iterable[K]) -> None:
        """Check that each block has a result, and that it is finite."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for key, own in results.items():
            # moments may have fewer rows than columns, but are no low-rank factors
            sums = own if what == "gradients" else squared_sums(own)
            found[self.blocks[key].text].append(sums)
        names = [self.blocks[key].text for key in keys]
        self.passes.check_results(what, found, names)


def _eigenvectors(factors: dict[Any, Tensor], is_complete: bool) -> Bases:
    """Compute eigenvectors of factors; free each factor before the next one."""
    found: dict[Any, Tensor] = {}
    while factors:
        factor = next(iter(factors.values()))
        # blocks may share a factor
        same = [key for key, other in factors.items() if other is factor]
        for key in same:
            del factors[key]
        found |= dict.fromkeys(same, eigenbasis(factor, is_complete)[1])
    return Bases(found)


def _add(totals: dict[K, Tensor], key: K, new: Tensor) -> None:
    totals[key] = totals[key].add_(new) if key in totals else new


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def check_iteration(
    owner: str, tolerance: float, max_sweeps: int, options: dict[str, Any]
) -> None:
    """Check the arguments of operators of closest products.

    Args:
        owner: The operator's name, for errors.
        tolerance: Tolerance of the iteration.
        max_sweeps: Largest number of passes over the data.
        options: Other arguments.

    Raises:
        ValueError: If a value is not allowed.
    """
    if not tolerance > 0:
        raise ValueError(describe(owner, "tolerance", "be positive", tolerance))
    if max_sweeps < 2:
        rule = "be at least 2, one for each factor"
        raise ValueError(describe(owner, "max_sweeps", rule, max_sweeps))
    if options.get("fisher_type") == "forward-only":
        rule = "be one with gradients"
        raise ValueError(describe(owner, "fisher_type", rule, "'forward-only'"))


@contextmanager
def needs_data(owner: str) -> Iterator[None]:
    """Turn curvlinops' failure to read a first batch into a clear error.

    Args:
        owner: The operator's name, for errors.

    Yields:
        Nothing.

    Raises:
        ValueError: If the data have no batch.
    """
    try:
        yield
    except StopIteration as error:
        rule = "have at least one batch"
        raise ValueError(describe(owner, "data", rule, "none")) from error


def passes_of(
    operator: Any, owner: str, model: Callable[[Any], Any], observed: Observed
) -> BackwardPasses:
    """Create the passes for the options of an operator or computer.

    Args:
        operator: Operator or computer of curvlinops, whose attributes are the options.
        owner: The operator's name, for errors.
        model: The model.
        observed: The layers or parameters whose uses are observed.

    Returns:
        The passes.
    """
    return BackwardPasses(
        owner,
        model,
        operator._loss_func,
        operator._loop_over_data,
        observed,
        fisher=plain(operator._fisher_type),
        mc_samples=operator._mc_samples,
        seed=operator._seed,
        device=operator.device,
        num_data=operator._N_data,
        terms_per_datum=operator._num_per_example_loss_terms,
        batch_size_fn=operator._batch_size_fn,
    )
