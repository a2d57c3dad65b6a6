"""The layers that have Kronecker factors, their kernels as matrices, and their uses.

A ``Linear`` is a convolution with a kernel of one position. Groups are a leading axis
of all factors: an input factor is ``[G, D, D]`` with ``D = CI * K`` (one more with a
joint bias), a gradient factor ``[G, CO, CO]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from torch import Tensor, nn

from tn_extensions.conv import Conv

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)

Groups = Literal["separate", "average"]


def num_groups(module: Any, groups: Groups) -> int:
    """Pairs of factors that a layer has."""
    return 1 if isinstance(module, nn.Linear) or groups == "average" else module.groups


def kernel_matrices(module: Any, weight: Tensor, groups: int) -> Tensor:
    """A weight, trailing axis ``V``, as matrices ``[G, CO, CI * K, V]``."""
    if isinstance(module, TRANSPOSED):
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    rows = weight.shape[0]
    return weight.reshape(groups, rows // groups, -1, weight.shape[-1])


def kernel_of_matrices(module: Any, matrices: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`kernel_matrices`, ``shape`` being that of the result."""
    if not isinstance(module, TRANSPOSED):
        return matrices.reshape(*shape)
    channels, rows, *rest = shape
    groups = module.groups
    kernel = matrices.reshape(groups, rows, channels // groups, *rest)
    return kernel.transpose(1, 2).reshape(*shape)


@dataclass(frozen=True)
class Use:
    """One use of a layer in a forward pass.

    Args:
        x: Its input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.
        is_linear: Whether it is a ``Linear``, whose channels come last.
    """

    x: Tensor
    conv: Conv
    is_linear: bool

    @classmethod
    def of(cls, module: Any, x: Tensor, output: Tensor, groups: Groups) -> Use:
        """What a layer did to an input."""
        x = x.detach()
        if isinstance(module, nn.Linear):
            x = _channels_first(x)
            features = (module.in_features, module.out_features)
            pointwise = Conv.make(*features, kernel_size=1, input_size=x.shape[2:])
            return cls(x, pointwise, is_linear=True)
        conv = Conv.from_module(module, x.shape[2:], output.shape[2:])
        if groups == "average" and conv.groups > 1:
            # what curvlinops does: the layer as one without groups
            x = x.unflatten(1, (conv.groups, -1)).mean(1)
            conv = replace(conv, in_channels=x.shape[1], groups=1)
        return cls(x, conv, is_linear=False)

    @property
    def num_positions(self) -> int:
        """Positions that share the weight."""
        return prod(self.conv.output_size)

    def gradient(self, gradient: Tensor) -> Tensor:
        """A gradient of the output as ``[N, C_out, P]``."""
        gradient = gradient.detach()
        return _channels_first(gradient) if self.is_linear else gradient.flatten(2)

    def without_input(self) -> Use:
        """The same, but for the input, whose memory can then be freed."""
        return replace(self, x=self.x.new_empty(0))


def _channels_first(x: Tensor) -> Tensor:
    """``[N, ..., C]`` as ``[N, C, P]``."""
    return x.reshape(len(x), prod(x.shape[1:-1]), x.shape[-1]).transpose(1, 2)
