"""Tests of a release line's operators need that line of curvlinops."""

from __future__ import annotations

from pathlib import Path

from tn_extensions.curvlinops.release import LINE

_OF_BOTH = {"test_groups", "test_release", "test_next_line"}
_TESTS = {path.stem for path in Path(__file__).parent.glob("test_*.py")}

collect_ignore = [] if LINE == "3.0" else [f"{name}.py" for name in _TESTS - _OF_BOTH]
