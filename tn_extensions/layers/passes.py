"""Backward passes of a model's data that together make a Fisher or GGN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.compiler.allocate import address_of
from tn_extensions.errors import describe
from tn_extensions.layers import losses
from tn_extensions.layers.engine import leaves_of
from tn_extensions.layers.hooks import exactly
from tn_extensions.layers.host import is_finite
from tn_extensions.layers.losses import Fisher, LossTerms
from tn_extensions.layers.module import Groups, reason_against
from tn_extensions.layers.observe import Observed, OnPairs, Uses, forward_pass
from tn_extensions.layers.rows import sort_rows


class ObservedLayers(Observed):
    """Layers of a model, whose uses are observed.

    Args:
        owner: Whom errors name.
        model: The model.
        params: The parameters that matter.
        mapping: Their positions, by name of the layer and name in it. Others that have
            a layer's parameters have its name, too.
        groups: How groups of channels are treated.
    """

    def __init__(
        self,
        owner: str,
        model: nn.Module,
        params: Sequence[Tensor],
        mapping: Mapping[str, Mapping[str, int]],
        groups: Groups,
    ) -> None:
        self.modules: dict[str, Any] = {
            name: model.get_submodule(name) for name in mapping
        }
        """The layers by name."""
        self.parameters = {
            name: {key: params[position] for key, position in own.items()}
            for name, own in mapping.items()
        }
        """Their parameters that matter, by name of the layer and name in it."""
        self.computed: dict[str, Mapping[str, Tensor]] = {
            name: self.parameters[name]
            for name, module in self.modules.items()
            if reason_against(module)
        }
        """Parameters that layers compute their kernels from, by name of the layer."""
        layers = {
            address_of(p): name
            for name, own in self.parameters.items()
            for p in own.values()
        }
        names = {
            id(p): layers[address_of(p)]
            for p in model.parameters()
            if address_of(p) in layers
        }
        for name in self.computed:
            # others that it is computed from lead to it, too
            names |= {id(p): name for p in self.modules[name].parameters()}
        super().__init__(owner, names, groups, self.computed)

    def check(self, output: Tensor, uses: Uses) -> None:
        """Refuse parameters of layers that have other uses, as far as that is seen.

        Raises:
            NotImplementedError: If there are some.
        """
        leaves = leaves_of(output) if self.computed else {}
        for name, parameters in self.computed.items():
            others = [key for key, p in parameters.items() if id(p) in leaves]
            if others:
                argument = f"{' and '.join(others)} of layer {name!r}"
                rule = "be used in kernels and biases of linear or convolution only"
                remedy, found = "Leave out its parameters", "another use"
                message = describe(self.owner, argument, rule, found, remedy)
                raise NotImplementedError(message)
        for name in uses.keys() - self.computed.keys():
            own = self.parameters[name]
            expected = tuple(name if key in own else None for key in ("weight", "bias"))
            if any(use.names != expected for use in uses[name]):
                rule = f"have its {' and '.join(own)} in each of its uses"
                argument, remedy = f"layer {name!r}", "Leave out its parameters"
                message = describe(self.owner, argument, rule, "others", remedy)
                raise NotImplementedError(message)


@dataclass
class BackwardPasses:
    """Show uses and gradients of the layers of a model, batch by batch.

    Args:
        owner: Whom errors name.
        model: The model.
        loss: The loss.
        batches: Goes over the batches ``(X, y)``; takes a description of the purpose.
        observed: What is observed of the model.
        fisher: What vectors are made of, see :meth:`LossTerms.vectors`.
        mc_samples: Number of draws.
        seed: Of the draws.
        device: Of the draws.
        num_data: Number of data in all batches.
        terms_per_datum: Number of loss terms that each datum has.
        batch_size_fn: Number of data of an ``X``.
    """

    owner: str
    model: Callable[[Any], Any]
    loss: Any
    batches: Callable[[str], Iterable[tuple[Any, Tensor]]]
    observed: Observed
    fisher: Fisher
    mc_samples: int
    seed: int
    device: torch.device
    num_data: int
    terms_per_datum: int
    batch_size_fn: Callable[[Any], int]

    def run(
        self,
        purpose: str,
        on_uses: Callable[[Uses], None],
        on_gradients: OnPairs,
        *,
        by_datum: bool,
        by_term: bool,
    ) -> None:
        """Go over the data.

        Args:
            purpose: Of the passes, for a progress bar.
            on_uses: Called with the uses of each batch, by layer.
            on_gradients: Called with the name of a layer and its uses with the
                gradients of their outputs, in each backward pass.
            by_datum: Whether it matters which rows of a first axis belong to a datum.
            by_term: Whether vectors are those of :meth:`vectors`, ``by_term``.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If outputs, targets or inputs of layers do not fit the data.
            NotImplementedError: If a parameter has other uses.
        """
        generator = self.generator()
        for X, y in self.batches(purpose):
            with self.forward(X) as (output, uses):
                terms, num_data = self.terms(output, y), self.batch_size_fn(X)
                if by_datum:
                    is_long = len(output) != num_data
                    sort_rows(self.owner, uses, terms.output, num_data, is_long)
                with exactly(self.device):
                    on_uses(uses)
                vectors = self.vectors(terms, generator, by_term)
                for _ in uses.backward(terms.output, vectors, on_gradients):
                    pass

    def forward(self, X: Any) -> AbstractContextManager[tuple[Tensor, Uses]]:
        """Make the forward pass of a batch, see :func:`forward_pass`."""
        return forward_pass(self.model, X, self.batch_size_fn(X), self.observed)

    def generator(self) -> torch.Generator:
        """Make what draws targets, the same each time."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def terms(self, output: Any, y: Tensor) -> LossTerms:
        """Rearrange what the model returns into rows of loss terms."""
        return LossTerms.of(self.owner, self.loss, output, y)

    def vectors(
        self, terms: LossTerms, generator: torch.Generator, by_term: bool
    ) -> Iterator[Tensor]:
        """Make the vectors to backpropagate.

        Args:
            terms: The loss terms.
            generator: Of the draws.
            by_term: Whether products of gradients of *data*, rather than of rows, are
                to make the Fisher or GGN. Columns of the Hessian's root are told apart
                by datum only, so that each loss term of a datum has its own; draws have
                no covariance between the terms of a datum, so that all may be taken at
                once.
        """
        vectors = terms.vectors(self.fisher, self.mc_samples, generator)
        if by_term and self.splits_terms:
            return losses.each_term(vectors, self.terms_per_datum)
        return vectors

    @property
    def splits_terms(self) -> bool:
        """Tell whether gradients by term are those of single loss terms."""
        return self.terms_per_datum > 1 and self.fisher == "type-2"

    def scale(self, batch_size: int) -> float:
        """Undo the loss's scaling of outer products of a batch's gradients.

        Their sum over batches, times the scale, makes the Fisher or GGN of the sum of
        all loss terms, or of their mean if the loss is one.
        """
        rows = batch_size * self.terms_per_datum
        total = losses.scale_of_sum(self.loss, rows, self.mc_samples, batch_size)
        return total / (self.num_data if self.loss.reduction == "mean" else 1)

    def check_model(self, names: Iterable[str]) -> None:
        """Refuse a model that returns no tensor or does not use a layer.

        Args:
            names: Names of layers.

        Raises:
            TypeError: As :meth:`run`.
            ValueError: As :meth:`run`; if outputs are not finite or a layer is not
                called.
            NotImplementedError: As :meth:`run`.
        """
        X, y = next(iter(self.batches("Check of the model")))
        with self.forward(X) as (output, uses):
            self.terms(output, y).check_finite()
            for name in names:
                if name not in uses:
                    self._refuse_unused(name)

    def check_results(
        self, what: str, results: Mapping[str, Sequence[Tensor]], names: Iterable[str]
    ) -> None:
        """Refuse results of layers that are missing or not finite.

        Args:
            what: The results.
            results: By name of the layer.
            names: Names of layers that must have some.

        Raises:
            ValueError: If a layer has none, or one that is not finite.
        """
        for name in names:
            if not results.get(name):
                self._refuse_unused(name)
            if not is_finite(*results[name]):
                argument, found = f"{what} of layer {name!r}", "inf or nan"
                raise ValueError(describe(self.owner, argument, "be finite", found))

    def _refuse_unused(self, name: str) -> None:
        rule = "be called in the forward pass"
        remedy = "Leave out the parameters of layers that are not"
        argument = f"layer {name!r}"
        raise ValueError(describe(self.owner, argument, rule, "no call", remedy))
