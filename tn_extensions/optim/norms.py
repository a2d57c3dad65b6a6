"""Unit-wise curvature of norm layers: a block for each unit's scale and shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tn_extensions.conv import Conv
from tn_extensions.layers.module import Use
from tn_extensions.optim.layer import Layer


def _normalized_by_batch(module: Any, x: Tensor) -> Tensor:
    # only layers in training mode are observed
    return F.batch_norm(x, None, None, training=True, eps=module.eps)


def _normalized_by_layer(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, eps=module.eps)


def _normalized_by_group(module: Any, x: Tensor) -> Tensor:
    return F.group_norm(x, module.num_groups, eps=module.eps)


def _normalized_by_square(module: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, module.normalized_shape, eps=module.eps)


_NORMALIZED: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.BatchNorm1d: _normalized_by_batch,
    nn.BatchNorm2d: _normalized_by_batch,
    nn.BatchNorm3d: _normalized_by_batch,
    nn.LayerNorm: _normalized_by_layer,
    nn.GroupNorm: _normalized_by_group,
    nn.RMSNorm: _normalized_by_square,
}
NORMS = tuple(_NORMALIZED)
"""Layers that normalise, multiply by a scale, and may add a shift."""


@dataclass(frozen=True)
class NormUse(Use):
    """One use of a norm layer; ``x`` is its normalised input, ``[N, C, P]``.

    Args:
        module: The layer.
        keys: The trained parameters: ``"weight"``, ``"bias"`` or both.
    """

    module: Any = None
    keys: tuple[str, ...] = ()

    def gradient(self, gradient: Tensor) -> Tensor:
        """Compute each datum's gradients by the scale and shift of each unit.

        Args:
            gradient: Gradient of the output.

        Returns:
            ``sum_p g x`` and ``sum_p g``, ``[N, 2 C, 1]``, as channels with one
            position. Both gradients of a unit are adjacent.
        """
        g = self._by_unit(gradient.detach().to(self.x.dtype))
        summands = {"weight": g * self.x, "bias": g}
        sums = [summands[key].sum(2) for key in self.keys]
        return torch.stack(sums, 2).flatten(1).unsqueeze(2)

    def with_input(self, x: Tensor) -> NormUse:
        """Return this use with another input, which is normalised as in the layer."""
        normalize = next(
            own for kind, own in _NORMALIZED.items() if isinstance(self.module, kind)
        )
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        return replace(self, x=self._by_unit(normalize(self.module, x)))

    def _by_unit(self, output: Tensor) -> Tensor:
        """View a tensor that is shaped like the output as ``[N, C, P]``."""
        if self.is_linear:
            output = output.flatten(output.dim() - self.module.weight.dim())
        else:
            output = output.reshape(*output.shape[:2], -1)
        return self._by_datum(output).flatten(2)


class NormLayer(Layer):
    """A norm layer and its curvature, ``1/N sum_n u u^T`` for each unit.

    A unit is an entry of the scale with the same entry of the shift, and ``u`` is the
    gradient by both for one datum. The curvature is a gradient factor ``[C, 2, 2]``,
    like that of a bias with ``C`` groups.

    References:
        Osawa et al., "Large-scale distributed second-order optimization using
        Kronecker-factored approximate curvature for deep convolutional neural
        networks", CVPR 2019.
    """

    kinds = NORMS

    def __post_init__(self) -> None:
        """Choose KFAC-reduce, which sums the gradients of several uses per datum."""
        super().__post_init__()
        self.options = replace(self.options, approx="reduce")

    @property
    def has_input_factor(self) -> bool:
        """Return false: it has no input factor."""
        return False

    @property
    def needs_inputs(self) -> bool:
        """Return true: statistics of gradients need the inputs."""
        return True

    @property
    def factor_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape ``[C, 2, 2]`` of ``"gradients"``; ``[C, 1, 1]`` for one parameter."""
        size = len(self.keys)
        return {"gradients": (self.module.weight.numel(), size, size)}

    @property
    def least_axes(self) -> int:
        """The smallest number of axes of a batch of inputs."""
        shape = getattr(self.module, "normalized_shape", ())
        return 1 + max(len(shape), 1)

    def use(self, x: Tensor, output: Tensor, num_data: int | None) -> NormUse:
        """Describe how the layer used an input."""
        num_data = len(x) if num_data is None else num_data
        units, size, _ = self.factor_shapes["gradients"]
        use = NormUse(
            x,
            Conv.make(units, units * size, 1, 1, groups=units),
            is_linear=hasattr(self.module, "normalized_shape"),
            num_data=num_data,
            rows=len(x) // num_data,
            module=self.module,
            keys=self.keys,
        )
        return use.with_input(x)

    def _multiplied(
        self, inverse: Any, gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Multiply gradients by an inverse."""
        units = torch.stack([gradients[key].flatten() for key in self.keys], 1)
        like = torch.promote_types(units.dtype, torch.float32)
        found = (inverse @ units.to(like)[:, :, None, None]).flatten(1).unbind(1)
        pairs = zip(self.keys, found, strict=True)
        return {key: own.to(units.dtype).view_as(gradients[key]) for key, own in pairs}
