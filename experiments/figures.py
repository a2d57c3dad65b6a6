"""Charts as SVG, without a plotting library: all machines can draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_COLOURS = ("#2b6cb0", "#dd8452", "#55a868", "#8172b3", "#c44e52", "#7f7f7f") + (
    "#d4a017",
    "#17becf",
    "#1a202c",
)
_LABEL_WIDTH, _PLOT_WIDTH, _MARGIN = 330, 420, 70
_BAR, _GAP, _HEAD = 13, 9, 52
_PANEL_WIDTH, _PANEL_HEIGHT, _AXIS_WIDTH, _AXIS_HEIGHT = 350, 280, 56, 44
_MAX_TICKS = 6


class Panel(NamedTuple):
    """What one part of a line chart shows.

    Args:
        x_label: What is on the horizontal axis, which starts at zero.
        curves: Curves, as points, by what they belong to.
    """

    x_label: str
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]


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


def line_chart(
    title: str, y_label: str, panels: Sequence[Panel], mark: float | None = None
) -> str:
    """Curves in panels side by side, on one logarithmic vertical axis.

    Args:
        title: What the chart shows.
        y_label: What is on the vertical axis.
        panels: The panels; all are of the same names. Values that are not positive and
            finite end a curve.
        mark: Where to draw a horizontal line.

    Returns:
        The SVG document.
    """
    clean = [
        Panel(
            panel.x_label,
            {n: [_drawable(c) for c in curves] for n, curves in panel.curves.items()},
        )
        for panel in panels
    ]
    points = [
        point
        for panel in clean
        for curves in panel.curves.values()
        for curve in curves
        for point in curve
    ]
    heights = [y for _, y in points] + ([] if mark is None else [mark])
    low, high = _widened(heights or [1.0])
    stride = _AXIS_WIDTH + _PANEL_WIDTH
    width = stride * len(panels) + _AXIS_WIDTH // 2
    height = _HEAD + _PANEL_HEIGHT + _AXIS_HEIGHT
    middle = _HEAD + _PANEL_HEIGHT / 2
    turned = f'<text transform="rotate(-90 14 {middle:.1f})" '
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 18, title, size=14),
        *_legend(list(panels[0].curves)),
        _text(14, middle, y_label, anchor="middle").replace("<text ", turned, 1),
    ]
    for number, panel in enumerate(clean):
        parts += _panel(panel, _AXIS_WIDTH + number * stride, (low, high), mark)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    panel: Panel, left: float, heights: tuple[float, float], mark: float | None
) -> list[str]:
    """A panel whose left end is at ``left``, for a range of heights."""
    low, high = heights
    top, bottom, right = _HEAD, _HEAD + _PANEL_HEIGHT, left + _PANEL_WIDTH
    ends = [x for curves in panel.curves.values() for c in curves for x, _ in c]
    end = max([*ends, 1e-12])

    def place(x: float) -> float:
        return left + _PANEL_WIDTH * x / end

    def rise(y: float) -> float:
        return bottom - _PANEL_HEIGHT * math.log(y / low) / math.log(high / low)

    parts = [_text((left + right) / 2, bottom + 34, panel.x_label, anchor="middle")]
    for x in _ticks(end):
        parts.append(_line(place(x), place(x), top, bottom))
        parts.append(_text(place(x), bottom + 15, f"{x:g}", anchor="middle"))
    for y in _logarithmic_ticks(low, high):
        parts.append(_line(left, right, rise(y), rise(y)))
        parts.append(_text(left - 5, rise(y) + 4, f"{y:g}", anchor="end"))
    if mark is not None:
        parts.append(_line(left, right, rise(mark), rise(mark), is_mark=True))
    for number, curves in enumerate(panel.curves.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        for curve in curves:
            points = " ".join(f"{place(x):.1f},{rise(y):.1f}" for x, y in curve)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}"'
                ' stroke-width="1.5" stroke-opacity="0.8"/>'
            )
    return parts


def _drawable(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points before the first that is not positive and finite."""
    drawable = []
    for x, y in curve:
        if not (0 < y < math.inf):
            break
        drawable.append((x, y))
    return drawable


def _widened(values: Sequence[float]) -> tuple[float, float]:
    """A range with some room around the values."""
    low, high = min(values), max(values)
    room = max(high / low, 1.1) ** 0.05
    return low / room, high * room


def _ticks(end: float) -> list[float]:
    """Round numbers from zero to ``end``."""
    raw = end / _MAX_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    return [step * number for number in range(math.floor(end / step * (1 + 1e-9)) + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Round numbers between both, fewer of each power of ten where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 2 * _MAX_TICKS:
            break
    return ticks


def _line(x1: float, x2: float, y1: float, y2: float, is_mark: bool = False) -> str:
    style = 'stroke="black" stroke-dasharray="3,3"' if is_mark else 'stroke="#ddd"'
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" {style}/>'


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
