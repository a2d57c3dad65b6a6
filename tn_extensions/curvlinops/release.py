"""Which release line of curvlinops is installed."""

from __future__ import annotations

from importlib.metadata import version

SUPPORTED = "3.0"
"""The release line whose operators this package subclasses."""


def check_release(installed: str) -> None:
    """Refuse a release line that this package has no adapter for.

    Args:
        installed: Version of curvlinops.

    Raises:
        ImportError: If it is of another line.
    """
    if installed.split(".")[:2] != SUPPORTED.split("."):
        raise ImportError(
            "tn_extensions.curvlinops: curvlinops-for-pytorch must be a release "
            f"{SUPPORTED}.*, got {installed}. Install "
            f"'curvlinops-for-pytorch=={SUPPORTED}.*'."
        )


check_release(version("curvlinops-for-pytorch"))
