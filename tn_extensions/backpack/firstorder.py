"""First-order extensions, which are computed from per-sample gradients."""

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
    """The base of first-order extensions."""

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return our module extensions of convolutions and BatchNorm."""
        convolution = LayerModule(ConvDerivatives())
        return dict.fromkeys(CONVOLUTIONS, convolution) | dict.fromkeys(
            BATCH_NORMS, BatchNormModule()
        )


class BatchGrad(stock.BatchGrad, _FirstOrder):
    """Per-sample gradients, in ``parameter.grad_batch``: ``[N, *parameter.shape]``.

    A drop-in replacement for BackPACK's class. Values equal BackPACK's where these are
    correct, and they are correct for ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``
    with groups, ``padding='same'``, every ``padding_mode``, ``output_padding`` and
    ``output_size``. Sample ``n`` contributes ``sum_o g[n, co, o] U[n, (ci, k), o]`` to
    the gradient of a kernel; ``g`` contains the scaling of the loss. The dtype is the
    parameter's.

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
        """Return other parameters' gradients ``[N, ...]`` as they are."""
        return gradients


class BatchL2Grad(stock.BatchL2Grad, _FirstOrder):
    """Squared norms of per-sample gradients, in ``parameter.batch_l2``: ``[N]``.

    A drop-in replacement for BackPACK's class, as :class:`BatchGrad` is; BackPACK's
    ignores groups. Per-sample gradients are not stored for the whole batch. Of float32
    or wider.
    """

    asks = (("per_sample_grad_norm", {}),)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """Compute the squared norms of other parameters' gradients ``[N, ...]``."""
        return gradients.flatten(1).square().sum(1)


class SumGradSquared(stock.SumGradSquared, _FirstOrder):
    """Sum of squared per-sample gradients, in ``parameter.sum_grad_squared``.

    A drop-in replacement for BackPACK's class, as :class:`BatchGrad` is. Shaped like
    the parameter, of float32 or wider. Per-sample gradients are not stored for the
    whole batch.
    """

    asks = (("ggn_diagonal", {}),)  # with the gradients in the place of S

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """Sum the squares of other parameters' gradients ``[N, ...]``."""
        return gradients.square().sum(0)


class Variance(stock.Variance, _FirstOrder):
    """Variance of per-sample gradients, in ``parameter.variance``.

    Equals ``1/N sum_n g_n^2 - (1/N sum_n g_n)^2``, elementwise, for gradients ``g_n``.
    A drop-in replacement for BackPACK's class, as :class:`BatchGrad` is. Shaped like
    the parameter, of float32 or wider. Per-sample gradients are not stored for the
    whole batch.
    """

    asks = (("ggn_diagonal", {}), ("weight_vjp", {}))

    def of_kernel(self, layer: Layer, *found: Tensor) -> Tensor:
        """Compute the variance from the sums of squared gradients and of gradients."""
        (squares, gradient), count = found, layer.num_data
        return squares / count - (gradient / count).square_()

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """Compute the variance of other parameters' gradients ``[N, ...]``."""
        return gradients.square().mean(0) - gradients.mean(0).square()
