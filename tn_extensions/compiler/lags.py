"""Lag structure of a pair: which values of the free index read what, relative to what.

Value ``k`` reads ``offset_k + step * t`` for ``t`` in a window. With ``offset = phase +
step * u_k``, all of them read phase ``phase`` of the operand at ``u = u_k + t``, and a
pair ``(k, k')`` contributes the product of the operand with itself at a fixed lag
``offset_k' - offset_k``, summed over a window of ``u``. Windows of one lag differ only
near the borders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tn_extensions.network.nodes import Progression


class Window(NamedTuple):
    """Positions ``u`` in ``[begin, end)`` at which a pair of values contributes."""

    first: int
    second: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class LagClass:
    """All pairs of values with the same phases and lag.

    Args:
        phase: Phase that the first of a pair reads.
        other: Phase that the second reads.
        shift: Difference of ``u`` between them.
        windows: One per pair.
    """

    phase: int
    other: int
    shift: int
    windows: tuple[Window, ...]

    @property
    def common(self) -> tuple[int, int]:
        """Positions in all windows; empty if the end does not exceed the begin."""
        return (
            max(window.begin for window in self.windows),
            min(window.end for window in self.windows),
        )


def lag_classes(progressions: Sequence[Progression]) -> tuple[LagClass, ...]:
    """Lag classes of the pairs ``first <= second`` that contribute at all."""
    classes: dict[tuple[int, int, int], list[Window]] = defaultdict(list)
    for a in progressions:
        for b in progressions[a.free :]:
            begin, end = max(a.begin, b.begin), min(a.end, b.end)
            if a.residue != b.residue or begin >= end:
                continue
            (u_a, phase_a), (u_b, phase_b) = (
                divmod(p.offset, p.step) for p in (a, b)
            )
            window = Window(a.free, b.free, u_a + begin, u_a + end)
            classes[phase_a, phase_b, u_b - u_a].append(window)
    return tuple(
        LagClass(*key, tuple(windows)) for key, windows in sorted(classes.items())
    )


class Segment(NamedTuple):
    """Positions ``u`` in ``[begin, end)`` that the same members read."""

    begin: int
    end: int
    members: tuple[Progression, ...]


@dataclass(frozen=True, slots=True)
class PhaseGroup:
    """Values of one residue and phase, with the values that they meet.

    Args:
        phase: The phase.
        step: Distance of positions within the phase.
        members: The values of this phase.
        partners: All values of the residue, by increasing offset.
        spacing: Distance of the partners' offsets.
        segments: The union of the members' windows, cut where membership changes.
    """

    phase: int
    step: int
    members: tuple[Progression, ...]
    partners: tuple[Progression, ...]
    spacing: int
    segments: tuple[Segment, ...]


def phase_groups(progressions: Sequence[Progression]) -> tuple[PhaseGroup, ...]:
    """Group the values that read anything by residue and phase."""
    by_residue: dict[int, list[Progression]] = defaultdict(list)
    for progression in progressions:
        by_residue[progression.residue].append(progression)
    groups = []
    for values in by_residue.values():
        partners = tuple(sorted(values, key=lambda value: value.offset))
        spacing = partners[1].offset - partners[0].offset if len(partners) > 1 else 1
        by_phase: dict[int, list[Progression]] = defaultdict(list)
        for value in values:
            if value.begin < value.end:
                by_phase[value.offset % value.step].append(value)
        for phase, members in sorted(by_phase.items()):
            segments = _segments(members)
            step = members[0].step
            groups.append(
                PhaseGroup(phase, step, tuple(members), partners, spacing, segments)
            )
    return tuple(groups)


def _segments(members: Sequence[Progression]) -> tuple[Segment, ...]:
    windows = {
        member: (
            member.offset // member.step + member.begin,
            member.offset // member.step + member.end,
        )
        for member in members
    }
    cuts = sorted({cut for window in windows.values() for cut in window})
    segments = []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        inside = tuple(m for m, (a, b) in windows.items() if a <= begin and end <= b)
        if inside:
            segments.append(Segment(begin, end, inside))
    return tuple(segments)
