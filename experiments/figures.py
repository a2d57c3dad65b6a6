"""Bar charts as SVG, without a plotting library: all machines can draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_COLOURS = ("#2b6cb0", "#dd8452", "#55a868", "#8172b3")
_LABEL_WIDTH, _PLOT_WIDTH, _MARGIN = 330, 420, 70
_BAR, _GAP, _HEAD = 13, 9, 52


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    mark: float | None = None,
) -> str:
    """Horizontal bars, one group a label, with their values beside them.

    Args:
        title: What the values are.
        labels: Names of the groups.
        series: Values of each group, by what they belong to; ``None``: no bar.
        mark: Where to draw a vertical line.

    Returns:
        The SVG document.
    """
    values = [value for one in series.values() for value in one if value is not None]
    scale = _PLOT_WIDTH / max([*values, mark or 0.0, 1e-12])
    group_height = _BAR * len(series) + _GAP
    height = _HEAD + group_height * len(labels) + _GAP
    width = _LABEL_WIDTH + _PLOT_WIDTH + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 18, title, size=14),
        *_legend(list(series)),
    ]
    for row, label in enumerate(labels):
        top = _HEAD + row * group_height
        middle = top + _BAR * len(series) / 2 + 4
        parts.append(_text(_LABEL_WIDTH - 8, middle, label, anchor="end"))
        for number, values_of_one in enumerate(series.values()):
            value = values_of_one[row]
            if value is None:
                continue
            y = top + number * _BAR
            parts += [
                f'<rect x="{_LABEL_WIDTH}" y="{y}" width="{value * scale:.1f}"'
                f' height="{_BAR - 1}" fill="{_COLOURS[number % len(_COLOURS)]}"/>',
                _text(_LABEL_WIDTH + value * scale + 4, y + 10, f"{value:.3g}"),
            ]
    if mark is not None:
        x = _LABEL_WIDTH + mark * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_HEAD - 4}" y2="{height - 4}"'
            ' stroke="black" stroke-dasharray="3,3"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(names: Sequence[str]) -> list[str]:
    if len(names) < 2:
        return []
    parts = []
    for number, name in enumerate(names):
        x = 10 + 120 * number
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<rect x="{x}" y="28" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 16, 38, name))
    return parts


def _text(
    x: float, y: float, text: str, size: int | None = None, anchor: str = "start"
) -> str:
    font = "" if size is None else f' font-size="{size}"'
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}{font}>{escape(text)}</text>"
