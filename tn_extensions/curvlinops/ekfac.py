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
"""Attributes of curvlinops that hold eigenvectors."""


class EKFACLinearOperator(KFACLinearOperator, ekfac.EKFACLinearOperator):
    r"""EKFAC of the Fisher/GGN, replaces :class:`curvlinops.EKFACLinearOperator`.

    The block of a layer is ``(Q_B (x) Q_A) diag(l) (Q_B (x) Q_A)^T`` for each group of
    channels. ``Q_B`` and ``Q_A`` are the eigenvectors of KFAC's factors, and ``l = c
    sum_n (Q_B^T G_n Q_A)^2`` are second moments of the gradients ``G_n`` of the data.
    As in curvlinops, ``c`` undoes the scaling of the loss. Layers and losses are those
    of :class:`KFACLinearOperator`.

    In addition to curvlinops, it supports outputs with more than two axes, which have
    several loss terms per datum. ``G_n`` is then the gradient of the sum of these
    terms. With ``fisher_type="type-2"``, each term has its own gradient: this is exact,
    and takes as many backward passes as there are terms times classes.

    Neither the unfolded input nor the gradients of all data are stored; set
    :func:`tn_extensions.memory_budget` to bound the memory. If a KFAC-expand factor is
    a sum over few vectors, less than seven tenths of its size, only the eigenvectors in
    their span are computed. The others have eigenvalue zero, and gradients are
    orthogonal to them.

    Args:
        *args: As for :class:`curvlinops.EKFACLinearOperator`.
        groups: As for :class:`KFACLinearOperator`.
        **kwargs: As for :class:`curvlinops.EKFACLinearOperator`.

    Raises:
        ValueError: As for :class:`KFACLinearOperator`.
        NotImplementedError: If a parameter belongs to a layer without factors.

    Reference: George et al., "Fast Approximate Natural Gradient Descent in a
    Kronecker-factored Eigenbasis", NeurIPS 2018.
    """

    _RANK_LIMIT = 0.7
    """Up to here, singular vectors of the factor are cheaper than eigenvectors."""

    def _compute_once(self) -> None:
        if not self._corrected_eigenvalues:
            self.compute_eigenvalue_correction()

    def _bases(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Return ``Q_B`` and ``Q_A``, with an axis of groups."""
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
            # reading the bases may have completed them since
            values = padded(stacked(values), sizes)
            blocks[key] = EigendecomposedMatrix(left, basis, values)
        return blocks

    def compute_kronecker_factors(self) -> None:
        """Compute KFAC's factors; drop all that was computed from former ones."""
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
        """Compute the corrected eigenvalues, and first the bases if there are none.

        If this fails, there are no eigenvalues.
        """
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
        """Return the state, with only those eigenvectors that are stored."""
        own = {name[1:]: state(getattr(self, name)) for name in _BASES}
        own["corrected_eigenvalues"] = dict(kept(self._corrected_eigenvalues))
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of curvlinops."""
        super().load_state_dict(state_dict)
        for name in _BASES:
            setattr(self, name, Bases(getattr(self, name)))
        self._store_eigenvalues(self._corrected_eigenvalues)
