"""Einsum: any network, its patterns materialised, along opt_einsum's path.

Patterns that can be read as views of their operand are; this is the fallback that all
other primitives are measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

import opt_einsum
import torch
from torch import Tensor

from tn_extensions.compiler.primitives.base import Lowering, Target, Tensors
from tn_extensions.compiler.primitives.unfold import Unfolding, unfolded_dim
from tn_extensions.compiler.sink import Sink
from tn_extensions.network import Operand, Pair, Pattern, TensorNetwork
from tn_extensions.network.index import letters

Read = Callable[[Tensors, torch.Tensor], Tensor]


def einsum(network: TensorNetwork, target: Target) -> Iterable[Lowering]:
    """Contract the network pairwise."""
    sizes = dict(network.sizes)
    for pair in network.pairs:
        sizes[pair.shared] = pair.size
    symbol = letters([*network.indices, *sizes])
    terms: list[str] = []
    reads: list[Read] = []
    absorbed: list[Pattern] = []
    for operand in network.operands:
        patterns = _views_of(operand, network, absorbed)
        absorbed += patterns
        indices, read = _operand(operand, patterns, network)
        terms.append("".join(symbol[j] for j in indices))
        reads.append(read)
    for node in network.nodes:
        if not isinstance(node, Operand) and node not in absorbed:
            terms.append("".join(symbol[j] for j in node.indices))
            reads.append(_constant(node, network))
    output = "".join(symbol[j] for j in network.output_indices)
    shapes = [tuple(sizes[_index(s, symbol)] for s in term) for term in terms]
    equation = f"{','.join(terms)}->{output}"
    optimize = "optimal" if len(terms) <= 5 else "auto"
    contract = opt_einsum.contract_expression(equation, *shapes, optimize=optimize)
    _, info = opt_einsum.contract_path(
        equation, *shapes, shapes=True, optimize=optimize
    )
    lengths = [len(axis) for axis in network.output]

    def compute(tensors: Tensors) -> Tensor:
        like = next(iter(tensors.values()))
        result = contract(*(read(tensors, like) for read in reads), backend="torch")
        return result.reshape(_grouped_shape(result.shape, lengths))

    def run(tensors: Tensors, sink: Sink) -> None:
        sink.put(sink.out, compute(tensors))

    flops = float(info.opt_cost) / 2
    moved = (
        2 * target.itemsize * float(sum(map(prod, shapes)) + info.largest_intermediate)
    )
    cost = target.rates.move(moved / (2 * target.itemsize), target.itemsize, 8)
    # a permuted operand is copied before it is multiplied, and shapes are odd
    seconds = cost.seconds + 3 * flops / target.rates.gemm
    cost = type(cost)(flops, moved, len(terms), int(info.largest_intermediate), seconds)
    yield Lowering("einsum", (f"contract {equation}",), cost, run, compute)


def _index(letter: str, symbol: dict[str, str]) -> str:
    return next(index for index, other in symbol.items() if other == letter)


def _grouped_shape(shape: torch.Size, lengths: list[int]) -> list[int]:
    result, start = [], 0
    for length in lengths:
        result.append(prod(shape[start : start + length]))
        start += length
    return result


def _views_of(
    operand: Operand, network: TensorNetwork, absorbed: list[Pattern]
) -> list[Pattern]:
    """Patterns that only this operand reads and that are a single view of it."""
    result = []
    for pattern in network.patterns:
        dim = unfolded_dim(pattern, operand, network.sizes)
        if dim is None or pattern in absorbed or dim.read in network.output_indices:
            continue
        alone = len(network.carriers(dim.read)) == 2
        if alone and dim.is_view:
            result.append(pattern)
    return result


def _operand(
    operand: Operand, patterns: list[Pattern], network: TensorNetwork
) -> tuple[tuple[str, ...], Read]:
    dims = [unfolded_dim(pattern, operand, network.sizes) for pattern in patterns]
    found = [dim for dim in dims if dim is not None]
    read = {dim.read for dim in found}
    added = (j for dim in found for j in (dim.free, dim.shared) if j is not None)
    indices = (*(j for j in operand.indices if j not in read), *added)
    recipe = Unfolding(operand, found, indices, network.sizes)
    return indices, lambda tensors, _: recipe.tensor(tensors[operand.name])


def _constant(node: Pattern | Pair, network: TensorNetwork) -> Read:
    dense = torch.from_numpy(node.dense(network.sizes))
    return lambda _, like: dense.to(device=like.device, dtype=like.dtype)
