"""Modules like ``torch.nn.Unfold`` and ``torch.nn.Fold``, for every convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.conv import Conv, PaddingMode
from tn_extensions.conv_dim import broadcast, is_scalar
from tn_extensions.errors import describe
from tn_extensions.functional.checks import check_tensor
from tn_extensions.functional.linear import fold_output, unfold_input

_Size = int | Sequence[int]
_Padding = int | str | Sequence[int | tuple[int, int]]


_BEYOND_TORCH = {"padding_mode": "zeros", "transposed": False, "output_padding": 0}
"""Options that torch's modules lack, with the values that those implement."""


class _Patches(nn.Module):
    """Hold the options of patches; the base of both modules.

    Channels are treated as samples, since all channels have the same patterns.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def _options(self) -> dict[str, Any]:
        return {name: _frozen(getattr(self, name)) for name in self._names}

    def extra_repr(self) -> str:
        """List the options of torch's module, and others that differ from defaults."""
        return ", ".join(
            f"{name}={value!r}"
            for name, value in self._options().items()
            if name not in _BEYOND_TORCH or value != _BEYOND_TORCH[name]
        )


class Unfold(_Patches):
    """Unfold images (im2col): patches ``U[n, (ci, k), o]``.

    Replaces ``torch.nn.Unfold``. It also supports any number of dimensions, uneven and
    ``"same"`` padding, all padding modes, and transposed convolutions, whose patches
    are zero where the kernel reads no input. The adjoint is :class:`Fold`, the function
    :func:`tn_extensions.functional.unfold_input`.

    Args:
        kernel_size: Size of patches: a number, or one per dimension.
        dilation: Dilation: a number, or one per dimension.
        padding: Padding as for :meth:`Conv.make`: numbers, pairs for left and right,
            ``"same"`` or ``"valid"``.
        stride: Stride: a number, or one per dimension.
        padding_mode: Values at the padded positions, as in torch.
        transposed: Whether the convolution is transposed.
        output_padding: Output padding (transposed only).

    >>> Unfold(3, padding="same")(torch.rand(2, 4, 7, 8, 9)).shape  # 3 * 3 * 3 = 27
    torch.Size([2, 108, 504])
    """

    def __init__(
        self,
        kernel_size: _Size,
        dilation: _Size = 1,
        padding: _Padding = 0,
        stride: _Size = 1,
        *,
        padding_mode: PaddingMode = "zeros",
        transposed: bool = False,
        output_padding: _Size = 0,
    ) -> None:
        super().__init__(
            kernel_size=kernel_size,
            dilation=dilation,
            padding=padding,
            stride=stride,
            padding_mode=padding_mode,
            transposed=transposed,
            output_padding=output_padding,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Unfold.

        Args:
            x: Images, ``[N, C, I1, ...]``. If some option has an entry per dimension,
                it may be a single image, ``[C, I1, ...]``; if all options are numbers,
                all axes but the first two are spatial.

        Returns:
            Patches, ``[N, C * K, O]`` or ``[C * K, O]``, of the dtype of ``x``.

        Raises:
            TypeError: If ``x`` is not a floating point tensor.
            ValueError: If the shape of ``x`` does not fit.
        """
        check_tensor("Unfold", "x", x)
        options = self._options()
        known = _num_dims(options)
        num_dims = known or x.dim() - 2
        if num_dims < 1 or x.dim() not in (num_dims + 1, num_dims + 2):
            rule = f"equal {known + 1} or {known + 2}" if known else "be at least 3"
            value = f"{x.dim()} (x.shape = {list(x.shape)})"
            raise ValueError(describe("Unfold", "x.dim()", rule, value))
        lead, sizes = x.shape[:-num_dims], x.shape[-num_dims:]
        conv = _conv(sizes, **options)
        u = unfold_input(x.reshape(prod(lead), 1, *sizes), conv)
        return u.unflatten(0, lead).flatten(-3, -2).to(x.dtype)


class Fold(_Patches):
    """Fold patches (col2im): ``X[n, ci, i] = sum_{k, o} P[k, o, i] u[n, (ci, k), o]``.

    Replaces ``torch.nn.Fold``. It is the adjoint of :class:`Unfold` with the same
    options: it adds each entry of a patch to the position that the entry comes from.
    The function is :func:`tn_extensions.functional.fold_output`.

    Args:
        output_size: Spatial size of the images. If this and all options are numbers,
            the images have two dimensions, as in torch.
        kernel_size: Size of patches: a number, or one per dimension.
        dilation: Dilation: a number, or one per dimension.
        padding: Padding as for :meth:`Conv.make`: numbers, pairs for left and right,
            ``"same"`` or ``"valid"``.
        stride: Stride: a number, or one per dimension.
        padding_mode: Values at the padded positions, as in torch. Entries of copies are
            added to the position that was copied.
        transposed: Whether the convolution is transposed. The images are its *input*.
        output_padding: Output padding (transposed only).

    >>> Fold((7, 8, 9), 3, padding="same")(torch.rand(2, 108, 504)).shape
    torch.Size([2, 4, 7, 8, 9])
    """

    def __init__(
        self,
        output_size: _Size,
        kernel_size: _Size,
        dilation: _Size = 1,
        padding: _Padding = 0,
        stride: _Size = 1,
        *,
        padding_mode: PaddingMode = "zeros",
        transposed: bool = False,
        output_padding: _Size = 0,
    ) -> None:
        super().__init__(
            output_size=output_size,
            kernel_size=kernel_size,
            dilation=dilation,
            padding=padding,
            stride=stride,
            padding_mode=padding_mode,
            transposed=transposed,
            output_padding=output_padding,
        )

    def forward(self, u: Tensor) -> Tensor:
        """Fold.

        Args:
            u: Patches, ``[N, C * K, O]`` or ``[C * K, O]``.

        Returns:
            Images, ``[N, C, I1, ...]`` or ``[C, I1, ...]``, of the dtype of ``u``. In
            half precision, entries are summed in float32.

        Raises:
            TypeError: If ``u`` is not a floating point tensor.
            ValueError: If the shape of ``u`` does not fit.
        """
        check_tensor("Fold", "u", u)
        options = self._options()
        sizes = broadcast(options["output_size"], _num_dims(options) or 2)
        conv = _conv(sizes, **options)
        patch, positions = prod(conv.kernel_size), prod(conv.output_size)
        if u.dim() not in (2, 3) or u.shape[-2] % patch or u.shape[-1] != positions:
            rule = f"equal [N, C * {patch}, {positions}] or [C * {patch}, {positions}]"
            remedy = f"Images are of size {sizes}"
            raise ValueError(describe("Fold", "u.shape", rule, list(u.shape), remedy))
        lead = (*u.shape[:-2], u.shape[-2] // patch)
        x = fold_output(u.reshape(prod(lead), patch, positions), conv)
        return x.reshape(*lead, *sizes).to(u.dtype)


def _frozen(value: Any) -> Any:
    """Convert sequences to tuples, which are hashable."""
    return value if is_scalar(value) else tuple(map(_frozen, value))


def _num_dims(options: dict[str, Any]) -> int | None:
    """Count the dimensions that options have entries for; None if all are numbers."""
    lengths = [len(value) for value in options.values() if not is_scalar(value)]
    return max(lengths) if lengths else None  # `default` stops older compilers


@lru_cache(maxsize=4096, typed=True)
def _remembered(input_size: tuple[int, ...], **options: Any) -> Conv:
    return Conv.make(1, 1, input_size=input_size, **options)


def _conv(input_size: tuple[int, ...], **options: Any) -> Conv:
    options.pop("output_size", None)
    # a compiler would trace into the cache, with a warning
    make = _remembered.__wrapped__ if torch.compiler.is_compiling() else _remembered
    return make(input_size, **options)
