"""Networks from scratch, with checks that catch likely mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from tn_extensions.errors import describe
from tn_extensions.network.network import Output, TensorNetwork
from tn_extensions.network.nodes import Axis, Node, Operand, Pattern

Axes = Iterable[str | Sequence[str]]
"""One index per axis, or a sequence of several, the fastest last."""


def build(
    operands: Mapping[str, Axes] | Iterable[tuple[str, Axes]],
    output: Axes,
    sizes: Mapping[str, int],
    patterns: Iterable[Pattern] = (),
    summed: Iterable[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> TensorNetwork:
    """Make a network of operands and patterns.

    Args:
        operands: Names and axes of the operands, ``{"x": ["n", ("g", "ci"), "i1"]}``.
            Pass pairs ``(name, axes)`` if a name occurs several times.
        output: Axes of the result.
        sizes: Size of each index.
        patterns: Index patterns, see :meth:`Pattern.of`.
        summed: Indices to sum over that only one node carries. They must be named
            here, because forgetting an index of the output is a common mistake.
        shapes: Shapes of tensors by name, if the operands should be checked against
            them.

    Returns:
        The network.

    Raises:
        ValueError: If an index has no size, or a size has no index; if an operand does
            not fit its shape; if an index that only one node carries is neither in
            ``output`` nor in ``summed``; if no node carries an index of the output.

    >>> build({"a": ["i", "j"], "b": ["j", "k"]}, "ik", {"i": 2, "j": 3, "k": 4}).shape
    (2, 4)
    >>> hit = Pattern.of("i", {"k": 1, "o": 2}, start=-1)
    >>> sizes = {"n": 8, "g": 2, "c": 3, "i": 9, "k": 3, "o": 5}
    >>> print(build({"x": ["n", ("g", "c"), "i"]}, ["n", ("g", "k"), "o"], sizes, [hit],
    ...     summed="c"))
    operands  x[n, (g c), i]  [8, 6, 9]
    where     i = 2 o + k - 1
    summed    c i
    sizes     n=8 g=2 c=3 i=9 k=3 o=5
    output    [n, (g k), o]   [8, 6, 5]
    """
    pairs = operands.items() if isinstance(operands, Mapping) else operands
    nodes: list[Node] = []
    for name, axes in pairs:
        split = _split(axes)
        _check_operand(name, split, sizes, (shapes or {}).get(name))
        nodes.append(Operand(name, tuple(_axis(axis, sizes) for axis in split)))
    nodes += patterns
    network = TensorNetwork(nodes, _split(output), sizes)
    _check_names(network, sizes, shapes or {})
    _check_dangling(network, tuple(summed))
    return network


def _split(axes: Axes) -> Output:
    return tuple((axis,) if isinstance(axis, str) else tuple(axis) for axis in axes)


def _axis(indices: tuple[str, ...], sizes: Mapping[str, int]) -> Axis:
    split = [(index, sizes[index]) for index in indices]
    return Axis.of(prod(size for _, size in split), *split)


def _check_operand(
    name: str,
    axes: tuple[tuple[str, ...], ...],
    sizes: Mapping[str, int],
    shape: Sequence[int] | None,
) -> None:
    owner = f"operand {name!r}"
    for index in (j for axis in axes for j in axis):
        if index not in sizes:
            rule, value = f"contain the indices of {owner}", f"no {index!r}"
            raise ValueError(describe("build", "sizes", rule, value))
    if shape is None:
        return
    if len(shape) != len(axes):
        rule = f"have a shape of {len(axes)} axes, {axes}"
        raise ValueError(describe("build", owner, rule, list(shape)))
    for number, (axis, extent) in enumerate(zip(axes, shape, strict=True)):
        size = prod(sizes[j] for j in axis)
        if size != extent:
            place = f"axis {number} of {owner}"
            rule = f"have size {size}, the product over {axis}"
            raise ValueError(describe("build", place, rule, extent))


def _check_names(
    network: TensorNetwork, sizes: Mapping[str, int], shapes: Mapping[str, object]
) -> None:
    known = {operand.name for operand in network.operands}
    for argument, names, all_of_them in (
        ("sizes", sizes, set(network.indices)),
        ("shapes", shapes, known),
    ):
        for name in names:
            if name not in all_of_them:
                kind = "indices" if argument == "sizes" else "operands"
                rule = f"name {kind} of the network, {sorted(all_of_them)}"
                raise ValueError(describe("build", argument, rule, repr(name)))


def _check_dangling(network: TensorNetwork, summed: tuple[str, ...]) -> None:
    single = {
        index: carriers[0]
        for index in network.summed_indices
        if len(carriers := network.carriers(index)) == 1
    }
    for index in summed:
        if index not in single:
            rule = f"name indices that only one node carries, {sorted(single)}"
            raise ValueError(describe("build", "summed", rule, repr(index)))
    for index, node in single.items():
        if index not in summed:
            kind = "operand" if isinstance(node, Operand) else "pattern"
            name = node.name if isinstance(node, Operand) else node.indices[0]
            raise ValueError(
                describe(
                    "build",
                    f"index {index!r} of {kind} {name!r}",
                    "be carried by another node, the output or summed",
                    "no other carrier",
                )
            )
