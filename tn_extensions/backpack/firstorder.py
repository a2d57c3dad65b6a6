"""Extensions made of per-sample gradients, in place of BackPACK's."""

from __future__ import annotations

from backpack.extensions import firstorder as stock
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor
from torch.nn import Module

from tn_extensions.backpack.derivatives import ConvDerivatives
from tn_extensions.backpack.extension import Extension
from tn_extensions.backpack.layer import Layer
from tn_extensions.backpack.modules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    BatchNormModule,
    LayerModule,
)


class _FirstOrder(Extension):
    """What first-order extensions share."""

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Ours of convolutions and BatchNorm."""
        convolution = LayerModule(ConvDerivatives())
        return dict.fromkeys(CONVOLUTIONS, convolution) | dict.fromkeys(
            BATCH_NORMS, BatchNormModule()
        )


class BatchGrad(stock.BatchGrad, _FirstOrder):
    """Per-sample gradients, in ``parameter.grad_batch``: ``[N, *parameter.shape]``.

    A drop-in for BackPACK's: the same values where that is right, and right for groups,
    ``padding='same'``, every ``padding_mode``, ``output_padding`` and ``output_size``
    of ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``. Sample ``n`` contributes ``sum_o
    g[n, co, o] U[n, (ci, k), o]`` to a kernel's gradient, with the loss' scaling in
    ``g``. They have the parameter's dtype.

    Args:
        subsampling: Samples to consider. Default: all. The savefield is then
            ``[len(subsampling), *parameter.shape]``.

    Raises:
        ValueError: On backpropagation, if ``subsampling`` does not fit the batch.
    """

    in_parameter_dtype = True
    refuses_coupling = False
    asks = (("per_sample_grad", {}),)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """The same for other parameters, made of gradients ``[N, ...]``."""
        return gradients


class BatchL2Grad(stock.BatchL2Grad, _FirstOrder):
    """Squared norms of per-sample gradients, in ``parameter.batch_l2``: ``[N]``.

    A drop-in for BackPACK's as :class:`BatchGrad` is; BackPACK's ignores groups. No
    batch of gradients is held. Of float32 or wider.
    """

    asks = (("per_sample_grad_norm", {}),)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """The same for other parameters, made of gradients ``[N, ...]``."""
        return gradients.flatten(1).square().sum(1)


class SumGradSquared(stock.SumGradSquared, _FirstOrder):
    """Sum of squared per-sample gradients, in ``parameter.sum_grad_squared``.

    A drop-in for BackPACK's as :class:`BatchGrad` is. Shaped as the parameter, of
    float32 or wider. No batch of gradients is held.
    """

    asks = (("ggn_diagonal", {}),)  # of what has the gradients for a square root

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """The same for other parameters, made of gradients ``[N, ...]``."""
        return gradients.square().sum(0)


class Variance(stock.Variance, _FirstOrder):
    """Variance of per-sample gradients, in ``parameter.variance``.

    ``1/N sum_n g_n^2 - (1/N sum_n g_n)^2``, elementwise: a drop-in for BackPACK's as
    :class:`BatchGrad` is. Shaped as the parameter, of float32 or wider. No batch of
    gradients is held.
    """

    asks = (("ggn_diagonal", {}), ("weight_vjp", {}))

    def of_kernel(self, layer: Layer, *found: Tensor) -> Tensor:
        """The variance, from the sums of squared gradients and of gradients."""
        (squares, gradient), count = found, layer.num_data
        return squares / count - (gradient / count).square_()

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """The same for other parameters, made of gradients ``[N, ...]``."""
        return gradients.square().mean(0) - gradients.mean(0).square()
