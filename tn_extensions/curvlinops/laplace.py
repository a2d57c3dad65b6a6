"""Backends of laplace-torch on our operators, for every convolution.

Needs the extra ``laplace``; nothing else of this package imports it::

    from laplace import Laplace
    from tn_extensions.curvlinops.laplace import CurvlinopsGGN

    Laplace(model, "classification", "all", "kron", backend=CurvlinopsGGN)

laplace's Kronecker matrices have a block for each parameter: ``B (x) A`` on the flat
weight, ``B`` on the bias. So have ours, but factors of groups are stacked,
``[G, CO, CO]`` and ``[G, D, D]`` with ``D = CI * K``; their block diagonal is never
formed. In the weight of a transposed convolution, ``[G, CI, CO, K]``, ``B (x) A`` is
not a Kronecker product of flat matrices. To tell, its ``A`` is ``[G, CI, CI, K, K]``.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import chain
from math import prod
from typing import Any

import laplace
import torch
from laplace.curvature import curvlinops as stock
from laplace.utils import matrix, symeig
from torch import Tensor

from tn_extensions.curvlinops import GGNDiagonalLinearOperator
from tn_extensions.curvlinops.kfac import KFACLinearOperator
from tn_extensions.curvlinops.laplace_blocks import KronBlock, identity, rows, square
from tn_extensions.errors import describe
from tn_extensions.layers.module import TRANSPOSED

__all__ = ["CurvlinopsEF", "CurvlinopsGGN", "Kron", "KronDecomposed", "KronLaplace"]


class _Interface(stock.CurvlinopsInterface):
    """Kronecker factors by our operator."""

    def kron(
        self, x: Any, y: Tensor, N: int, **kwargs: Any
    ) -> tuple[Tensor, matrix.Kron]:
        """The loss and the factors of a batch of ``N`` data, scaled as laplace's.

        Args:
            x: Input.
            y: Targets.
            N: Size of the data set.
            **kwargs: Of :class:`KFACLinearOperator`, e.g. ``kfac_approx`` or
                ``mc_samples``; laplace hands its ``asdl_fisher_kwargs`` on.

        Returns:
            The loss and the :class:`Kron`.
        """
        kwargs |= self._batch_size(x)
        linop = KFACLinearOperator(
            self.model,
            self.lossfunc,
            self.params,
            [(x, y)],
            fisher_type=self._kron_fisher_type,
            separate_weight_and_bias=True,
            check_deterministic=False,
            groups="separate",
            **kwargs,
        )
        linop.compute_kronecker_factors()
        kron = self._rescale_kron_factors(self._get_kron_factors(linop), len(y), N)
        return self._loss(x, y), self.factor * kron

    def _batch_size(self, x: Any) -> dict[str, Any]:
        if isinstance(x, MutableMapping):
            return {"batch_size_fn": lambda batch: len(batch[self.dict_key_x])}
        return {}

    @torch.no_grad()
    def _loss(self, x: Any, y: Tensor) -> Tensor:
        loss: Tensor = self.factor * self.lossfunc(self.model(x), y)
        return loss

    def _get_kron_factors(self, linop: KFACLinearOperator) -> Kron:
        kfacs: list[list[Tensor]] = [[] for _ in self.params]
        for name, positions in linop._mapping.items():
            module = self.model.get_submodule(name)
            for position in positions.values():
                kfacs[position].append(linop._gradient_covariances[name])
            if "weight" in positions:
                a = linop._input_covariances[name]
                if isinstance(module, TRANSPOSED):
                    channels, _, *kernel_size = module.weight.shape
                    axes = channels // module.groups, prod(kernel_size)
                    a = a.reshape(module.groups, *axes, *axes).transpose(2, 3)
                kfacs[positions["weight"]].append(a)
        return Kron(kfacs)


class CurvlinopsGGN(_Interface, stock.CurvlinopsGGN):
    """The GGN, in place of :class:`laplace.curvature.CurvlinopsGGN`.

    The full matrix is laplace's own, right for every convolution.

    Args:
        *args: As laplace's.
        **kwargs: As laplace's.
    """

    def diag(
        self, x: Any, y: Tensor, N: int | None = None, mc_samples: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The loss and the diagonal of a batch; no Jacobian is held.

        Parameters of other layers than :class:`KFACLinearOperator` supports take
        laplace's own way.

        Args:
            x: Input.
            y: Targets.
            N: Not used.
            mc_samples: Samples where the backend is stochastic.

        Returns:
            The loss and the diagonal, ``[P]``.
        """
        try:
            linop = GGNDiagonalLinearOperator(
                self.model,
                self.lossfunc,
                self.params,
                [(x, y)],
                check_deterministic=False,
                mode="mc" if self.stochastic else "exact",
                mc_samples=mc_samples,
                # as laplace's, from torch's global generator
                seed=int(torch.randint(2**31, ())) if self.stochastic else 0,
                **self._batch_size(x),
            )
        except NotImplementedError:
            found: tuple[Tensor, Tensor] = super().diag(x, y)
            return found
        diagonal = torch.cat([part.flatten() for part in linop.diagonal()])
        if self.subnetwork_indices is not None:
            diagonal = diagonal[self.subnetwork_indices]
        return self._loss(x, y), self.factor * diagonal


class CurvlinopsEF(_Interface, stock.CurvlinopsEF):
    """The empirical Fisher, in place of :class:`laplace.curvature.CurvlinopsEF`.

    The diagonal and the full matrix are laplace's own, of a last layer, too.

    Args:
        *args: As laplace's.
        **kwargs: As laplace's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # laplace's are names in the last layer: the model, to which they mean nothing,
        # silently has gradients of zero
        own = {id(parameter) for parameter in self.params}
        named = self.model.named_parameters()
        self.params_dict = {name: p for name, p in named if id(p) in own}


class KronLaplace(laplace.KronLaplace):
    """:class:`laplace.KronLaplace`, with ``Conv3d`` and with states of our factors.

    laplace's own fits everything but ``Conv3d``, whose shape it refuses. It loads no
    states of groups or transposed convolutions: their factors raise when first used.

    Backends that make blocks of frozen parameters, too, if others of the same layer are
    not frozen (ASDL's), are understood: those blocks are dropped.
    """

    # laplace.Laplace has a class for each key: laplace's must stay that of its own
    _key = ("all", "kron of tn_extensions")

    def _init_H(self) -> None:
        self.H = Kron([])

    def _curv_closure(self, X: Any, y: Tensor, N: int) -> tuple[Tensor, Any]:
        loss, kron = super()._curv_closure(X, y, N)
        return loss, self._of_params(kron)

    def _of_params(self, kron: matrix.Kron) -> matrix.Kron:
        """Drop blocks of frozen parameters.

        Raises:
            ValueError: If it is not clear which ones those are.
        """
        if len(kron) == len(self.params):
            return kron
        own = {id(parameter) for parameter in self.params}
        layers = [[*m.parameters(recurse=False)] for m in self.model.modules()]
        trained = [layer for layer in layers if any(id(p) in own for p in layer)]
        found = [prod(len(factor) for factor in F) for F in kron.kfacs]
        for params in ([*chain(*trained)], [*chain(*layers)]):
            if found == [p.numel() for p in params]:
                pairs = zip(params, kron.kfacs, strict=True)
                return type(kron)([F for p, F in pairs if id(p) in own])
        owner, rule = type(self).__name__, f"have blocks of {len(own)} parameters"
        raise ValueError(describe(owner, "the backend's factors", rule, found))

    def log_marginal_likelihood(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the logarithm of the marginal likelihood.

        Raises:
            AttributeError: Before a fit.
        """
        self._check_H_init()
        found: Tensor = super().log_marginal_likelihood(*args, **kwargs)
        return found

    @property
    def log_det_posterior_precision(self) -> Tensor:
        """Logarithm of the determinant; before a fit, of the prior's."""
        if self.H_facs is None:
            return self.prior_precision_diag.log().sum()
        return super().log_det_posterior_precision

    def square_norm(self, value: Tensor) -> Tensor:
        """Square of the distance to the mean; before a fit, in the prior's metric."""
        if self.H_facs is None:
            delta = value - self.mean
            return (delta * self.prior_precision_diag) @ delta
        return super().square_norm(value)


class Kron(matrix.Kron):
    """Sums of Kronecker factors, in place of :class:`laplace.utils.Kron`.

    Args:
        kfacs: For each parameter, ``[B, A]`` or ``[B]`` (see the module). As laplace's,
            a factor may be a vector, the diagonal of a matrix. None at all: zero.
    """

    kfacs: list[list[Tensor]]

    def __add__(self, other: matrix.Kron) -> Kron:
        if not isinstance(other, matrix.Kron):
            super().__add__(other)  # it raises
        if not self.kfacs or not other.kfacs:
            return Kron(self.kfacs or other.kfacs)
        pairs = zip(self.kfacs, other.kfacs, strict=True)
        return Kron([self._sum(own, others) for own, others in pairs])

    # preferred to laplace's own sum where that starts with zeros
    __radd__ = __add__

    @staticmethod
    def _sum(own: list[Tensor], others: list[Tensor]) -> list[Tensor]:
        shapes, found = ([tuple(f.shape) for f in F] for F in (own, others))
        if shapes == found:
            return [a + b for a, b in zip(own, others, strict=True)]
        if any(bool(factor.any()) for factor in others):
            rule = f"have factors of shapes {shapes}"
            raise ValueError(describe("Kron.__add__", "other", rule, found))
        # laplace's zeros, whose shapes know of no groups
        return own

    def __mul__(self, scalar: Any) -> Kron:
        return Kron(super().__mul__(scalar).kfacs)

    __rmul__ = __mul__

    def decompose(self, damping: bool = False) -> KronDecomposed:
        """Eigendecompositions of all factors."""
        both = [[_eigen(factor) for factor in F] for F in self.kfacs]
        values, vectors = ([[own[i] for own in F] for F in both] for i in range(2))
        return KronDecomposed(vectors, values, damping=damping)

    def _blocks(self) -> list[KronBlock]:
        return [KronBlock.of(F) for F in self.kfacs]

    def _bmm(self, W: Tensor) -> Tensor:
        blocks = self._blocks()
        # factors of halves are of float32
        parts = W.to(blocks[0].left.dtype).split([block.size for block in blocks], -1)
        pairs = zip(blocks, parts, strict=True)
        products = [b.flat(b.forward(b.matrices(part))) for b, part in pairs]
        return torch.cat(products, -1).to(W.dtype)

    def logdet(self) -> Tensor:
        """Logarithm of the determinant."""
        return torch.stack([block.logdet() for block in self._blocks()]).sum()

    def diag(self) -> Tensor:
        """The diagonal."""
        return torch.cat([block.flat(block.diagonal()) for block in self._blocks()])

    def to_matrix(self) -> Tensor:
        """As one dense matrix."""
        return self._bmm(identity(self._blocks()))[0]


class KronDecomposed(matrix.KronDecomposed):
    """Eigendecomposed :class:`Kron`, in place of :class:`laplace.utils.KronDecomposed`.

    Args:
        eigenvectors: Of ``[B, A]`` or ``[B]`` for each parameter: as the factors, but
            ``[G, CI, K, D]`` of a transposed convolution's ``A``.
        eigenvalues: ``[(G,) CO]`` and ``[(G,) D]``.
        deltas: What is added to each parameter's block.
        damping: As laplace's.
    """

    def __add__(self, deltas: Tensor) -> KronDecomposed:
        return self._of(super().__add__(deltas))

    __radd__ = __add__

    def __mul__(self, scalar: Any) -> KronDecomposed:
        return self._of(super().__mul__(scalar))

    __rmul__ = __mul__

    @staticmethod
    def _of(result: matrix.KronDecomposed) -> KronDecomposed:
        values, deltas = result.eigenvalues, result.deltas
        return KronDecomposed(result.eigenvectors, values, deltas, result.damping)

    def _blocks(self) -> list[tuple[KronBlock, Tensor]]:
        """Eigenvectors, and eigenvalues ``[G, CO, D]``, of each parameter."""
        parts = zip(self.eigenvectors, self.eigenvalues, self.deltas, strict=True)
        blocks = []
        for vectors, values, delta in parts:
            block = KronBlock.of(vectors)
            left = values[0].reshape(len(block.left), -1, 1)
            if len(values) == 1:
                sums = left + delta
            else:
                right = values[1].reshape(len(block.left), 1, -1)
                if self.damping:
                    sums = (left + delta.sqrt()) * (right + delta.sqrt())
                else:
                    sums = left * right + delta
            blocks.append((block, sums))
        return blocks

    def _bmm(self, W: Tensor, exponent: float = -1) -> Tensor:
        blocks = self._blocks()
        # eigenvectors of halves are of float32
        wide = W.to(blocks[0][0].left.dtype)
        parts = wide.split([block.size for block, _ in blocks], -1)
        products = []
        for (block, values), part in zip(blocks, parts, strict=True):
            rotated = block.adjoint(block.matrices(part)) * values**exponent
            products.append(block.flat(block.forward(rotated)))
        return torch.cat(products, -1).to(W.dtype)

    def logdet(self) -> Tensor:
        """Logarithm of the determinant."""
        return torch.stack([values.log().sum() for _, values in self._blocks()]).sum()

    def diag(self, exponent: float = 1) -> Tensor:
        """The diagonal of a power."""
        blocks = [(block, values**exponent) for block, values in self._blocks()]
        return torch.cat([b.flat(b.squared().forward(own)) for b, own in blocks])

    def to_matrix(self, exponent: float = 1) -> Tensor:
        """A power as one dense matrix."""
        one = identity([block for block, _ in self._blocks()])
        return self._bmm(one, exponent)[0]


def _eigen(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, the latter as the factor's rows."""
    if factor.ndim == 1:
        return factor, torch.eye(len(factor)).to(factor)
    as_rows = rows(factor)
    values, vectors = symeig(square(as_rows) if as_rows.ndim == 4 else as_rows)
    return values, vectors.reshape(as_rows.shape)
