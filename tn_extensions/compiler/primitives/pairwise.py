"""Pairwise: contract two of several operands, then their product with the others.

For example, a gradient that is rotated into a basis: the input can first be multiplied
with the output's gradient, or with the basis. Costs decide, and each product has a plan
of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from math import prod

from tn_extensions.compiler.candidate import Candidate, Target, Tensors, as_defined
from tn_extensions.compiler.half import Half
from tn_extensions.network import Operand, TensorNetwork
from tn_extensions.network.index import prime
from tn_extensions.network.nodes import Node
from tn_extensions.network.parts import stored
from tn_extensions.network.rules.mirror import exchange


@as_defined
def pairwise(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Contract two operands that share summed indices first; one candidate each."""
    if len(network.operands) < 3 or network.pairs or 0 in network.sizes.values():
        return
    if Half.of(network) is not None:  # one half would be evaluated twice
        return
    carried = [*(operand.indices for operand in network.operands)]
    elements = sum(prod(network.sizes[j] for j in own) for own in carried)
    limit = max(elements + prod(network.shape), target.budget // target.itemsize)
    for one, two in combinations(network.operands, 2):
        product = _product(network, one, two)
        if product is not None and prod(product.shape) <= limit:
            copy = _copy(network, product, one, two)
            yield _candidate(network, product, copy, target)


def _product(
    network: TensorNetwork, one: Operand, two: Operand
) -> TensorNetwork | None:
    """Make the product of two operands and the patterns between them.

    Sum over the indices that only they carry; return None if there are none.
    """
    carried = {*one.indices, *two.indices}
    # a pattern with a single index of theirs would only unfold it
    between = [p for p in network.patterns if len(carried & {*p.indices}) > 1]
    own: list[Node] = [one, two, *between]
    others = [*network.nodes]
    for node in own:  # once: an operand may occur twice
        others.remove(node)
    needed = {*network.output_indices, *(j for node in others for j in node.indices)}
    indices = dict.fromkeys(index for node in own for index in node.indices)
    if needed.issuperset(indices):
        return None
    kept = [index for index in indices if index in needed]
    # indices of both first, as in the results of products
    kept.sort(key=lambda j: not (j in one.indices and j in two.indices))
    return TensorNetwork(own, [(index,) for index in kept], network.sizes)


def _copy(
    network: TensorNetwork, product: TensorNetwork, one: Operand, two: Operand
) -> TensorNetwork | None:
    """Return a product's primed copy, which has the same value, if there is one."""
    image = exchange(network)
    copy, both = product.relabel(image), Counter(product.nodes)
    both.update(copy.nodes)
    if not both <= Counter(network.nodes):
        return None
    found = _product(network, one.rename(image), two.rename(image))
    if found is None or found.replace(output=copy.output) != copy:
        return None
    return copy if {*found.output_indices} == {*copy.output_indices} else None


def _candidate(
    network: TensorNetwork,
    product: TensorNetwork,
    copy: TensorNetwork | None,
    target: Target,
) -> Candidate:
    name = " ".join(operand.name for operand in product.operands)
    while any(operand.name == name for operand in network.operands):
        name = prime(name)  # the product of the other copy already has that name
    rest = network.replace(product.nodes, [stored(name, product)])
    if copy is not None:
        rest = rest.replace(copy.nodes, [stored(name, copy)])
    first, second = target.best(product), target.best(rest)

    def multiplied(tensors: Tensors) -> Tensors:
        return {**tensors, name: first.value(tensors)}

    return Candidate(
        f"{first.name}, {second.name}",
        (*first.operations, *second.operations),
        max(first.peak, second.peak) + prod(product.shape),
        lambda tensors, into: second.run(multiplied(tensors), into),
        lambda tensors: second.value(multiplied(tensors)),
        first.differentiable and second.differentiable,
    )
