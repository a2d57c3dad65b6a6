"""Backward passes of a model's data that together make a Fisher or GGN."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd import grad

from tn_extensions.compiler.allocate import address_of
from tn_extensions.errors import describe
from tn_extensions.layers import losses, rows
from tn_extensions.layers.computed import leaves_of
from tn_extensions.layers.hooks import exactly
from tn_extensions.layers.host import is_finite
from tn_extensions.layers.losses import Fisher, LossTerms
from tn_extensions.layers.module import SUPPORTED, Groups, Pairs, reason_against
from tn_extensions.layers.observe import OnGradient, Uses, innermost, observed
from tn_extensions.layers.order import Gradients, sort_rows


class Observed(Protocol):
    """What is observed of a model."""

    def observed(self, on_gradient: OnGradient) -> AbstractContextManager[Uses]:
        """Gather uses in forward passes, see :func:`observe.observed`."""
        ...

    def ends(self, output: Tensor, uses: Uses) -> list[Tensor]:
        """Find where passes from an output end that are to reach all uses."""
        ...

    def check(self, output: Tensor) -> None:
        """Refuse parameters that the output depends on in other ways than by uses."""
        ...


@dataclass
class ObservedLayers:
    """Layers of a model, whose uses are observed.

    Args:
        owner: Whom errors name.
        modules: The layers by name.
        parameters: Their parameters that matter, by name of the layer and name in it.
        groups: How groups of channels are treated.
        tied: By name of a layer, others that have its parameters.
    """

    owner: str
    modules: Mapping[str, Any]
    parameters: Mapping[str, Mapping[str, Tensor]]
    groups: Groups
    tied: Mapping[str, Sequence[nn.Module]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    @classmethod
    def of_model(
        cls,
        owner: str,
        model: nn.Module,
        params: Sequence[Tensor],
        mapping: Mapping[str, Mapping[str, int]],
        groups: Groups,
    ) -> ObservedLayers:
        """Find the layers of some parameters.

        Args:
            owner: Whom errors name.
            model: The model.
            params: The parameters.
            mapping: Their positions, by name of the layer and name in it.
            groups: How groups of channels are treated.
        """
        modules = {name: model.get_submodule(name) for name in mapping}
        parameters = {
            name: {key: params[position] for key, position in own.items()}
            for name, own in mapping.items()
        }
        layers = cls(owner, modules, parameters, groups)
        tied = layers._others_in(model)
        return replace(layers, tied=tied) if tied else layers

    def _others_in(self, model: nn.Module) -> dict[str, list[nn.Module]]:
        """Find others that have the layers' parameters, by name of the layer."""
        layer_of = {
            address_of(parameter): name
            for name, own in self.parameters.items()
            if name not in self.computed
            for parameter in own.values()
        }
        known = set(map(id, self.modules.values()))
        found: dict[str, list[nn.Module]] = {}
        for module in model.modules():
            if isinstance(module, SUPPORTED) and id(module) not in known:
                addresses = map(address_of, module.parameters(recurse=False))
                for name in {layer_of[a] for a in addresses if a in layer_of}:
                    found.setdefault(name, []).append(module)
        return found

    @cached_property
    def computed(self) -> dict[str, Mapping[str, Tensor]]:
        """Parameters that layers compute their kernels from, by name of the layer."""
        return {
            name: self.parameters[name]
            for name, module in self.modules.items()
            if reason_against(module)
        }

    def observed(self, on_gradient: OnGradient) -> AbstractContextManager[Uses]:
        """Gather uses in forward passes, see :func:`observe.observed`."""
        return observed(self.owner, self.modules, self.groups, on_gradient, self.tied)

    def ends(self, output: Tensor, uses: Uses) -> list[Tensor]:
        """Find where passes from an output end that are to reach all uses.

        Passes to the layers closest to the input reach all others on their way, without
        gradients of the parameters there.
        """
        ends = []
        for name in innermost(output, uses):
            if name in self.computed:
                for use in uses[name]:
                    ends += [
                        t for t in use.leaves if t is not None and t.requires_grad
                    ][-1:]
            else:
                ends.append(cheapest(self.parameters[name]))
        return ends

    def check(self, output: Tensor) -> None:
        """Refuse parameters of computed kernels that have other uses.

        Raises:
            NotImplementedError: If there are some.
        """
        if not self.computed:
            return
        leaves = leaves_of(output)
        for name, parameters in self.computed.items():
            others = [key for key, p in parameters.items() if id(p) in leaves]
            if others:
                argument = f"{' and '.join(others)} of layer {name!r}"
                rule = "be used in kernels and biases of linear or convolution only"
                remedy, found = "Leave out its parameters", "another use"
                message = describe(self.owner, argument, rule, found, remedy)
                raise NotImplementedError(message)


def cheapest(parameters: Mapping[str, Tensor]) -> Tensor:
    """Choose the parameter of a layer whose gradient costs least: a bias, if any."""
    wanted = {key: p for key, p in parameters.items() if p.requires_grad}
    return wanted["bias"] if "bias" in wanted else next(iter(wanted.values()))


def backpropagate(
    output: Tensor, ends: Sequence[Tensor], vectors: Iterable[Tensor], keep: bool
) -> Iterator[None]:
    """Make a backward pass for each vector.

    Args:
        output: Where passes start, ``[R, C]``.
        ends: Where they end.
        vectors: Vectors, ``[R, C]``.
        keep: Whether the graph is kept for passes to come.

    Yields:
        After each pass.
    """
    remaining = iter(vectors)
    vector = next(remaining, None)
    while vector is not None and ends:
        following = next(remaining, None)
        again = keep or following is not None
        grad(output, ends, vector, retain_graph=again, allow_unused=True)
        yield
        vector = following


@dataclass
class BackwardPasses:
    """Show uses and gradients of the layers of a model, batch by batch.

    Args:
        owner: Whom errors name.
        model: The model.
        loss: The loss.
        batches: Goes over the batches ``(X, y)``; takes a description of the purpose.
        observed: What is observed.
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
        on_gradients: Callable[[str, Pairs], None],
        *,
        by_datum: bool,
        by_term: bool,
    ) -> None:
        """Go over the data.

        Args:
            purpose: Of the passes, for a progress bar.
            on_uses: Called with the uses of each batch, by layer.
            on_gradients: Called with the name of a layer and its uses with the
                gradients of their outputs, after each backward pass.
            by_datum: Whether it matters which rows of a first axis belong to a datum.
            by_term: Whether vectors are those of :meth:`vectors`, ``by_term``.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If outputs, targets or inputs of layers do not fit the data.
            NotImplementedError: If a parameter has other uses.
        """
        pending: defaultdict[str, Pairs] = defaultdict(list)
        probed: dict[tuple[str, int], Tensor] | None = None

        def show(name: str, pairs: Pairs) -> None:
            with exactly(self.device):
                on_gradients(name, pairs)

        def on_gradient(name: str, number: int, gradient: Tensor) -> None:
            if probed is not None:
                probed[name, number] = gradient
                return
            use = uses[name][number]
            pair = use, use.gradient(gradient)
            if len(uses[name]) == 1:
                show(name, [pair])
            else:
                pending[name].append(pair)

        def probe(terms: LossTerms, ends: Sequence[Tensor]) -> Iterator[Gradients]:
            nonlocal probed
            vectors = rows.probes(terms.output.detach(), cast(int, uses.num_data))
            try:
                for vector in vectors:
                    probed = {}
                    for _ in backpropagate(terms.output, ends, [vector], keep=True):
                        yield probed
            finally:
                probed = None

        generator = self.generator()
        with self.observed.observed(on_gradient) as uses:
            for X, y in self.batches(purpose):
                uses.num_data = num_data = self.batch_size_fn(X)
                output = self.model(X)
                terms = self.terms(output, y)
                self.observed.check(terms.output)
                ends = self.observed.ends(terms.output, uses)
                is_long = len(output) != num_data
                if by_datum and num_data > 1 and (is_long or uses.as_cat):
                    if len(terms.output) % num_data:
                        rule = f"have rows for each of the {num_data} data"
                        found = f"{len(terms.output)} rows"
                        raise ValueError(describe(self.owner, "outputs", rule, found))
                    first, scaled = [*probe(terms, ends)] or ({}, {})
                    sort_rows(self.owner, uses, first, scaled, is_long)
                uses.as_cat.clear()
                with exactly(self.device):
                    on_uses(uses)
                vectors = self.vectors(terms, generator, by_term)
                for _ in backpropagate(terms.output, ends, vectors, keep=False):
                    while pending:
                        show(*pending.popitem())
                uses.clear()

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
        num_rows = batch_size * self.terms_per_datum
        total = losses.scale_of_sum(self.loss, num_rows, self.mc_samples)
        if self.loss.reduction == "sum":
            return total
        return total / (self.num_data * self.terms_per_datum)

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
        with self.observed.observed(lambda *_: None) as uses:
            uses.num_data = self.batch_size_fn(X)
            terms = self.terms(self.model(X), y)
            self.observed.check(terms.output)
            terms.check_finite()
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
