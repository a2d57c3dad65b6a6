"""One form for all error messages.

``{callable}: {argument} must {rule}, got {value}. {Remedy}.``
"""

from __future__ import annotations

from typing import Any, get_args


def describe(
    callable_name: str, argument: str, rule: str, value: object, remedy: str = ""
) -> str:
    """Format the error message of an invalid argument.

    Args:
        callable_name: What the user called, such as ``"kfac_reduce"``.
        argument: The argument or an attribute of it, such as ``"x.shape[1]"``.
        rule: The requirement, read after 'must', such as ``"equal C_in = 6"``.
        value: The value that was passed.
        remedy: What to do instead: a sentence without its full stop.

    Returns:
        The message.

    >>> describe("kfac_reduce", "x.shape[1]", "equal C_in = 6", 5, "Pass the input")
    'kfac_reduce: x.shape[1] must equal C_in = 6, got 5. Pass the input.'
    """
    message = f"{callable_name}: {argument} must {rule}, got {value}."
    return f"{message} {remedy}." if remedy else message


def check_choice(callable_name: str, argument: str, value: object, kind: Any) -> None:
    """Check that a value is one of those that a ``Literal`` lists.

    Args:
        callable_name: What the user called, for the error message.
        argument: The argument.
        value: Its value.
        kind: The ``Literal``.

    Raises:
        ValueError: If the value is not listed.
    """
    if value not in get_args(kind):
        rule = f"be {' or '.join(map(repr, get_args(kind)))}"
        raise ValueError(describe(callable_name, argument, rule, repr(value)))
