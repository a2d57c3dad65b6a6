"""One spatial dimension of a convolution, and arguments that speak of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from tn_extensions.errors import describe

T = TypeVar("T")


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
            check_int("ConvDim", name, getattr(self, name), minimum=1)
        for name, size in zip(("padding[0]", "padding[1]"), self.padding, strict=True):
            check_int("ConvDim", name, size, minimum=0)
        check_int("ConvDim", "output_padding", self.output_padding, minimum=0)
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
        if self.output_size < 1:
            raise ValueError(
                describe(
                    "ConvDim",
                    "output_size",
                    "be positive",
                    f"{self.output_size} (input_size = {self.input_size}, "
                    f"kernel_size = {self.kernel_size}, padding = {self.padding}, "
                    f"dilation = {self.dilation})",
                    "Enlarge the input or the padding",
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
        """The same dimension on an input that carries its padding already."""
        return replace(
            self, input_size=self.input_size + sum(self.padding), padding=(0, 0)
        )


def check_int(callable_name: str, name: str, value: object, minimum: int) -> None:
    """Refuse a value that is no int (``TypeError``) or too small (``ValueError``)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            describe(
                callable_name, name, "be an int", f"{type(value).__name__} {value!r}"
            )
        )
    if value < minimum:
        raise ValueError(describe(callable_name, name, f"be at least {minimum}", value))


def broadcast(value: T | Sequence[T], num_dims: int) -> tuple[T, ...]:
    """A value per dimension; a scalar stands for all."""
    if isinstance(value, Sequence):
        return tuple(value)
    return (value,) * num_dims


def parse_padding(
    padding: int | str | Sequence[int | tuple[int, int]],
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

    def pair(entry: int | tuple[int, int]) -> tuple[int, int]:
        if isinstance(entry, Sequence):
            if len(entry) != 2:
                rule = "hold numbers or pairs"
                raise ValueError(describe("Conv.make", "padding", rule, padding))
            return cast("tuple[int, int]", tuple(entry))
        return (entry, entry)

    entries = padding if isinstance(padding, Sequence) else (padding,) * num_dims
    return tuple(pair(entry) for entry in cast("Sequence[int]", entries))
