"""Factors and eigenvalues of groups of parameters, as curvlinops' next line has them.

A group is a kernel (``"W"``), a bias (``"b"``), or both, by the names of parameters.
This module knows nothing of curvlinops; a model is a function of its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tn_extensions.conv import Conv
from tn_extensions.curvlinops.nearest import Block, nearest_factors
from tn_extensions.curvlinops.stored import Bases, Eigenvalues, Factors, unstacked
from tn_extensions.errors import describe
from tn_extensions.kronecker.factors import (
    add_gradient_factor,
    add_input_factor,
    eigenbasis,
    squared_sums,
)
from tn_extensions.kronecker.moments import bias_moments, kernel_moments
from tn_extensions.layers.engine import leaves_of
from tn_extensions.layers.module import Groups, Pairs, Use
from tn_extensions.layers.observe import Observed, Uses
from tn_extensions.layers.passes import BackwardPasses

Group = dict[str, str]
"""Names of a kernel and a bias by their roles, ``"W"`` and ``"b"``."""
Key = tuple[str, ...]
"""A group's names."""


class ObservedParameters(Observed):
    """Parameters of a model that is a function of them, whose uses are observed.

    Args:
        owner: Whom errors name.
        params: The parameters by name.
        groups: How groups of channels are treated.
        is_separate: Whether a bias is a group of its own, apart from its kernel.
        takes_transposed: Whether kernels of transposed convolutions may be among them.
    """

    def __init__(
        self,
        owner: str,
        params: Mapping[str, Tensor],
        groups: Groups,
        is_separate: bool,
        takes_transposed: bool = True,
    ) -> None:
        self._is_separate, self._takes_transposed = is_separate, takes_transposed
        # those of the model may have no gradients, and be used elsewhere
        self.tensors = {name: p.detach().requires_grad_() for name, p in params.items()}
        """Tensors that take the parameters' place in the model."""
        names = {id(tensor): name for name, tensor in self.tensors.items()}
        super().__init__(owner, names, groups)
        self.mapping: list[Group] = []
        """Groups, in the order of the parameters; known after the first batch."""
        self.transposed: dict[str, int] = {}
        """By name, the groups of channels of transposed convolutions' kernels."""
        self.groups_of: dict[str, list[Group]] = {}
        """Groups that take part in the uses of a name."""
        self.convs: dict[Key, Conv] = {}
        """Hyper-parameters of a use, by group."""
        self._seen: dict[str, set[tuple[str | None, str | None]]] = {}

    def check(self, output: Tensor, uses: Uses) -> None:
        """Refuse parameters that have other uses.

        Raises:
            NotImplementedError: If there are some.
        """
        leaves = leaves_of(output)
        others = [name for name, p in self.tensors.items() if id(p) in leaves]
        if others:
            self._refuse(others, "other uses")

    def find_groups(self, uses: Uses) -> None:
        """Find the groups of a batch's uses; those of later batches are the same.

        Raises:
            ValueError: If a kernel is to be joined with a bias that it does not have in
                all of its uses.
            NotImplementedError: If parameters are not used, used in other ways than
                before, or transposed kernels that are not taken; or if a bias has
                several kernels.
        """
        seen = {name: {use.names for use in own} for name, own in uses.items()}
        if self._seen:
            if any(own - self._seen.get(name, set()) for name, own in seen.items()):
                rule = "use the same parameters together in each batch"
                message = describe(self.owner, "the model", rule, "others")
                raise NotImplementedError(message)
            return
        self._seen = seen
        held = {name for own in seen.values() for pair in own for name in pair if name}
        missing = [name for name in self.tensors if name not in held]
        if missing:
            self._refuse(missing, "none")
        for name, pairs in seen.items():
            self.groups_of[name] = self._groups_of_pairs(name, pairs)
        found = [(name, group) for name, own in self.groups_of.items() for group in own]
        biases = [group["b"] for _, group in found if "b" in group]
        twice = {bias for bias in biases if biases.count(bias) > 1}
        if twice:
            argument, rule = f"params {', '.join(twice)}", "be added to one kernel each"
            message = describe(self.owner, argument, rule, "several")
            raise NotImplementedError(message)
        position = {name: i for i, name in enumerate(self.tensors)}
        found.sort(key=lambda each: min(position[name] for name in each[1].values()))
        for name, group in found:
            self.mapping.append(group)
            conv = self.convs[key_of(group)] = uses[name][0].conv
            if conv.transposed and "W" in group:
                shape = self.tensors[group["W"]].shape
                self.transposed[group["W"]] = conv.out_channels // shape[1]
        if self.transposed and not self._takes_transposed:
            rule = "hold no kernels of transposed convolutions"
            names = ", ".join(self.transposed)
            remedy = "Use the operators of tn_extensions.curvlinops"
            message = describe(self.owner, "params", rule, names, remedy)
            raise NotImplementedError(message)

    def sources(self, name: str) -> dict[Key, list[Key]]:
        """Groups of a name by the first one that has the same uses.

        Most biases are added wherever their kernel multiplies: factors of gradients are
        then the same.
        """
        if name not in self.groups_of:
            # of a bias, which the kernel's uses have
            return {}
        first, *others = map(key_of, self.groups_of[name])
        if len(self._seen[name]) == 1:
            return {first: [first, *others]}
        return {key: [key] for key in (first, *others)}

    def _groups_of_pairs(
        self, name: str, pairs: set[tuple[str | None, str | None]]
    ) -> list[Group]:
        kernels = {kernel for kernel, _ in pairs if kernel is not None}
        biases = sorted(bias for _, bias in pairs if bias is not None)
        if not kernels:
            return [{"b": bias} for bias in biases]
        if self._is_separate or not biases:
            return [{"W": name}, *({"b": bias} for bias in biases)]
        if len(pairs) > 1:
            rule = "have one bias in all of its uses to be one block with it"
            names = sorted(str(bias) for _, bias in pairs)
            found = f"conflicting biases {', '.join(names)}"
            remedy = "Pass separate_weight_and_bias=True"
            message = describe(self.owner, f"kernel {name}", rule, found, remedy)
            raise ValueError(message)
        return [{"W": name, "b": biases[0]}]

    def _refuse(self, names: list[str], found: str) -> None:
        rule = "be multiplied and added in calls of linear or convolution only"
        argument = f"params {', '.join(names)}"
        message = describe(self.owner, argument, rule, found, "Leave them out")
        message = f"Found parameters that are not in supported layers: {message}"
        raise NotImplementedError(message)


class GroupFactors:
    """Factors and corrected eigenvalues of groups of parameters.

    Args:
        passes: Passes that show the uses of the parameters.
        parameters: The parameters.
        kfac_approx: ``"expand"`` or ``"reduce"``.
        rank_limit: Most rows of a low-rank factor, as a part of its columns.
    """

    def __init__(
        self,
        passes: BackwardPasses,
        parameters: ObservedParameters,
        kfac_approx: str,
        rank_limit: float = 0.5,
    ) -> None:
        self._passes, self.parameters = passes, parameters
        self._kfac_approx, self._rank_limit = kfac_approx, rank_limit
        self._like = next(iter(parameters.tensors.values()))

    # -- factors

    def factors(self) -> tuple[Factors, Factors]:
        """Compute KFAC's factors.

        Returns:
            Input factors of groups with a kernel, and gradient factors, by the names of
            the group; ``[G, ., .]`` where there are groups of channels.

        Raises:
            ValueError: If factors are not finite, or biases conflict.
            NotImplementedError: If a parameter has other uses.
        """
        inputs: dict[Key, Tensor] = {}
        gradients: dict[Key, Tensor] = {}
        approx, limit = self._kfac_approx, self._rank_limit

        def on_uses(uses: Uses) -> None:
            self.parameters.find_groups(uses)
            for name, own in uses.items():
                for group in self.parameters.groups_of[name]:
                    if "W" in group:
                        key, scale = key_of(group), 1 / self._passes.num_data
                        known, bias = inputs.get(key), "b" in group
                        inputs[key] = add_input_factor(
                            own, approx, known, scale, bias, limit
                        )
                own[:] = [use.without_input() for use in own]

        def on_gradients(name: str, pairs: Pairs) -> None:
            for key in self.parameters.sources(name):
                own, known = _of_group(pairs, key), gradients.get(key)
                if own:
                    scale = self._passes.scale(len(own[0][1]))
                    gradients[key] = add_gradient_factor(
                        own, approx, known, scale, limit
                    )

        # the outer products of KFAC-expand are the same in whatever order
        self._passes.run(
            "KFAC matrices",
            on_uses,
            on_gradients,
            by_datum=approx == "reduce",
            by_term=False,
        )
        for name in self.parameters.groups_of:
            for key, same in self.parameters.sources(name).items():
                if self._passes.fisher == "forward-only":
                    gradients[key] = self._identity(self.parameters.convs[key])
                if key in gradients:
                    gradients |= dict.fromkeys(same, gradients[key])
        for what, factors in (("inputs", inputs), ("output gradients", gradients)):
            self._check(what, {key: squared_sums(f) for key, f in factors.items()})
        return Factors(inputs), Factors(gradients)

    def _check(self, what: str, results: Mapping[Key, Tensor]) -> None:
        """Refuse results of groups that are missing or not finite."""
        keys = [
            key_of(g) for g in self.parameters.mapping if what != "inputs" or "W" in g
        ]
        found = {", ".join(key): [own] for key, own in results.items()}
        self._passes.check_results(what, found, [", ".join(key) for key in keys])

    def _identity(self, conv: Conv) -> Tensor:
        dtype = torch.promote_types(self._like.dtype, torch.float32)
        size = conv.out_channels // conv.groups
        identity = torch.eye(size, dtype=dtype, device=self._like.device)
        return identity.repeat(conv.groups, 1, 1)

    # -- eigenvalues

    def corrected(self) -> tuple[Bases, Bases, Eigenvalues]:
        """Compute EKFAC's eigenvectors and eigenvalues.

        Returns:
            Eigenvectors of input factors and of gradient factors, and the second
            moments of gradients in these bases, by the names of the group.

        Raises:
            ValueError: As :meth:`factors`.
            NotImplementedError: As :meth:`factors`.
        """
        inputs, gradients = self.factors()
        # of eigenvalue zero, KFAC-reduce's factors may have directions that gradients
        # have a part in; so may KFAC-expand's of gradients, if these are single terms'
        is_reduced = self._kfac_approx == "reduce"
        right = _eigenvectors(inputs.data, is_reduced)
        left = _eigenvectors(gradients.data, is_reduced or self._passes.splits_terms)
        moments: dict[Key, Tensor] = {}

        def on_uses(uses: Uses) -> None:
            self.parameters.find_groups(uses)
            for name, own in uses.items():
                if not any("W" in group for group in self.parameters.groups_of[name]):
                    own[:] = [use.without_input() for use in own]

        def on_gradients(name: str, pairs: Pairs) -> None:
            for group in self.parameters.groups_of.get(name, []):
                key = key_of(group)
                own = _of_group(pairs, key)
                if own:
                    found = self._moments(group, own, left.data, right.data)
                    found *= self._passes.scale(len(own[0][1]))
                    moments[key] = found.add_(moments[key]) if key in moments else found

        purpose = "Eigenvalue correction"
        self._passes.run(purpose, on_uses, on_gradients, by_datum=True, by_term=True)
        self._check("gradients", moments)
        values = {key: unstacked(own) for key, own in moments.items()}
        return right, left, Eigenvalues(values, left, right)

    # -- closest products

    def nearest(self, tolerance: float, max_sweeps: int) -> tuple[Factors, Factors]:
        """Compute the factors of the closest Kronecker product of each block.

        Args:
            tolerance: As :func:`nearest_factors`.
            max_sweeps: As :func:`nearest_factors`.

        Returns:
            As :meth:`factors`.

        Raises:
            ValueError: As :meth:`factors`.
            NotImplementedError: As :meth:`factors`.
        """
        passes = self._passes
        X, _ = next(iter(passes.batches("Groups of parameters")))
        with passes.forward(X) as (_, uses):
            self.parameters.find_groups(uses)
        blocks = {}
        for name, groups in self.parameters.groups_of.items():
            for group in groups:
                key, conv = key_of(group), self.parameters.convs[key_of(group)]
                channels = conv.out_channels // conv.groups
                parts = "W" in group, "b" in group
                blocks[key] = Block(name, conv.groups, channels, *parts, key)
        inputs, gradients = nearest_factors(
            passes,
            blocks,
            self._like,
            tolerance,
            max_sweeps,
            self.parameters.find_groups,
        )
        return Factors(inputs), Factors(gradients)

    def _moments(
        self,
        group: Group,
        pairs: Pairs,
        left: Mapping[Key, Tensor],
        right: Mapping[Key, Tensor],
    ) -> Tensor:
        key = key_of(group)
        if "W" not in group:
            return bias_moments(pairs, left[key]).squeeze(2)
        return kernel_moments(pairs, left[key], right[key], bias="b" in group)


def key_of(group: Group) -> Key:
    """Return the names of a group's parameters."""
    return tuple(group.values())


def _of_group(pairs: Pairs, key: Key) -> Pairs:
    """Pairs of a group's uses, which have all of its parameters."""

    def has_all(use: Use) -> bool:
        return set(key) <= set(use.names)

    return [(use, g) for use, g in pairs if has_all(use)]


def _eigenvectors(factors: dict[Key, Tensor], is_complete: bool) -> Bases:
    """Eigenvectors of factors, each of which is gone before the next one's."""
    found: dict[Key, Tensor] = {}
    while factors:
        factor = next(iter(factors.values()))
        # groups may have the same one
        same = [key for key, other in factors.items() if other is factor]
        for key in same:
            del factors[key]
        found |= dict.fromkeys(same, eigenbasis(factor, is_complete)[1])
    return Bases(found)
