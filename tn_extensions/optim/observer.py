"""Gathers layers' statistics while a model trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.errors import describe
from tn_extensions.kronecker import losses
from tn_extensions.kronecker.layers import Pairs, Use
from tn_extensions.kronecker.observe import innermost
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.options import Fisher


class _Pass:
    """A forward pass: the layers' uses, and gradients that have arrived."""

    def __init__(self) -> None:
        self.uses: defaultdict[str, list[Use]] = defaultdict(list)
        self.pairs: defaultdict[str, Pairs] = defaultdict(list)


class Observer:
    """Hooks on a model that feed its layers' statistics.

    Of the empirical Fisher, in the backward pass that trains; of others, in backward
    passes of its own to the layers' outputs, right after the forward pass.

    Args:
        owner: Whom errors name.
        model: The model. Passes in evaluation mode are not observed.
        layers: Its layers by name.
        fisher: The type of Fisher.
        loss: The loss that the Fisher is of, if it is not empirical.
        mc_samples: Draws per datum.
        generator: What draws targets, and data where not all are kept.
        is_wanted: Whether a pass is to be observed.
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
        self._pass: _Pass | None = None
        self._is_own_backward = False
        self.num_rows = 0
        """Rows of outputs whose loss was differentiated since the last step."""
        # torch.compile must not trace what happens in Python only
        outside: Any = torch.compiler.disable
        self._handles = [model.register_forward_pre_hook(outside(self._before))]
        for name, layer in layers.items():
            after = outside(partial(self._after, name))
            self._handles.append(layer.module.register_forward_hook(after))
        if fisher != "empirical":
            after = outside(self._after_all)
            self._handles.append(model.register_forward_hook(after))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @property
    def is_empirical(self) -> bool:
        """Whether statistics come from the backward pass that trains."""
        return self._fisher == "empirical"

    def forget(self) -> None:
        """Drop what was seen since the last step."""
        self._pass, self.num_rows = None, 0
        for layer in self._layers.values():
            layer.forget()

    def finish(self) -> None:
        """Make do with the gradients that came; some uses may not affect the loss."""
        if self._pass is not None and self.is_empirical:
            for name in list(self._pass.pairs):
                self._complete(self._pass, name)
        self._pass = None

    # -- hooks

    def _before(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        # a copy of the model has its hooks
        if model is not self._model:
            return
        self.finish()
        is_observed = model.training and torch.is_grad_enabled() and self._is_wanted()
        self._pass = _Pass() if is_observed else None

    def _after(
        self, name: str, module: Any, inputs: tuple[Any, ...], output: Tensor
    ) -> None:
        # what is checkpointed runs at first without gradients, then again with them
        is_own = module is self._layers[name].module
        if self._pass is None or not (is_own and output.requires_grad):
            return
        if not inputs:
            rule, layer = "be called with a positional argument", f"layer {name!r}"
            raise ValueError(describe(self._owner, layer, rule, "none"))
        use = Use.of(module, inputs[0], output, "separate")
        own = replace(use, node=None)
        # a node that holds a hook that holds the node would never be freed
        self._pass.uses[name].append(own if self.is_empirical else use)
        output.register_hook(partial(self._on_gradient, self._pass, name, own))

    def _on_gradient(
        self, observed: _Pass, name: str, use: Use, gradient: Tensor
    ) -> None:
        if not (self.is_empirical or self._is_own_backward):
            return
        pairs = observed.pairs[name]
        pairs.append((use, use.gradient(gradient)))
        if len(pairs) == len(observed.uses[name]):
            self._complete(observed, name)

    def _complete(self, observed: _Pass, name: str) -> None:
        pairs = observed.pairs.pop(name, [])
        if not pairs:
            return
        with _exactly(pairs[0][1].device):
            if self.is_empirical:
                self._layers[name].add_inputs(observed.uses.pop(name), self._generator)
            scale = 1.0 if self.is_empirical else self._scale
            self._layers[name].add_gradients(pairs, scale, self._generator)

    def _after_all(self, model: nn.Module, inputs: Any, output: Any) -> None:
        observed = self._pass if model is self._model else None
        if observed is None or not observed.uses:
            return
        if not isinstance(output, Tensor):
            rule, kind = "return a tensor", type(output).__name__
            remedy = "Use fisher='empirical'"
            raise TypeError(describe(self._owner, "the model", rule, kind, remedy))
        with _exactly(output.device):
            for name, uses in observed.uses.items():
                self._layers[name].add_inputs(uses, self._generator)
        rows = self._rows(output)
        self._scale = 1 / self._mc_samples if self._fisher == "mc" else 1.0
        if self._loss.reduction == "mean":
            self._scale *= len(rows) ** 2
        self.num_rows += len(rows)
        # passes to the layers closest to the input reach all others on their way
        inner = [self._layers[name] for name in innermost(output, observed.uses)]
        for uses in observed.uses.values():
            uses[:] = [replace(use, node=None) for use in uses]
        ends = [next(reversed(layer.parameters.values())) for layer in inner]
        self._is_own_backward = True
        try:
            for vector in self._vectors(rows):
                torch.autograd.grad(rows, ends, vector, retain_graph=True)
                for name in list(observed.pairs):
                    self._complete(observed, name)
        finally:
            self._is_own_backward = False
        # nothing more is to be seen, and inputs need not be held
        self._pass = None

    def _rows(self, output: Tensor) -> Tensor:
        """Outputs as ``[R, C]``: classes come second of cross entropies, else last."""
        if output.dim() < 2:
            rule = "return at least two axes"
            raise ValueError(describe(self._owner, "the model", rule, output.dim()))
        if isinstance(self._loss, nn.CrossEntropyLoss):
            output = output.movedim(1, -1)
        return output.reshape(-1, output.shape[-1])

    def _vectors(self, rows: Tensor) -> Iterator[Tensor]:
        if self._fisher == "type-2":
            yield from losses.hessian_columns(self._loss, rows)
            return
        loss = losses.plain(self._loss)
        wide = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        for _ in range(self._mc_samples):
            drawn = losses.draw(loss, wide, self._generator)
            yield losses.gradient(loss, wide, drawn).to(rows.dtype)


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Neither gradients nor lower precision for what is computed on the side."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
