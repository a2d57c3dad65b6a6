"""Checks of networks at construction; messages name the operand and the index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import index as as_int
from typing import SupportsIndex

from tn_extensions.errors import describe
from tn_extensions.network.nodes import Node, Operand, Pair, Pattern

_NAME = "TensorNetwork"


def check_complete(
    nodes: Sequence[Node], indices: Iterable[str], sizes: Mapping[str, int]
) -> None:
    """Check that each index has a size."""
    for index in indices:
        if index not in sizes:
            rule, value = f"contain the indices{_owner(nodes, index)}", f"no {index!r}"
            raise ValueError(describe(_NAME, "sizes", rule, value))


def as_size(nodes: Sequence[Node], index: str, size: SupportsIndex) -> int:
    """Convert the size of an index to an ``int``."""
    try:
        return as_int(size)
    except TypeError:
        place = f"size of index {index!r}{_owner(nodes, index)}"
        got = f"{type(size).__name__} {size!r}"
        raise TypeError(describe(_NAME, place, "be an int", got)) from None


def check_known(
    method: str, argument: str, indices: Iterable[str], sizes: Mapping[str, int]
) -> None:
    """Check that an argument names indices of the network."""
    for index in indices:
        if index not in sizes:
            rule = f"name indices of the network, {sorted(sizes)}"
            owner = f"{_NAME}.{method}"
            raise ValueError(describe(owner, argument, rule, repr(index)))


def check(
    nodes: Sequence[Node], output_indices: Iterable[str], sizes: Mapping[str, int]
) -> None:
    """Check that output, sizes and operands fit each other, and each node by itself."""
    carried = {index for node in nodes for index in node.indices}
    for index, count in Counter(output_indices).items():
        if index not in carried or count > 1:
            rule = "name indices that nodes carry, each once"
            raise ValueError(describe(_NAME, "output", rule, repr(index)))
    for index, size in sizes.items():
        if size < 0:
            place = f"size of index {index!r}{_owner(nodes, index)}"
            raise ValueError(describe(_NAME, place, "be at least 0", size))
    for node in nodes:
        for pattern in (node.first, node.second) if isinstance(node, Pair) else (node,):
            if isinstance(pattern, Pattern):
                _check_once(f"pattern of index {pattern.index!r}", pattern.indices)
    shapes: dict[str, tuple[int, ...]] = {}
    for operand in _operands(nodes):
        _check_operand(operand, sizes)
        shape = shapes.setdefault(operand.name, operand.shape)
        if shape != operand.shape:
            place = f"operand {operand.name!r}"
            rule = f"have the same shape wherever it occurs, {shape}"
            raise ValueError(describe(_NAME, place, rule, operand.shape))


def _check_operand(operand: Operand, sizes: Mapping[str, int]) -> None:
    _check_once(f"operand {operand.name!r}", operand.indices)
    for number, axis in enumerate(operand.axes):
        low, high = axis.position.bounds(sizes)
        empty = any(sizes[j] == 0 for j in axis.position.indices)
        if not empty and (low < 0 or high >= axis.extent):
            place = f"axis {number} of operand {operand.name!r}"
            rule = f"be read within its {axis.extent} entries"
            value = f"{low} to {high} through {axis.position.indices}"
            raise ValueError(describe(_NAME, place, rule, value))


def _check_once(place: str, indices: Iterable[str]) -> None:
    for index, count in Counter(indices).items():
        if count > 1:
            rule, value = "carry each index once", f"{index!r} {count} times"
            raise ValueError(describe(_NAME, place, rule, value))


def _owner(nodes: Sequence[Node], index: str) -> str:
    """Return the end of a message that names an operand which carries an index."""
    names = (node.name for node in _operands(nodes) if index in node.indices)
    return next((f" of operand {name!r}" for name in names), "")


def _operands(nodes: Sequence[Node]) -> list[Operand]:
    return [node for node in nodes if isinstance(node, Operand)]
