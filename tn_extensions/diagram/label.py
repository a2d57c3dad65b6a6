"""Labels of indices and nodes, in TeX that matplotlib can read, too."""

from __future__ import annotations

import re

from tn_extensions.diagram.scene import Family
from tn_extensions.network.nodes import Node, Operand, Pair, Pattern, Selection
from tn_extensions.network.text import linear

_INDEX = re.compile(r"^(?P<base>.*?)(?P<number>\d*)(?P<primes>p*)$")
_FAMILIES: dict[str, Family] = {
    "n": "batch",
    "v": "batch",
    "g": "group",
    "ci": "channel",
    "co": "channel",
}


def split(index: str) -> tuple[str, str, str]:
    """Split an index into base, number and primes.

    >>> split("k1p"), split("ci"), split("p")
    (('k', '1', 'p'), ('ci', '', ''), ('p', '', ''))
    """
    match = _INDEX.match(index)
    assert match
    base, number, primes = match["base"], match["number"], match["primes"]
    return (base, number, primes) if base or number else (index, "", "")


def family(index: str) -> Family:
    """Return the family of an index; unknown indices with a number are spatial."""
    base, number, _ = split(index)
    return _FAMILIES.get(base, "spatial" if number else "channel")


def math(index: str) -> str:
    r"""Write an index in TeX, for math mode.

    >>> math("k1p"), math("ci"), math("x_dot")
    ("k_{1}'", '\\mathit{ci}', '\\mathit{x\\_dot}')
    """
    return _styled(index, "mathit" if len(split(index)[0]) > 1 else "")


def bold(name: str) -> str:
    r"""Write a tensor's name, which an index may have, too, in TeX's mathematics.

    >>> bold("g"), bold("weight2")
    ('\\mathbf{g}', '\\mathbf{weight}_{2}')
    """
    return _styled(name, "mathbf")


def _styled(name: str, font: str) -> str:
    base, number, primes = split(name)
    base = base.replace("_", r"\_")
    base = rf"\{font}{{{base}}}" if font else base
    number = f"_{{{number}}}" if number else ""
    return base + number + "'" * len(primes)


def size_of(text: str) -> int:
    r"""Estimate the width of a label in letters.

    >>> size_of(r"$\mathit{ci}'$"), size_of("$k_{1} = 2$")
    (3, 6)
    """
    text = text.replace(r"\_", "x")
    plain = re.sub(r"\\(mathbf|mathit|mathrm|,| )|[${}_]", "", text)
    return len(re.sub(r"\\[a-zA-Z]+", "x", plain))


def lines(node: Node, primed: bool) -> tuple[str, ...]:
    """Write the text of a node's box: its name, then the equation of a pattern.

    Args:
        node: The node.
        primed: Whether it is the second of two copies.

    Returns:
        The lines.
    """
    prime = "'" if primed else ""
    if isinstance(node, Operand):
        return (f"${bold(node.name)}{prime}$",)
    if isinstance(node, Pair):
        first, second = (_number(pattern) for pattern in (node.first, node.second))
        return (
            f"$P{first}P{second}'$",
            rf"$\Sigma\, {math(node.shared)} < {node.size}$",
        )
    if isinstance(node, Selection):
        return ("drawn", f"${math(node.index)}$")
    if is_identity(node):
        return (r"$\delta$",)
    return (f"$P{_number(node)}{prime}$", f"${_hit(node)}$")


def is_identity(node: Node) -> bool:
    """Tell whether a node only makes two indices equal."""
    return (
        isinstance(node, Pattern)
        and not node.summed
        and node.position.start == 0
        and [stride for _, stride in node.position.terms] == [1]
    )


def _number(pattern: Pattern) -> str:
    number = split(pattern.index)[1]
    return f"_{{{number}}}" if number else ""


def _hit(pattern: Pattern) -> str:
    """Write ``i = s o + d k - l``, and ``t < size`` for each summed term."""
    # outputs before kernels, as usual
    terms = [(math(j), s) for j, s in reversed(pattern.position.terms)]
    bounds = []
    for letter, (stride, size) in zip("tuvw", pattern.summed, strict=False):
        terms.append((letter, stride))
        bounds.append(f",\\ {letter} < {size}")
    hit = linear(terms, pattern.position.start, times="")
    return f"{math(pattern.index)} = {hit}{''.join(bounds)}"


def caption(output: tuple[tuple[str, ...], ...], shape: tuple[int, ...]) -> str:
    r"""Write the axes of the result and their sizes.

    >>> caption((("n",), ("ci", "k1")), (2, 12))
    '$[n,\\ \\mathit{ci}\\,k_{1}]$: [2, 12]'
    """
    axes = (r"\,".join(map(math, axis)) or "1" for axis in output)
    joined = r",\ ".join(axes)
    return f"$[{joined}]$: {list(shape)}"
