"""Find the release line of curvlinops that is installed."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Literal

import curvlinops

Line = Literal["3.0", "next"]

LOWEST, BELOW = (3, 0, 1), (5,)
"""Releases that this package supports, as in ``setup.cfg``."""


def line_of(installed: str, operator: Any) -> Line:
    """Tell which release line is installed, by attributes of its operators.

    The version is not enough: the next line has no number yet, and the version of a
    checkout counts from the last release.

    Args:
        installed: Version of curvlinops.
        operator: Its ``KFACLinearOperator``.

    Returns:
        ``"3.0"``, whose operators compute their factors, or ``"next"``, whose operators
        have computers.

    Raises:
        ImportError: If it is neither.
    """
    numbers = re.match(r"\d+(\.\d+)*", installed)
    release = tuple(map(int, numbers[0].split("."))) if numbers else ()
    if LOWEST <= release < BELOW:
        if isinstance(getattr(operator, "_BACKENDS", None), dict):
            return "next"
        if hasattr(operator, "compute_parameter_mapping"):
            return "3.0"
    raise refusal(installed)


def refusal(installed: str) -> ImportError:
    """Create the error for a release that this package does not support."""
    low, below = (".".join(map(str, own)) for own in (LOWEST, BELOW))
    return ImportError(
        f"tn_extensions.curvlinops: curvlinops-for-pytorch must be a release >={low},"
        f"<{below} of the line 3.0 or of the one after it, got {installed}. Install "
        f"'curvlinops-for-pytorch=={low}'."
    )


INSTALLED = version("curvlinops-for-pytorch")
LINE: Line = line_of(INSTALLED, getattr(curvlinops, "KFACLinearOperator", None))
"""The release line that is installed."""
