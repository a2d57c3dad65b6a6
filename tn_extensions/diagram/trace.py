"""A strip of pictures: what each step of a simplification does."""

from __future__ import annotations

from tn_extensions.diagram.layout import layout
from tn_extensions.diagram.scene import Scene, strip
from tn_extensions.network.trace import Trace


def strip_of(trace: Trace, columns: int = 3) -> Scene:
    """The networks of a trace, first to last, below the rules that led to them."""
    networks = [trace.network, *(step.after for step in trace)]
    titles: list[tuple[str, ...]] = [
        ("as defined", "", f"{trace.network.flops:.3g} multiply-adds")
    ]
    for number, step in enumerate(trace, start=1):
        before, after = step.cost
        titles.append(
            (
                f"{number}. {step.rule}",
                step.identity,
                f"{before:.3g} to {after:.3g} multiply-adds",
            )
        )
    return strip(map(layout, networks), titles, columns)
