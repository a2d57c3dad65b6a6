"""Blocks of the GGN, and Kronecker factors, from Jacobians of torch's own modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.autograd.functional import jacobian as full_jacobian
from torch.func import functional_call

from tests.reference.jacobian import kfac_factor

Function = Callable[[Tensor], Tensor]


def jacobian(function: Function, x: Tensor) -> Tensor:
    """Jacobian over the whole batch, ``[N, D_out, N, D_in]``."""
    y = function(x)
    full = full_jacobian(function, x, vectorize=True)
    return full.reshape(len(y), y[0].numel(), len(x), x[0].numel())


def loss_hessian(loss: Function, logits: Tensor) -> Tensor:
    """Hessian of the loss over the whole batch, ``[N, C, N, C]``."""
    return hessian(loss, logits).reshape(*2 * (len(logits), logits[0].numel()))


def ggn_blocks(tail: Function, y: Tensor, output_hessian: Tensor) -> Tensor:
    """GGN with respect to ``y``, a block for each sample, ``[N, D, D]``.

    Args:
        tail: From ``y`` to the model's output, for the whole batch.
        y: Output of a layer, ``[N, ...]``.
        output_hessian: Hessian with respect to the model's output, ``[N, C, N, C]``.
    """
    j = jacobian(tail, y)
    return torch.einsum("acni,acbd,bdnj->nij", j, output_hessian, j)


def averaged_block(modules: Sequence[Function], y: Tensor, block: Tensor) -> Tensor:
    """KFRA's recursion: ``1/N sum_{n,m} J_nm^T M J_nm``, one module at a time.

    Args:
        modules: From ``y`` to the model's output.
        y: Output of a layer, ``[N, ...]``.
        block: Loss Hessian, the samples' blocks summed, ``[C, C]``.
    """
    if not modules:
        return block
    first, *others = modules
    block = averaged_block(others, first(y), block)
    j = jacobian(first, y)
    return torch.einsum("ncmi,cd,ndmj->ij", j, block, j) / len(y)


def scale_and_shift_blocks(module: Any, x: Tensor, blocks: Tensor) -> list[Tensor]:
    """Blocks ``sum_n J_n^T B_n J_n`` of BatchNorm's scale and shift, ``[C, C]`` each.

    Args:
        module: BatchNorm.
        x: Its input.
        blocks: ``B_n``, with respect to a sample's output, ``[N, D, D]``.
    """

    def output(weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"weight": weight, "bias": bias}
        return functional_call(module, parameters, x).flatten(1)

    jacobians = full_jacobian(output, (module.weight, module.bias), vectorize=True)
    return [torch.einsum("nic,nij,njd->cd", j, blocks, j) for j in jacobians]


def output_factor(module: Any, block: Tensor, approx: str) -> Tensor:
    """Per-group output factor ``[G, CO, CO]`` of a GGN block ``[D, D]``."""
    if isinstance(module, nn.Linear):  # channels come last
        positions = len(block) // module.out_features
        split = block.reshape(2 * (1, positions, module.out_features))
        split = split.permute(0, 2, 1, 3, 5, 4)
    else:
        channels = module.out_channels // module.groups
        positions = len(block) // module.out_channels
        split = block.reshape(2 * (module.groups, channels, positions))
    if approx == "expand":
        return torch.einsum("gaogbo->gab", split)
    return torch.einsum("gaogbp->gab", split)


def input_factor(
    module: Any, x: Tensor, approx: str, output_size: Any = None
) -> Tensor:
    """Per-group input factor ``[G, CI * K, CI * K]``."""
    if isinstance(module, nn.Linear):
        rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
        if approx == "reduce":
            rows = rows.mean(1, keepdim=True)
        factor = torch.einsum("npa,npb->ab", rows, rows)[None] / len(x)
        return factor / rows.shape[1] if approx == "expand" else factor
    if approx == "reduce":
        return kfac_factor(module, x, "reduce", output_size=output_size)
    factor = kfac_factor(module, x, "expand", output_size=output_size)
    if approx == "backpack":
        return factor
    args = (x,) if output_size is None else (x, output_size)
    return factor / module(*args)[0, 0].numel()


def expected(
    module: nn.Module, x: Tensor, block: Tensor, approx: str, output_size: Any = None
) -> list[Tensor]:
    """Savefield of a layer's weight; without groups, of two dimensions."""
    factors = [
        output_factor(module, block, approx),
        input_factor(module, x, approx, output_size),
    ]
    return [factor[0] if len(factor) == 1 else factor for factor in factors]
