"""Observe calls of ``linear`` and of convolutions.

A model calls one of these functions wherever it multiplies by a kernel: in a module of
``torch.nn``, in its own ``forward``, or in a function of its parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _linear(input: Any, weight: Any, bias: Any = None) -> None: ...


def _conv(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> None: ...


def _transposed(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> None: ...


_SIGNATURES: dict[Any, inspect.Signature] = {
    F.linear: inspect.signature(_linear),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), inspect.signature(_conv)),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        inspect.signature(_transposed),
    ),
}
"""Signatures of torch's functions, which Python cannot inspect."""


class Calls(TorchFunctionMode):
    """Intercept calls of ``linear`` and of convolutions.

    Args:
        on_call: Function that replaces the call. It takes torch's function and its
            arguments by name, in order, and returns the output.
    """

    def __init__(self, on_call: Callable[[Any, dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self._on_call = on_call

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function, or intercept its call."""
        kwargs = kwargs or {}
        if func not in _SIGNATURES:
            return func(*args, **kwargs)
        bound = _SIGNATURES[func].bind(*args, **kwargs)
        bound.apply_defaults()
        return self._on_call(func, bound.arguments)
