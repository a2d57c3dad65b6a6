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


def transposed_groups(module: Any) -> int | None:
    """Groups of a transposed convolution; ``None`` of others."""
    return module.groups if isinstance(module, TRANSPOSED) else None


def num_groups(module: Any, groups: Groups) -> int:
    """Pairs of factors that a layer has."""
    return 1 if isinstance(module, nn.Linear) or groups == "average" else module.groups


def kernel_matrices(
    kernels: Tensor, groups: int, transposed_groups: int | None
) -> Tensor:
    """Kernels as matrices.

    Args:
        kernels: ``[V, *weight.shape]``.
        groups: Groups of the matrices.
        transposed_groups: Groups of a transposed convolution, whose kernels are
            ``[C_in, CO, *K]``. ``None``: of others they are ``[C_out, CI, *K]``.

    Returns:
        Matrices, ``[V, G, CO, CI * K]``.
    """
    if transposed_groups is not None:
        kernels = kernels.unflatten(1, (transposed_groups, -1))
        kernels = kernels.transpose(2, 3).flatten(1, 2)
    num_kernels, rows, *columns = kernels.shape
    return kernels.reshape(num_kernels, groups, rows // groups, prod(columns))


def kernel_of_matrices(
    matrices: Tensor, shape: Sequence[int], transposed_groups: int | None
) -> Tensor:
    """Matrices ``[G, CO, CI * K, V]`` as kernels ``[*weight.shape, V]``."""
    if transposed_groups is None:
        return matrices.reshape(*shape)
    channels, rows, *rest = shape
    groups = transposed_groups
    kernel = matrices.reshape(groups, rows, channels // groups, *rest)
    return kernel.transpose(1, 2).reshape(*shape)


@dataclass(frozen=True)
class Use:
    """One use of a layer in a forward pass.

    Args:
        x: Its input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.
        is_linear: Whether it is a ``Linear``, whose channels come last.
        node: What made its output, in autograd's graph.
    """

    x: Tensor
    conv: Conv
    is_linear: bool
    node: Any = None

    @classmethod
    def of(cls, module: Any, x: Tensor, output: Tensor, groups: Groups) -> Use:
        """What a layer did to an input."""
        x = x.detach()
        if isinstance(module, nn.Linear):
            x = _channels_first(x)
            features = (module.in_features, module.out_features)
            pointwise = Conv.make(*features, kernel_size=1, input_size=x.shape[2:])
            return cls(x, pointwise, is_linear=True, node=output.grad_fn)
        conv = Conv.from_module(module, x.shape[2:], output.shape[2:])
        if groups == "average" and conv.groups > 1:
            # what curvlinops does: the layer as one without groups
            x = x.unflatten(1, (conv.groups, -1)).mean(1)
            conv = replace(conv, in_channels=x.shape[1], groups=1)
        return cls(x, conv, is_linear=False, node=output.grad_fn)

    @property
    def num_positions(self) -> int:
        """Positions that share the weight."""
        return prod(self.conv.output_size)

    def gradient(self, gradient: Tensor) -> Tensor:
        """A gradient of the output as ``[N, C_out, P]``."""
        gradient = gradient.detach()
        return _channels_first(gradient) if self.is_linear else gradient.flatten(2)

    def of_data(self, indices: Tensor) -> Use:
        """The use on some of the data."""
        return replace(self, x=self.x[indices])

    def without_input(self) -> Use:
        """The same, but for the input, whose memory can then be freed."""
        return replace(self, x=self.x.new_empty(0))


def _channels_first(x: Tensor) -> Tensor:
    """``[N, ..., C]`` as ``[N, C, P]``."""
    return x.reshape(len(x), prod(x.shape[1:-1]), x.shape[-1]).transpose(1, 2)


Pairs = list[tuple[Use, Tensor]]
"""A layer's uses and the gradients of their outputs, ``[N, C_out, P]``."""
