"""Layers of ``torch.nn`` with estimated weight gradients."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tn_extensions.conv import Conv
from tn_extensions.dropout.gradient import EstimatedGradient
from tn_extensions.dropout.layers import ConvLayer, Layer, LinearLayer
from tn_extensions.errors import describe
from tn_extensions.sampling import Sampler
from tn_extensions.sampling.samplers import check_keep, check_sampler

if TYPE_CHECKING:
    _Base = nn.Module
else:  # the mixin precedes a layer of torch.nn, which is a module already
    _Base = object


class TensorDropout(_Base):
    """Mixin for layers that estimate their weight gradient from slices of the input.

    In training, the forward pass draws values of some indices. It keeps each with
    probability ``p``, scales it by ``1 / p``, and saves the slices of the input that
    the kept values select. The output and the gradients of input and bias equal those
    of the original layer; the weight's gradient is unbiased. In evaluation mode,
    without gradients, or if all shares are one, the layer is the original one.

    Args:
        *args: Arguments of the layer.
        keep: Share of values to keep, by index: ``"n"`` for samples, ``"ci"`` for input
            channels (the same ones in each group), ``"g"`` for groups, ``"i1"``,
            ``"i2"``, ... for input positions along each spatial axis, ``"o1"``, ... for
            output positions. The saved slices shrink by the product of all shares,
            except those of output positions, which need all input positions that they
            see. ``Linear``, on ``[N, I1, ..., C_in]``, has ``"n"``, ``"ci"``, ``"i1"``,
            ...; indices that an input does not have are ignored.
        sampler: Sampling method: ``"bernoulli"``, ``"norm"`` (probabilities
            proportional to the norms of the input's slices) or ``"fixed"`` (a fixed
            number of slices), see :func:`tn_extensions.sampling.draw`.
        generator: Source of random numbers (default: torch's CPU generator).
        **kwargs: Keyword arguments of the layer.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there is no such index or sampler, or a share is outside of (0,
            1].

    Reference: Adelman et al., "Faster neural network training with approximate tensor
    operations", NeurIPS 2021; Dangel, "Convolutions and More as Einsum", NeurIPS 2024.
    """

    INDICES: ClassVar[str]
    """Regular expression for the indices that can be sampled."""
    EXTENDS: ClassVar[type[nn.Module]]
    """Class of the original layer."""

    weight: Tensor
    keep: dict[str, float]
    sampler: Sampler
    generator: torch.Generator | None

    def __init__(
        self,
        *args: Any,
        keep: Mapping[str, float],
        sampler: Sampler = "bernoulli",
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        configuration = checked(
            type(self).__name__, type(self), keep, sampler, generator
        )
        super().__init__(*args, **kwargs)
        vars(self).update(configuration)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        if (
            self.training
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and input.numel()
            and any(share < 1 for share in self.keep.values())
        ):
            if self.weight.is_complex():
                rule, remedy = "be real", "Complex layers are not supported"
                owner, got = type(self).__name__, self.weight.dtype
                raise TypeError(describe(owner, "weight.dtype", rule, got, remedy))
            return _uncompiled(self, input)
        return cast(Tensor, super().forward(input))

    def extra_repr(self) -> str:
        """Return the layer's arguments, the shares to keep and the sampler."""
        return f"{super().extra_repr()}, keep={self.keep}, sampler={self.sampler!r}"

    def layer_on(self, x: Tensor) -> Layer:
        """Return the layer on inputs of this shape."""
        raise NotImplementedError

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the output of the original layer."""
        raise NotImplementedError


def _estimated(module: Any, x: Tensor) -> Tensor:
    """Apply a layer to an input, with an estimated weight gradient."""
    device = x.device.type
    tensors = [x, module.weight, module.bias]
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = [
            tensor
            if tensor is None or tensor.dtype == torch.float64
            else tensor.to(dtype)
            for tensor in tensors
        ]
    x, weight, bias = tensors
    with torch.autocast(device, enabled=False):
        layer = module.layer_on(x)
        with torch.no_grad():
            sampled = layer.sample(module.keep, module.sampler, module.generator, x)
        return EstimatedGradient.apply(x, weight, bias, module.compute, layer, sampled)


# the number of kept slices changes with each draw, which would trigger recompilation
_uncompiled: Callable[[Any, Tensor], Tensor] = torch.compiler.disable(_estimated)


class TensorDropoutConv(TensorDropout):
    """Convolutions of any dimension."""

    _conv_forward: Callable[..., Tensor]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; an input without samples is a batch of one."""
        if input.dim() == self.weight.dim() - 1:
            return self.forward(input[None])[0]
        return super().forward(input)

    def layer_on(self, x: Tensor) -> Layer:
        """Return the layer on inputs of this shape."""
        return ConvLayer(Conv.from_module(self, x.shape[2:]), len(x))

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the output of the convolution."""
        return self._conv_forward(x, weight, bias)


class TensorDropoutConv1d(TensorDropoutConv, nn.Conv1d):
    """``torch.nn.Conv1d`` with an estimated weight gradient."""

    INDICES, EXTENDS = "n|g|ci|[io]1", nn.Conv1d


class TensorDropoutConv2d(TensorDropoutConv, nn.Conv2d):
    """``torch.nn.Conv2d`` with an estimated weight gradient."""

    INDICES, EXTENDS = "n|g|ci|[io][12]", nn.Conv2d


class TensorDropoutConv3d(TensorDropoutConv, nn.Conv3d):
    """``torch.nn.Conv3d`` with an estimated weight gradient."""

    INDICES, EXTENDS = "n|g|ci|[io][123]", nn.Conv3d


class TensorDropoutLinear(TensorDropout, nn.Linear):
    """``torch.nn.Linear`` with an estimated weight gradient."""

    INDICES, EXTENDS = r"n|ci|i[1-9]\d*", nn.Linear

    def layer_on(self, x: Tensor) -> Layer:
        """Return the layer on inputs of this shape."""
        return LinearLayer(tuple(x.shape), self.weight.shape[0])

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the output of the linear map."""
        return nn.functional.linear(x, weight, bias)


KINDS: tuple[type[TensorDropout], ...] = (
    TensorDropoutConv1d,
    TensorDropoutConv2d,
    TensorDropoutConv3d,
    TensorDropoutLinear,
)
"""All layers with estimated weight gradients."""


def checked(
    owner: str,
    kind: type[TensorDropout],
    keep: Mapping[str, float],
    sampler: Sampler,
    generator: torch.Generator | None,
) -> dict[str, Any]:
    """Check the attributes of a layer, and return them."""
    check_sampler(owner, sampler, generator)
    if not isinstance(keep, Mapping):
        rule, got = "map indices to shares", type(keep).__name__
        raise TypeError(describe(owner, "keep", rule, got))
    for index, share in keep.items():
        if not isinstance(index, str) or not re.fullmatch(kind.INDICES, index):
            rule = f"name indices that match {kind.INDICES!r}"
            raise ValueError(describe(owner, "keep", rule, repr(index)))
        check_keep(owner, f"keep[{index!r}]", share)
    return {"keep": dict(keep), "sampler": sampler, "generator": generator}
