"""TEMPORARY slow stand-in; the compiler replaces it. The signatures stay."""
from __future__ import annotations
import torch
from torch import Tensor
import torch.nn.functional as F
from tn_extensions.conv import Conv


def _unfold(x: Tensor, conv: Conv) -> Tensor:
    if conv.pads_explicitly:
        flat = [p for pair in reversed(conv.padding) for p in pair]
        mode = conv.padding_mode
        x = F.pad(x, flat, mode=mode)
        conv = conv.explicitly_padded
    u = x.reshape(x.shape[0], conv.groups, -1, *x.shape[2:])
    D = conv.num_dims
    for j, d in enumerate(conv.dims):
        O, I = (d.input_size, d.output_size) if d.transposed else (d.output_size, d.input_size)
        k, o, i = torch.meshgrid(*(torch.arange(s) for s in (d.kernel_size, O, I)), indexing="ij")
        P = (i == d.stride * o + d.dilation * k - d.padding[0]).to(x)
        if d.transposed:
            P = P.transpose(1, 2)
        u = torch.tensordot(u, P, dims=([3], [2]))  # appends k, o
    # u: n g ci k1 o1 k2 o2 ...
    u = u.permute(0, 1, 2, *range(3, 3 + 2 * D, 2), *range(4, 4 + 2 * D, 2))
    u = u.flatten(2, 2 + D)
    return u.flatten(3)


def unfold_input(x: Tensor, conv: Conv) -> Tensor:
    u = _unfold(x, conv)
    return u.flatten(1, 2)


def conv(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    u = _unfold(x, conv)
    w = weight
    if conv.transposed:
        w = w.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(2)
    else:
        w = w.unflatten(0, (conv.groups, -1)).flatten(2)
    y = torch.einsum("ngap,gca->ngcp", u, w)
    return y.reshape(x.shape[0], conv.out_channels, *conv.output_size)


def _factor(u, scale, bias, out):
    if bias:
        u = torch.cat([u, torch.ones_like(u[:, :, :1])], 2)
    r = scale * torch.einsum("ngap,ngbp->gab", u, u)
    return r if out is None else out.add_(r)


def kfac_expand(x: Tensor, conv: Conv, *, bias: bool = False, scale: float | None = None, out: Tensor | None = None) -> Tensor:
    u = _unfold(x, conv)
    return _factor(u, 1 / max(len(x), 1) if scale is None else scale, bias, out)


def kfac_reduce(x: Tensor, conv: Conv, *, bias: bool = False, scale: float | None = None, out: Tensor | None = None) -> Tensor:
    u = _unfold(x, conv)
    if bias:
        u = torch.cat([u, torch.ones_like(u[:, :, :1])], 2)
    o = u.shape[-1]
    return _factor(u.sum(-1, keepdim=True), 1 / (max(len(x), 1) * o * o) if scale is None else scale, False, out)
