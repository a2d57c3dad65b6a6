"""Pictures that the tutorials make while the site is built."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any


def picture(drawing: Any, text: str) -> str:
    """Write a network, a trace or a figure of matplotlib as an image.

    Args:
        drawing: What is shown.
        text: What the image says, for those who do not see it.

    Returns:
        HTML that holds the image.
    """
    if hasattr(drawing, "savefig"):
        buffer = BytesIO()
        drawing.savefig(buffer, format="svg", bbox_inches="tight")
        content = buffer.getvalue()
    else:
        content = drawing._repr_svg_().encode()
    data = base64.b64encode(content).decode()
    return f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
