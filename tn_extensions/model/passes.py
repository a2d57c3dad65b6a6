"""The forward pass of a batch, and the uses of each parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tn_extensions.errors import describe
from tn_extensions.layers.engine import leaves_of
from tn_extensions.layers.observe import Observed, Uses, forward_pass
from tn_extensions.layers.rows import sort_rows
from tn_extensions.model.singly import has_data


@dataclass
class Batch:
    """A batch after its forward pass.

    Args:
        owner: Name of the caller, for errors.
        num_data: Number of data.
        output: The model's output, of float32 or wider, until the passes are over.
        uses: Uses by the name of their kernel, or of their bias if the kernel is not
            among the parameters.
        observed: ``"weight"`` or ``"bias"``, by the names of parameters that are only
            used as kernels or as biases of ``linear`` and convolutions.
        others: Names of the other parameters.
    """

    owner: str
    num_data: int
    output: Tensor
    uses: Uses
    observed: dict[str, str]
    others: list[str]

    def sort_rows(self) -> None:
        """Find the data that rows of uses belong to, if shapes do not determine them.

        Raises:
            ValueError: If a row depends on several data, or the order is not supported.
        """
        is_long = len(self.output) != self.num_data
        sort_rows(self.owner, self.uses, self.output, self.num_data, is_long)


@contextmanager
def batch_of(
    owner: str, model: nn.Module, parameters: Mapping[str, Tensor], x: Any
) -> Iterator[Batch]:
    """Run the forward pass of a batch.

    Args:
        owner: Name of the caller, for errors.
        model: The model.
        parameters: Its parameters, by name.
        x: Input, whose tensors have a first axis of data.

    Yields:
        The batch after its forward pass.

    Raises:
        TypeError: If the model does not return a tensor.
        ValueError: If the input has no data, or a parameter is not used.
    """
    sizes = {len(tensor) for tensor in tree_leaves(x) if has_data(tensor)}
    if len(sizes) != 1:
        rule, found = "have one length of the first axis", sorted(sizes) or "none"
        raise ValueError(describe(owner, "x", rule, found))
    (num_data,) = sizes
    names = {id(parameter): name for name, parameter in parameters.items()}
    wanted = Observed(owner, names, "separate")
    with forward_pass(model, x, num_data, wanted) as (output, uses):
        roles: defaultdict[str, set[str]] = defaultdict(set)
        for use in [use for own in uses.values() for use in own]:
            for role, name in zip(("weight", "bias"), use.names, strict=True):
                roles[str(name)].add(role)
        reached = leaves_of(output)
        observed, others = {}, []
        for name, parameter in parameters.items():
            if id(parameter) in reached or len(roles[name]) > 1:
                others.append(name)
            elif roles[name]:
                (observed[name],) = roles[name]
            else:
                argument, rule = f"parameter {name!r}", "be used in the forward pass"
                remedy = "Leave it out: pass the other parameters as params"
                raise ValueError(describe(owner, argument, rule, "no use", remedy))
        batch = Batch(owner, num_data, output, uses, observed, others)
        del output
        try:
            yield batch
        finally:
            # this frees the graph
            del batch.output
