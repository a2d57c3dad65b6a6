"""Backward passes of a network's data that together make a Fisher/GGN."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.errors import describe
from tn_extensions.kronecker import losses
from tn_extensions.kronecker.layers import Groups, Pairs
from tn_extensions.kronecker.observe import Uses, innermost, observed


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
    _num_per_example_loss_terms: int
    _seed: int
    _generator: torch.Generator | None
    device: torch.device
    draw_label: Callable[[Tensor], Tensor]
    _loop_over_data: Callable[..., Iterator[tuple[Any, Tensor]]]
    # our own
    _loss_of_rows: Any
    """The loss of the outputs' rows that were rearranged last."""
    _groups: Groups

    @cached_property
    def _layers(self) -> dict[str, Any]:
        """Modules by name."""
        return {name: self._model_func.get_submodule(name) for name in self._mapping}

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
            use = uses[name][number]
            pair = use, use.gradient(gradient)
            if len(uses[name]) == 1:
                on_gradients(name, [pair])
            else:
                pending[name].append(pair)

        self._reset_generator()
        owner = type(self).__name__
        with observed(owner, self._layers, self._groups, on_gradient) as uses:
            for X, y in self._loop_over_data(desc=desc):
                output = self._model_func(X)
                on_uses(uses)
                output, y = self._rearrange_for_larger_than_2d_output(output, y)
                self._check_outputs(output, y)
                vectors = vectors_of(output, y)
                for _ in self._backward_passes(output, vectors, uses):
                    while pending:
                        on_gradients(*pending.popitem())
                uses.clear()

    def _rearrange_for_larger_than_2d_output(
        self, output: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._loss_of_rows, output, y = losses.in_rows(self._loss_func, output, y)
        return output, y

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
                rule = "take part in the forward pass"
                raise ValueError(describe(owner, f"layer {name!r}", rule, "no use"))
            if not all(bool(result.isfinite().all()) for result in results[name]):
                argument = f"{what} of layer {name!r}"
                raise ValueError(describe(owner, argument, "be finite", "inf or nan"))

    def _backward_passes(
        self, output: Tensor, vectors: Iterator[Tensor], uses: Uses
    ) -> Iterator[None]:
        # passes to the layers closest to the input reach all others on their way,
        # without gradients of the parameters there
        positions = [self._mapping[name] for name in innermost(output, uses)]
        # a bias' gradient is cheaper than a weight's
        params = [
            self._params[own.get("bias", own.get("weight", 0))] for own in positions
        ]
        vector = next(vectors, None)
        while vector is not None and params:
            following = next(vectors, None)
            again = following is not None
            torch.autograd.grad(output, params, vector, retain_graph=again)
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
