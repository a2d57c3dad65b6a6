"""Per-sample gradients of convolutions for captum, without unfolding.

Call :func:`register` once. ``TracInCP`` and all other methods that use captum's
per-sample gradients (``sample_wise_grads_per_batch=True``) then support every
convolution::

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
    """Let captum compute per-sample gradients of convolutions with this package.

    Supports ``Conv1d`` to ``Conv3d`` and ``ConvTranspose1d`` to ``ConvTranspose3d``,
    but no subclasses of them, with groups, padding given as a string and every
    ``padding_mode``. Stock captum supports only ``Conv2d``, without these options. A
    second call changes nothing.
    """
    _REGISTRATION.put()


def unregister() -> None:
    """Restore captum's own functions. Do nothing if :func:`register` was not called."""
    _REGISTRATION.take_back()


def add_sample_gradients(
    module: Any, activation: Tensor, gradient_out: Tensor, reset: bool = False
) -> None:
    """Add the gradient of each sample to ``sample_grad`` of the parameters.

    Args:
        module: A convolution of ``torch.nn``.
        activation: Its input, ``[N, C_in, I1, ...]``.
        gradient_out: Gradients of each sample's loss by its output,
            ``[N, C_out, O1, ...]``.
        reset: Whether to replace ``sample_grad`` instead of adding to it.
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
