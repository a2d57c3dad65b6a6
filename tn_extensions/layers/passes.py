"""Backward passes over a model's data, to compute a Fisher or GGN."""

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
    """Layers of a model whose uses are observed.

    Args:
        owner: Name of the caller, for errors.
        model: The model.
        params: The parameters of interest.
        mapping: Their positions, by the layer's name and the parameter's name in the
            layer. Other layers that share the parameters are observed under this name.
        groups: How to treat groups of channels.
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
        """Their parameters of interest, by the layer's name and the name in it."""
        self.computed: dict[str, Mapping[str, Tensor]] = {
            name: self.parameters[name]
            for name, module in self.modules.items()
            if reason_against(module)
        }
        """Parameters that layers compute their kernels from, by the layer's name."""
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
            # a kernel may be computed from other parameters, too
            names |= {id(p): name for p in self.modules[name].parameters()}
        super().__init__(owner, names, groups, self.computed)

    def check(self, output: Tensor, uses: Uses) -> None:
        """Check that parameters have no uses that are not observed.

        Args:
            output: Output of the model.
            uses: Uses that were observed.

        Raises:
            NotImplementedError: If a parameter has another use.
        """
        leaves = leaves_of(output) if self.computed else {}
        for name, parameters in self.computed.items():
            others = [key for key, p in parameters.items() if id(p) in leaves]
            if others:
                argument = f"{' and '.join(others)} of layer {name!r}"
                rule = "be used only in kernels and biases of linear or convolution"
                remedy, found = "Leave out its parameters", "another use"
                message = describe(self.owner, argument, rule, found, remedy)
                raise NotImplementedError(message)
        for name in uses.keys() - self.computed.keys():
            own = self.parameters[name]
            expected = tuple(name if key in own else None for key in ("weight", "bias"))
            if any(use.names != expected for use in uses[name]):
                rule = f"have its {' and '.join(own)} in each of its uses"
                argument, remedy = f"layer {name!r}", "Leave out its parameters"
                message = describe(self.owner, argument, rule, "other ones", remedy)
                raise NotImplementedError(message)


@dataclass
class BackwardPasses:
    """Report uses and gradients of the layers of a model, batch by batch.

    Args:
        owner: Name of the caller, for errors.
        model: The model.
        loss: The loss.
        batches: Function that iterates over batches ``(X, y)``. It takes a description
            of the purpose.
        observed: The layers or parameters whose uses are observed.
        fisher: Type of Fisher, see :meth:`LossTerms.vectors`.
        mc_samples: Number of Monte-Carlo samples.
        seed: Seed of the samples.
        device: Device of the samples.
        num_data: Number of data in all batches.
        terms_per_datum: Number of loss terms per datum.
        batch_size_fn: Function that returns the number of data in an ``X``.
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
        """Run forward and backward passes of all data.

        Args:
            purpose: Purpose of the passes, for a progress bar.
            on_uses: Function that takes the uses of each batch, by layer.
            on_gradients: Function that takes the name of a layer, and pairs of its uses
                and the gradients of their outputs, in each backward pass.
            by_datum: Whether results depend on which rows of a first axis belong to a
                datum.
            by_term: As for :meth:`vectors`.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If outputs, targets or inputs of layers do not fit the data.
            NotImplementedError: If a parameter has a use that is not observed.
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
        """Run the forward pass of a batch, see :func:`forward_pass`."""
        return forward_pass(self.model, X, self.batch_size_fn(X), self.observed)

    def generator(self) -> torch.Generator:
        """Create a generator for targets, with the same seed each time."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def terms(self, output: Any, y: Tensor) -> LossTerms:
        """Rearrange the model's output into rows of loss terms."""
        return LossTerms.of(self.owner, self.loss, output, y)

    def vectors(
        self, terms: LossTerms, generator: torch.Generator, by_term: bool
    ) -> Iterator[Tensor]:
        """Compute the vectors to backpropagate.

        Args:
            terms: The loss terms.
            generator: Generator for sampling.
            by_term: Whether the Fisher or GGN is a sum of products of gradients of
                *data*, instead of rows. Each loss term of a datum then needs its own
                columns of the square root of the Hessian. Monte-Carlo samples of the
                terms of a datum are uncorrelated and need not be split.

        Returns:
            The vectors, ``[R, C]``.
        """
        vectors = terms.vectors(self.fisher, self.mc_samples, generator)
        if by_term and self.splits_terms:
            return losses.each_term(vectors, self.terms_per_datum)
        return vectors

    @property
    def splits_terms(self) -> bool:
        """Tell whether vectors by term have a single loss term of each datum."""
        return self.terms_per_datum > 1 and self.fisher == "type-2"

    def scale(self, batch_size: int) -> float:
        """Compute the scale of outer products of a batch's gradients.

        The scaled products, summed over batches, are the Fisher or GGN of the sum of
        all loss terms, or of their mean if the loss is a mean.
        """
        rows = batch_size * self.terms_per_datum
        total = losses.scale_of_sum(self.loss, rows, self.mc_samples, batch_size)
        return total / (self.num_data if self.loss.reduction == "mean" else 1)

    def check_model(self, names: Iterable[str]) -> None:
        """Check on a first batch that the model returns a tensor and uses all layers.

        Args:
            names: Names of layers.

        Raises:
            TypeError: As for :meth:`run`.
            ValueError: As for :meth:`run`; or if outputs are not finite, or a layer is
                not called.
            NotImplementedError: As for :meth:`run`.
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
        """Check that layers have results, and that these are finite.

        Args:
            what: Name of the results, for errors.
            results: The results, by the layer's name.
            names: Names of layers that must have results.

        Raises:
            ValueError: If a layer has no result, or one that is not finite.
        """
        for name in names:
            if not results.get(name):
                self._refuse_unused(name)
            if not is_finite(*results[name]):
                argument, found = f"{what} of layer {name!r}", "inf or nan"
                raise ValueError(describe(self.owner, argument, "be finite", found))

    def _refuse_unused(self, name: str) -> None:
        rule = "be called in the forward pass"
        remedy = "Leave out the parameters of layers that are not called"
        argument = f"layer {name!r}"
        raise ValueError(describe(self.owner, argument, rule, "no call", remedy))
