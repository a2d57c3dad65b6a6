"""Eigenvalue-corrected KFAC of networks with convolutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from curvlinops import ekfac, kfac
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
    unstacked,
)
from tn_extensions.curvlinops.text import tensor_text
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.factors import eigenbasis
from tn_extensions.kronecker.moments import bias_moments, kernel_moments
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.observe import Uses


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

    def _rotated_of(self, name: str) -> Mapping[str, EigendecomposedMatrix]:
        left, right = self._bases(name)
        found = kept(self._corrected_eigenvalues)[name]
        positions, groups = self._mapping[name], len(left)
        blocks = {}
        for key in self._keys(name):
            values = found if key == "joint" else found[positions[key]]
            basis = None if key == "bias" else right
            columns = 1 if basis is None else basis.shape[2]
            values = values.reshape(
                groups, -1, 1 if basis is None else values.shape[-1]
            )
            # bases may have been completed since, by reading them
            values = padded(values, [left.shape[2], columns])
            blocks[key] = EigendecomposedMatrix(left, basis, values)
        return blocks

    _blocks_of = _rotated_of

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
        # of eigenvalue zero, KFAC-reduce's factors may have directions that gradients
        # have a part in; so may KFAC-expand's of gradients, if these are single terms'
        is_reduced = self._kfac_approx == kfac.KFACType.REDUCE
        self._input_covariances_eigenvectors = _eigenvectors(inputs, is_reduced)
        self._gradient_covariances_eigenvectors = _eigenvectors(
            gradients, is_reduced or self._passes().splits_terms
        )

    def compute_eigenvalue_correction(self) -> None:
        """Compute the eigenvalues; first, what they need. A failure leaves none."""
        self._reset_matrix_properties()
        self._corrected_eigenvalues = {}
        if not self._gradient_covariances_eigenvectors:
            self._compute_eigenvectors()
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        passes = self._passes()

        def on_uses(uses: Uses) -> None:
            for name, own in uses.items():
                if "weight" not in self._mapping[name]:
                    own[:] = [use.without_input() for use in own]

        def on_gradients(name: str, pairs: Pairs) -> None:
            scale, total = passes.scale(len(pairs[0][1])), moments[name]
            for key in self._keys(name):
                found = self._moments(name, key, pairs).mul_(scale)
                total[key] = total[key].add_(found) if key in total else found

        desc = "Eigenvalue correction"
        passes.run(desc, on_uses, on_gradients, by_datum=True, by_term=True)
        passes.check_results(
            "gradients",
            {name: list(own.values()) for name, own in moments.items()},
            self._mapping,
        )
        self._store_eigenvalues(
            {name: self._as_in_curvlinops(name, own) for name, own in moments.items()}
        )

    def _store_eigenvalues(self, values: Mapping[str, Any]) -> None:
        self._corrected_eigenvalues = Eigenvalues(
            values,
            self._gradient_covariances_eigenvectors,
            self._input_covariances_eigenvectors,
        )

    def _moments(self, name: str, key: str, pairs: Pairs) -> Tensor:
        left, right = self._bases(name)
        if key == "bias":
            return bias_moments(pairs, left)
        assert right is not None
        return kernel_moments(pairs, left, right, bias=key == "joint")

    def _as_in_curvlinops(self, name: str, moments: dict[str, Tensor]) -> Any:
        """``[(G,) s, r]`` of weights, ``[(G,) s]`` of biases, by position."""
        if self._is_joint(name):
            return unstacked(moments["joint"])
        return {
            position: unstacked(
                moments[key].squeeze(2) if key == "bias" else moments[key]
            )
            for key, position in self._mapping[name].items()
        }

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
        own = {
            "input_covariances_eigenvectors": state(
                self._input_covariances_eigenvectors
            ),
            "gradient_covariances_eigenvectors": state(
                self._gradient_covariances_eigenvectors
            ),
            "corrected_eigenvalues": dict(kept(self._corrected_eigenvalues)),
        }
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; that of curvlinops, too."""
        super().load_state_dict(state_dict)
        (
            self._input_covariances_eigenvectors,
            self._gradient_covariances_eigenvectors,
        ) = (
            Bases(vectors)
            for vectors in (
                self._input_covariances_eigenvectors,
                self._gradient_covariances_eigenvectors,
            )
        )
        self._store_eigenvalues(self._corrected_eigenvalues)


def _eigenvectors(factors: Mapping[str, Tensor], is_complete: bool) -> Bases:
    """Eigenvectors of factors, each of which is gone before the next one's."""
    remaining = kept(factors)
    return Bases(
        (name, eigenbasis(remaining.pop(name), is_complete)[1])
        for name in list(remaining)
    )
