"""Immutable tensor networks: contractions of named operands and index patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from textwrap import wrap
from typing import Any, ClassVar

import opt_einsum

from tn_extensions.errors import describe
from tn_extensions.network.check import as_size, check, check_complete, check_known
from tn_extensions.network.index import letters, prime
from tn_extensions.network.nodes import (
    Affine,
    Axis,
    Node,
    Operand,
    Pair,
    Pattern,
    Rename,
    Selection,
)
from tn_extensions.network.text import node_text, output_text

Output = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class TensorNetwork:
    """Product of nodes, summed over all indices that the output does not have.

    Networks are values: hashable, never changed in place, and equal if they have the
    same nodes (in any order), output and sizes.

    Args:
        nodes: Operands, patterns, pairs and selections.
        output: Axes of the result; each axis is a tuple of indices, the last fastest.
        sizes: Size of each index; sizes of other indices are dropped.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If an index has no size or a negative one, if an operand is read out
            of bounds or has two shapes, if no node carries an index of the output, or
            if the output or an operand names an index twice.
    """

    nodes: tuple[Node, ...]
    output: Output
    sizes: Mapping[str, int]

    # higher layers supply these, see `network.methods`
    draw: ClassVar[Callable[..., Any]]
    to_tikz: ClassVar[Callable[..., str]]
    explain: ClassVar[Callable[..., Any]]
    evaluate: ClassVar[Callable[..., Any]]
    export: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        nodes: Iterable[Node],
        output: Iterable[Iterable[str]],
        sizes: Mapping[str, int],
    ) -> None:
        object.__setattr__(
            self, "nodes", tuple(sorted(nodes, key=lambda node: node.order))
        )
        object.__setattr__(self, "output", tuple(tuple(axis) for axis in output))
        check_complete(self.nodes, self.indices, sizes)
        kept = {
            index: as_size(self.nodes, index, sizes[index]) for index in self.indices
        }
        object.__setattr__(self, "sizes", kept)
        check(self.nodes, self.output_indices, kept)

    @classmethod
    def unchecked(
        cls,
        nodes: Iterable[Node],
        output: Iterable[Iterable[str]],
        sizes: Mapping[str, int],
    ) -> TensorNetwork:
        """Make a network without checks, one that follows from a checked one."""
        network = cls.__new__(cls)
        in_order = tuple(sorted(nodes, key=lambda node: node.order))
        object.__setattr__(network, "nodes", in_order)
        object.__setattr__(network, "output", tuple(tuple(axis) for axis in output))
        kept = {index: sizes[index] for index in network.indices}
        object.__setattr__(network, "sizes", kept)
        return network

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorNetwork):
            return NotImplemented
        return self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        """Write operands, patterns, summed indices, sizes and output."""
        rows = [
            (node_text(node, self.sizes), str(list(node.shape)))
            for node in self.operands
        ]
        rows.append((output_text(self.output), str(list(self.shape))))
        width = max(len(text) for text, _ in rows)
        *operands, output = (f"{text:{width}}  {shape}" for text, shape in rows)
        others = (n for n in self.nodes if not isinstance(n, Operand))
        sizes = " ".join(f"{index}={size}" for index, size in self.sizes.items())
        sections = {
            "operands": operands,
            "where": [node_text(node, self.sizes) for node in others],
            "summed": _wrapped(" ".join(self.summed_indices)),
            "sizes": _wrapped(sizes),
            "output": [output],
        }
        return "\n".join(
            f"{'' if number else title:{_INDENT}}{line}"
            for title, lines in sections.items()
            for number, line in enumerate(lines)
        )

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return self.nodes, self.output, tuple(sorted(self.sizes.items()))

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        """The nodes that are tensors."""
        return tuple(node for node in self.nodes if isinstance(node, Operand))

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The nodes that are index patterns."""
        return tuple(node for node in self.nodes if isinstance(node, Pattern))

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The nodes that are pairs of patterns."""
        return tuple(node for node in self.nodes if isinstance(node, Pair))

    @cached_property
    def selections(self) -> tuple[Selection, ...]:
        """The nodes that are sampled positions."""
        return tuple(node for node in self.nodes if isinstance(node, Selection))

    @cached_property
    def indices(self) -> tuple[str, ...]:
        """All indices, in the order of first appearance."""
        carried = (index for node in self.nodes for index in node.indices)
        return tuple(dict.fromkeys([*carried, *self.output_indices]))

    @cached_property
    def output_indices(self) -> tuple[str, ...]:
        """Indices of the output, in order."""
        return tuple(index for axis in self.output for index in axis)

    @cached_property
    def summed_indices(self) -> tuple[str, ...]:
        """Indices that are summed over."""
        kept = set(self.output_indices)
        return tuple(index for index in self.indices if index not in kept)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(prod(self.sizes[index] for index in axis) for axis in self.output)

    @cached_property
    def flops(self) -> float:
        """Multiply-adds of a pairwise contraction with dense patterns.

        It shows how much rewriting saves. A plan, which exploits the patterns, costs
        less. opt_einsum chooses the order of contractions.
        """
        if not self.nodes:
            return 0.0
        shapes = [tuple(self.sizes[j] for j in node.indices) for node in self.nodes]
        few = len(shapes) <= 6
        _, info = opt_einsum.contract_path(
            self.equation(), *shapes, shapes=True, optimize="optimal" if few else "auto"
        )
        return float(info.opt_cost) / 2

    def carriers(self, index: str) -> tuple[Node, ...]:
        """Return the nodes that carry an index."""
        return self._carriers.get(index, ())

    @cached_property
    def _carriers(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, tuple[Node, ...]] = {}
        for node in self.nodes:
            for index in node.indices:
                found[index] = (*found.get(index, ()), node)
        return found

    def equation(self) -> str:
        """Write the contraction as an einsum equation with one output axis per index.

        Terms are in the order of the nodes. The number of indices is not limited:
        beyond the alphabet, opt_einsum's symbols are used.
        """
        symbol = letters(self.indices)
        terms = ("".join(symbol[j] for j in node.indices) for node in self.nodes)
        output = "".join(symbol[j] for j in self.output_indices)
        return f"{','.join(terms)}->{output}"

    def replace(
        self,
        removed: Iterable[Node] = (),
        added: Iterable[Node] = (),
        sizes: Mapping[str, int] | None = None,
        output: Iterable[Iterable[str]] | None = None,
    ) -> TensorNetwork:
        """Replace some nodes (each once), sizes or the output."""
        return TensorNetwork(*self._exchanged(removed, added, sizes, output))

    def rewrite(
        self,
        removed: Iterable[Node],
        added: Iterable[Node],
        sizes: Mapping[str, int] | None = None,
        output: Iterable[Iterable[str]] | None = None,
    ) -> TensorNetwork:
        """Do as :meth:`replace`, without checks: for rules, which are tested."""
        return TensorNetwork.unchecked(*self._exchanged(removed, added, sizes, output))

    def _exchanged(
        self,
        removed: Iterable[Node],
        added: Iterable[Node],
        sizes: Mapping[str, int] | None,
        output: Iterable[Iterable[str]] | None,
    ) -> tuple[Iterable[Node], Iterable[Iterable[str]], Mapping[str, int]]:
        """Return nodes, output and sizes after a replacement."""
        nodes = list(self.nodes)
        for node in removed:
            nodes.remove(node)
        return (
            [*nodes, *added],
            self.output if output is None else output,
            {**self.sizes, **(sizes or {})},
        )

    def relabel(self, rename: Mapping[str, str] | Rename) -> TensorNetwork:
        """Rename indices.

        Args:
            rename: Map from old to new names (others stay), or a function.

        Returns:
            The renamed network.

        Raises:
            ValueError: If the map has an index that is not in the network, or if two
                indices would get the same name.
        """
        if callable(rename):
            change = rename
        else:
            check_known("relabel", "rename", rename, self.sizes)
            names = {index: rename.get(index, index) for index in self.sizes}
            change = names.__getitem__
        renamed: dict[str, str] = {}
        for index in self.sizes:
            other = renamed.setdefault(change(index), index)
            if other != index:
                rule = "give each index a name of its own"
                value = f"{change(index)!r} for both {other!r} and {index!r}"
                raise ValueError(
                    describe("TensorNetwork.relabel", "rename", rule, value)
                )
        return TensorNetwork(
            (node.rename(change) for node in self.nodes),
            (map(change, axis) for axis in self.output),
            {change(index): size for index, size in self.sizes.items()},
        )

    def multiply(
        self, other: TensorNetwork, output: Iterable[Iterable[str]]
    ) -> TensorNetwork:
        """Multiply with another network, and sum all indices not in the output.

        Args:
            other: The other network; indices of the same name are identified.
            output: Axes of the result.

        Returns:
            The network of the product.

        Raises:
            ValueError: If an index has different sizes in the two networks.
        """
        for index in set(self.sizes) & set(other.sizes):
            if self.sizes[index] != other.sizes[index]:
                raise ValueError(
                    describe(
                        "TensorNetwork.multiply",
                        f"index {index!r}",
                        f"have the same size in both networks, {self.sizes[index]}",
                        other.sizes[index],
                    )
                )
        return TensorNetwork(
            (*self.nodes, *other.nodes), output, {**self.sizes, **other.sizes}
        )

    def times_copy(
        self, shared: Iterable[str], output: Iterable[Iterable[str]]
    ) -> TensorNetwork:
        """Multiply with a copy of the network that shares some of its indices.

        Args:
            shared: Indices that the copies have in common. The others are primed in the
                second copy.
            output: Axes of the result; all other indices are summed over.

        Returns:
            The network of the product.

        Raises:
            ValueError: If a shared index is not in the network, or if the network
                already has the name of a primed index.
        """
        same = set(shared)
        check_known("times_copy", "shared", same, self.sizes)
        for index in self.sizes:
            if index not in same and prime(index) in self.sizes:
                raise ValueError(
                    describe(
                        "TensorNetwork.times_copy",
                        "network",
                        f"have no {prime(index)!r}, the name of the copy of {index!r}",
                        [*self.sizes],
                        "Rename it with relabel",
                    )
                )
        copy = self.relabel(lambda index: index if index in same else prime(index))
        return self.multiply(copy, output)

    def resize(self, sizes: Mapping[str, int]) -> TensorNetwork:
        """Change the sizes of some indices.

        Args:
            sizes: New sizes. Patterns are clipped to them, so sizes of input, kernel
                and output should fit each other.

        Returns:
            The resized network.

        Raises:
            ValueError: If an index is not in the network, or if an operand with one of
                the indices is only read in part, as after simplifying.
        """
        check_known("resize", "sizes", sizes, self.sizes)
        changed = {**self.sizes, **sizes}
        nodes: list[Node] = []
        for node in self.nodes:
            if isinstance(node, Operand) and set(node.indices) & set(sizes):
                _whole_axes(node, self.sizes, "resize", "Resize")
                node = node.resized(self.sizes, changed, {})
            nodes.append(node)
        return TensorNetwork(nodes, self.output, changed)

    def cut(self, name: str, output: Iterable[Iterable[str]]) -> TensorNetwork:
        """Remove an operand: the derivative of a network that is linear in it.

        Args:
            name: Name of the operand.
            output: Axes of the result, which may have indices of the operand.

        Returns:
            The network without the operand.

        Raises:
            ValueError: If the operand does not occur exactly once.
        """
        return self.replace(removed=[self._only(name, "cut")], output=output)

    def jacobian(self, name: str) -> TensorNetwork:
        """Differentiate the network with respect to an operand.

        If output and operand share an index, the Jacobian has it twice: the second one
        gets a new name, and an identity matrix joins the two. If the network is linear
        in several operands, Jacobians of Jacobians are higher derivatives.

        Args:
            name: Name of the operand.

        Returns:
            The Jacobian: axes of the output, then axes of the operand.

        Raises:
            ValueError: If the operand does not occur exactly once, or is only read in
                part.
        """
        operand = self._only(name, "jacobian")
        axes = _whole_axes(operand, self.sizes, "jacobian")
        fresh: dict[str, str] = {}
        for index in set(self.output_indices) & set(operand.indices):
            fresh[index] = prime(index)
            while fresh[index] in self.sizes:
                fresh[index] = prime(fresh[index])
        deltas = [Pattern(j, Affine(((index, 1),))) for index, j in fresh.items()]
        return self.replace(
            [operand],
            deltas,
            {j: self.sizes[index] for index, j in fresh.items()},
            (*self.output, *(tuple(fresh.get(j, j) for j in axis) for axis in axes)),
        )

    def vjp(self, name: str, cotangent: str) -> TensorNetwork:
        """Make the vector-Jacobian product, which has the shape of an operand.

        Args:
            name: Name of the operand.
            cotangent: Name of the vector, an operand with the shape of the output.

        Returns:
            The network of the product.

        Raises:
            ValueError: As for :meth:`jacobian`.
        """
        operand = self._only(name, "vjp")
        axes = _whole_axes(operand, self.sizes, "vjp")
        vector = Operand(
            cotangent,
            tuple(
                Axis.of(size, *((j, self.sizes[j]) for j in axis))
                for axis, size in zip(self.output, self.shape, strict=True)
            ),
        )
        return self.replace([operand], [vector], output=axes)

    def jvp(self, name: str, tangent: str) -> TensorNetwork:
        """Make the Jacobian-vector product, which has the shape of the output.

        Args:
            name: Name of the operand.
            tangent: Name of the vector, which has the shape of the operand.

        Returns:
            The network of the product.

        Raises:
            ValueError: If the operand does not occur exactly once.
        """
        operand = self._only(name, "jvp")
        return self.replace([operand], [Operand(tangent, operand.axes)])

    def vmap(self, name: str, index: str, size: int) -> TensorNetwork:
        """Vectorize over an operand: give it and the result a new first axis.

        Args:
            name: Name of the operand.
            index: Name of the new axis's index.
            size: Size of the new axis.

        Returns:
            The vectorized network.

        Raises:
            ValueError: If the operand does not occur exactly once, or if the network
                already has the index.
        """
        operand = self._only(name, "vmap")
        if index in self.sizes:
            rule, known = f"be none of {[*self.sizes]}", repr(index)
            raise ValueError(describe("TensorNetwork.vmap", "index", rule, known))
        many = Operand(name, (Axis.of(size, (index, size)), *operand.axes))
        return self.replace([operand], [many], {index: size}, ((index,), *self.output))

    def _only(self, name: str, method: str) -> Operand:
        """Return the only operand of a name; the network is linear in it."""
        found = [operand for operand in self.operands if operand.name == name]
        if len(found) != 1:
            names = [operand.name for operand in self.operands]
            callable_ = f"TensorNetwork.{method}"
            rule = f"occur exactly once among the operands {names}"
            raise ValueError(describe(callable_, "name", rule, repr(name)))
        return found[0]


_INDENT = 10


def _wrapped(text: str) -> list[str]:
    return wrap(text, 88 - _INDENT)


def _whole_axes(
    operand: Operand, sizes: Mapping[str, int], method: str, verb: str = "Differentiate"
) -> Output:
    """Return the indices of each axis, slowest first; refuse axes read in part."""
    axes = []
    for number, axis in enumerate(operand.axes):
        indices = axis.whole(sizes)
        if indices is None:
            raise ValueError(
                describe(
                    f"TensorNetwork.{method}",
                    f"axis {number} of operand {operand.name!r}",
                    "be read whole and in order",
                    axis.position,
                    f"{verb} before simplifying",
                )
            )
        axes.append(indices)
    return tuple(axes)
