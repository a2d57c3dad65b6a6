"""Strips of pictures that show the steps of a simplification."""

from __future__ import annotations

from tn_extensions.diagram.label import math
from tn_extensions.diagram.layout import layout
from tn_extensions.diagram.scene import Scene, strip
from tn_extensions.network.text import si
from tn_extensions.network.trace import Step, Trace


def strip_of(trace: Trace, columns: int = 3) -> Scene:
    """Lay out the networks of a trace in order, below the rules that led to them."""
    networks = [trace.network, *(step.after for step in trace)]
    titles: list[tuple[str, ...]] = [
        ("as defined", f"{si(trace.network.flops)} multiply-adds")
    ]
    for number, step in enumerate(trace, start=1):
        before, after = step.cost
        name = f"{number}. {step.rule}{_narrowed(step)}"
        cost = f"{si(before)} to {si(after)} multiply-adds"
        titles.append((name, step.identity, cost) if step.identity else (name, cost))
    return strip(map(layout, networks), titles, columns)


def _narrowed(step: Step) -> str:
    """Write the sizes that a step has changed, which the picture does not show."""
    return "".join(
        f", ${math(index)}$ from {old} to {new}"
        for index, (old, new) in step.resized.items()
    )
