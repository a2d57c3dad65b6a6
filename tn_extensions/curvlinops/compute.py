"""Operators made of blocks of layers: what KFAC and its inverse have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

from curvlinops.kfac import KFACLinearOperator
from torch import Tensor

from tn_extensions.curvlinops.factors import compute_factors
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.multiply import Blocks, multiply
from tn_extensions.layers.module import Groups
from tn_extensions.layers.passes import BackwardPasses, ObservedLayers


class FactorPasses(KFACLinearOperator):
    """Compute factors of layers, and products with blocks that are made of them."""

    _RANK_LIMIT = 0.5
    """Most rows of a low-rank factor, as a part of its columns."""
    _groups: Groups

    @abstractmethod
    def compute_kronecker_factors(self) -> None:
        """Compute and keep the factors."""

    def _compute_once(self) -> None:
        if not (self._input_covariances or self._gradient_covariances):
            self.compute_kronecker_factors()

    def _rotated_of(self, name: str) -> Mapping[str, EigendecomposedMatrix] | None:
        """Return a layer's blocks if they are kept in a basis."""
        return None

    def _apply(
        self, M: list[Tensor], blocks_of: Callable[[str], Blocks]
    ) -> list[Tensor]:
        """Multiply each layer's blocks, ``M`` having a trailing axis of columns."""
        result = list(M)
        for name, positions in self._mapping.items():
            vectors = {key: M[position] for key, position in positions.items()}
            module = self._model_func.get_submodule(name)
            found = multiply(module, self._groups, blocks_of(name), vectors)
            for key, position in positions.items():
                result[position] = found[key]
        return result

    def _keys(self, name: str) -> list[str]:
        return ["joint"] if self._is_joint(name) else list(self._mapping[name])

    def _is_joint(self, name: str) -> bool:
        parameters = self._mapping[name]
        return not self._separate_weight_and_bias and len(parameters) == 2

    # -- passes

    def _compute_factors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute factors ``A``, ``B`` by layer."""
        layers = self._observed_layers()
        joint = filter(self._is_joint, self._mapping)
        return compute_factors(
            self._passes(layers), layers, self._kfac_approx, joint, self._RANK_LIMIT
        )

    def _observed_layers(self) -> ObservedLayers:
        return ObservedLayers(
            type(self).__name__,
            self._model_func,
            self._params,
            self._mapping,
            self._groups,
        )

    def _passes(self, layers: ObservedLayers | None = None) -> BackwardPasses:
        """Compose the passes that the options ask for, which a state may change."""
        return BackwardPasses(
            type(self).__name__,
            self._model_func,
            self._loss_func,
            self._loop_over_data,
            self._observed_layers() if layers is None else layers,
            fisher=self._fisher_type,
            mc_samples=self._mc_samples,
            seed=self._seed,
            device=self.device,
            num_data=self._N_data,
            terms_per_datum=self._num_per_example_loss_terms,
            batch_size_fn=self._batch_size_fn,
        )
