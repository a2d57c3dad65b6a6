"""The layers that have Kronecker factors, and the factors of one use of a layer.

A ``Linear`` is a convolution without positions to unfold. Groups are a leading axis of
all factors: an input factor is ``[G, D, D]`` with ``D = CI * K`` (one more with a joint
bias), a gradient factor ``[G, CO, CO]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tn_extensions import functional
from tn_extensions.conv import Conv
from tn_extensions.functional.evaluate import result_dtype

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)

Groups = Literal["separate", "average"]
Approximation = Literal["expand", "reduce"]


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
        conv: Hyper-parameters. ``None``: a ``Linear``, ``x`` is ``[N, P, C_in]``.
    """

    x: Tensor
    conv: Conv | None

    @classmethod
    def of(cls, module: Any, x: Tensor, output: Tensor, groups: Groups) -> Use:
        """What a layer did to an input."""
        x = x.detach()
        if isinstance(module, nn.Linear):
            return cls(x.reshape(len(x), prod(x.shape[1:-1]), x.shape[-1]), None)
        conv = Conv.from_module(module, x.shape[2:], output.shape[2:])
        if groups == "average" and conv.groups > 1:
            # what curvlinops does: the layer as one without groups
            x = x.unflatten(1, (conv.groups, -1)).mean(1)
            conv = replace(conv, in_channels=x.shape[1], groups=1)
        return cls(x, conv)

    @property
    def groups(self) -> int:
        """Pairs of factors."""
        return 1 if self.conv is None else self.conv.groups

    @property
    def num_positions(self) -> int:
        """Positions that share the weight."""
        return self.x.shape[1] if self.conv is None else prod(self.conv.output_size)

    def channels_first(self, gradient: Tensor) -> Tensor:
        """A gradient of the output as ``[N, C_out, P]``, of float32 or wider."""
        gradient = gradient.detach()
        gradient = gradient.to(result_dtype(gradient))
        if self.conv is None:
            flat = gradient.reshape(len(gradient), -1, gradient.shape[-1])
            return flat.transpose(1, 2)
        return gradient.flatten(2)

    def without_input(self) -> Use:
        """The same, but for the input, whose memory can then be freed."""
        return replace(self, x=self.x.new_empty(0, *self.x.shape[1:]))

    def mean(self) -> Tensor:
        """Mean of its patches over the positions, ``[N, G, D]``."""
        if self.conv is None:
            return self.x.to(result_dtype(self.x)).mean(1, keepdim=True)
        return functional.patch_mean(self.x, self.conv)

    def add_expanded(self, factor: Tensor | None, scale: float, bias: bool) -> Tensor:
        """Add ``scale * sum_n,o U U^T``, in place; a first one is allocated."""
        if self.conv is not None:
            return functional.kfac_expand(
                self.x, self.conv, bias=bias, scale=scale, out=factor
            )
        return add_outer(factor, self._rows().unsqueeze(0), scale, bias)

    def unfold(self, start: int, stop: int, bias: bool) -> Tensor:
        """Patches of some samples, ``[n, G, D, P]``."""
        x = self.x[start:stop]
        if self.conv is None:
            patches = x.to(result_dtype(x)).transpose(1, 2).unsqueeze(1)
        else:
            flat = functional.unfold_input(x, self.conv)
            patches = flat.unflatten(1, (self.conv.groups, -1))
        if not bias:
            return patches
        one = patches.new_ones(*patches.shape[:2], 1, patches.shape[3])
        return torch.cat([patches, one], dim=2)

    def _rows(self) -> Tensor:
        return self.x.to(result_dtype(self.x)).flatten(0, 1)


def add_reduced(
    uses: Sequence[Use], factor: Tensor | None, scale: float, bias: bool
) -> Tensor:
    """Add ``scale * sum_n m m^T``, ``m`` the mean patch over positions and uses."""
    if len(uses) == 1 and uses[0].conv is not None:
        (use,) = uses
        conv, positions = cast(Conv, use.conv), use.num_positions
        each = scale / max(positions, 1) ** 2
        return functional.kfac_reduce(use.x, conv, bias=bias, scale=each, out=factor)
    total = max(sum(use.num_positions for use in uses), 1)
    mean = sum(use.mean() * (use.num_positions / total) for use in uses)
    return add_outer(factor, cast(Tensor, mean).transpose(0, 1), scale, bias)


def add_outer(
    factor: Tensor | None, rows: Tensor, scale: float, bias: bool = False
) -> Tensor:
    """Add ``scale * sum_r row row^T`` of rows ``[G, R, D]``, in place."""
    if bias:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
    columns = rows.transpose(1, 2)
    if factor is None:
        groups, _, size = rows.shape
        factor = rows.new_zeros(groups, size, size)
    if len(factor) == 1:  # one product is faster than a batch of one
        factor[0].addmm_(columns[0], rows[0], alpha=scale)
        return factor
    return factor.baddbmm_(columns, rows, alpha=scale)


def add_gradient_factor(
    factor: Tensor | None, gradient: Tensor, groups: int, scale: float
) -> Tensor:
    """Add ``scale * sum g g^T`` over samples and positions.

    Args:
        factor: What to add to, ``[G, CO, CO]``. ``None``: zeros.
        gradient: ``[N, C_out, P]``; of ``P = 1``, summed over positions before.
        groups: Pairs of factors.
        scale: Scale of what is added.

    Returns:
        The factor.
    """
    samples, channels, positions = gradient.shape
    if positions == 1:
        rows = gradient[..., 0].reshape(samples, groups, -1).transpose(0, 1)
        return add_outer(factor, rows, scale)
    pointwise = Conv.make(
        channels, channels, kernel_size=1, input_size=(positions,), groups=groups
    )
    return functional.kfac_expand(gradient, pointwise, scale=scale, out=factor)
