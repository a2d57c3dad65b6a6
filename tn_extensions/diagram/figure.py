"""Networks as matplotlib figures; matplotlib is optional and only imported here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tn_extensions.diagram.layout import LIMIT, layout
from tn_extensions.diagram.scene import COLORS, Box, Path, Point, Scene
from tn_extensions.diagram.trace import strip_of
from tn_extensions.network.methods import method_of
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCH, _ROUND = 2.54, 0.14


@method_of(TensorNetwork)
def draw(
    network: TensorNetwork,
    shade: Mapping[str, Iterable[str]] | None = None,
    scale: float = 1.0,
) -> Figure:
    """Draw a network: boxes are operands, hexagons patterns, lines indices.

    A line that leaves the network is an index of the result. A dot joins the carriers
    of an index if there are more than two. A circled 1 is the sum over an index that
    only one node carries. Rows are spatial dimensions, and primed copies mirror the
    first half. Notebooks show this picture of a network.

    Args:
        network: The network.
        shade: Parts to shade: labels, and names of nodes, see
            ``tn_extensions.diagram.names(network)``. Default: the halves of a mirrored
            network; pass ``{}`` for none.
        scale: Factor that enlarges the picture.

    Returns:
        A matplotlib figure; save it with ``figure.savefig("name.svg")``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the network has more than 200 nodes, or no node of a given name.
    """
    return figure(layout(network, shade), scale)


@method_of(Trace, name="draw")
def draw_trace(trace: Trace, columns: int = 3, scale: float = 1.0) -> Figure:
    """Draw a picture for each step of a simplification. Notebooks show them, too.

    Args:
        trace: The steps.
        columns: Number of pictures in a row.
        scale: Factor that enlarges the pictures.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    return figure(strip_of(trace, columns), scale)


@method_of(TensorNetwork, Trace, name="_repr_svg_")
def svg(drawn: TensorNetwork | Trace) -> str | None:
    """Render the picture for a notebook, if matplotlib is installed."""
    content = _shown(drawn, "svg")
    return None if content is None else content.decode()


@method_of(TensorNetwork, name="_repr_png_")
def png(drawn: TensorNetwork | Trace) -> bytes | None:
    """Render the picture for a notebook that cannot show SVG."""
    return _shown(drawn, "png")


def _shown(drawn: TensorNetwork | Trace, kind: str) -> bytes | None:
    network = drawn.network if isinstance(drawn, Trace) else drawn
    if len(network.nodes) > LIMIT:
        return None
    try:
        scene = strip_of(drawn) if isinstance(drawn, Trace) else layout(drawn)
        return render(scene, kind)
    except ImportError:
        return None


def figure(scene: Scene, scale: float = 1.0) -> Figure:
    """Draw a scene.

    Args:
        scene: The scene.
        scale: Factor that enlarges the picture.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "draw: needs matplotlib. Install tn-extensions[diagram], or use to_tikz."
        ) from error
    size = (scene.width * scale / _INCH, scene.height * scale / _INCH)
    result = Figure(figsize=(max(size[0], 0.1), max(size[1], 0.1)))
    axes = result.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(scene.low.x, scene.high.x)
    axes.set_ylim(scene.low.y, scene.high.y)
    _Pen(axes, scale).scene(scene)
    return result


def render(scene: Scene, kind: str) -> bytes:
    """Render a scene as the content of a file: ``"svg"``, ``"png"`` or ``"pdf"``."""
    import matplotlib

    buffer = BytesIO()
    # without dates, equal pictures have equal bytes
    plain = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "tn_extensions"}):
        figure(scene).savefig(
            buffer, format=kind, dpi=120, metadata=plain.get(kind), facecolor="white"
        )
    return buffer.getvalue()


class _Pen:
    """A pen that draws on matplotlib's axes."""

    def __init__(self, axes: Any, scale: float) -> None:
        self.axes, self.scale = axes, scale

    def scene(self, scene: Scene) -> None:
        for shade in scene.shades:
            low, high = shade.low, shade.high
            corners = (low, Point(high.x, low.y), high, Point(low.x, high.y))
            self.polygon(corners, f"#{COLORS['shade']}", "none", 0)
            self.text(shade.label, low.x + 0.1, low.y + 0.17, 7, "#777777", ha="left")
        for wire in scene.wires:
            color = f"#{COLORS[wire.family]}"
            for path in wire.paths:
                self.line(path, color)
            for dot in wire.dots:
                self.axes.plot(*dot, "o", color=color, ms=4 * self.scale, zorder=2.5)
            if wire.ones:
                self.axes.plot(
                    *wire.ones, "o", mfc="white", mec=color, ms=9 * self.scale, zorder=2
                )
                self.text("1", *wire.ones, 7, color)
            back = "none" if wire.leg else "white"
            self.text(wire.label.text, *wire.label.at, 9, color, back)
        for box in scene.boxes:
            self.box(box)
        for text in scene.texts:
            self.text(text.text, *text.at, 9, "black")

    def box(self, box: Box) -> None:
        self.polygon(box.outline, f"#{COLORS[box.kind]}", "black", 4)
        if box.kind == "pair":
            inner = [
                box.center.by((x - box.center.x) * 0.93, (y - box.center.y) * 0.87)
                for x, y in box.outline
            ]
            self.polygon(inner, "none", "black", 4, 0.6)
        for number, line in enumerate(box.lines):
            y = box.center.y + 0.4 * ((len(box.lines) - 1) / 2 - number)
            self.text(line, box.center.x, y, 9 if number else 11, "black", zorder=5)

    def polygon(
        self, corners: Any, face: str, edge: str, zorder: float, width: float = 1.0
    ) -> None:
        from matplotlib.patches import Polygon

        style = {"facecolor": face, "edgecolor": edge, "joinstyle": "round"}
        self.axes.add_patch(
            Polygon(corners, closed=True, lw=width * self.scale, zorder=zorder, **style)
        )

    def line(self, path: Path, color: str) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        points, codes = [path[0]], [Curve.MOVETO]
        for before, corner, after in zip(path, path[1:], path[2:], strict=False):
            points += [_towards(corner, before), corner, _towards(corner, after)]
            codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
        curve = Curve([*points, path[-1]], [*codes, Curve.LINETO])
        self.axes.add_patch(
            PathPatch(curve, fc="none", ec=color, lw=1.2 * self.scale, zorder=1)
        )

    def text(
        self,
        text: str,
        x: float,
        y: float,
        size: float,
        color: str,
        back: str = "none",
        zorder: float = 3,
        ha: str = "center",
    ) -> None:
        style: dict[str, Any] = {"ha": ha, "va": "center_baseline", "color": color}
        if back != "none":
            style["bbox"] = {"facecolor": back, "edgecolor": "none", "pad": 0.8}
        size *= self.scale
        self.axes.text(
            x, y, text, fontsize=size, zorder=zorder, math_fontfamily="cm", **style
        )


def _towards(corner: Point, other: Point) -> Point:
    dx, dy = other.x - corner.x, other.y - corner.y
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    part = min(_ROUND / length, 0.5)
    return corner.by(dx * part, dy * part)
