"""The slow, obvious KFAC-expand factor, for layers that no toolkit supports."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.contenders import ConvModule


def patches(module: ConvModule, x: Tensor) -> Tensor:
    """Read the patches of a convolution's input off its weight Jacobian.

    The output is linear in the weight. If all output channels share one kernel ``w``,
    each group's first channel is the group's patches times ``w``, and its Jacobian is
    the patches.

    Args:
        module: The convolution.
        x: Its input, ``[N, C_in, I1, ...]``.

    Returns:
        Patches ``[N, G, CI * K, O]``.
    """
    groups = module.groups
    in_per_group = module.in_channels // groups
    shape = module.weight.shape

    def first_channels(kernel: Tensor) -> Tensor:
        if module.transposed:
            weight = torch.cat([kernel] * groups).unsqueeze(1)
        else:
            weight = kernel.unsqueeze(0)
        parameters = {"weight": weight.expand(shape)}
        if module.bias is not None:
            parameters["bias"] = torch.zeros_like(module.bias)
        y = torch.func.functional_call(module, parameters, (x,))
        return y[:, :: module.out_channels // groups].flatten(2)

    kernel = x.new_zeros(in_per_group, *module.kernel_size)
    # there are fewer kernel than output entries, so differentiate forward
    jacobian = torch.func.jacfwd(first_channels)(kernel)
    return jacobian.flatten(3).transpose(2, 3)


def kfac_expand(module: ConvModule, x: Tensor) -> Tensor:
    """KFAC-expand factor ``1/N sum_n sum_o U U^T``, one sample at a time.

    Args:
        module: The convolution.
        x: Its input, ``[N, C_in, I1, ...]``.

    Returns:
        Factor ``[G, CI * K, CI * K]``.
    """
    factors = []
    for sample in x.split(1):
        u = patches(module, sample)[0]
        factors.append(u @ u.mT)
    return torch.stack(factors).mean(0)
