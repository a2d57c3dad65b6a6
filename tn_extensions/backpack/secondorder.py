"""Extensions that backpropagate a square root of the loss's Hessian."""

from __future__ import annotations

from backpack.extensions import secondorder as stock
from backpack.extensions.mat_to_mat_jac_base import MatToJacMat
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor, nn
from torch.nn import Module

from tn_extensions.backpack.derivatives import ConvDerivatives, DenseDerivatives
from tn_extensions.backpack.extension import Extension
from tn_extensions.backpack.layer import Layer
from tn_extensions.backpack.modules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    BatchNormModule,
    LayerModule,
    passive,
)


class SecondOrder(Extension):
    """The base of extensions that backpropagate a square root of the GGN."""

    backpropagates_columns = True

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return our module extensions of convolutions, BatchNorm and pooling."""
        convolution = LayerModule(ConvDerivatives())
        return (
            passive(MatToJacMat)
            | dict.fromkeys(CONVOLUTIONS, convolution)
            | dict.fromkeys(BATCH_NORMS, BatchNormModule())
        )


class Diagonal(Extension):
    """The base of extensions that save a diagonal."""

    per_sample = False

    asks = (("ggn_diagonal", {"per_sample": False}),)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """Compute the diagonal of other parameters from gradients ``[V, N, ...]``."""
        return gradients.square().sum(0 if self.per_sample else (0, 1))


class BatchDiagonal(Diagonal):
    """The base of extensions that save a diagonal for each sample."""

    per_sample = True
    asks = (("ggn_diagonal", {"per_sample": True}),)


class _GGNDiagonal(SecondOrder):
    """The base of extensions that save the GGN's diagonal, of ``Linear``, too."""

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return our module extensions of layers, BatchNorm and pooling."""
        linear = LayerModule(DenseDerivatives())
        return super().module_extensions() | {nn.Linear: linear}

    def of_kernel(self, layer: Layer, *found: Tensor) -> Tensor:
        """Shape the diagonal like the weight, which has no kernel in a ``Linear``."""
        (diagonal,) = found
        return diagonal.squeeze(-1) if layer.is_linear else diagonal


class _DiagGGN(Diagonal, _GGNDiagonal):
    additive = True


class _BatchDiagGGN(BatchDiagonal, _GGNDiagonal):
    additive = True


class _SqrtGGN(SecondOrder):
    in_parameter_dtype = True
    asks = (("per_sample_grad", {}),)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """Return other parameters' gradients ``[V, N, ...]`` as they are."""
        return gradients


class DiagGGNExact(stock.DiagGGNExact, _DiagGGN):
    """The GGN's diagonal, in ``parameter.diag_ggn_exact``, shaped like the parameter.

    A drop-in replacement for BackPACK's class. Values equal BackPACK's where these are
    correct, and they are correct for ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``
    with groups, ``padding='same'``, every ``padding_mode``, ``output_padding`` and
    ``output_size``, and for all options of pooling. Let ``S``, ``[V, N, C_out, O]``, be
    the exact square root of the loss's Hessian, backpropagated to a layer's output. The
    diagonal of a kernel is ``sum_{v,n} (sum_o S[v,n,co,o] U[n,(ci,k),o])^2``. The
    gradients in brackets are never stored for the whole batch, and ``S`` is stored only
    once. Of float32 or wider.
    """


class DiagGGNMC(stock.DiagGGNMC, _DiagGGN):
    """The GGN's diagonal with Monte-Carlo samples, in ``parameter.diag_ggn_mc``.

    Like :class:`DiagGGNExact`, with samples that are drawn as in BackPACK.

    Args:
        mc_samples: Number of Monte-Carlo samples.
    """


class BatchDiagGGNExact(stock.BatchDiagGGNExact, _BatchDiagGGN):
    """The GGN's diagonal for each sample, in ``parameter.diag_ggn_exact_batch``.

    Of shape ``[N, *parameter.shape]`` and of float32 or wider. The sum over samples is
    the result of :class:`DiagGGNExact`.
    """


class BatchDiagGGNMC(stock.BatchDiagGGNMC, _BatchDiagGGN):
    """The GGN's Monte-Carlo diagonal per sample, in ``parameter.diag_ggn_mc_batch``.

    Like :class:`BatchDiagGGNExact`, with samples that are drawn as in BackPACK.

    Args:
        mc_samples: Number of Monte-Carlo samples.
    """


class SqrtGGNExact(stock.SqrtGGNExact, _SqrtGGN):
    """The GGN's square root, in ``parameter.sqrt_ggn_exact``.

    Of shape ``[V, N, *parameter.shape]`` and of the parameter's dtype. Let ``J`` be the
    matrix with rows ``(v, n)``: the GGN is ``J^T J``. A drop-in replacement for
    BackPACK's class, as :class:`DiagGGNExact` is.

    Args:
        subsampling: Samples to consider. Default: all.

    Raises:
        ValueError: On backpropagation, if ``subsampling`` does not fit the batch.
    """


class SqrtGGNMC(stock.SqrtGGNMC, _SqrtGGN):
    """The GGN's square root with Monte-Carlo samples, in ``parameter.sqrt_ggn_mc``.

    Like :class:`SqrtGGNExact`, with samples that are drawn as in BackPACK.

    Args:
        mc_samples: Number of Monte-Carlo samples, ``V``.
        subsampling: Samples to consider. Default: all.

    Raises:
        ValueError: On backpropagation, if ``subsampling`` does not fit the batch.
    """
