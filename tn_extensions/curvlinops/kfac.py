"""KFAC of networks with convolutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.compiler.allocate import address_of
from tn_extensions.curvlinops.compute import FactorPasses, Key
from tn_extensions.curvlinops.factors import needs_data
from tn_extensions.curvlinops.inverse import KFACInverseLinearOperator
from tn_extensions.curvlinops.stored import Factors, kept, state
from tn_extensions.curvlinops.text import operator_text, plain, tensor_text
from tn_extensions.errors import check_choice, describe
from tn_extensions.kronecker.multiply import Block
from tn_extensions.layers import losses
from tn_extensions.layers.module import (
    SUPPORTED,
    Groups,
    parameters_of_layers,
    reason_against,
)


class KFACLinearOperator(FactorPasses):
    r"""KFAC of the Fisher/GGN, replaces :class:`curvlinops.KFACLinearOperator`.

    The block of a layer is ``B (x) A`` for each group of channels. With patches ``U``,
    gradients ``g`` of the layer's outputs, ``S`` positions that share the weight, and
    ``N`` data, the factors of KFAC-expand are ``A = 1/(N S) sum U U^T`` and ``B = c sum
    g g^T``. KFAC-reduce uses means of patches and sums of gradients over positions:
    ``A = 1/N sum_n u u^T`` with ``u = 1/S sum_o U``, and ``B = c sum_n (sum_o g)(sum_o
    g)^T``. As in curvlinops, ``c`` undoes the scaling of the loss.

    In addition to curvlinops, it supports ``Conv1d``, ``Conv3d`` and transposed
    convolutions; groups, ``padding='same'`` and every ``padding_mode``; layers that are
    used several times in a forward pass, and inputs with several rows per datum on the
    first axis (uses and rows share the weight like positions); class weights,
    ``ignore_index`` and label smoothing of the cross entropy, and weights of the binary
    cross entropy. Without these, values equal curvlinops' up to rounding. The unfolded
    input is never stored, and factors of few data are stored as low-rank factors.

    Args:
        *args: As for :class:`curvlinops.KFACLinearOperator`.
        groups: ``"separate"``: each group has its own factors, stacked as ``[G, .,
            .]``. ``"average"``: curvlinops' approximation, a single pair of factors
            from inputs averaged over groups.
        **kwargs: As for :class:`curvlinops.KFACLinearOperator`.

    Raises:
        ValueError: If an argument has no allowed value, a parameter is not the model's,
            there are no data, a factor is not finite, or a layer was not used.
        TypeError: If the model does not return a tensor.
        NotImplementedError: If a parameter belongs to a layer without factors, or to
            one that computes its kernel (``weight_norm``, a ``forward`` of its own).

    Reference: Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern
    Neural Network Architectures", NeurIPS 2023.
    """

    _SUPPORTED_MODULES = SUPPORTED
    _loss_func: Any
    _corrected_eigenvalues: Mapping[str, Any] = MappingProxyType({})
    """EKFAC's eigenvalues by layer; none for KFAC."""

    def __init__(self, *args: Any, groups: Groups = "separate", **kwargs: Any) -> None:
        name = type(self).__name__
        check_choice(name, "groups", groups, Groups)
        self._groups: Groups = groups
        with needs_data(name):
            super().__init__(*args, **kwargs)

    def inverse(self, damping: Any = 0.0, **kwargs: Any) -> Any:
        """Return a :class:`KFACInverseLinearOperator` with the given options."""
        return KFACInverseLinearOperator(self, damping=damping, **kwargs)

    def _set_num_per_example_loss_terms(self, given: int | None) -> None:
        if given is None:
            batches = self._loop_over_data(desc="_num_per_example_loss_terms")
            targets = (y for _, y in batches)
            given = losses.terms_per_datum(
                type(self).__name__, self._loss_func, targets, self._N_data
            )
        self._num_per_example_loss_terms = given

    def _check_deterministic(self) -> None:
        self._passes().check_model(self._mapping)
        super()._check_deterministic()

    # -- parameters

    @classmethod
    def compute_parameter_mapping(
        cls,
        params: Sequence[nn.Parameter],
        model_func: nn.Module,
        owner: str | None = None,
        takes_computed: bool = False,
    ) -> dict[str, dict[str, int]]:
        """Find the positions of each layer's parameters in a list of parameters.

        Args:
            params: The parameters.
            model_func: The model.
            owner: Name of the operator, for errors. Default: this class.
            takes_computed: Whether layers may compute their kernels from parameters.

        Returns:
            Positions by the layer's name and the parameter's name in the layer.
        """
        owner = cls.__name__ if owner is None else owner
        names = {address_of(p): name for name, p in model_func.named_parameters()}
        strange = [i for i, p in enumerate(params) if address_of(p) not in names]
        if strange:
            rule = "be parameters of the model"
            found = f"others at positions {strange}"
            raise ValueError(describe(owner, "params", rule, found))
        owned = parameters_of_layers(model_func, takes_computed)
        mapping: dict[str, dict[str, int]] = {}
        positions = {address_of(p): i for i, p in reversed([*enumerate(params)])}
        for name, own in owned.items():
            keys = [key for key, p in own.items() if address_of(p) in positions]
            if keys:
                mapping[name] = {key: positions[address_of(own[key])] for key in keys}
        layers: defaultdict[int, list[str]] = defaultdict(list)
        for name, places in mapping.items():
            for position in places.values():
                layers[position].append(name)

        def refusal(
            argument: str, rule: str, found: object, remedy: str = "Leave it out"
        ) -> NotImplementedError:
            message = describe(owner, argument, rule, found, remedy)
            return NotImplementedError(message)

        others = [names[address_of(p)] for i, p in enumerate(params) if i not in layers]
        if others:
            supported = ", ".join(module.__name__ for module in cls._SUPPORTED_MODULES)
            found, remedy = ", ".join(others), "Leave them out"
            error = refusal("params", f"belong to {supported}", found, remedy)
            message = f"Found parameters in un-supported layers: {error}"
            raise NotImplementedError(message)
        for name in mapping:
            reason = reason_against(model_func.get_submodule(name))
            if reason is not None and not takes_computed:
                rule = "multiply by its own parameters, as torch's layer does"
                remedy = "Leave them out, or see GGNDiagonalLinearOperator"
                raise refusal(f"layer {name!r}", rule, f"one that {reason}", remedy)
        for parameter in params:
            if parameter.is_complex():
                argument = f"parameter {names[address_of(parameter)]!r}"
                raise refusal(argument, "be real", parameter.dtype)
        for sharing in layers.values():
            first, *others = sharing
            for name in others:
                if name not in mapping:
                    continue
                if not _is_twin(model_func, mapping, first, name):
                    rule = "be of one class and share all parameters, or share none"
                    remedy = "Use one layer several times"
                    raise refusal(f"layers {first} and {name}", rule, "others", remedy)
                del mapping[name]
        return mapping

    # -- products

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        self._compute_once()
        return self._apply(M, self._blocks_of)

    # -- factors

    def compute_kronecker_factors(self) -> None:
        """Compute the factors and store them. If this fails, there are no factors."""
        self._reset_matrix_properties()
        self._input_covariances, self._gradient_covariances = Factors(), Factors()
        self._input_covariances, self._gradient_covariances = (
            Factors((name, factor) for (name, _), factor in factors.items())
            for factors in self._compute_factors()
        )

    def _compute_factors(self) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
        return self._block_factors().kfac(self._kfac_approx, self._RANK_LIMIT)

    # -- functions of the whole matrix

    def _blocks(self) -> list[Block]:
        self._compute_once()
        return [b for name in self._mapping for b in self._blocks_of(name).values()]

    def _once(self, attribute: str, of_blocks: Callable[[], Any]) -> Any:
        if getattr(self, attribute) is None:
            setattr(self, attribute, of_blocks())
        return getattr(self, attribute)

    @property
    def trace(self) -> Tensor:
        """Trace: the sum of ``tr(A) tr(B)`` over blocks."""
        return self._once("_trace", lambda: sum(b.trace() for b in self._blocks()))

    @property
    def logdet(self) -> Tensor:
        """Logarithm of the determinant."""
        return self._once("_logdet", lambda: sum(b.logdet() for b in self._blocks()))

    @property
    def det(self) -> Tensor:
        """Determinant: the product of ``|A|^CO |B|^D`` over blocks."""
        return self._once("_det", lambda: prod(b.det() for b in self._blocks()))

    @property
    def frobenius_norm(self) -> Tensor:
        """Frobenius norm: the square root of the sum of ``||A||^2 ||B||^2``."""

        def norm() -> Tensor:
            return torch.stack([b.squared_norm() for b in self._blocks()]).sum().sqrt()

        return self._once("_frobenius_norm", norm)

    # -- text

    def __repr__(self) -> str:
        names = ("fisher_type", "mc_samples", "kfac_approx", "separate_weight_and_bias")
        options = {name: plain(getattr(self, f"_{name}")) for name in names}
        options |= {"groups": self._groups, "num_data": self._N_data}
        blocks = {
            f"{name} ({', '.join(keys)})": self._block_text(name)
            for name, keys in self._mapping.items()
        }
        return operator_text(type(self).__name__, self.shape, options, blocks)

    def _block_text(self, name: str) -> str:
        """Describe the shapes of a layer's factors."""
        return tensor_text(
            A=kept(self._input_covariances).get(name),
            B=kept(self._gradient_covariances).get(name),
        )

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return curvlinops' state, with groups and options of the loss added."""
        own = {
            "groups": self._groups,
            "loss_options": losses.options(self._loss_func),
            "input_covariances": state(self._input_covariances),
            "gradient_covariances": state(self._gradient_covariances),
        }
        # torch.load(weights_only=True) refuses members of enumerations
        stock_state = {key: plain(own) for key, own in super().state_dict().items()}
        return {**stock_state, **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of curvlinops."""
        super().load_state_dict(state_dict)
        self._input_covariances, self._gradient_covariances = (
            Factors(factors)
            for factors in (self._input_covariances, self._gradient_covariances)
        )
        self._groups = state_dict.get("groups", "average")
        options = state_dict.get("loss_options", {})
        loss = self._loss_func
        self._loss_func = type(loss)(reduction=loss.reduction, **options)


def _is_twin(
    model: nn.Module, mapping: Mapping[str, Mapping[str, int]], first: str, other: str
) -> bool:
    """Tell whether two layers are the same function of the same parameters."""
    modules = [model.get_submodule(name) for name in (first, other)]
    kinds = {(type(m), getattr(m, "groups", 1)) for m in modules}
    is_plain = all(reason_against(module) is None for module in modules)
    return is_plain and len(kinds) == 1 and mapping[first] == mapping[other]
