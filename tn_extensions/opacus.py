"""Opacus' per-sample gradients and norms of convolutions, without unfolding.

Call :func:`register` once; Opacus' engine, modules and optimizers work as before::

    import tn_extensions.opacus

    tn_extensions.opacus.register()
    model, optimizer, loader = PrivacyEngine().make_private(...)

Needs the extra ``opacus``; nothing else of this package imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from tn_extensions import functional
from tn_extensions.conv import Conv
from tn_extensions.layers.module import CONVOLUTIONS
from tn_extensions.registration import Registration

Values = dict[nn.Parameter, Tensor]


def register(*, norms: bool = True) -> None:
    """Let Opacus compute convolutions' per-sample gradients and norms with ours.

    It holds for all convolutions and transposed ones, in models that exist already,
    too, with ``grad_sample_mode="hooks"`` and ``"ghost"``. Opacus looks samplers up by
    the exact class: subclasses stay as they were. Doing it twice changes nothing.

    Args:
        norms: Whether to register norms, too. With them, ghost clipping never forms a
            convolution's per-sample gradients, and Opacus refuses a convolution that is
            used several times in a forward pass. Without them, it forms the gradients
            of one layer at a time, and takes such convolutions.
    """
    _GRADIENTS.put()
    if norms:
        _NORMS.put()


def unregister() -> None:
    """Restore the samplers that Opacus had. Without :func:`register`, do nothing."""
    _GRADIENTS.take_back()
    _NORMS.take_back()


def gradients(layer: Any, activations: Sequence[Tensor], backprops: Tensor) -> Values:
    """Compute gradients of each sample, as Opacus' grad samplers do.

    Args:
        layer: A convolution of ``torch.nn``.
        activations: Its input, ``[N, C_in, I1, ...]``, as the only entry.
        backprops: Gradients of each sample's loss by its output,
            ``[N, C_out, O1, ...]``.

    Returns:
        Gradients ``[N, *shape]`` of the parameters that require one, in their dtypes.
    """
    x, conv = _seen(layer, activations, backprops)
    found: Values = {}
    if layer.weight.requires_grad:
        found[layer.weight] = functional.per_sample_grad(x, backprops, conv)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = functional.bias_per_sample_grad(backprops, conv)
    # half-precision inputs have results in float32
    return {parameter: g.to(parameter.dtype) for parameter, g in found.items()}


def norms(layer: Any, activations: Sequence[Tensor], backprops: Tensor) -> Values:
    """Compute norms of each sample's gradients, as Opacus' norm samplers do.

    Args:
        layer: A convolution of ``torch.nn``.
        activations: As for :func:`gradients`.
        backprops: As for :func:`gradients`.

    Returns:
        Norms ``[N]`` of the parameters that require a gradient, of float32 or wider.
    """
    x, conv = _seen(layer, activations, backprops)
    squares: Values = {}
    if layer.weight.requires_grad:
        squares[layer.weight] = functional.per_sample_grad_norm(x, backprops, conv)
    if layer.bias is not None and layer.bias.requires_grad:
        squares[layer.bias] = functional.bias_per_sample_grad_norm(backprops, conv)
    # rounding may leave a square below zero
    return {parameter: s.clamp(min=0).sqrt() for parameter, s in squares.items()}


def _seen(
    layer: Any, activations: Sequence[Tensor], backprops: Tensor
) -> tuple[Tensor, Conv]:
    """Return the input in the dtype of the gradients, and the hyper-parameters."""
    (x, *_) = activations
    # under autocast, outputs are of another dtype than inputs
    conv = Conv.from_module(layer, x.shape[2:], backprops.shape[2:])
    return x.to(backprops.dtype), conv


_GRADIENTS = Registration(
    (GradSampleModule.GRAD_SAMPLERS, dict.fromkeys(CONVOLUTIONS, gradients)),
    (
        GradSampleModuleFastGradientClipping.GRAD_SAMPLERS,
        dict.fromkeys(CONVOLUTIONS, gradients),
    ),
)
_NORMS = Registration(
    (
        GradSampleModuleFastGradientClipping.NORM_SAMPLERS,
        dict.fromkeys(CONVOLUTIONS, norms),
    )
)
