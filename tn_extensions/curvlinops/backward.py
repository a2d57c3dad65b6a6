"""Backward passes of a network's data that together make a Fisher/GGN."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import grad

from tn_extensions.errors import describe
from tn_extensions.layers import losses, rows
from tn_extensions.layers.computed import leaves_of
from tn_extensions.layers.host import is_finite
from tn_extensions.layers.module import Groups, Pairs, reason_against
from tn_extensions.layers.observe import Uses, innermost, observed


class BackwardPasses:
    """Shows layers' uses and gradients: a part of curvlinops' (E)KFAC operators."""

    # of curvlinops
    _model_func: nn.Module
    _loss_func: Any
    _params: list[nn.Parameter]
    _mapping: dict[str, dict[str, int]]
    _fisher_type: str
    _mc_samples: int
    _N_data: int
    _kfac_approx: str
    _num_per_example_loss_terms: int
    _seed: int
    _generator: torch.Generator | None
    device: torch.device
    draw_label: Callable[[Tensor], Tensor]
    _batch_size_fn: Callable[[Any], int]
    _loop_over_data: Callable[..., Iterator[tuple[Any, Tensor]]]
    # our own
    _loss_of_rows: Any
    """The loss of the outputs' rows that were rearranged last."""
    _groups: Groups
    _probed: dict[tuple[str, int], Tensor] | None = None
    """Gradients of outputs by layer and number of the use, while a probe runs."""

    @cached_property
    def _layers(self) -> dict[str, Any]:
        """Modules by name."""
        return {name: self._model_func.get_submodule(name) for name in self._mapping}

    @cached_property
    def _computing(self) -> dict[str, nn.Module]:
        """Layers that compute their kernels, by name."""
        return {name: own for name, own in self._layers.items() if reason_against(own)}

    @cached_property
    def _computed(self) -> dict[str, dict[str, Tensor]]:
        """Parameters that layers compute their kernels from, by name."""
        return {
            name: {key: module.get_parameter(key) for key in self._mapping[name]}
            for name, module in self._computing.items()
        }

    def _observe(
        self,
        desc: str,
        on_uses: Callable[[Uses], None],
        on_gradients: Callable[[str, Pairs], None],
        vectors_of: Callable[[Tensor, Tensor], Iterator[Tensor]],
    ) -> None:
        """Show the uses of each batch and, by layer, the gradients of each pass."""
        pending: defaultdict[str, Pairs] = defaultdict(list)

        def on_gradient(name: str, number: int, gradient: Tensor) -> None:
            if self._probed is not None:
                self._probed[name, number] = gradient.detach()
                return
            use = uses[name][number]
            pair = use, use.gradient(gradient)
            if len(uses[name]) == 1:
                on_gradients(name, [pair])
            else:
                pending[name].append(pair)

        self._reset_generator()
        owner = type(self).__name__
        # the outer products of KFAC-expand are the same in whatever order
        is_by_datum = self._kfac_approx == "reduce" or vectors_of != self._vectors
        with observed(owner, self._layers, self._groups, on_gradient) as uses:
            for X, y in self._loop_over_data(desc=desc):
                uses.num_data = num_data = self._batch_size_fn(X)
                found = self._model_func(X)
                output, y = self._rows(found, y)
                self._check_parameters(output)
                is_long = len(found) != num_data
                if is_by_datum and num_data > 1 and (is_long or uses.as_cat):
                    self._sort_rows(output, uses, is_long)
                uses.as_cat.clear()
                on_uses(uses)
                vectors = vectors_of(output, y)
                for _ in self._backward_passes(output, vectors, uses):
                    while pending:
                        on_gradients(*pending.popitem())
                uses.clear()

    # -- rows of a first axis that is not that of the data

    def _sort_rows(self, output: Tensor, uses: Uses, is_long: bool) -> None:
        """Find which rows belong to which datum, where the first axis does not say.

        Args:
            output: Outputs, ``[R, C]``.
            uses: The uses, in which those of another order are replaced.
            is_long: Whether outputs have several rows on the first axis for each datum.
        """
        owner, num_data = type(self).__name__, cast(int, uses.num_data)
        if len(output) % num_data:
            rule = f"have rows for each of the {num_data} data"
            raise ValueError(describe(owner, "outputs", rule, f"{len(output)} rows"))
        ends, seen = self._ends(output, uses), []
        try:
            for vector in rows.probes(output.detach(), num_data) if ends else ():
                self._probed = {}
                grad(output, ends, vector, retain_graph=True, allow_unused=True)
                seen.append(self._probed)
        finally:
            self._probed = None
        gradients, scaled = seen or ({}, {})
        for (name, number), gradient in gradients.items():
            key = name, number
            if not (is_long or key in uses.as_cat):
                continue
            is_cat = rows.is_cat(gradient, scaled[key], num_data)
            if is_cat is None:
                argument = f"rows of the input of layer {name!r}"
                rule = (
                    "belong to one datum each, those of a datum next to each other "
                    f"(as after flatten(0, 1)) or {num_data} apart (as after cat)"
                )
                found = f"{len(gradient)} rows of another order"
                raise ValueError(describe(owner, argument, rule, found))
            if is_cat:
                uses[name][number] = uses.as_cat[key]()

    def _reset_generator(self) -> None:
        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(device=self.device)
        self._generator.manual_seed(self._seed)

    def _loss_correction(self, batch_size: int) -> float:
        """Undo the scaling of gradients by the loss, as curvlinops does."""
        if self._loss_func.reduction == "sum":
            return 1 / float(self._mc_samples)
        terms = self._num_per_example_loss_terms
        return batch_size**2 * float(terms) / (self._N_data * self._mc_samples)

    # -- what the model returns

    def _rows(self, output: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets of loss terms, ``[R, C]`` and ``[R]`` or ``[R, C]``."""
        if not isinstance(output, Tensor):
            names = ", ".join(map(str, output)) if isinstance(output, Mapping) else ""
            found = type(output).__name__ + (f" of {names}" if names else "")
            remedy = "Wrap the model in a module that returns what the loss takes"
            owner, rule = type(self).__name__, "be a tensor"
            raise TypeError(describe(owner, "the model's output", rule, found, remedy))
        output, y = self._rearrange_for_larger_than_2d_output(output, y)
        self._check_outputs(output, y)
        # losses of half precision, as autocast leaves outputs, have little curvature
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if y.is_floating_point():
            y = y.to(torch.promote_types(y.dtype, torch.float32))
        return output, y

    def _rearrange_for_larger_than_2d_output(
        self, output: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._loss_of_rows, output, y = losses.in_rows(self._loss_func, output, y)
        return output, y

    def _check_model(self) -> None:
        """Refuse a model that returns no tensor or does not use a layer, by name."""
        owner = type(self).__name__
        X, y = next(iter(self._loop_over_data(desc="Check of the model")))
        with observed(owner, self._layers, self._groups, lambda *_: None) as uses:
            uses.num_data = self._batch_size_fn(X)
            output, _ = self._rows(self._model_func(X), y)
            self._check_parameters(output)
            self._check_finite(output)
            for name in self._mapping:
                if name not in uses:
                    self._refuse_unused(name)

    def _refuse_unused(self, name: str) -> None:
        rule = "be called in the forward pass"
        remedy = "Leave out the parameters of layers that are not"
        message = describe(
            type(self).__name__, f"layer {name!r}", rule, "no call", remedy
        )
        raise ValueError(message)

    def _check_parameters(self, output: Tensor) -> None:
        """Refuse parameters of computed kernels that have other uses."""
        if not self._computed:
            return
        leaves = leaves_of(output)
        for name, parameters in self._computed.items():
            others = [key for key, p in parameters.items() if id(p) in leaves]
            if others:
                argument = f"{' and '.join(others)} of layer {name!r}"
                rule = "be used in kernels and biases of linear or convolution only"
                owner, remedy = type(self).__name__, "Leave out its parameters"
                raise NotImplementedError(
                    describe(owner, argument, rule, "another use", remedy)
                )

    def _check_finite(self, output: Tensor) -> None:
        if not is_finite(output.detach()):
            argument, found = "the model's output", "inf or nan"
            raise ValueError(
                describe(type(self).__name__, argument, "be finite", found)
            )

    def _check_outputs(self, output: Tensor, y: Tensor) -> None:
        if output.ndim != 2 or y.ndim not in {1, 2}:
            found = f"{output.ndim} and {y.ndim} axes"
            rule = "have two axes, and targets one or two"
            owner, remedy = type(self).__name__, "Unsqueeze [N] to [N, 1]"
            raise ValueError(describe(owner, "outputs", rule, found, remedy))
        if isinstance(self._loss_func, nn.CrossEntropyLoss) and y.is_floating_point():
            rule, expected = "be classes, or probabilities", output.shape
        else:
            rule, expected = "have a row for each of the outputs'", y.shape
        if len(y) != len(output) or y.shape != expected:
            rule = f"{rule} (outputs' shape as rows: {list(output.shape)})"
            found = f"{y.dtype} of shape {list(y.shape)}"
            raise ValueError(describe(type(self).__name__, "targets", rule, found))

    def _check_layers(
        self, what: str, results: Mapping[str, Sequence[Tensor]], names: Iterable[str]
    ) -> None:
        """Refuse results of layers that are missing or not finite."""
        owner = type(self).__name__
        for name in names:
            if not results.get(name):
                self._refuse_unused(name)
            if not is_finite(*results[name]):
                argument = f"{what} of layer {name!r}"
                raise ValueError(describe(owner, argument, "be finite", "inf or nan"))

    def _ends(self, output: Tensor, uses: Uses) -> list[Tensor]:
        """Find where passes end that are to reach all layers.

        Passes to the layers closest to the input reach all others on their way, without
        gradients of the parameters there.
        """
        ends = []
        for name in innermost(output, uses):
            if name in self._computed:
                for use in uses[name]:
                    wanted = [
                        t for t in use.leaves if t is not None and t.requires_grad
                    ]
                    ends += wanted[-1:]
            else:
                own = self._mapping[name]
                # a bias' gradient is cheaper than a weight's
                ends.append(self._params[own.get("bias", own.get("weight", 0))])
        return ends

    def _backward_passes(
        self, output: Tensor, vectors: Iterator[Tensor], uses: Uses
    ) -> Iterator[None]:
        ends = self._ends(output, uses)
        vector = next(vectors, None)
        while vector is not None and ends:
            following = next(vectors, None)
            again = following is not None
            grad(output, ends, vector, retain_graph=again, allow_unused=True)
            yield
            vector = following

    def _vectors(self, output: Tensor, y: Tensor) -> Iterator[Tensor]:
        """What to backpropagate, ``[R, C]`` each."""
        if self._fisher_type == "forward-only":
            return
        if self._fisher_type == "empirical":
            yield losses.gradient(self._loss_of_rows, output, y)
            return
        loss = losses.plain(self._loss_of_rows)
        if self._fisher_type == "type-2":
            draws = losses.hessian_columns(loss, output)
        else:
            self._check_finite(output)
            draws = (
                losses.gradient(loss, output, self.draw_label(output))
                for _ in range(self._mc_samples)
            )
        yield from losses.scaled(draws, losses.scale(self._loss_of_rows, output, y))

    @property
    def _splits_terms(self) -> bool:
        """Whether gradients are those of single loss terms."""
        several = self._num_per_example_loss_terms > 1
        return several and self._fisher_type == "type-2"

    def _vectors_of_terms(self, output: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Vectors whose gradients' products make the Fisher/GGN without cross terms.

        Columns of the Hessian's root are told apart by datum only; draws have no
        covariance between the terms of a datum, so that all may be taken at once.
        """
        terms = self._num_per_example_loss_terms
        for vector in self._vectors(output, y):
            if not self._splits_terms:
                yield vector
                continue
            for term in range(terms):
                own = torch.zeros_like(vector)
                own[term::terms] = vector[term::terms]
                yield own
