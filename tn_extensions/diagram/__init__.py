"""Diagrams of tensor networks: a layout, drawn by matplotlib or written as TikZ."""

from tn_extensions.diagram.layout import layout, names
from tn_extensions.diagram.scene import Scene, strip

__all__ = ["Scene", "layout", "names", "strip"]
