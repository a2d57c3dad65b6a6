"""Observe uses in forward passes, and gradients in backward passes through them.

:func:`forward_pass` runs a forward pass and observes calls of torch's functions. If
others run it, as in training, hooks on modules observe it and add to :class:`Uses`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from tn_extensions.errors import describe
from tn_extensions.layers import hooks
from tn_extensions.layers.calls import Calls
from tn_extensions.layers.engine import innermost, leaves_of, node_of
from tn_extensions.layers.losses import checked_output
from tn_extensions.layers.module import Groups, Pairs, Use

OnGradient = Callable[[str, int, Tensor], None]
OnPairs = Callable[[str, Pairs], None]


class Uses(defaultdict[str, list[Use]]):
    """The uses in a forward pass by name, in order.

    Call :meth:`clear` after the passes. Nodes of the graph refer to hooks, hooks to
    uses, and uses to nodes; Python does not detect this cycle.
    """

    def __init__(self) -> None:
        super().__init__(list)
        self._on_gradient: OnGradient | None = None
        self._leaves: dict[Any, Sequence[Tensor]] = {}

    def add(
        self, name: str, use: Use, output: Tensor, leaves: Sequence[Tensor]
    ) -> None:
        """Add a use.

        Args:
            name: Its name.
            use: The use.
            output: Its output.
            leaves: Its kernel and bias, as leaves of the graph.
        """
        number, shape = len(self[name]), output.shape
        self[name].append(use)
        if not output.requires_grad:
            return
        self._leaves[node_of(output)] = leaves

        def after(gradient: Tensor | None) -> None:
            if gradient is not None and self._on_gradient is not None:
                self._on_gradient(name, number, gradient.detach().reshape(shape))

        hooks.on_gradient(output, after)

    def clear(self) -> None:
        """Drop the uses."""
        super().clear()
        self._leaves.clear()

    def has_leaf(self, found: Mapping[int, Tensor]) -> bool:
        """Tell whether leaves, by their ``id``, are among those of the uses."""
        return any(id(leaf) in found for own in self._leaves.values() for leaf in own)

    def ends(self, output: Tensor) -> list[Tensor]:
        """Find tensors to differentiate by, so that backward passes reach all uses.

        A pass to the uses that are closest to the input reaches all other uses on its
        way, without computing gradients of their kernels.
        """
        nodes = innermost(output, self._leaves)
        # the last leaf is the bias if there is one; its gradient is cheap
        ends = [self._leaves[node][-1] for node in nodes]
        return [*{id(end): end for end in ends}.values()]

    def show(
        self,
        output: Tensor,
        ends: Sequence[Tensor],
        vector: Tensor,
        keep: bool,
        on_gradient: OnGradient,
    ) -> None:
        """Run a backward pass that reports the gradients of uses' outputs.

        Args:
            output: Tensor at which it starts.
            ends: Tensors at which it ends.
            vector: Vector to backpropagate, shaped like the output.
            keep: Whether to keep the graph for other passes.
            on_gradient: Function that takes the name of a use, its number and the
                gradient.
        """
        self._on_gradient = on_gradient
        try:
            grad(output, ends, vector, retain_graph=keep, allow_unused=True)
        finally:
            self._on_gradient = None

    def backward(
        self,
        output: Tensor,
        vectors: Iterable[Tensor],
        on_pairs: OnPairs,
        keep: bool = False,
    ) -> Iterator[Tensor]:
        """Run a backward pass to all uses for each vector.

        Args:
            output: Tensor at which passes start.
            vectors: Vectors to backpropagate, shaped like the output.
            on_pairs: Function that takes a name and all pairs of a use and its output's
                gradient. It is called for each name in the ``names`` of uses (or the
                name of the use if these are ``None``), once all gradients are computed.
            keep: Whether to keep the graph for other passes.

        Yields:
            Each vector, after its pass.
        """
        every = [(name, use) for name, own in self.items() for use in own]
        numbers = Counter(own for name, use in every for own in _names(name, use))
        pending: defaultdict[str, Pairs] = defaultdict(list)

        def show(name: str) -> None:
            pairs = pending.pop(name)
            with hooks.exactly(pairs[0][1].device):
                on_pairs(name, pairs)

        def on_gradient(name: str, number: int, gradient: Tensor) -> None:
            use = self[name][number]
            pair = use, use.gradient(gradient)
            for each in _names(name, use):
                pending[each].append(pair)
                if len(pending[each]) == numbers[each]:
                    show(each)

        ends, remaining = self.ends(output), iter(vectors)
        vector = next(remaining, None)
        while vector is not None:
            following = next(remaining, None)
            if ends:
                again = keep or following is not None
                self.show(output, ends, vector, again, on_gradient)
            for name in list(pending):
                # not all uses were reached
                show(name)
            yield vector
            vector = following


def _names(name: str, use: Use) -> set[str]:
    return {each for each in use.names if each is not None} or {name}


@dataclass
class Observed:
    """Tensors whose uses are observed.

    Args:
        owner: Name of the caller, for errors.
        names: Names of the tensors, by their ``id``. The tensors of a layer may share a
            name.
        groups: How to treat groups of channels.
        computed: Names of tensors that kernels and biases may be computed from.
    """

    owner: str
    names: Mapping[int, str]
    groups: Groups
    computed: Container[str] = ()

    def check(self, output: Tensor, uses: Uses) -> None:
        """Refuse other uses of the tensors. Subclasses may override this method."""

    def name_of(self, tensor: Tensor | None, uses: Uses) -> str | None:
        """Find the name of a kernel or bias.

        Args:
            tensor: The kernel or bias.
            uses: Uses so far.

        Returns:
            The name. ``None``: it is not observed.

        Raises:
            NotImplementedError: If it is computed from tensors with several names.
        """
        if id(tensor) in self.names or not self.computed:
            return self.names.get(id(tensor))
        reached = leaves_of(tensor)
        found = {self.names[each] for each in reached if each in self.names}
        name = next((each for each in found if each in self.computed), None)
        if name is not None and (len(found) > 1 or uses.has_leaf(reached)):
            argument = f"a kernel of layer {name!r}"
            rule, others = "depend on its own parameters only", "other ones, too"
            raise NotImplementedError(describe(self.owner, argument, rule, others))
        return name


@contextmanager
def forward_pass(
    model: Callable[[Any], Any], X: Any, num_data: int, observed: Observed
) -> Iterator[tuple[Tensor, Uses]]:
    """Run a forward pass with gradients, and observe its calls.

    A use has the name of its kernel, or of its bias if the kernel is not observed.
    Calls get detached kernels and biases. So an observed tensor is in autograd's graph
    of the output only if it has uses that are not observed.

    Args:
        model: The model. Compiled parts run without compilation.
        X: Its input.
        num_data: Number of data.
        observed: The tensors whose uses are observed.

    Yields:
        The output, of float32 or wider, and the uses, which are cleared at the end.

    Raises:
        TypeError: If the model does not return a tensor.
        ValueError: If rows of an input do not belong to data.
        NotImplementedError: If a kernel has uses of several kinds, is computed from
            parameters of several layers, or :meth:`Observed.check` refuses it.
    """
    uses, owner = Uses(), observed.owner

    def on_call(func: Any, arguments: dict[str, Any]) -> Tensor:
        given = arguments["weight"], arguments["bias"]
        names = tuple(observed.name_of(tensor, uses) for tensor in given)
        name = names[1] if names[0] is None else names[0]
        if name is None or not torch.is_grad_enabled():
            output: Tensor = func(*arguments.values())
            return output
        leaves = []
        for key, each in zip(("weight", "bias"), names, strict=True):
            if each is not None:
                arguments[key] = arguments[key].detach().requires_grad_()
                leaves.append(arguments[key])
        output = func(*arguments.values())
        _check_rows(owner, name, arguments["input"], given[0], num_data)
        use = Use.of_call(
            arguments, output, observed.groups, num_data, names=names, computed=given
        )
        uses.add(name, use, output, leaves)
        first = uses[name][0]
        if _kind(first) != _kind(use) and name not in observed.computed:
            rule = "be used in calls of one kind with the same number of groups"
            found = f"{_kind(first)} and {_kind(use)} (transposed, groups)"
            raise NotImplementedError(
                describe(owner, name, rule, found, "Leave it out")
            )
        return output

    try:
        with torch.compiler.set_stance("force_eager"), torch.enable_grad():
            # do not observe backward passes, in which checkpointed layers run again
            with Calls(on_call):
                output = checked_output(owner, model(X))
            observed.check(output, uses)
            yield output, uses
    finally:
        uses.clear()


def _check_rows(
    owner: str, name: str, x: Tensor, kernel: Tensor, num_data: int
) -> None:
    """Check that the first axis of an input has rows for each datum."""
    argument = f"the input of layer {name!r}"
    if x.dim() < 2 or (kernel.dim() > 2 and x.dim() != kernel.dim()):
        rule = "have a first axis of data"
        raise ValueError(describe(owner, argument, rule, f"shape {[*x.shape]}"))
    if len(x) != num_data and (not num_data or not len(x) or len(x) % num_data):
        rule = f"have rows for each of the {num_data} data, along its first axis"
        raise ValueError(describe(owner, argument, rule, f"{len(x)} rows"))


def _kind(use: Use) -> tuple[bool, int]:
    return use.conv.transposed, use.conv.groups
