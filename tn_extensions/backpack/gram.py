"""Gram matrices of per-sample gradients and of the GGN's square root."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backpack.core.derivatives.embedding import EmbeddingDerivatives
from backpack.core.derivatives.lstm import LSTMDerivatives
from backpack.core.derivatives.rnn import RNNDerivatives
from backpack.extensions.firstorder.base import FirstOrderBackpropExtension
from backpack.extensions.module_extension import ModuleExtension
from backpack.extensions.secondorder.hbp.hbp_options import LossHessianStrategy
from backpack.extensions.secondorder.sqrt_ggn import SqrtGGN
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn import Module

from tn_extensions.backpack.derivatives import ConvDerivatives, DenseDerivatives
from tn_extensions.backpack.extension import Extension
from tn_extensions.backpack.layer import Layer, gram_of_gradients
from tn_extensions.backpack.modules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    BatchNormModule,
    GradientsModule,
    LayerModule,
)
from tn_extensions.backpack.secondorder import SecondOrder
from tn_extensions.errors import describe

Groups = Iterable[dict[str, Any] | Iterable[Tensor]]


def module_extensions() -> dict[type[Module], ModuleExtension]:
    """Return the module extensions of modules with parameters, by type."""
    embedding = GradientsModule(EmbeddingDerivatives(), ("weight",))
    result: dict[type[Module], ModuleExtension] = {
        nn.Linear: LayerModule(DenseDerivatives()),
        nn.Embedding: embedding,
    }
    return (
        result
        | dict.fromkeys(CONVOLUTIONS, LayerModule(ConvDerivatives()))
        | dict.fromkeys(BATCH_NORMS, BatchNormModule())
    )


class _Gram(Extension):
    """The base of extensions that save Gram matrices."""

    asks = (("ggn_gram", {}),)

    def group(self, param_groups: Groups | None) -> None:
        """Set the groups of parameters whose matrices are summed."""
        self._groups: dict[int, int] = {}
        self._parameters: list[Tensor] = []  # keeps them alive: ids stay unique
        self._sums: dict[int, Tensor] = {}
        self._found: set[int] = set()
        name = type(self).__name__
        groups = () if param_groups is None else param_groups
        if not isinstance(groups, Iterable):
            kind = type(groups).__name__
            raise TypeError(describe(name, "param_groups", "be a list of groups", kind))
        for i, group in enumerate(groups):
            at = f"param_groups[{i}]"
            parameters = group.get("params") if isinstance(group, dict) else group
            if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
                kind = type(parameters if parameters is not None else group).__name__
                rule = "be a list of parameters, or a dict with one in 'params'"
                remedy = "Pass [parameters] for a single group"
                raise TypeError(describe(name, at, rule, kind, remedy))
            for parameter in parameters:
                if not isinstance(parameter, Tensor):
                    kind = type(parameter).__name__
                    raise TypeError(describe(name, at, "have only parameters", kind))
                if id(parameter) in self._groups:
                    rule = "share no parameter with another group or itself"
                    value = f"one of shape {list(parameter.shape)} twice"
                    raise ValueError(describe(name, at, rule, value))
                self._groups[id(parameter)] = i
                self._parameters.append(parameter)

    def begin(self) -> None:
        """Begin a new backward pass."""
        super().begin()
        self._sums.clear()
        self._found.clear()
        if self._groups:
            # the engine calls it at the end of the backward pass
            Variable._execution_engine.queue_callback(self._check_groups)

    def _check_groups(self) -> None:
        """Refuse groups without a parameter of the differentiated model."""
        trained = [p for p in self._parameters if p.requires_grad]
        for i in dict.fromkeys(self._groups[id(p)] for p in trained):
            if i not in self._found:
                self._drop()
                raise ValueError(
                    describe(
                        type(self).__name__,
                        f"param_groups[{i}]",
                        "have a parameter of the model that was differentiated",
                        "none",
                        "Pass parameters of the model itself, not of a copy",
                    )
                )

    def of_kernel(self, layer: Layer, *found: Tensor) -> Tensor:
        """Return the Gram matrix, added to those of the parameter's group so far."""
        return self._summed(layer.weight, *found)

    def of_gradients(self, gradients: Tensor, parameter: Tensor) -> Tensor:
        """Compute the Gram matrix of other parameters' gradients."""
        return self._summed(parameter, gram_of_gradients(gradients, parameter.dim()))

    def _summed(self, parameter: Tensor, gram: Tensor) -> Tensor:
        group = self._groups.get(id(parameter))
        if group is None:
            return gram
        self._found.add(group)
        if group in self._sums:
            self._sums[group] += gram
        else:
            self._sums[group] = gram
        return self._sums[group]


class BatchDotGrad(FirstOrderBackpropExtension, _Gram):
    """Inner products of per-sample gradients, in ``parameter.batch_dot``: ``[N, N]``.

    Entries are ``<g_n, g_m>``; the gradients contain the scaling of the loss. They are
    not stored for the whole batch. The diagonal equals the result of
    :class:`~tn_extensions.backpack.BatchL2Grad`. Of float32 or wider.

    Args:
        subsampling: Samples to consider. Default: all.
        param_groups: Groups of parameters, in the form that optimizers take. The
            parameters of a group share one matrix: the sum over the group. Default: no
            groups.

    Raises:
        TypeError: If a group has entries that are not parameters.
        ValueError: If a parameter occurs twice. On backpropagation, if none of a
            group's parameters is differentiated, or ``subsampling`` does not fit the
            batch.
    """

    refuses_coupling = False

    def __init__(
        self, subsampling: list[int] | None = None, param_groups: Groups | None = None
    ) -> None:
        self.group(param_groups)
        super().__init__("batch_dot", {}, subsampling=subsampling)

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return module extensions for all modules that ``BatchGrad`` supports."""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        return module_extensions() | {
            nn.RNN: GradientsModule(RNNDerivatives(), names),
            nn.LSTM: GradientsModule(LSTMDerivatives(), names),
        }


class _GGNGram(SqrtGGN, SecondOrder, _Gram):
    """The base of extensions that save the Gram matrix of the GGN's square root."""

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return module extensions for all modules that ``SqrtGGN`` supports."""
        return super().module_extensions() | module_extensions()


class GGNGramExact(_GGNGram):
    """Gram matrix of the GGN's square root, in ``parameter.ggn_gram_exact``.

    Let ``J`` be the matrix with the rows ``J[(v, n)]`` that :class:`~tn_extensions.\
backpack.SqrtGGNExact` saves. The GGN is ``J^T J``; the Gram matrix is ``J J^T``,
    ``[V * N, V * N]``, with rows in the order ``(v, n)``. Both have the same nonzero
    eigenvalues. A few rows of ``J`` are formed at a time, or none where that is
    cheaper. The Gram matrix of several parameters is the sum of their matrices. Of
    float32 or wider.

    Args:
        subsampling: Samples to consider. Default: all.
        param_groups: Groups of parameters, in the form that optimizers take. The
            parameters of a group share one matrix: the sum over the group. Default: no
            groups.

    Raises:
        TypeError: If a group has entries that are not parameters.
        ValueError: If a parameter occurs twice. On backpropagation, if none of a
            group's parameters is differentiated, or ``subsampling`` does not fit the
            batch.

    Reference: Dangel, Tatzel and Hennig, "ViViT: Curvature access through the
    generalized Gauss-Newton's low-rank structure", TMLR 2022.
    """

    def __init__(
        self, subsampling: list[int] | None = None, param_groups: Groups | None = None
    ) -> None:
        self.group(param_groups)
        SqrtGGN.__init__(self, LossHessianStrategy.EXACT, "ggn_gram_exact", subsampling)


class GGNGramMC(_GGNGram):
    """Gram matrix of the GGN's square root by sampling, in ``parameter.ggn_gram_mc``.

    Like :class:`GGNGramExact`, but with the Monte-Carlo square root of
    :class:`~tn_extensions.backpack.SqrtGGNMC`.

    Args:
        mc_samples: Number of Monte-Carlo samples, ``V``.
        subsampling: Samples to consider. Default: all.
        param_groups: See :class:`GGNGramExact`.

    Raises:
        TypeError: If a group has entries that are not parameters.
        ValueError: If a parameter occurs twice. On backpropagation, if none of a
            group's parameters is differentiated, or ``subsampling`` does not fit the
            batch.
    """

    def __init__(
        self,
        mc_samples: int = 1,
        subsampling: list[int] | None = None,
        param_groups: Groups | None = None,
    ) -> None:
        self.group(param_groups)
        self._mc_samples = mc_samples
        SqrtGGN.__init__(self, LossHessianStrategy.SAMPLING, "ggn_gram_mc", subsampling)

    def get_num_mc_samples(self) -> int:
        """Return the number of Monte-Carlo samples, for the loss's module extension."""
        return self._mc_samples
