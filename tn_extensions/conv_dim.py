"""One spatial dimension of a convolution, and arguments for several dimensions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import index
from typing import Any

from tn_extensions.errors import describe


@dataclass(frozen=True, slots=True)
class ConvDim:
    """One spatial dimension of a convolution.

    The output size is

    ``O = floor((I + l + r - d (K - 1) - 1) / s) + 1`` or, transposed,
    ``O = s (I - 1) - l - r + d (K - 1) + 1 + output_padding``

    with stride ``s``, dilation ``d`` and padding ``(l, r)``.

    Args:
        input_size: Size ``I`` of the module's input.
        kernel_size: Size ``K`` of the kernel.
        stride: Stride ``s``.
        dilation: Dilation ``d``.
        padding: Padding ``(l, r)`` on the left and right.
        transposed: Whether the convolution is transposed.
        output_padding: Positions appended to the output of a transposed convolution.

    Raises:
        ValueError: If no convolution with these hyper-parameters exists.
    """

    input_size: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)
    transposed: bool = False
    output_padding: int = 0

    def __post_init__(self) -> None:
        for name in ("input_size", "kernel_size", "stride", "dilation"):
            set_int(self, name, minimum=1)
        if is_scalar(self.padding) or len(self.padding) != 2:
            rule = "be a pair for left and right"
            raise ValueError(describe("ConvDim", "padding", rule, self.padding))
        padding = tuple(
            as_int("ConvDim", f"padding[{end}]", size, minimum=0)
            for end, size in enumerate(self.padding)
        )
        object.__setattr__(self, "padding", padding)
        set_int(self, "output_padding", minimum=0)
        if not self.transposed and self.output_padding:
            raise ValueError(
                describe(
                    "ConvDim",
                    "output_padding",
                    "be 0 for a convolution that is not transposed",
                    self.output_padding,
                    "Set transposed=True",
                )
            )
        if self.transposed and self.output_padding >= max(self.stride, self.dilation):
            raise ValueError(
                describe(
                    "ConvDim",
                    "output_padding",
                    f"be smaller than stride = {self.stride} or "
                    f"dilation = {self.dilation}",
                    self.output_padding,
                )
            )
        self._check_output_size()

    def _check_output_size(self) -> None:
        # as in torch, padding may cut off all of a transposed convolution's output
        rule, remedy = "be positive", "Enlarge the input or the padding"
        if self.transposed:
            rule, remedy = "be at least 0", "Enlarge the input or reduce the padding"
        if self.output_size < (0 if self.transposed else 1):
            raise ValueError(
                describe(
                    "ConvDim",
                    "output_size",
                    rule,
                    f"{self.output_size} (input_size = {self.input_size}, "
                    f"kernel_size = {self.kernel_size}, padding = {self.padding}, "
                    f"dilation = {self.dilation})",
                    remedy,
                )
            )

    @property
    def output_size(self) -> int:
        """Size ``O`` of the module's output."""
        span = self.dilation * (self.kernel_size - 1) + 1
        total = sum(self.padding)
        if self.transposed:
            grown = self.stride * (self.input_size - 1) + span
            return grown - total + self.output_padding
        return (self.input_size + total - span) // self.stride + 1

    @property
    def explicitly_padded(self) -> ConvDim:
        """This dimension of an input that is padded already."""
        return replace(
            self, input_size=self.input_size + sum(self.padding), padding=(0, 0)
        )


def as_int(callable_name: str, name: str, value: Any, minimum: int) -> int:
    """Convert an integer of any kind, including NumPy's and tensors, to an ``int``.

    Args:
        callable_name: What the user called, for the error message.
        name: The argument.
        value: Its value.
        minimum: The smallest value that is allowed.

    Returns:
        The value as an ``int``.

    Raises:
        TypeError: If the value is not an integer.
        ValueError: If it is smaller than ``minimum``.
    """
    try:
        if isinstance(value, bool):  # torch rejects these, too
            raise TypeError
        number = index(value)
    except TypeError:
        got = f"{type(value).__name__} {value!r}"
        raise TypeError(describe(callable_name, name, "be an int", got)) from None
    if number < minimum:
        rule = f"be at least {minimum}"
        raise ValueError(describe(callable_name, name, rule, number))
    return number


def set_int(owner: Any, name: str, minimum: int) -> None:
    """Convert an attribute of a frozen dataclass with :func:`as_int`."""
    number = as_int(type(owner).__name__, name, getattr(owner, name), minimum)
    object.__setattr__(owner, name, number)


def is_scalar(value: Any) -> bool:
    """Tell whether a value is one for all dimensions instead of a sequence."""
    if isinstance(value, (tuple, list)):
        return False
    if isinstance(value, str):
        return True
    try:
        index(value)  # accepts zero-dimensional arrays and tensors, too
    except TypeError:
        return not isinstance(value, Iterable)
    return True


def broadcast(value: Any, num_dims: int) -> tuple[Any, ...]:
    """Return a value per dimension; a scalar stands for all."""
    return (value,) * num_dims if is_scalar(value) else tuple(value)


def parse_padding(
    padding: Any,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    num_dims: int,
) -> tuple[tuple[int, int], ...]:
    """Bring a padding argument into the form ``((left, right), ...)``."""
    if isinstance(padding, str):
        if padding not in ("same", "valid") or transposed:
            kinds = "numbers" if transposed else "numbers, 'same' or 'valid'"
            value = repr(padding)
            raise ValueError(describe("Conv.make", "padding", f"be {kinds}", value))
        if padding == "valid":
            return ((0, 0),) * num_dims
        if any(s != 1 for s in stride):
            rule = "be 1 with padding = 'same'"
            raise ValueError(describe("Conv.make", "stride", rule, stride))
        totals = (d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True))
        return tuple((total // 2, total - total // 2) for total in totals)

    def pair(entry: Any) -> tuple[int, int]:
        left, *right = broadcast(entry, 2)
        if len(right) != 1:
            rule = "have a number or a pair per dimension"
            raise ValueError(describe("Conv.make", "padding", rule, padding))
        return (left, right[0])

    return tuple(pair(entry) for entry in broadcast(padding, num_dims))
