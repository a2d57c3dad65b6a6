"""KFAC of networks with convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any, cast, get_args

import torch
from curvlinops import kfac as stock
from torch import Tensor, nn

from tn_extensions.curvlinops import losses
from tn_extensions.curvlinops.layers import (
    SUPPORTED,
    Groups,
    Use,
    add_input_factor,
    add_outer,
    kernel_matrices,
    kernel_of_matrices,
    num_groups,
)
from tn_extensions.curvlinops.multiply import (
    Kronecker,
    det,
    diagonal,
    logdet,
    squared_norm,
    stacked,
    trace,
    unstacked,
)
from tn_extensions.curvlinops.observe import observed
from tn_extensions.errors import describe

Factors = tuple[Tensor | None, Tensor, Any]
"""``A``, ``B`` and eigenvalues (of a layer, or of each parameter by its position)."""


class KFACLinearOperator(stock.KFACLinearOperator):
    r"""KFAC of the Fisher/GGN, in place of :class:`curvlinops.KFACLinearOperator`.

    The block of a layer is ``B (x) A`` for each group of channels. With patches ``U``,
    gradients ``g`` of the layer's outputs, ``S`` positions that share the weight and
    ``N`` data: KFAC-expand has ``A = 1/(N S) sum U U^T`` and ``B = c sum g g^T``;
    KFAC-reduce the same of the patches' means and the gradients' sums over positions.
    ``c`` undoes the scaling of the loss as in curvlinops.

    Beyond curvlinops: ``Conv1d``, ``Conv3d`` and transposed convolutions; groups,
    ``padding='same'``, every ``padding_mode``; layers used several times in a forward
    pass (uses share the weight as positions do); class weights, ``ignore_index`` and
    label smoothing of the cross entropy. No unfolded input is held. Where all of this
    is absent, values equal curvlinops' to rounding.

    Args:
        *args: As :class:`curvlinops.KFACLinearOperator`.
        groups: ``"separate"``: a pair of factors for each group, stored as
            ``[G, ., .]``. ``"average"``: curvlinops' approximation, inputs averaged
            over groups and one pair.
        **kwargs: As :class:`curvlinops.KFACLinearOperator`.

    Raises:
        ValueError: If an argument is not among its choices, a parameter is not the
            model's, there are no data, a factor is not finite, or a layer was not used.
        NotImplementedError: If a parameter belongs to a layer without factors.

    Reference: Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern
    Neural Network Architectures", NeurIPS 2023.
    """

    _SUPPORTED_MODULES = SUPPORTED
    _generator: torch.Generator | None
    _loss_func: Any

    def __init__(self, *args: Any, groups: Groups = "separate", **kwargs: Any) -> None:
        if groups not in get_args(Groups):
            choices = " or ".join(map(repr, get_args(Groups)))
            name = type(self).__name__
            raise ValueError(describe(name, "groups", f"be {choices}", repr(groups)))
        self._groups: Groups = groups
        try:
            super().__init__(*args, **kwargs)
        except StopIteration as error:
            name, rule = type(self).__name__, "hold at least one batch"
            raise ValueError(describe(name, "data", rule, "none")) from error

    def inverse(self, damping: Any = 0.0, **kwargs: Any) -> Any:
        """The inverse; arguments as :class:`KFACInverseLinearOperator`."""
        # it knows this class
        from tn_extensions.curvlinops.inverse import KFACInverseLinearOperator

        return KFACInverseLinearOperator(self, damping=damping, **kwargs)

    # -- parameters

    @classmethod
    def compute_parameter_mapping(
        cls, params: Sequence[nn.Parameter], model_func: nn.Module
    ) -> dict[str, dict[str, int]]:
        """Positions of a layer's parameters, by the layer's name."""
        names = {p.data_ptr(): name for name, p in model_func.named_parameters()}
        strange = [i for i, p in enumerate(params) if p.data_ptr() not in names]
        if strange:
            rule = "hold parameters of the model"
            found = f"others at {strange}"
            raise ValueError(describe(cls.__name__, "params", rule, found))
        known = {
            parameter.data_ptr()
            for module in model_func.modules()
            if isinstance(module, cls._SUPPORTED_MODULES)
            for parameter in module.parameters(recurse=False)
        }
        others = [names[p.data_ptr()] for p in params if p.data_ptr() not in known]
        if others:
            supported = ", ".join(module.__name__ for module in cls._SUPPORTED_MODULES)
            rule, found = f"belong to {supported}", ", ".join(others)
            message = describe(cls.__name__, "params", rule, found, "Leave them out")
            raise NotImplementedError(
                f"Found parameters in un-supported layers: {message}"
            )
        mapping = super().compute_parameter_mapping(params, model_func)
        return cast(dict[str, dict[str, int]], mapping)

    def _layer(self, name: str) -> Any:
        return self._model_func.get_submodule(name)

    def _is_joint(self, name: str) -> bool:
        parameters = self._mapping[name]
        return not self._separate_weight_and_bias and len(parameters) == 2

    # -- products

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        if not (self._input_covariances or self._gradient_covariances):
            self.compute_kronecker_factors()
        return self._apply(M, self._factors_of)

    def _factors_of(self, name: str) -> Factors:
        a = self._input_covariances.get(name)
        return a, self._gradient_covariances[name], None

    def _apply(
        self, M: list[Tensor], factors_of: Callable[[str], Factors]
    ) -> list[Tensor]:
        """Multiply each layer's block, ``M`` having a trailing axis of columns."""
        result = list(M)
        for name, positions in self._mapping.items():
            module = self._layer(name)
            groups = num_groups(module, self._groups)
            right, left, values = factors_of(name)
            vectors = {
                key: _matrices(module, key, M[position].to(left.dtype), groups)
                for key, position in positions.items()
            }
            if self._is_joint(name):
                weight, bias = vectors["weight"], vectors["bias"]
                both = Kronecker(left, right, values) @ torch.cat([weight, bias], 2)
                weight, bias = both.split([weight.shape[2], 1], 2)
                vectors = {"weight": weight, "bias": bias}
            else:
                for key, position in positions.items():
                    factor = right if key == "weight" else None
                    own = None if values is None else values[position]
                    vectors[key] = Kronecker(left, factor, own) @ vectors[key]
            for key, position in positions.items():
                like, found = M[position], vectors[key].to(M[position].dtype)
                if key == "weight":
                    result[position] = kernel_of_matrices(module, found, like.shape)
                else:
                    result[position] = found.reshape(like.shape)
        return result

    # -- factors

    def compute_kronecker_factors(self) -> None:
        """Compute and keep the factors. A failure leaves the operator without any."""
        self._reset_matrix_properties()
        self._input_covariances, self._gradient_covariances = {}, {}
        inputs: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        # of one backward pass: KFAC-reduce sums over uses before it multiplies
        sums: dict[str, Tensor] = {}

        def on_gradient(name: str, number: int, gradient: Tensor) -> None:
            gradient = uses[name][number].gradient(gradient)
            if self._kfac_approx == stock.KFACType.EXPAND:
                add(name, gradient)
            else:
                gradient = gradient.sum(2, keepdim=True)
                sums[name] = sums[name] + gradient if name in sums else gradient

        def add(name: str, vectors: Tensor) -> None:
            groups = num_groups(self._layer(name), self._groups)
            scale = self._loss_correction(len(vectors))
            known = gradients.get(name)
            gradients[name] = add_outer(vectors, groups, known, scale)

        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(device=self.device)
        self._generator.manual_seed(self._seed)
        layers = {name: self._layer(name) for name in self._mapping}
        with observed(layers, self._groups, on_gradient) as uses:
            for X, y in self._loop_over_data(desc="KFAC matrices"):
                output = self._model_func(X)
                for name, own in uses.items():
                    if "weight" in self._mapping[name]:
                        self._add_input_factor(inputs, name, own)
                    own[:] = [use.without_input() for use in own]
                output, y = self._rearrange_for_larger_than_2d_output(output, y)
                for _ in self._backward_passes(output, y):
                    for name in list(sums):
                        add(name, sums.pop(name))
                uses.clear()
        if self._fisher_type == stock.FisherType.FORWARD_ONLY:
            gradients = {name: self._identity(name) for name in self._mapping}
        self._check_factors(inputs, gradients)
        self._input_covariances, self._gradient_covariances = (
            {name: unstacked(factor) for name, factor in factors.items()}
            for factors in (inputs, gradients)
        )

    def _add_input_factor(
        self, inputs: dict[str, Tensor], name: str, uses: list[Use]
    ) -> None:
        inputs[name] = add_input_factor(
            uses,
            self._kfac_approx,
            inputs.get(name),
            scale=1 / self._N_data,
            bias=self._is_joint(name),
        )

    def _loss_correction(self, batch_size: int) -> float:
        """Undo the scaling of gradients by the loss, as curvlinops does."""
        if self._loss_func.reduction == "sum":
            return 1 / float(self._mc_samples)
        terms = self._num_per_example_loss_terms
        return batch_size**2 * float(terms) / (self._N_data * self._mc_samples)

    def _backward_passes(self, output: Tensor, y: Tensor) -> Iterator[None]:
        if output.ndim != 2 or y.ndim not in {1, 2}:
            found = f"{output.ndim} and {y.ndim} axes"
            rule = "have two axes, and targets one or two"
            raise ValueError(describe(type(self).__name__, "outputs", rule, found))
        if isinstance(self._loss_func, nn.CrossEntropyLoss) and y.is_floating_point():
            rule, found = "hold classes", "probabilities"
            raise ValueError(describe(type(self).__name__, "targets", rule, found))
        vectors = list(self._vectors(output, y))
        for left, vector in zip(reversed(range(len(vectors))), vectors, strict=True):
            torch.autograd.grad(output, self._params, vector, retain_graph=left > 0)
            yield

    def _vectors(self, output: Tensor, y: Tensor) -> Iterator[Tensor]:
        """What to backpropagate, ``[R, C]`` each."""
        if self._fisher_type == stock.FisherType.FORWARD_ONLY:
            return
        if self._fisher_type == stock.FisherType.EMPIRICAL:
            yield losses.gradient(self._loss_func, output, y)
            return
        loss = losses.plain(self._loss_func)
        if self._fisher_type == stock.FisherType.TYPE2:
            draws = losses.hessian_columns(loss, output, y)
        else:
            draws = (
                losses.gradient(loss, output, self.draw_label(output))
                for _ in range(self._mc_samples)
            )
        yield from losses.scaled(draws, losses.row_scale(self._loss_func, output, y))

    def _identity(self, name: str) -> Tensor:
        module = self._layer(name)
        groups = num_groups(module, self._groups)
        position = next(iter(self._mapping[name].values()))
        like = self._params[position]
        channels = getattr(module, "out_channels", None) or module.out_features
        identity = torch.eye(channels // groups, dtype=like.dtype, device=like.device)
        return identity.repeat(groups, 1, 1)

    def _check_factors(
        self, inputs: dict[str, Tensor], gradients: dict[str, Tensor]
    ) -> None:
        for name in self._mapping:
            owner = type(self).__name__
            has_input = name in inputs or "weight" not in self._mapping[name]
            if name not in gradients or not has_input:
                rule = "take part in the forward pass"
                raise ValueError(describe(owner, f"layer {name!r}", rule, "no use"))
            for factors in (inputs, gradients):
                # what is not finite in a sum of squares' matrix is on its diagonal, too
                if name in factors and not diagonal(factors[name]).isfinite().all():
                    what = "inputs" if factors is inputs else "output gradients"
                    argument = f"{what} of layer {name!r}"
                    raise ValueError(
                        describe(owner, argument, "be finite", "inf or nan")
                    )

    # -- functions of the whole matrix

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """``A`` and ``B`` of each block, ``[G, ., .]``."""
        if not (self._input_covariances or self._gradient_covariances):
            self.compute_kronecker_factors()
        for name, parameters in self._mapping.items():
            right, left, _ = self._factors_of(name)
            left = stacked(left)
            one = left.new_ones(len(left), 1, 1)
            for key in ["weight"] if self._is_joint(name) else parameters:
                weighs = key == "weight" and right is not None
                yield stacked(cast(Tensor, right)) if weighs else one, left

    def _once(self, attribute: str, of_blocks: Callable[[], Any]) -> Any:
        if getattr(self, attribute) is None:
            setattr(self, attribute, of_blocks())
        return getattr(self, attribute)

    @property
    def trace(self) -> Tensor:
        """Trace, ``sum tr(A) tr(B)`` over blocks."""
        return cast(Tensor, self._once("_trace", partial(self._sum, trace)))

    @property
    def logdet(self) -> Tensor:
        """Logarithm of the determinant, ``sum m log det(A) + n log det(B)``."""
        return cast(Tensor, self._once("_logdet", partial(self._sum, logdet)))

    @property
    def det(self) -> Tensor:
        """Determinant, ``prod |A|^m |B|^n`` over blocks."""

        def product() -> Any:
            return prod((det(a, b) for a, b in self._blocks()), start=1.0)

        return cast(Tensor, self._once("_det", product))

    @property
    def frobenius_norm(self) -> Tensor:
        """Frobenius norm, the root of ``sum ||A||^2 ||B||^2`` over blocks."""

        def norm() -> Any:
            return self._sum(squared_norm).sqrt()

        return cast(Tensor, self._once("_frobenius_norm", norm))

    def _sum(self, function: Callable[[Tensor, Tensor], Tensor]) -> Any:
        return sum(function(a, b).sum() for a, b in self._blocks())

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """The state, with what curvlinops' lacks: groups and options of the loss."""
        options = ("weight", "ignore_index", "label_smoothing")
        loss = {key: getattr(self._loss_func, key, None) for key in options}
        return {**super().state_dict(), "groups": self._groups, "loss_options": loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; that of curvlinops, too."""
        super().load_state_dict(state_dict)
        self._groups = state_dict.get("groups", "average")
        if isinstance(self._loss_func, nn.CrossEntropyLoss):
            reduction = self._loss_func.reduction
            options = state_dict.get("loss_options", {})
            self._loss_func = nn.CrossEntropyLoss(reduction=reduction, **options)


def _matrices(module: Any, key: str, vectors: Tensor, groups: int) -> Tensor:
    """A parameter's vectors as ``[G, CO, D, V]``."""
    if key == "weight":
        return kernel_matrices(module, vectors, groups)
    return vectors.reshape(groups, -1, 1, vectors.shape[-1])
