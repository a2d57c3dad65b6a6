"""Gather statistics of layers while a model trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.errors import describe
from tn_extensions.layers import engine
from tn_extensions.layers.hooks import Hook, exactly, on_call, on_gradient
from tn_extensions.layers.losses import LossTerms, scale_of_sum
from tn_extensions.layers.module import Pairs, Use
from tn_extensions.layers.observe import Uses
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.options import Fisher
from tn_extensions.optim.statistics import Gathered


class _Pass:
    """A forward pass.

    Args:
        num_data: Number of its data. ``None``: the number of rows of a layer's input.
    """

    def __init__(self, num_data: int | None = None) -> None:
        self.num_data = num_data
        self.uses = Uses()
        """Uses of the layers, for separate backward passes."""
        self.inputs: defaultdict[str, list[engine.Kept]] = defaultdict(list)
        """Inputs of these uses."""
        self.gathered: defaultdict[str, Gathered] = defaultdict(Gathered)
        """Statistics from separate backward passes, by layer."""


@dataclass(eq=False)
class _Use:
    """One use of a layer in a forward pass.

    Args:
        layer: The layer.
        observed: The forward pass.
        x: The layer's input, until a backward pass frees the graph.
        size: Size of the layer's output.
    """

    layer: Layer
    observed: _Pass
    x: engine.Kept | None
    size: torch.Size
    period: int = -1
    """The layer's period in which the input was last added to the statistics."""

    def seen(self, x: Tensor) -> Use:
        """Return the layer's description of the use, with its input."""
        output = torch.empty(self.size, device="meta")
        return self.layer.use(x, output, self.observed.num_data)


Arrived = list[tuple[_Use, engine.Kept | None, Tensor]]
"""Uses, their inputs and the gradients of their outputs."""


class Observer:
    """Hooks on a model that add to the statistics of its layers.

    A forward pass in training mode counts if a backward pass through it adds to
    ``.grad``. The input of a use counts once, even with several backward passes. If
    ``.grad`` is set to zero before the step, the statistics are dropped, too.

    The empirical Fisher is computed in the backward pass that trains. Other Fisher
    types take separate backward passes to the layers' outputs, right after the model's
    forward pass.

    Args:
        owner: Name of the caller, for errors.
        model: The model.
        layers: Its layers by name.
        fisher: The type of Fisher.
        loss: The loss whose Fisher is computed, if it is not empirical.
        mc_samples: Number of Monte-Carlo samples per datum.
        generator: Generator that samples targets, and data if not all are kept.
        is_wanted: Function that tells whether to observe the current pass.
    """

    def __init__(
        self,
        owner: str,
        model: nn.Module,
        layers: Mapping[str, Layer],
        fisher: Fisher,
        loss: Any,
        mc_samples: int,
        generator: torch.Generator,
        is_wanted: Callable[[], bool],
    ) -> None:
        self._owner = owner
        self._model = model
        self._layers = layers
        self._fisher = fisher
        self._loss = loss
        self._mc_samples = mc_samples
        self._generator = generator
        self._is_wanted = is_wanted
        self._pass = _Pass()
        self._is_inside = self._is_own_backward = False
        self._arrived: defaultdict[tuple[int, str], Arrived] = defaultdict(list)
        self.is_paused = False
        """True while forward and backward passes are ignored."""
        self.left_out: dict[str, str] = {}
        """Reasons why layers were left out of passes, since the last step."""
        self._watched: dict[int, Tensor] = {}
        before, after_all = Hook(self._before), Hook(self._after_all)
        self._handles: list[Any] = [
            model.register_forward_pre_hook(before, with_kwargs=True)
        ]
        for name, layer in layers.items():
            # before the hook that shards the parameters again
            after, first = partial(self._after, name), layer.is_sharded
            self._handles.append(on_call(layer.module, after, first))
            self._watch(layer)
        # registered last: it must also run last if the model is a layer itself
        self._handles.append(
            model.register_forward_hook(after_all, with_kwargs=True, always_call=True)
        )

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @property
    def is_empirical(self) -> bool:
        """Tell whether statistics come from the backward pass that trains."""
        return self._fisher == "empirical"

    def forget(self) -> None:
        """Drop everything that was observed since the last step."""
        self._arrived.clear()
        self.left_out.clear()
        for layer in self._layers.values():
            layer.forget()

    def _watch(self, layer: Layer) -> None:
        """Register hooks that run when a pass has added to a layer's gradients."""
        for parameter in layer.parameters.values():
            if id(parameter) not in self._watched:
                self._watched[id(parameter)] = parameter
                hook = partial(self._on_accumulated, layer)
                handle = parameter.register_post_accumulate_grad_hook(hook)
                self._handles.append(handle)

    # -- forward passes

    def _before(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        # replicas of the model have its hooks, too
        if model is self._model:
            self._pass, self._is_inside = _Pass(_num_data(args, kwargs)), True

    def _after(self, name: str, module: nn.Module, x: Tensor, output: Any) -> None:
        layer = self._layers[name]
        # a checkpointed part may run without gradients first, then again with them
        if not (
            module is layer.module
            and module.training
            and any(own.requires_grad for own in layer.parameters.values())
            and isinstance(output, Tensor)
            and output.requires_grad
            and torch.is_grad_enabled()
        ):
            return
        if engine.is_traced(x) or not self._is_wanted() or not layer.is_intact:
            return
        # checkpointing requires that each run saves the same tensors: save it always
        kept = engine.Kept(x)
        if self.is_paused or not (self._is_inside or self.is_empirical):
            return
        # a recomputation during a backward pass belongs to the model's pass
        is_known = self._is_inside or engine.current_pass() >= 0
        observed = self._pass if is_known else _Pass()
        reason = layer.reason_against(x, observed.num_data)
        if reason is not None:
            self.left_out.setdefault(name, reason)
            return
        self._watch(layer)
        use = _Use(layer, observed, kept, output.shape)
        if not self.is_empirical:
            use.x = None
            leaves = [own for own in layer.parameters.values() if own.requires_grad]
            seen = use.seen(x).without_input()
            observed.uses.add(name, seen, output, leaves)
            observed.inputs[name].append(kept)
        on_gradient(output, partial(self._on_gradient, use))

    def _after_all(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if model is not self._model:
            return
        self._is_inside = False
        observed = self._pass
        try:
            if observed.uses and output is not None:
                self._backpropagate(observed, output)
        finally:
            observed.uses.clear()
            observed.inputs.clear()

    # -- the backward pass that trains

    def _on_gradient(self, use: _Use, gradient: Tensor | None) -> None:
        if self._is_own_backward:
            return
        layer, x = use.layer, use.x
        if not engine.keeps_graph():
            use.x = None
        is_counted = any(map(engine.accumulates, layer.parameters.values()))
        if gradient is None or self.is_paused or not is_counted:
            return
        layer.drop_what_was_discarded()
        gradient = gradient.detach().reshape(use.size)
        key = engine.current_pass(), layer.name
        self._arrived[key].append((use, x, gradient))

    def _on_accumulated(self, layer: Layer, parameter: Tensor) -> None:
        arrived = self._arrived.pop((engine.current_pass(), layer.name), [])
        if not any(parameter is own for own in layer.parameters.values()):
            return
        layer.trained.note(parameter)
        passes = {use.observed: None for use, _, _ in arrived}
        for observed in passes:
            if self.is_empirical:
                own = [each for each in arrived if each[0].observed is observed]
                self._gather(layer, own)
            elif layer.name in observed.gathered:
                layer.gathered.add(observed.gathered.pop(layer.name))

    def _gather(self, layer: Layer, arrived: Arrived) -> None:
        """Add the uses of one forward pass, and the gradients of their outputs."""
        uses = [use.seen(x.get()) for use, x, _ in arrived if x is not None]
        pairs = [
            (use, use.gradient(gradient))
            for use, (_, _, gradient) in zip(uses, arrived, strict=True)
        ]
        new = [
            seen
            for (use, _, _), seen in zip(arrived, uses, strict=True)
            if use.period != layer.period
        ]
        for use, _, _ in arrived:
            use.period = layer.period
        into = layer.gathered
        with exactly(pairs[0][1].device):
            if new:
                # count data once, even if a later backward pass reaches more uses
                layer.add_inputs(new, into, self._generator, len(new) == len(pairs))
            layer.add_gradients(pairs, 1.0, into, self._generator)

    # -- separate backward passes

    def _backpropagate(self, observed: _Pass, output: Any) -> None:
        terms, uses = self._terms(output), observed.uses
        num_rows = len(terms.output)
        for name, own in uses.items():
            layer, into = self._layers[name], observed.gathered[name]
            own[:] = [
                use.with_input(kept.get())
                for use, kept in zip(own, observed.inputs[name], strict=True)
            ]
            into.num_rows = num_rows
            with exactly(output.device):
                layer.add_inputs(own, into, self._generator)
            if not layer.needs_inputs:
                own[:] = map(Use.without_input, own)
        scale = scale_of_sum(self._loss, num_rows, self._mc_samples)

        def on_pairs(name: str, pairs: Pairs) -> None:
            into = observed.gathered[name]
            self._layers[name].add_gradients(pairs, scale, into, self._generator)

        vectors = terms.vectors(self._fisher, self._mc_samples, self._generator)
        self._is_own_backward = True
        try:
            for _ in uses.backward(terms.output, vectors, on_pairs, keep=True):
                pass
        finally:
            self._is_own_backward = False

    def _terms(self, output: Any) -> LossTerms:
        if not isinstance(output, Tensor):
            rule, kind = "return a tensor", type(output).__name__
            remedy = "Use fisher='empirical'"
            raise TypeError(describe(self._owner, "the model", rule, kind, remedy))
        if output.dim() < 2 and not isinstance(self._loss, nn.CrossEntropyLoss):
            # a single output that was squeezed
            output = output.reshape(-1, 1)
        terms = LossTerms.of(self._owner, self._loss, output)
        if self._fisher == "mc":
            terms.check_finite()
        return terms


def _num_data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Return the length of a model's first input, or of the first in a mapping."""
    first = next(iter([*args, *kwargs.values()]), None)
    if isinstance(first, Mapping):
        first = next(iter(first.values()), None)
    return len(first) if isinstance(first, Tensor) and first.dim() else None
