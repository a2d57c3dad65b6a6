"""Networks as TikZ source: a complete document, or a picture for another one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from tn_extensions.diagram.layout import layout
from tn_extensions.diagram.scene import COLORS, Box, Path, Point, Scene, Wire
from tn_extensions.diagram.trace import strip_of
from tn_extensions.network.methods import method_of
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.trace import Trace

PREAMBLE = r"""\documentclass[tikz, border=2pt]{standalone}
"""

_DEFINED = "\n".join(
    rf"\definecolor{{tn{name}}}{{HTML}}{{{color}}}" for name, color in COLORS.items()
)
STYLES = rf"""{_DEFINED}
\tikzset{{
  tn wire/.style={{line width=0.6pt, rounded corners=2pt, draw=#1}},
  tn label/.style={{font=\footnotesize, text=#1, inner sep=1pt}},
  tn operand/.style={{draw, fill=tnoperand}},
  tn pattern/.style={{draw, fill=tnpattern}},
  tn pair/.style={{draw, fill=tnpair, double, double distance=1pt}},
}}
"""


@method_of(TensorNetwork, name="to_tikz")
def tikz(
    network: TensorNetwork,
    shade: Mapping[str, Iterable[str]] | None = None,
    standalone: bool = True,
) -> str:
    """Write the picture that :func:`~tn_extensions.draw` shows as LaTeX source.

    Args:
        network: The network.
        shade: As for :func:`~tn_extensions.draw`.
        standalone: Whether to write a complete document. Otherwise it is only a
            ``tikzpicture``; put ``tn_extensions.diagram.STYLES`` into the preamble.

    Returns:
        LaTeX source, which needs the packages ``standalone`` and ``tikz``.

    Raises:
        ValueError: If the network has more than 200 nodes, or no node of a given name.
    """
    return source(layout(network, shade), standalone)


@method_of(Trace, name="to_tikz")
def tikz_of_trace(trace: Trace, columns: int = 3, standalone: bool = True) -> str:
    """Write a picture for each step of a simplification as LaTeX source.

    Args:
        trace: The steps.
        columns: Number of pictures in a row.
        standalone: As for :func:`~tn_extensions.tikz`.

    Returns:
        LaTeX source.
    """
    return source(strip_of(trace, columns), standalone)


def source(scene: Scene, standalone: bool = True) -> str:
    """Write a scene as LaTeX source, see :func:`tikz`."""
    lines = [r"\begin{tikzpicture}", *(f"  {line}" for line in _commands(scene))]
    picture = "\n".join([*lines, r"\end{tikzpicture}", ""])
    if not standalone:
        return picture
    begin, end = "\\begin{document}\n", "\\end{document}\n"
    return f"{PREAMBLE}{STYLES}{begin}{picture}{end}"


def _commands(scene: Scene) -> Iterator[str]:
    for shade in scene.shades:
        yield rf"\fill[tnshade] {_at(shade.low)} rectangle {_at(shade.high)};"
        at = shade.low.by(0.05, 0.17)
        style = r"font=\tiny, text=gray, anchor=west"
        yield rf"\node[{style}] at {_at(at)} {{{_plain(shade.label)}}};"
    for wire in scene.wires:
        yield from _wire(wire)
    for box in scene.boxes:
        yield from _box(box)
    for text in scene.texts:
        yield rf"\node[font=\footnotesize] at {_at(text.at)} {{{_plain(text.text)}}};"


def _wire(wire: Wire) -> Iterator[str]:
    color = f"tn{wire.family}"
    for path in wire.paths:
        yield rf"\draw[tn wire={color}] {_line(path)};"
    for dot in wire.dots:
        yield rf"\fill[{color}] {_at(dot)} circle[radius=1.6pt];"
    if wire.ones:
        style = f"draw={color}, circle, fill=white, inner sep=0.8pt"
        yield rf"\node[{style}, font=\tiny] at {_at(wire.ones)} {{1}};"
    fill = "" if wire.leg else ", fill=white"
    text = wire.label.text
    yield rf"\node[tn label={color}{fill}] at {_at(wire.label.at)} {{{text}}};"


def _box(box: Box) -> Iterator[str]:
    yield rf"\draw[tn {box.kind}] {_line(box.outline)} -- cycle;"
    for number, line in enumerate(box.lines):
        at = box.center.by(0.0, 0.4 * ((len(box.lines) - 1) / 2 - number))
        font = r", font=\scriptsize" if number else ""
        yield rf"\node[inner sep=0pt{font}] at {_at(at)} {{{line}}};"


def _line(path: Path) -> str:
    return " -- ".join(map(_at, path))


def _at(point: Point) -> str:
    return f"({point.x:.3f}, {point.y:.3f})"


def _plain(text: str) -> str:
    """Escape special characters outside of formulas."""
    parts = text.split("$")
    parts[::2] = [_SPECIAL.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "$".join(parts)


_SPECIAL = re.compile(r"[_%#&{}]")
