"""The base class of the operators of the GGN's diagonal and Gram matrix."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from curvlinops._torch_base import CurvatureLinearOperator
from torch import nn

from tn_extensions.curvlinops.factors import needs_data, passes_of
from tn_extensions.curvlinops.kfac import KFACLinearOperator
from tn_extensions.curvlinops.text import operator_text
from tn_extensions.errors import check_choice, describe
from tn_extensions.layers import losses
from tn_extensions.layers.passes import BackwardPasses, ObservedLayers

Mode = Literal["exact", "mc"]


class GGNOperator(CurvatureLinearOperator):
    """A matrix that is computed from the backward passes of the GGN.

    Args:
        model_func: The network.
        loss_func: ``MSELoss``, ``CrossEntropyLoss`` or ``BCEWithLogitsLoss``.
        params: Parameters of layers that :class:`KFACLinearOperator` supports. The
            layers may also compute their kernel or bias from parameters
            (``weight_norm``, a ``forward`` of their own): gradients are backpropagated
            through this computation.
        data: Batches ``(X, y)``.
        progressbar: Whether to show the progress over batches.
        check_deterministic: Whether to check that products are reproducible.
        num_data: Number of data. ``None``: count them in a pass over the data.
        batch_size_fn: Function that returns the batch size of an ``X`` that is not a
            tensor.
        mode: ``"exact"``: a backward pass per class (and per loss term of a datum, if
            there are several). ``"mc"``: a backward pass per Monte-Carlo sample of the
            targets.
        seed: Seed of the Monte-Carlo samples.
        mc_samples: Number of Monte-Carlo samples.

    Raises:
        ValueError: If an argument has no allowed value, a parameter is not the model's,
            there are no data, a result is not finite, or a layer was not used.
        TypeError: If the model does not return a tensor.
        NotImplementedError: If a parameter belongs to another kind of layer, or is used
            for more than kernels and biases.
    """

    SELF_ADJOINT = True

    def __init__(
        self,
        model_func: nn.Module,
        loss_func: Any,
        params: list[nn.Parameter],
        data: Any,
        progressbar: bool = False,
        check_deterministic: bool = True,
        num_data: int | None = None,
        batch_size_fn: Any = None,
        mode: Mode = "exact",
        seed: int = 2147483647,
        mc_samples: int = 1,
    ) -> None:
        name = type(self).__name__
        check_choice(name, "mode", mode, Mode)
        if mc_samples < 1 or (mode == "exact" and mc_samples != 1):
            rule = "be positive, and 1 with mode 'exact'"
            raise ValueError(describe(name, "mc_samples", rule, mc_samples))
        if not isinstance(loss_func, losses.LIKELIHOODS):
            choices = " or ".join(kind.__name__ for kind in losses.LIKELIHOODS)
            rule, found = f"be {choices}", type(loss_func).__name__
            raise ValueError(describe(name, "loss_func", rule, found))
        self._mapping = KFACLinearOperator.compute_parameter_mapping(
            params, model_func, owner=name, takes_computed=True
        )
        self._fisher_type: losses.Fisher = "type-2" if mode == "exact" else "mc"
        self._seed, self._mc_samples = seed, mc_samples
        with needs_data(name):
            super().__init__(
                model_func,
                loss_func,
                params,
                data,
                progressbar=progressbar,
                check_deterministic=False,
                num_data=num_data,
                batch_size_fn=batch_size_fn,
            )
        passes = self._passes
        if check_deterministic:
            passes.check_model(self._mapping)
            self._check_deterministic()

    def __repr__(self) -> str:
        mode = "exact" if self._fisher_type == "type-2" else "mc"
        options = {"mode": mode, "num_data": self._N_data}
        if mode == "mc":
            options["mc_samples"] = self._mc_samples
        blocks = {
            name: ", ".join(
                f"{key} {list(self._params[i].shape)}" for key, i in own.items()
            )
            for name, own in self._mapping.items()
        }
        return operator_text(type(self).__name__, self.shape, options, blocks)

    @cached_property
    def _layers(self) -> ObservedLayers:
        name, model = type(self).__name__, self._model_func
        return ObservedLayers(
            name, model, self._params, self._mapping, groups="separate"
        )

    @cached_property
    def _num_per_example_loss_terms(self) -> int:
        name, loss = type(self).__name__, self._loss_func
        targets = (y for _, y in self._loop_over_data(desc="Loss terms"))
        return losses.terms_per_datum(name, loss, targets, self._N_data)

    @cached_property
    def _passes(self) -> BackwardPasses:
        return passes_of(self, type(self).__name__, self._model_func, self._layers)
