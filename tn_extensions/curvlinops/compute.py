"""The base class of operators with a Kronecker-factored block per layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from curvlinops.kfac import KFACLinearOperator
from torch import Tensor

from tn_extensions.curvlinops.factors import Block, BlockFactors, passes_of
from tn_extensions.curvlinops.stored import kept
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.multiply import Blocks, multiply
from tn_extensions.layers.module import Groups, num_groups, out_channels
from tn_extensions.layers.passes import BackwardPasses, ObservedLayers

Key = tuple[str, str]
"""Key of a block: the layer's name, and ``"joint"``, ``"weight"`` or ``"bias"``."""


class FactorPasses(KFACLinearOperator):
    """Compute factors of layers, and multiply with the blocks that they define."""

    _RANK_LIMIT = 0.5
    """Largest number of rows of a low-rank factor, as a fraction of its columns."""
    _groups: Groups

    @abstractmethod
    def compute_kronecker_factors(self) -> None:
        """Compute the factors and store them."""

    def _compute_once(self) -> None:
        if not (self._input_covariances or self._gradient_covariances):
            self.compute_kronecker_factors()

    # -- products

    def _apply(
        self, M: list[Tensor], blocks_of: Callable[[str], Blocks]
    ) -> list[Tensor]:
        """Multiply each layer's blocks with ``M``, whose last axis are the columns."""
        result = list(M)
        for name, positions in self._mapping.items():
            vectors = {key: M[position] for key, position in positions.items()}
            module = self._model_func.get_submodule(name)
            found = multiply(module, self._groups, blocks_of(name), vectors)
            for key, position in positions.items():
                result[position] = found[key]
        return result

    def _blocks_of(self, name: str) -> Blocks:
        return self._by_key(name, self._product(name))

    def _product(self, name: str) -> KroneckerProduct:
        """Return ``B (x) A``, or ``B`` if the layer's block is only of a bias."""
        right = kept(self._input_covariances).get(name)
        return KroneckerProduct(kept(self._gradient_covariances)[name], right)

    def _by_key(self, name: str, product: KroneckerProduct) -> Blocks:
        left, right = product.left, product.right
        return {
            key: KroneckerProduct(left, None if key == "bias" else right)
            for key in self._keys(name)
        }

    def _keys(self, name: str) -> list[str]:
        keys = list(self._mapping[name])
        is_joint = len(keys) == 2 and not self._separate_weight_and_bias
        return ["joint"] if is_joint else keys

    # -- passes

    def _block_factors(self) -> BlockFactors[Key]:
        blocks = {}
        for name in self._mapping:
            module = self._model_func.get_submodule(name)
            groups = num_groups(module, self._groups)
            sizes = groups, out_channels(module) // groups
            for key in self._keys(name):
                parts = key != "bias", key != "weight"
                blocks[name, key] = Block(name, name, *sizes, *parts)
        return BlockFactors(self._passes(), blocks, self._params[0])

    def _passes(self) -> BackwardPasses:
        """Create passes from the options, which a loaded state may have changed."""
        name, model = type(self).__name__, self._model_func
        layers = ObservedLayers(name, model, self._params, self._mapping, self._groups)
        return passes_of(self, name, model, layers)
