"""Factors and eigenvalues of groups of parameters, for curvlinops' next line.

A group has a kernel (``"W"``), a bias (``"b"``), or both, by the names of parameters.
This module does not depend on curvlinops. A model is a function of its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tn_extensions.curvlinops.factors import Block, BlockFactors
from tn_extensions.curvlinops.stored import Bases, Eigenvalues, Factors
from tn_extensions.errors import describe
from tn_extensions.layers.engine import leaves_of
from tn_extensions.layers.module import Groups
from tn_extensions.layers.observe import Observed, Uses
from tn_extensions.layers.passes import BackwardPasses

Group = dict[str, str]
"""Names of a kernel and a bias by their roles, ``"W"`` and ``"b"``."""
Key = tuple[str, ...]
"""The names of a group's parameters."""


class ObservedParameters(Observed):
    """Observe the uses of parameters in a model that is a function of them.

    Args:
        owner: The operator's name, for errors.
        params: The parameters by name.
        groups: How to treat groups of channels.
        is_separate: Whether a bias and its kernel are two groups.
        takes_transposed: Whether kernels of transposed convolutions are supported.
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
        # the model's own parameters may need no gradients, or be used elsewhere
        self.tensors = {name: p.detach().requires_grad_() for name, p in params.items()}
        """Tensors that replace the parameters in the model."""
        names = {id(tensor): name for name, tensor in self.tensors.items()}
        super().__init__(owner, names, groups)
        self.mapping: list[Group] = []
        """Groups, in the order of the parameters; known after the first batch."""
        self.transposed: dict[str, int] = {}
        """Number of groups of channels, by the name of a transposed kernel."""
        self.blocks: dict[Key, Block] = {}
        """Blocks of the groups."""
        self._seen: dict[str, set[tuple[str | None, str | None]]] = {}

    def check(self, output: Tensor, uses: Uses) -> None:
        """Check that parameters have no uses that are not observed.

        Args:
            output: Output of the model.
            uses: Uses that were observed.

        Raises:
            NotImplementedError: If a parameter has another use.
        """
        leaves = leaves_of(output)
        others = [name for name, p in self.tensors.items() if id(p) in leaves]
        if others:
            self._refuse(others, "other uses")

    def find_groups(self, uses: Uses) -> None:
        """Find the groups in the first batch; check that later batches have the same.

        Args:
            uses: Uses of a batch.

        Raises:
            ValueError: If a kernel and its bias should form a block, but the kernel has
                uses without this bias.
            NotImplementedError: If a parameter is not used, is used in another way than
                in the first batch, or is a transposed kernel that is not supported; or
                if a bias has several kernels.
        """
        seen = {name: {use.names for use in own} for name, own in uses.items()}
        if self._seen:
            if any(own - self._seen.get(name, set()) for name, own in seen.items()):
                rule = "combine the same parameters in each batch"
                message = describe(self.owner, "the model", rule, "others")
                raise NotImplementedError(message)
            return
        self._seen = seen
        held = {name for own in seen.values() for pair in own for name in pair if name}
        missing = [name for name in self.tensors if name not in held]
        if missing:
            self._refuse(missing, "none")
        found = [
            (name, group)
            for name, pairs in seen.items()
            for group in self._groups_of_pairs(name, pairs)
        ]
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
            conv, key = uses[name][0].conv, tuple(group.values())
            self.blocks[key] = Block(
                name,
                ", ".join(key),
                conv.groups,
                conv.out_channels // conv.groups,
                has_kernel="W" in group,
                has_bias="b" in group,
                # if all uses are alike, each has all parameters
                parameters=key if len(seen[name]) > 1 else (),
            )
            if conv.transposed and "W" in group:
                shape = self.tensors[group["W"]].shape
                self.transposed[group["W"]] = conv.out_channels // shape[1]
        if self.transposed and not self._takes_transposed:
            rule = "have no kernels of transposed convolutions"
            names = ", ".join(self.transposed)
            remedy = "Use the operators of tn_extensions.curvlinops"
            message = describe(self.owner, "params", rule, names, remedy)
            raise NotImplementedError(message)

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
            rule = "have the same bias in all of its uses, to form a block with it"
            names = sorted(str(bias) for _, bias in pairs)
            found = f"conflicting biases {', '.join(names)}"
            remedy = "Pass separate_weight_and_bias=True"
            message = describe(self.owner, f"kernel {name}", rule, found, remedy)
            raise ValueError(message)
        return [{"W": name, "b": biases[0]}]

    def _refuse(self, names: list[str], found: str) -> None:
        rule = "be used only as kernels or biases of linear and convolutions"
        argument = f"params {', '.join(names)}"
        message = describe(self.owner, argument, rule, found, "Leave them out")
        message = f"Found parameters that are not in supported layers: {message}"
        raise NotImplementedError(message)


class GroupFactors:
    """Factors and corrected eigenvalues of groups of parameters.

    All methods raise a ``ValueError`` if a result is not finite or biases conflict, and
    a ``NotImplementedError`` if a parameter has a use that is not observed.

    Args:
        passes: Passes that observe the uses of the parameters.
        parameters: The parameters.
        kfac_approx: ``"expand"`` or ``"reduce"``.
        rank_limit: Largest number of rows of a low-rank factor, as a fraction of its
            columns.
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
        like = next(iter(parameters.tensors.values()))
        self._blocks = BlockFactors(
            passes, parameters.blocks, like, parameters.find_groups
        )

    def factors(self) -> tuple[Factors, Factors]:
        """Compute KFAC's factors.

        Returns:
            Input factors of groups with a kernel, and gradient factors of all groups,
            by the group's names; ``[G, ., .]`` if there are groups of channels.
        """
        inputs, gradients = self._blocks.kfac(self._kfac_approx, self._rank_limit)
        return Factors(inputs), Factors(gradients)

    def corrected(self) -> tuple[Bases, Bases, Eigenvalues]:
        """Compute EKFAC's eigenvectors and eigenvalues.

        Returns:
            Eigenvectors of input factors and of gradient factors, and the second
            moments of gradients in these bases, by the group's names.
        """
        approx, blocks = self._kfac_approx, self._blocks
        found = blocks.kfac(approx, self._rank_limit)
        right, left = blocks.eigenvectors(*found, approx)

        def bases_of(key: Key) -> tuple[Tensor, Tensor | None]:
            return left.data[key], right.data.get(key)

        return right, left, Eigenvalues(blocks.moments(bases_of), left, right)

    def nearest(self, tolerance: float, max_sweeps: int) -> tuple[Factors, Factors]:
        """Compute the factors of the closest Kronecker product of each block.

        Args:
            tolerance: As for :meth:`BlockFactors.nearest`.
            max_sweeps: As for :meth:`BlockFactors.nearest`.

        Returns:
            As for :meth:`factors`.
        """
        passes = self._passes
        X, _ = next(iter(passes.batches("Groups of parameters")))
        with passes.forward(X) as (_, uses):
            self.parameters.find_groups(uses)
        inputs, gradients = self._blocks.nearest(tolerance, max_sweeps)
        return Factors(inputs), Factors(gradients)
