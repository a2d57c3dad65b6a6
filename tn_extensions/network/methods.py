"""Methods of networks and traces that the layers above supply.

The symbolic core imports nothing above it, so it cannot draw, explain or evaluate
anything. Functions of the layers that can are attached to its classes, for example
``draw(network)`` as ``network.draw()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def method_of(*classes: type, name: str = "") -> Callable[[Function], Function]:
    """Make a function a method of classes that a layer below defines.

    Args:
        *classes: The classes, whose instances the function takes first.
        name: Name of the method. Default: the function's own.

    Returns:
        A decorator that returns the function itself.
    """

    def attach(function: Function) -> Function:
        for each in classes:
            setattr(each, name or function.__name__, function)
        return function

    return attach
