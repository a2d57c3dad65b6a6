"""References from Jacobians of torch's own modules, for every hyper-parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def forward(module: nn.Module, x: Tensor, output_size: Any = None) -> Tensor:
    """Call the module, with the output size where one is given."""
    return module(x) if output_size is None else module(x, output_size)


def patches(module: Any, x: Tensor, output_size: Any = None) -> Tensor:
    """Unfolded input ``U`` of a convolution, read off its weight Jacobian.

    The output is linear in the weight, and the Jacobian of the first output channel of
    a group with respect to that channel's kernel holds the patches that it meets.

    Returns:
        Tensor of shape ``[N, G, CI * K, O]``, both flattened in torch's order.
    """
    groups = module.groups
    in_per_group = module.in_channels // groups
    weight = module.weight.detach().to(x.dtype)

    def apply(w: Tensor) -> Tensor:
        parameters = {"weight": w}
        if module.bias is not None:
            parameters["bias"] = torch.zeros(module.out_channels, dtype=x.dtype)
        args = (x,) if output_size is None else (x, output_size)
        return torch.func.functional_call(module, parameters, args)

    out_per_group = module.out_channels // groups
    blocks = []
    for g in range(groups):
        channel = g * out_per_group

        def first_channel(w: Tensor, channel: int = channel) -> Tensor:
            return apply(w)[:, channel].flatten(1)

        jacobian = torch.func.jacrev(first_channel)(weight)
        if module.transposed:
            block = jacobian[:, :, g * in_per_group : (g + 1) * in_per_group, 0]
        else:
            block = jacobian[:, :, channel]
        blocks.append(block.flatten(2).transpose(1, 2))
    return torch.stack(blocks, dim=1)


def kfac_factor(
    module: Any, x: Tensor, approx: str, bias: bool = False, output_size: Any = None
) -> Tensor:
    """KFAC-expand or KFAC-reduce input factor from the patches, ``[G, D, D]``."""
    u = patches(module, x, output_size)
    if bias:
        u = torch.cat([u, torch.ones_like(u[:, :, :1])], dim=2)
    num_data, num_outputs = u.shape[0], u.shape[-1]
    if approx == "reduce":
        u = u.mean(-1, keepdim=True)
    assert num_outputs > 0
    return torch.einsum("ngap,ngbp->gab", u, u) / max(num_data, 1)


def gradient_factor(module: Any, x: Tensor, g: Tensor, approx: str) -> Tensor:
    """KFAC-expand or KFAC-reduce factor of output gradients, ``[G, CO, CO]``."""
    num_outputs = module(torch.zeros_like(x))[0, 0].numel()
    rows = g.reshape(
        -1, module.groups, module.out_channels // module.groups, num_outputs
    )
    if approx == "reduce":
        rows = rows.sum(-1, keepdim=True)
    return torch.einsum("ngap,ngbp->gab", rows, rows)


def rotated_gradients(
    module: Any, x: Tensor, g: Tensor, QA: Tensor, QB: Tensor, bias: bool = False
) -> Tensor:
    """Per-sample gradients between two bases, from the patches: ``[N, G, s, r]``."""
    u = patches(module, x)
    if bias:
        u = torch.cat([u, torch.ones_like(u[:, :, :1])], dim=2)
    rows = g.reshape(len(x), module.groups, -1, u.shape[-1])
    return torch.einsum("ngcp,ngdp,gcs,gdr->ngsr", rows, u, QB, QA)
