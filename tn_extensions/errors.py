"""One form for all error messages.

``{callable}: {argument} must {rule}, got {value}. {Remedy}.``
"""

from __future__ import annotations

from typing import Any, get_args


def describe(
    callable_name: str, argument: str, rule: str, value: object, remedy: str = ""
) -> str:
    """Spell out a refused argument in the package's one-line form.

    Args:
        callable_name: What the user called, e.g. ``"kfac_reduce"``.
        argument: The argument (or attribute of it), e.g. ``"x.shape[1]"``.
        rule: What must hold, to be read after 'must', e.g. ``"equal C_in = 6"``.
        value: What was given.
        remedy: What to do instead, a sentence without the full stop.

    Returns:
        The message.

    >>> describe("kfac_reduce", "x.shape[1]", "equal C_in = 6", 5, "Pass the input")
    'kfac_reduce: x.shape[1] must equal C_in = 6, got 5. Pass the input.'
    """
    message = f"{callable_name}: {argument} must {rule}, got {value}."
    return f"{message} {remedy}." if remedy else message


def check_choice(callable_name: str, argument: str, value: object, kind: Any) -> None:
    """Refuse a value that is none of a ``Literal``'s.

    Raises:
        ValueError: If it is not.
    """
    if value not in get_args(kind):
        rule = f"be {' or '.join(map(repr, get_args(kind)))}"
        raise ValueError(describe(callable_name, argument, rule, repr(value)))
