"""Eigenvalue-corrected KFAC of networks with convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curvlinops import ekfac
from torch import Tensor

from tn_extensions.curvlinops.kfac import KFACLinearOperator
from tn_extensions.curvlinops.stored import (
    Bases,
    Eigenvalues,
    Factors,
    kept,
    padded,
    stacked,
    state,
)
from tn_extensions.curvlinops.text import tensor_text
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix

_BASES = ("_input_covariances_eigenvectors", "_gradient_covariances_eigenvectors")
"""Attributes, by curvlinops' names."""


class EKFACLinearOperator(KFACLinearOperator, ekfac.EKFACLinearOperator):
    r"""EKFAC of the Fisher/GGN, in place of :class:`curvlinops.EKFACLinearOperator`.

    The block of a layer is ``(Q_B (x) Q_A) diag(l) (Q_B (x) Q_A)^T`` for each group of
    channels, with the eigenvectors of KFAC's factors and the second moments ``l = c
    sum_n (Q_B^T G_n Q_A)^2`` of the data's gradients ``G_n``, ``c`` undoing the scaling
    of the loss as in curvlinops. Layers and losses as :class:`KFACLinearOperator`.

    Beyond curvlinops: outputs of more than two axes. Gradients are then those of all of
    a datum's loss terms together, but for ``fisher_type="type-2"``, whose terms are
    taken one by one: exact, at as many backward passes as terms times classes.

    Neither the unfolded input nor the gradients of all data are held; bound what is by
    :func:`tn_extensions.memory_budget`. Of a KFAC-expand factor of fewer vectors than
    seven tenths of its size, only the eigenvectors that these span are computed:
    gradients have no part in the others, whose eigenvalues are zero.

    Args:
        *args: As :class:`curvlinops.EKFACLinearOperator`.
        groups: As :class:`KFACLinearOperator`.
        **kwargs: As :class:`curvlinops.EKFACLinearOperator`.

    Raises:
        ValueError: As :class:`KFACLinearOperator`.
        NotImplementedError: If a parameter belongs to a layer without factors.

    Reference: George et al., "Fast Approximate Natural Gradient Descent in a
    Kronecker-factored Eigenbasis", NeurIPS 2018.
    """

    _RANK_LIMIT = 0.7
    """Its singular vectors take no more time than the eigenvectors of a matrix."""

    def _compute_once(self) -> None:
        if not self._corrected_eigenvalues:
            self.compute_eigenvalue_correction()

    def _bases(self, name: str) -> tuple[Tensor, Tensor | None]:
        """``Q_B`` and ``Q_A``, with an axis of groups."""
        left = kept(self._gradient_covariances_eigenvectors)[name]
        right = kept(self._input_covariances_eigenvectors).get(name)
        return stacked(left), None if right is None else stacked(right)

    def _blocks_of(self, name: str) -> Mapping[str, EigendecomposedMatrix]:
        left, right = self._bases(name)
        found = kept(self._corrected_eigenvalues)[name]
        blocks = {}
        for key in self._keys(name):
            basis = right
            values = found if key == "joint" else found[self._mapping[name][key]]
            if key == "bias":
                basis, values = None, values.unsqueeze(-1)
            sizes = [left.shape[2], 1 if basis is None else basis.shape[2]]
            # bases may have been completed since, by reading them
            values = padded(stacked(values), sizes)
            blocks[key] = EigendecomposedMatrix(left, basis, values)
        return blocks

    def compute_kronecker_factors(self) -> None:
        """Compute KFAC's factors. What was made of former ones is dropped."""
        self._corrected_eigenvalues: Mapping[str, Any] = {}
        self._input_covariances_eigenvectors: Mapping[str, Tensor] = {}
        self._gradient_covariances_eigenvectors: Mapping[str, Tensor] = {}
        super().compute_kronecker_factors()

    def _compute_eigenvectors(self) -> None:
        """Replace the factors by their eigenvectors."""
        if not (self._input_covariances or self._gradient_covariances):
            self.compute_kronecker_factors()
        inputs, gradients = self._input_covariances, self._gradient_covariances
        self._input_covariances, self._gradient_covariances = Factors(), Factors()
        (
            self._input_covariances_eigenvectors,
            self._gradient_covariances_eigenvectors,
        ) = self._block_factors().eigenvectors(
            kept(inputs), kept(gradients), self._kfac_approx
        )

    def compute_eigenvalue_correction(self) -> None:
        """Compute the eigenvalues; first, what they need. A failure leaves none."""
        self._reset_matrix_properties()
        self._corrected_eigenvalues = {}
        if not self._gradient_covariances_eigenvectors:
            self._compute_eigenvectors()
        moments = self._block_factors().moments(lambda key: self._bases(key[0]))
        values: dict[str, Any] = {}
        for (name, key), own in moments.items():
            if key == "joint":
                values[name] = own
            else:
                values.setdefault(name, {})[self._mapping[name][key]] = own
        self._store_eigenvalues(values)

    def _store_eigenvalues(self, values: Mapping[str, Any]) -> None:
        self._corrected_eigenvalues = Eigenvalues(
            values,
            self._gradient_covariances_eigenvectors,
            self._input_covariances_eigenvectors,
        )

    def _block_text(self, name: str) -> str:
        # eigenvectors replace the factors
        right = kept(self._input_covariances_eigenvectors).get(name)
        left = kept(self._gradient_covariances_eigenvectors).get(name)
        if left is None:
            return super()._block_text(name)
        return tensor_text(Q_A=right, Q_B=left)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """The state; of a null space, nothing is kept."""
        own = {name[1:]: state(getattr(self, name)) for name in _BASES}
        own["corrected_eigenvalues"] = dict(kept(self._corrected_eigenvalues))
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; that of curvlinops, too."""
        super().load_state_dict(state_dict)
        for name in _BASES:
            setattr(self, name, Bases(getattr(self, name)))
        self._store_eigenvalues(self._corrected_eigenvalues)
