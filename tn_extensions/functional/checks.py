"""Check arguments before any work is done; errors name the remedy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tn_extensions.compiler.allocate import memory_of
from tn_extensions.conv import Conv
from tn_extensions.errors import describe


def check_tensor(name: str, argument: str, value: Any) -> None:
    """Check that a value is a floating point tensor."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(describe(name, argument, "be a torch.Tensor", kind))
    if not value.is_floating_point():
        rule, remedy = "be a floating point tensor", f"Convert with {argument}.float()"
        if value.is_complex():
            remedy = "Complex layers are not supported"
        raise TypeError(describe(name, argument, rule, value.dtype, remedy))


def check_conv(name: str, conv: Any) -> None:
    """Check that a value is a :class:`Conv`."""
    if not isinstance(conv, Conv):
        raise TypeError(
            describe(
                name,
                "conv",
                "be a Conv",
                type(conv).__name__,
                "Create one with Conv.from_module(module, x.shape[2:])",
            )
        )


def check_shaped(name: str, argument: str, value: Any, shape: tuple[int, ...]) -> None:
    """Check that a value is a floating point tensor of a given shape."""
    check_tensor(name, argument, value)
    if tuple(value.shape) != shape:
        rule = f"equal {list(shape)}"
        raise ValueError(describe(name, f"{argument}.shape", rule, list(value.shape)))


def check_input(name: str, x: Any, conv: Any, argument: str = "x") -> None:
    """Check that a value is a batch of inputs that fits the hyper-parameters."""
    check_conv(name, conv)
    check_tensor(name, argument, x)
    if tuple(x.shape[1:]) == (conv.in_channels, *conv.input_size):
        return
    given = f"({argument}.shape = {list(x.shape)})"
    if x.dim() != conv.num_dims + 2:
        rule = f"equal {conv.num_dims + 2} for {conv.num_dims} spatial dimension(s)"
        remedy = "Pass a batch [N, C_in, I1, ...]"
        if x.dim() == conv.num_dims + 1:
            remedy += f", such as {argument}[None] for a single sample"
        value = f"{x.dim()} {given}"
        raise ValueError(describe(name, f"{argument}.dim()", rule, value, remedy))
    if x.shape[1] != conv.in_channels:
        rule = f"equal C_in = {conv.in_channels}"
        remedy = "Pass the layer's input, not its output"
        value = f"{x.shape[1]} {given}"
        raise ValueError(describe(name, f"{argument}.shape[1]", rule, value, remedy))
    rule = f"equal conv.input_size = {conv.input_size}"
    remedy = "Create a Conv for this spatial size"
    sizes = tuple(x.shape[2:])
    raise ValueError(describe(name, f"{argument}.shape[2:]", rule, sizes, remedy))


def check_like(
    name: str,
    argument: str,
    value: Tensor,
    dtype: torch.dtype,
    x: Tensor,
    other: str = "x",
) -> None:
    """Check that a tensor has a given dtype, and the device of another tensor."""
    if value.dtype != dtype:
        raise ValueError(
            describe(name, f"{argument}.dtype", f"equal {dtype}", value.dtype)
        )
    if value.device != x.device:
        rule = f"equal {other}.device = {x.device}"
        raise ValueError(describe(name, f"{argument}.device", rule, value.device))


def check_out(
    name: str, out: Any, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor
) -> None:
    """Check the shape, dtype and device of ``out``, and that it is no view of ``x``."""
    if not isinstance(out, Tensor):
        kind = type(out).__name__
        raise TypeError(describe(name, "out", "be a torch.Tensor", kind))
    if tuple(out.shape) != shape:
        rule = f"equal {list(shape)}"
        raise ValueError(describe(name, "out.shape", rule, list(out.shape)))
    check_like(name, "out", out, dtype, x)
    if memory_of(out) == memory_of(x) and x.numel():
        rule = "not share memory with x"
        raise ValueError(describe(name, "out", rule, "a view of it"))


def check_vectors(
    name: str,
    g: Any,
    conv: Conv,
    argument: str,
    leading: tuple[int, ...],
    batch_size: int | None = None,
) -> int | None:
    """Check that vectors fit the output of a convolution.

    Args:
        name: The function.
        g: The vectors.
        conv: Hyper-parameters.
        argument: Name of the argument.
        leading: Allowed numbers of axes before ``[C_out, O1, ...]``: one for samples,
            or two for vectors and samples.
        batch_size: Number of samples. Default: any.

    Returns:
        Number ``V`` of vectors. ``None``: they have no axis ``V``.

    Raises:
        TypeError: If ``g`` is not a floating point tensor.
        ValueError: If the shape does not fit.
    """
    check_tensor(name, argument, g)
    sizes = (conv.out_channels, *conv.output_size)
    lead = g.dim() - len(sizes)
    if (
        lead not in leading
        or tuple(g.shape[lead:]) != sizes
        or batch_size not in (None, g.shape[lead - 1])
    ):
        vectors = "" if max(leading) == 1 else "V, " if min(leading) == 2 else "(V,) "
        samples = "N" if batch_size is None else batch_size
        rule = f"equal [{vectors}{samples}, {', '.join(map(str, sizes))}]"
        raise ValueError(describe(name, f"{argument}.shape", rule, list(g.shape)))
    return g.shape[0] if lead == 2 else None
