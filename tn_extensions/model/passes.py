"""Forward and backward passes of a batch, seen by parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.utils._pytree import tree_leaves

from tn_extensions.errors import describe
from tn_extensions.layers.calls import calls_observed
from tn_extensions.layers.computed import leaves_of
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.observe import Uses, innermost
from tn_extensions.layers.order import Gradients, sort_rows
from tn_extensions.layers.rows import probes
from tn_extensions.model.singly import has_data, uncompiled

OnPairs = Callable[[str, Pairs], None]


class Passes:
    """A forward pass of a batch, and backward passes through it.

    Calls of ``linear`` and convolutions are observed. A parameter that is their kernel
    or bias, and nothing else, is *observed*; all others are known by name only.

    Attributes:
        num_data: Number of data.
        output: The model's output, of float32 or wider.
        uses: Uses by the name of their kernel, or of their bias where the kernel is
            none of the parameters.
        observed: ``"weight"`` or ``"bias"`` by name of the observed parameters.
        others: Names of the other parameters.
    """

    output: Tensor

    def __init__(self, owner: str, num_data: int, on_pairs: OnPairs) -> None:
        self._owner, self._on_pairs = owner, on_pairs
        self._pending: defaultdict[str, Pairs] = defaultdict(list)
        self._probed: dict[tuple[str, int], Tensor] | None = None
        self.num_data = num_data
        self.uses = Uses()
        self.observed: dict[str, str] = {}
        self.others: list[str] = []
        self._num_uses: dict[str, int] = {}

    @classmethod
    @contextmanager
    def of(
        cls,
        owner: str,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        x: Any,
        on_pairs: OnPairs,
    ) -> Iterator[Passes]:
        """Make the forward pass of a batch.

        Args:
            owner: Whom errors name.
            model: The model.
            parameters: Its parameters, by name.
            x: Input, whose tensors have a first axis of data.
            on_pairs: Called in backward passes with the name of an observed parameter,
                and all of its uses with the gradients of their outputs.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If the input has no data, or a parameter has no use.
        """
        passes = cls(owner, _num_data(owner, x), on_pairs)
        try:
            passes._run(model, parameters, x)
            yield passes
        finally:
            # the graph's nodes hold the passes, and Python does not see that
            passes.uses.clear()
            passes._pending.clear()
            passes.__dict__.pop("output", None)

    def _run(self, model: nn.Module, parameters: Mapping[str, Tensor], x: Any) -> None:
        observing = calls_observed(
            self._owner, parameters, "separate", self._on_gradient
        )
        # not in backward passes: checkpointed layers are then called again
        with observing as self.uses, uncompiled(), torch.enable_grad():
            self.uses.num_data = self.num_data
            output = model(x)
        if not isinstance(output, Tensor):
            rule, found = "be a tensor", type(output).__name__
            remedy = "Wrap the model in a module that returns what the loss takes"
            argument = "the model's output"
            raise TypeError(describe(self._owner, argument, rule, found, remedy))
        with torch.enable_grad():
            # losses of half precision, as autocast leaves outputs, lose a lot
            self.output = output.to(torch.promote_types(output.dtype, torch.float32))
        self._find_roles(parameters)

    def _find_roles(self, parameters: Mapping[str, Tensor]) -> None:
        reached = leaves_of(self.output)
        roles: defaultdict[str, list[str]] = defaultdict(list)
        for own in self.uses.values():
            for use in own:
                for name, role in zip(use.names, ("weight", "bias"), strict=True):
                    if name is not None:
                        roles[name].append(role)
        for name, parameter in parameters.items():
            if id(parameter) in reached or len(set(roles[name])) > 1:
                self.others.append(name)
            elif roles[name]:
                self.observed[name] = roles[name][0]
            else:
                argument, rule = f"parameter {name!r}", "be used in the forward pass"
                remedy = "Leave it out: pass the others as params"
                raise ValueError(
                    describe(self._owner, argument, rule, "no use", remedy)
                )
        self._num_uses = {name: len(roles[name]) for name in self.observed}

    # -- backward

    @property
    def _ends(self) -> list[Tensor]:
        """Where passes end that are to reach all uses."""
        # a bias' gradient is cheaper than a weight's
        return [
            [leaf for leaf in use.leaves if leaf is not None][-1]
            for name in innermost(self.output, self.uses)
            for use in self.uses[name]
        ]

    def backward(self, start: Tensor, vectors: Iterable[Tensor]) -> Iterator[Tensor]:
        """Make a backward pass to all uses for each vector.

        Args:
            start: The output, or what is computed from it.
            vectors: Shaped as ``start``.

        Yields:
            Each vector as one shaped as the output, after its pass.
        """
        ends, remaining = self._ends, iter(vectors)
        vector = next(remaining, None)
        while vector is not None:
            following = next(remaining, None)
            again = following is not None
            (own,) = grad(start, self.output, vector, retain_graph=True)
            if ends:
                grad(self.output, ends, own, retain_graph=again, allow_unused=True)
            while self._pending:
                # not all uses were reached
                self._on_pairs(*self._pending.popitem())
            yield own
            vector = following

    def _on_gradient(self, name: str, number: int, gradient: Tensor) -> None:
        if self._probed is not None:
            self._probed[name, number] = gradient.detach()
            return
        use = self.uses[name][number]
        pair = use, use.gradient(gradient)
        for key in use.names:
            if key in self.observed:
                self._pending[key].append(pair)
                if len(self._pending[key]) == self._num_uses[key]:
                    self._on_pairs(key, self._pending.pop(key))

    def sort_rows(self) -> None:
        """Find which rows of uses belong to which datum, where shapes do not say.

        Raises:
            ValueError: If rows belong to several data, or are in no known order.
        """
        num_rows, num_data = len(self.output), self.num_data
        if num_data and num_rows % num_data:
            rule = f"have rows for each of the {num_data} data"
            found = f"{num_rows} rows"
            raise ValueError(describe(self._owner, "outputs", rule, found))
        is_long, ends = num_rows != num_data, self._ends
        if num_data < 2 or not ends or not (is_long or self.uses.as_cat):
            return
        seen: list[Gradients] = []
        try:
            flat = self.output.detach().reshape(num_rows, -1)
            for vector in probes(flat, num_data):
                self._probed = {}
                shaped = vector.reshape(self.output.shape)
                grad(self.output, ends, shaped, retain_graph=True, allow_unused=True)
                seen.append(self._probed)
        finally:
            self._probed = None
        first, scaled = seen
        sort_rows(self._owner, self.uses, first, scaled, is_long)


def _num_data(owner: str, x: Any) -> int:
    sizes = {len(tensor) for tensor in tree_leaves(x) if has_data(tensor)}
    if len(sizes) != 1:
        rule, found = "have one first axis of data", sorted(sizes) or "none"
        raise ValueError(describe(owner, "x", rule, found))
    return sizes.pop()
