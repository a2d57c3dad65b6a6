"""Factors of all layers, and products with what is made of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tn_extensions.curvlinops.backward import BackwardPasses
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.factors import (
    add_gradient_factor,
    add_input_factor,
    squared_sums,
)
from tn_extensions.kronecker.multiply import Blocks, multiply
from tn_extensions.layers.module import Pairs, Use, num_groups, out_channels
from tn_extensions.layers.observe import Uses


class FactorPasses(BackwardPasses):
    """The part of KFAC that knows nothing of curvlinops; its inverse works on it."""

    _RANK_LIMIT = 0.5
    """Most rows of a low-rank factor, as a part of its columns."""
    _kfac_approx: str
    _separate_weight_and_bias: bool
    _input_covariances: Mapping[str, Tensor]
    _gradient_covariances: Mapping[str, Tensor]

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
            found = multiply(self._layers[name], self._groups, blocks_of(name), vectors)
            for key, position in positions.items():
                result[position] = found[key]
        return result

    def _keys(self, name: str) -> list[str]:
        return ["joint"] if self._is_joint(name) else list(self._mapping[name])

    def _is_joint(self, name: str) -> bool:
        parameters = self._mapping[name]
        return not self._separate_weight_and_bias and len(parameters) == 2

    def _compute_factors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Factors ``A``, ``B`` by layer: matrices or low-rank factors, with groups."""
        inputs: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}

        def on_uses(uses: Uses) -> None:
            for name, own in uses.items():
                if "weight" in self._mapping[name]:
                    inputs[name] = self._with_inputs(inputs.get(name), name, own)
                own[:] = [use.without_input() for use in own]

        def on_gradients(name: str, pairs: Pairs) -> None:
            known = gradients.get(name)
            gradients[name] = self._with_gradients(known, name, pairs)

        self._observe("KFAC matrices", on_uses, on_gradients, self._vectors)
        if self._fisher_type == "forward-only":
            gradients = {name: self._identity(name) for name in self._mapping}
        with_weight = [name for name, own in self._mapping.items() if "weight" in own]
        for what, factors, names in (
            ("inputs", inputs, with_weight),
            ("output gradients", gradients, self._mapping),
        ):
            found = {name: [squared_sums(factor)] for name, factor in factors.items()}
            self._check_layers(what, found, names)
        return inputs, gradients

    def _with_inputs(self, factor: Tensor | None, name: str, uses: list[Use]) -> Tensor:
        scale, bias = 1 / self._N_data, self._is_joint(name)
        approx, limit = self._kfac_approx, self._RANK_LIMIT
        return add_input_factor(uses, approx, factor, scale, bias, limit)

    def _with_gradients(self, factor: Tensor | None, name: str, pairs: Pairs) -> Tensor:
        scale, limit = self._loss_correction(len(pairs[0][1])), self._RANK_LIMIT
        return add_gradient_factor(pairs, self._kfac_approx, factor, scale, limit)

    def _identity(self, name: str) -> Tensor:
        module = self._layers[name]
        groups = num_groups(module, self._groups)
        position = next(iter(self._mapping[name].values()))
        like = self._params[position]
        dtype = torch.promote_types(like.dtype, torch.float32)
        identity = torch.eye(
            out_channels(module) // groups, dtype=dtype, device=like.device
        )
        return identity.repeat(groups, 1, 1)
