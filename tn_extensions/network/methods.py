"""Methods of networks and traces that higher layers supply.

The symbolic core imports nothing above it, so it cannot draw, explain or evaluate a
network. The layers that can attach their functions to its classes: ``draw(network)``
becomes ``network.draw()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def method_of(*classes: type, name: str = "") -> Callable[[Function], Function]:
    """Make a function a method of classes of a lower layer.

    Args:
        *classes: The classes. The function takes an instance as its first argument.
        name: Name of the method (default: the function's name).

    Returns:
        A decorator that returns the function itself.
    """

    def attach(function: Function) -> Function:
        for each in classes:
            setattr(each, name or function.__name__, function)
        return function

    return attach
