"""Nodes and axes as text, in terms of index names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tn_extensions.network.nodes import (
    Affine,
    Axis,
    Node,
    Operand,
    Pair,
    Pattern,
    Selection,
)


def node_text(node: Node, sizes: Mapping[str, int]) -> str:
    """Write a node in one line.

    Args:
        node: An operand, a pattern, a pair of patterns or a selection.
        sizes: Sizes of the network's indices.

    Returns:
        The text.

    >>> x = Operand("x", (Axis.of(6, ("g", 2), ("ci", 3)), Axis.of(9, ("i", 9))))
    >>> node_text(x, {"g": 2, "ci": 3, "i": 9})
    'x[(g ci), i]'
    >>> node_text(Pattern.of("i", {"o": 2, "k": 1}, start=-1), {})
    'i = 2 o + k - 1'
    """
    if isinstance(node, Operand):
        return f"{node.name}[{', '.join(_axis(axis, sizes) for axis in node.axes)}]"
    if isinstance(node, Selection):
        return f"{node.index} = positions[{node.kept}]"
    if isinstance(node, Pair):
        both = f"{_pattern(node.first)}, {_pattern(node.second)}"
        return f"{both}, summed over {node.shared} < {node.size}"
    return _pattern(node)


def output_text(output: Iterable[Sequence[str]]) -> str:
    """Write the axes of a result.

    >>> output_text([("n",), ("ci", "k1"), ()])
    '[n, (ci k1), 1]'
    """
    return f"[{', '.join(_group(axis) or '1' for axis in output)}]"


def linear(terms: Iterable[tuple[str, int]], start: int, times: str = " ") -> str:
    """Write a sum of multiples.

    Args:
        terms: Names and their factors.
        start: The constant that is added to them.
        times: The text between a factor and a name.

    Returns:
        The text.

    >>> linear([("o", 2), ("k", 1)], -1)
    '2 o + k - 1'
    """
    text = ""
    for name, factor in [*terms, ("", start)]:
        if factor == 0 and (name or text):
            continue
        size = str(abs(factor)) if abs(factor) != 1 or not name else ""
        sign = "-" if factor < 0 else "+"
        text += f" {sign} " if text else "-" * (factor < 0)
        text += f"{size}{times}{name}" if size and name else size + name
    return text


def _axis(axis: Axis, sizes: Mapping[str, int]) -> str:
    """Write the indices that split an axis, or the position at which it is read."""
    whole = axis.whole(sizes)
    return _group(whole) if whole else _affine(axis.position)


def _group(indices: Sequence[str]) -> str:
    joined = " ".join(indices)
    return f"({joined})" if len(indices) > 1 else joined


def _pattern(pattern: Pattern) -> str:
    summed = list(zip("tuvw", pattern.summed, strict=False))
    terms = tuple((letter, stride) for letter, (stride, _) in summed)
    bounds = "".join(f", {letter} < {size}" for letter, (_, size) in summed)
    return f"{pattern.index} = {_affine(pattern.position, terms)}{bounds}"


def _affine(position: Affine, more: Iterable[tuple[str, int]] = ()) -> str:
    # outputs before kernels, as usual
    return linear([*reversed(position.terms), *more], position.start)


def si(number: float) -> str:
    """Write a number with a unit prefix.

    >>> si(950), si(1234567.0), si(3e16)
    ('950', '1.23 M', '30 P')
    """
    for unit in ("", " k", " M", " G", " T"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"
