"""Einsum: contract any network with dense patterns, along opt_einsum's path.

Patterns that are views of their operand are read as views. This is the fallback for
networks that no other primitive matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from math import prod
from typing import Any

import opt_einsum
from opt_einsum.helpers import flop_count
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.allocate import reshaped
from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.constant import Constant
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.primitives.unfold import (
    UnfoldedDim,
    Unfolding,
    unfolded_dim,
)
from tn_extensions.compiler.product import needs_pieces
from tn_extensions.network import Operand, Pattern, Selection, TensorNetwork
from tn_extensions.network.index import letters

Read = Callable[[Tensors], Tensor]


def einsum(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Contract the network pairwise."""
    terms: list[tuple[str, ...]] = []
    reads: list[Read] = []
    absorbed: list[Pattern] = []
    for operand in network.operands:
        views = _views_of(operand, network, absorbed)
        absorbed += views
        indices, read = _operand(operand, list(views.values()), network)
        terms.append(indices)
        reads.append(read)
    for node in network.nodes:
        if isinstance(node, Operand) or node in absorbed:
            continue
        terms.append(node.indices)
        if isinstance(node, Selection):
            reads.append(partial(_zero_one, node, network.sizes[node.index]))
        else:
            reads.append(_constant(Constant(partial(node.dense, network.sizes))))

    symbol = letters([index for term in terms for index in term])
    shapes = [tuple(network.sizes[index] for index in term) for term in terms]
    inputs = ("".join(symbol[index] for index in term) for term in terms)
    output = "".join(symbol[index] for index in network.output_indices)
    equation = f"{','.join(inputs)}->{output}"
    optimize = "optimal" if len(terms) <= 5 else "auto"
    path, info = opt_einsum.contract_path(
        equation, *shapes, shapes=True, optimize=optimize
    )

    @lru_cache(maxsize=1)
    def expression() -> Callable[..., Tensor]:
        return opt_einsum.contract_expression(equation, *shapes, optimize=path)

    loses_digits = target.itemsize == 4 and any(_loses_digits(info))

    def compute(tensors: Tensors) -> Tensor:
        operands = [read(tensors) for read in reads]
        like = operands[0]
        if loses_digits and like.device.type == "cpu":
            operands = [operand.double() for operand in operands]
        result = expression()(*operands, backend="torch").to(like.dtype)
        return reshaped(result, network.shape)

    def run(tensors: Tensors, into: Accumulator) -> None:
        into.put(into.out, compute(tensors))

    held = int(info.largest_intermediate)
    if loses_digits:
        held += 2 * sum(map(prod, shapes))
    operations = [*_products(info, symbol, target)]
    # operands are permuted before they are multiplied
    moved = target.rates.move(held + sum(map(prod, shapes)), target.itemsize, 8)
    if loses_digits:
        moved = moved.times(2)
    operations.append(Operation("permute", "operands and intermediate results", moved))
    yield Candidate("einsum", tuple(operations), held, run, compute)


def _loses_digits(info: Any) -> Iterator[bool]:
    """Yield for each product of a path whether CPUs would sum its terms one by one."""
    for _, _, equation, *_ in info.contraction_list:
        operands, _, result = equation.partition("->")
        sides = [{*term} for term in operands.split(",")]
        kept, summed = {*result}, set.union(*sides) - {*result}
        terms = prod(info.size_dict[letter] for letter in summed)
        if len(sides) == 2:
            left, right = (
                prod(info.size_dict[j] for j in (side & kept) - other)
                for side, other in (sides, sides[::-1])
            )
            yield needs_pieces(left, right, terms)


def _products(
    info: Any, symbol: Mapping[str, str], target: Target
) -> Iterator[Operation]:
    """Describe the pairwise products of a path, by the names of indices."""
    names = {letter: index for index, letter in symbol.items()}
    for positions, removed, equation, *_ in info.contraction_list:
        terms = re.split(",|->", equation)
        involved = {letter for term in terms for letter in term}
        count = flop_count(involved, bool(removed), len(positions), info.size_dict)
        sides = [" ".join(names[letter] for letter in term) for term in terms]
        text = f"{', '.join(sides[:-1])} -> {sides[-1]}"
        # slow, since shapes are unusual
        cost = Cost(count / 2, seconds=3 * count / target.rates.gemm)
        yield Operation("product", text, cost + target.rates.overhead(8))


def _views_of(
    operand: Operand, network: TensorNetwork, absorbed: list[Pattern]
) -> dict[Pattern, UnfoldedDim]:
    """Return patterns that only this operand is read through, as a single view."""
    result = {}
    for pattern in network.patterns:
        dim = unfolded_dim(pattern, operand, network.sizes)
        if dim is None or pattern in absorbed or dim.read in network.output_indices:
            continue
        if len(network.carriers(dim.read)) == 2 and dim.is_view:
            result[pattern] = dim
    return result


def _operand(
    operand: Operand, dims: list[UnfoldedDim], network: TensorNetwork
) -> tuple[tuple[str, ...], Read]:
    read = {dim.read for dim in dims}
    added = (j for dim in dims for j in (dim.free, dim.shared) if j is not None)
    indices = (*(j for j in operand.indices if j not in read), *added)
    recipe = Unfolding(operand, dims, indices, network.sizes)
    return indices, lambda tensors: recipe.tensor(tensors[operand.name])


def _zero_one(node: Selection, size: int, tensors: Tensors) -> Tensor:
    """Make the matrix of zeros and ones of sampled positions."""
    like = next(iter(tensors.values()))
    where = tensors[node.kept].to(like.device)[:, None]
    return like.new_zeros(len(where), size).scatter_(1, where, 1.0)


def _constant(constant: Constant) -> Read:
    return lambda tensors: constant.like(next(iter(tensors.values())))
