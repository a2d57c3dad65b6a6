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
"""Layers that multiply what they normalise by a scale, and may add a shift."""


@dataclass(frozen=True)
class NormUse(Use):
    """One use of a norm layer; ``x`` is its normalised input, ``[N, C, P]``.

    Args:
        module: The layer.
        keys: Those of ``"weight"`` and ``"bias"`` that are trained.
    """

    module: Any = None
    keys: tuple[str, ...] = ()

    def gradient(self, gradient: Tensor) -> Tensor:
        """Each datum's gradients of a unit's scale and shift, as of one position.

        Args:
            gradient: Of the output.

        Returns:
            ``sum_p g x`` and ``sum_p g``, ``[N, 2 C, 1]``, those of a unit adjacent.
        """
        g = self._by_unit(gradient.detach().to(self.x.dtype))
        summands = {"weight": g * self.x, "bias": g}
        sums = [summands[key].sum(2) for key in self.keys]
        return torch.stack(sums, 2).flatten(1).unsqueeze(2)

    def with_input(self, x: Tensor) -> NormUse:
        """Put in an input, normalised as the layer does it."""
        normalize = next(
            own for kind, own in _NORMALIZED.items() if isinstance(self.module, kind)
        )
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        return replace(self, x=self._by_unit(normalize(self.module, x)))

    def _by_unit(self, output: Tensor) -> Tensor:
        """Return what is shaped as the output as ``[N, C, P]``."""
        if self.is_linear:
            output = output.flatten(output.dim() - self.module.weight.dim())
        else:
            output = output.reshape(*output.shape[:2], -1)
        return self._by_datum(output).flatten(2)


class NormLayer(Layer):
    """A norm layer and its curvature, ``1/N sum_n u u^T`` of each unit.

    A unit is an entry of the scale and that of the shift, ``u`` a datum's gradient of
    both: a gradient factor ``[C, 2, 2]``, as of a bias in ``C`` groups.

    References:
        Osawa et al., "Large-scale distributed second-order optimization using
        Kronecker-factored approximate curvature for deep convolutional neural
        networks", CVPR 2019.
    """

    kinds = NORMS

    def __post_init__(self) -> None:
        """Let gradients of several uses of a datum add up."""
        super().__post_init__()
        self.options = replace(self.options, approx="reduce")

    @property
    def has_input_factor(self) -> bool:
        """Tell whether it has an input factor: it does not."""
        return False

    @property
    def needs_inputs(self) -> bool:
        """Tell whether statistics of gradients are of inputs, too: they are."""
        return True

    @property
    def factor_shapes(self) -> dict[str, tuple[int, int, int]]:
        """``[C, 2, 2]`` of ``"gradients"``; of one parameter ``[C, 1, 1]``."""
        size = len(self.keys)
        return {"gradients": (self.module.weight.numel(), size, size)}

    @property
    def least_axes(self) -> int:
        """Number of axes that a batch of its inputs has at least."""
        shape = getattr(self.module, "normalized_shape", ())
        return 1 + max(len(shape), 1)

    def use(self, x: Tensor, output: Tensor, num_data: int | None) -> NormUse:
        """See what it did to an input."""
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
