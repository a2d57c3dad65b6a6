"""What extensions on one layer have in common is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backpack.extensions.module_extension import ModuleExtension
from torch import nn

from tests.backpack.suite import (
    EXACT,
    FIRST_ORDER,
    assert_equal,
    saved,
)
from tests.backpack.test_backward import small
from tn_extensions import backpack as ours
from tn_extensions import functional
from tn_extensions.backpack import layer
from tn_extensions.backpack.derivatives import ConvDerivatives


class Calls:
    """Counts calls of a function, which it replaces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.count = 0
        self._function = getattr(owner, name)
        monkeypatch.setattr(owner, name, self._make())

    def _make(self) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            return self._function(*args, **options)

        call.__name__ = self._function.__name__
        return call


@pytest.mark.parametrize("reverse", [False, True])
def test_what_extensions_share(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On each layer, and in backpropagation, what several need is computed once.

    In whatever order they come.
    """
    model, x = small()
    padded = Calls(monkeypatch, layer, "pad")
    through = Calls(monkeypatch, ConvDerivatives, "input_vjp")
    factors = Calls(monkeypatch, functional, "kfac_expand")
    together = Calls(monkeypatch, functional, "together")
    every = [make(ours) for make in (EXACT | FIRST_ORDER).values()]
    every = [*every, ours.KFLR(), ours.KFAC()]
    saved(model, every[::-1] if reverse else every, x)
    # of two convolutions, and a Linear
    assert padded.count == 2
    assert factors.count == 2 + 1
    # the first one's input needs no gradient; KFAC has samples of its own
    assert through.count == 2
    # of the square root, and of the gradients
    assert together.count == 2 * (2 + 1)
    saved(model, [ours.DiagGGNExact()], x)
    assert together.count == 3 * (2 + 1)


def test_other_derivatives_are_not_shared() -> None:
    """A user's module extension counts for the extension that has it."""

    class Zero(ModuleExtension):
        def backpropagate(self, ext: Any, module: Any, *rest: Any) -> Any:
            return torch.zeros_like(rest[-1])

    model, x = small()
    own, other = ours.DiagGGNExact(), ours.KFLR()
    other.set_module_extension(nn.ReLU, Zero(), overwrite=True)
    (wanted,) = saved(model, [own], x)
    actual, zero = saved(model, [own, other], x)
    assert_equal(actual, wanted)
    assert not zero["0.weight"][0].any()
