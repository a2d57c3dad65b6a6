"""Extensions that backpropagate a square root of the loss Hessian."""

from __future__ import annotations

from backpack.extensions import secondorder as stock
from backpack.extensions.mat_to_mat_jac_base import MatToJacMat
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor
from torch.nn import Module

from tn_extensions.backpack.derivatives import ConvDerivatives
from tn_extensions.backpack.extension import Extension
from tn_extensions.backpack.modules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    BatchNormModule,
    LayerModule,
    passive,
)


class SecondOrder(Extension):
    """What extensions share that backpropagate a square root of the GGN."""

    backpropagates_columns = True

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Ours of convolutions, BatchNorm and pooling."""
        convolution = LayerModule(ConvDerivatives())
        return (
            passive(MatToJacMat)
            | dict.fromkeys(CONVOLUTIONS, convolution)
            | dict.fromkeys(BATCH_NORMS, BatchNormModule())
        )


class Diagonal(Extension):
    """What extensions share that save a diagonal."""

    per_sample = False

    asks = (("ggn_diagonal", {"per_sample": False}),)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """The same for other parameters, made of gradients ``[V, N, ...]``."""
        return gradients.square().sum(0 if self.per_sample else (0, 1))


class BatchDiagonal(Diagonal):
    """What extensions share that save a diagonal for each sample."""

    per_sample = True
    asks = (("ggn_diagonal", {"per_sample": True}),)


class _DiagGGN(Diagonal, SecondOrder):
    additive = True


class _BatchDiagGGN(BatchDiagonal, SecondOrder):
    additive = True


class _SqrtGGN(SecondOrder):
    in_parameter_dtype = True
    asks = (("per_sample_grad", {}),)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """The same for other parameters: the gradients."""
        return gradients


class DiagGGNExact(stock.DiagGGNExact, _DiagGGN):
    """The GGN's diagonal, in ``parameter.diag_ggn_exact``, shaped as the parameter.

    A drop-in for BackPACK's: the same values where that is right, and right for groups,
    ``padding='same'``, every ``padding_mode``, ``output_padding`` and ``output_size``
    of ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``, and all of what pooling can do.
    With the exact loss Hessian's square root ``S``, backpropagated to a layer's output
    ``[V, N, C_out, O]``, it is ``sum_{v,n} (sum_o S[v,n,co,o] U[n,(ci,k),o])^2`` for a
    kernel. The gradients in brackets are never held, nor is ``S`` more than once. Of
    float32 or wider.
    """


class DiagGGNMC(stock.DiagGGNMC, _DiagGGN):
    """The GGN's diagonal with Monte-Carlo samples, in ``parameter.diag_ggn_mc``.

    As :class:`DiagGGNExact`, with samples drawn as BackPACK draws them.

    Args:
        mc_samples: Number of samples.
    """


class BatchDiagGGNExact(stock.BatchDiagGGNExact, _BatchDiagGGN):
    """The GGN's diagonal for each sample, in ``parameter.diag_ggn_exact_batch``.

    ``[N, *parameter.shape]``; the sum over samples is :class:`DiagGGNExact`'s.
    """


class BatchDiagGGNMC(stock.BatchDiagGGNMC, _BatchDiagGGN):
    """The same with Monte-Carlo samples, in ``parameter.diag_ggn_mc_batch``.

    Args:
        mc_samples: Number of samples.
    """


class SqrtGGNExact(stock.SqrtGGNExact, _SqrtGGN):
    """The GGN's square root, in ``parameter.sqrt_ggn_exact``.

    ``[V, N, *parameter.shape]``, in the parameter's dtype: with ``J`` these as rows,
    the GGN is ``J^T J``. A drop-in for BackPACK's as :class:`DiagGGNExact` is.

    Args:
        subsampling: Samples to consider. Default: all.

    Raises:
        ValueError: On backpropagation, if ``subsampling`` does not fit the batch.
    """


class SqrtGGNMC(stock.SqrtGGNMC, _SqrtGGN):
    """The same with Monte-Carlo samples, in ``parameter.sqrt_ggn_mc``.

    Args:
        mc_samples: Number of samples.
        subsampling: Samples to consider. Default: all.

    Raises:
        ValueError: On backpropagation, if ``subsampling`` does not fit the batch.
    """
