"""Backends for laplace-torch that use our operators, for every convolution.

Needs the extra ``laplace``; nothing else of this package imports it::

    from laplace import Laplace
    from tn_extensions.curvlinops.laplace import CurvlinopsGGN

    Laplace(model, "classification", "all", "kron", backend=CurvlinopsGGN)

Like laplace's, our Kronecker matrices have a block for each parameter: ``B (x) A`` for
the flat weight and ``B`` for the bias. Factors of groups are stacked, ``[G, CO, CO]``
and ``[G, D, D]`` with ``D = CI * K``; the block-diagonal matrix is never formed. The
weight of a transposed convolution is ``[G, CI, CO, K]``, and its block is no Kronecker
product of matrices on the flat weight. Its ``A`` is stored as ``[G, CI, CI, K, K]``;
this shape identifies it.
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
    """Compute Kronecker factors with our operator."""

    def kron(
        self, x: Any, y: Tensor, N: int, **kwargs: Any
    ) -> tuple[Tensor, matrix.Kron]:
        """Compute the loss and the factors of a batch, with laplace's scaling.

        Args:
            x: Input.
            y: Targets.
            N: Size of the data set.
            **kwargs: Arguments of :class:`KFACLinearOperator`, such as ``kfac_approx``
                or ``mc_samples``; laplace passes its ``asdl_fisher_kwargs``.

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
    """The GGN, replaces :class:`laplace.curvature.CurvlinopsGGN`.

    The full matrix is computed by laplace, correctly for every convolution.

    Args:
        *args: As for laplace's class.
        **kwargs: As for laplace's class.
    """

    def diag(
        self, x: Any, y: Tensor, N: int | None = None, mc_samples: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss and the diagonal of a batch, without storing a Jacobian.

        If a parameter belongs to a layer that :class:`KFACLinearOperator` does not
        support, laplace computes the diagonal.

        Args:
            x: Input.
            y: Targets.
            N: Not used.
            mc_samples: Number of Monte-Carlo samples of a stochastic backend.

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
                # as in laplace, from torch's global generator
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
    """The empirical Fisher, replaces :class:`laplace.curvature.CurvlinopsEF`.

    The diagonal and the full matrix are computed by laplace, also for a last layer.

    Args:
        *args: As for laplace's class.
        **kwargs: As for laplace's class.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # laplace uses names within the last layer; the model does not know these, and
        # its gradients are zero without an error
        own = {id(parameter) for parameter in self.params}
        named = self.model.named_parameters()
        self.params_dict = {name: p for name, p in named if id(p) in own}


class KronLaplace(laplace.KronLaplace):
    """A :class:`laplace.KronLaplace` for ``Conv3d`` and for states of our factors.

    laplace's own class refuses the shape of ``Conv3d``. It also cannot load states with
    groups or transposed convolutions: their factors raise an error at their first use.

    ASDL's backends have blocks of frozen parameters if other parameters of the layer
    are not frozen. This class drops those blocks.
    """

    # laplace.Laplace looks classes up by key: leave laplace's key to its own class
    _key = ("all", "kron of tn_extensions")

    def _init_H(self) -> None:
        self.H = Kron([])

    def _curv_closure(self, X: Any, y: Tensor, N: int) -> tuple[Tensor, Any]:
        loss, kron = super()._curv_closure(X, y, N)
        return loss, self._of_params(kron)

    def _of_params(self, kron: matrix.Kron) -> matrix.Kron:
        """Drop blocks of frozen parameters.

        Args:
            kron: Factors of a backend.

        Returns:
            Factors of the parameters that are not frozen.

        Raises:
            ValueError: If the blocks do not match the parameters.
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

        Args:
            *args: As for laplace's method.
            **kwargs: As for laplace's method.

        Returns:
            The logarithm.

        Raises:
            AttributeError: If the model was not fitted.
        """
        self._check_H_init()
        found: Tensor = super().log_marginal_likelihood(*args, **kwargs)
        return found

    @property
    def log_det_posterior_precision(self) -> Tensor:
        """Logarithm of the determinant of the posterior's precision, or the prior's.

        It is the prior's before a fit.
        """
        if self.H_facs is None:
            return self.prior_precision_diag.log().sum()
        return super().log_det_posterior_precision

    def square_norm(self, value: Tensor) -> Tensor:
        """Compute the squared distance to the mean; before a fit, by the prior."""
        if self.H_facs is None:
            delta = value - self.mean
            return (delta * self.prior_precision_diag) @ delta
        return super().square_norm(value)


class Kron(matrix.Kron):
    """Sums of Kronecker factors, replaces :class:`laplace.utils.Kron`.

    Args:
        kfacs: For each parameter, ``[B, A]`` or ``[B]`` (see the module). As in
            laplace, a vector stands for a diagonal matrix. An empty list stands for
            zero.
    """

    kfacs: list[list[Tensor]]

    def __add__(self, other: matrix.Kron) -> Kron:
        if not isinstance(other, matrix.Kron):
            super().__add__(other)  # it raises
        if not self.kfacs or not other.kfacs:
            return Kron(self.kfacs or other.kfacs)
        pairs = zip(self.kfacs, other.kfacs, strict=True)
        return Kron([self._sum(own, others) for own, others in pairs])

    # used if laplace's sum starts with zeros of its own class
    __radd__ = __add__

    @staticmethod
    def _sum(own: list[Tensor], others: list[Tensor]) -> list[Tensor]:
        shapes, found = ([tuple(f.shape) for f in F] for F in (own, others))
        if shapes == found:
            return [a + b for a, b in zip(own, others, strict=True)]
        if any(bool(factor.any()) for factor in others):
            rule = f"have factors of shapes {shapes}"
            raise ValueError(describe("Kron.__add__", "other", rule, found))
        # laplace's zeros, which are shaped as without groups
        return own

    def __mul__(self, scalar: Any) -> Kron:
        return Kron(super().__mul__(scalar).kfacs)

    __rmul__ = __mul__

    def decompose(self, damping: bool = False) -> KronDecomposed:
        """Decompose all factors."""
        both = [[_eigen(factor) for factor in F] for F in self.kfacs]
        values, vectors = ([[own[i] for own in F] for F in both] for i in range(2))
        return KronDecomposed(vectors, values, damping=damping)

    def _blocks(self) -> list[KronBlock]:
        return [KronBlock.of(F) for F in self.kfacs]

    def _bmm(self, W: Tensor) -> Tensor:
        blocks = self._blocks()
        # factors are float32 if parameters have half precision
        parts = W.to(blocks[0].left.dtype).split([block.size for block in blocks], -1)
        pairs = zip(blocks, parts, strict=True)
        products = [b.flat(b.forward(b.matrices(part))) for b, part in pairs]
        return torch.cat(products, -1).to(W.dtype)

    def logdet(self) -> Tensor:
        """Compute the logarithm of the determinant."""
        return torch.stack([block.logdet() for block in self._blocks()]).sum()

    def diag(self) -> Tensor:
        """Compute the diagonal."""
        return torch.cat([block.flat(block.diagonal()) for block in self._blocks()])

    def to_matrix(self) -> Tensor:
        """Form the dense matrix."""
        return self._bmm(identity(self._blocks()))[0]


class KronDecomposed(matrix.KronDecomposed):
    """An eigendecomposed :class:`Kron`, replaces :class:`laplace.utils.KronDecomposed`.

    Args:
        eigenvectors: For each parameter, eigenvectors of ``[B, A]`` or ``[B]``. They
            are shaped like the factors, except for a transposed convolution's ``A``:
            ``[G, CI, K, D]``.
        eigenvalues: For each parameter, eigenvalues ``[(G,) CO]`` and ``[(G,) D]``.
        deltas: For each parameter, the number that is added to its block.
        damping: As for laplace's class.
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
        """List eigenvectors and eigenvalues ``[G, CO, D]`` of all parameters."""
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
        # eigenvectors are float32 if parameters have half precision
        wide = W.to(blocks[0][0].left.dtype)
        parts = wide.split([block.size for block, _ in blocks], -1)
        products = []
        for (block, values), part in zip(blocks, parts, strict=True):
            rotated = block.adjoint(block.matrices(part)) * values**exponent
            products.append(block.flat(block.forward(rotated)))
        return torch.cat(products, -1).to(W.dtype)

    def logdet(self) -> Tensor:
        """Compute the logarithm of the determinant."""
        return torch.stack([values.log().sum() for _, values in self._blocks()]).sum()

    def diag(self, exponent: float = 1) -> Tensor:
        """Compute the diagonal of a power of the matrix."""
        blocks = [(block, values**exponent) for block, values in self._blocks()]
        return torch.cat([b.flat(b.squared().forward(own)) for b, own in blocks])

    def to_matrix(self, exponent: float = 1) -> Tensor:
        """Form a power of the matrix as a dense matrix."""
        one = identity([block for block, _ in self._blocks()])
        return self._bmm(one, exponent)[0]


def _eigen(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Compute eigenvalues and eigenvectors; eigenvectors have the factor's rows."""
    if factor.ndim == 1:
        return factor, torch.eye(len(factor)).to(factor)
    as_rows = rows(factor)
    values, vectors = symeig(square(as_rows) if as_rows.ndim == 4 else as_rows)
    return values, vectors.reshape(as_rows.shape)
