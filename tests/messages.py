"""The form that every error message has (design section 5)."""

from __future__ import annotations

import re

FORM = re.compile(r"^[\w.]+: (?P<argument>.+?) must .+, got .+\.$")


def assert_in_form(error: BaseException, name: str, argument: str) -> None:
    """One line that names the callable, the argument and the value."""
    message = str(error)
    assert "\n" not in message
    match = FORM.match(message)
    assert match, message
    assert message.startswith(f"{name}: "), message
    assert match["argument"] == argument, message
