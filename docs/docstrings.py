"""Docstrings as the reference shows them: reStructuredText's marks become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?")


class Markdown(griffe.Extension):
    """Rewrites each docstring when it has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence doctests, drop roles, and end paragraphs before code by one colon."""
        if obj.docstring is not None:
            text = _ROLE.sub("`", obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            text = _DOCTEST.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", text)
            obj.docstring.value = text
