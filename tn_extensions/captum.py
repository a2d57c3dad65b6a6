"""captum's sample gradients of convolutions, without unfolding.

Call :func:`register` once; ``TracInCP`` and what else asks captum for gradients of
single samples (``sample_wise_grads_per_batch=True``) then takes every convolution::

    import tn_extensions.captum

    tn_extensions.captum.register()

Needs the extra ``captum``; nothing else of this package imports it.
"""

from __future__ import annotations

from typing import Any

from captum._utils import sample_gradient
from torch import Tensor

from tn_extensions import functional
from tn_extensions.conv import Conv
from tn_extensions.layers.module import CONVOLUTIONS
from tn_extensions.registration import Registration


def register() -> None:
    """Let captum compute convolutions' sample gradients with ours.

    It holds for ``Conv1d`` to ``Conv3d`` and ``ConvTranspose1d`` to ``ConvTranspose3d``
    of exactly these classes, with groups, padding given as a string and every
    ``padding_mode``; captum itself takes ``Conv2d`` without these. Doing it twice
    changes nothing.
    """
    _REGISTRATION.put()


def unregister() -> None:
    """Restore what captum had. Without :func:`register`, do nothing."""
    _REGISTRATION.take_back()


def add_sample_gradients(
    module: Any, activation: Tensor, gradient_out: Tensor, reset: bool = False
) -> None:
    """Add gradients of each sample to the parameters' ``sample_grad``.

    Args:
        module: A convolution of ``torch.nn``.
        activation: Its input, ``[N, C_in, I1, ...]``.
        gradient_out: Gradients of each sample's loss by its output,
            ``[N, C_out, O1, ...]``.
        reset: Whether to replace what is there.
    """
    conv = Conv.from_module(module, activation.shape[2:], gradient_out.shape[2:])
    x = activation.to(gradient_out.dtype)
    found = {module.weight: functional.per_sample_grad(x, gradient_out, conv)}
    if module.bias is not None:
        found[module.bias] = functional.bias_per_sample_grad(gradient_out, conv)
    for parameter, gradient in found.items():
        if reset:
            parameter.sample_grad = gradient
        else:
            parameter.sample_grad += gradient


_REGISTRATION = Registration(
    (
        sample_gradient.SUPPORTED_MODULES,
        dict.fromkeys(CONVOLUTIONS, add_sample_gradients),
    )
)
