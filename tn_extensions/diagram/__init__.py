"""Diagrams of tensor networks, drawn by matplotlib or written as TikZ."""

from tn_extensions.diagram.figure import draw
from tn_extensions.diagram.layout import layout, names
from tn_extensions.diagram.scene import Scene, strip
from tn_extensions.diagram.tikz import STYLES, tikz

__all__ = ["STYLES", "Scene", "draw", "layout", "names", "strip", "tikz"]
