"""KFAC as an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tn_extensions.errors import describe
from tn_extensions.optim.options import Clipping
from tn_extensions.optim.preconditioner import KFACPreconditioner


class KFAC(torch.optim.SGD):
    """SGD with gradients that :class:`KFACPreconditioner` preconditions.

    Momentum, weight decay (which is not preconditioned) and ``param_groups`` work as in
    :class:`torch.optim.SGD`. Schedulers may change the learning rate.

    Args:
        model: The model.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay.
        nesterov: Whether to use Nesterov's momentum.
        params: Parameters or groups of them. Default: all parameters of the model.
        **options: Options of :class:`KFACPreconditioner`, except ``lr``: clipping uses
            the learning rate of the optimizer.

    Raises:
        TypeError: If the model is not a module.
        ValueError: As for :class:`KFACPreconditioner` and :class:`torch.optim.SGD`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        params: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            kind, remedy = type(model).__name__, "Pass the model, not its parameters"
            raise TypeError(describe("KFAC", "model", "be a module", kind, remedy))
        clipping = options.get("clipping")
        if isinstance(clipping, Clipping):
            if clipping.lr not in (Clipping().lr, lr):
                rule, remedy = f"equal the optimizer's lr = {lr}", "Leave it out"
                message = describe("KFAC", "clipping.lr", rule, clipping.lr, remedy)
                raise ValueError(message)
            options["clipping"] = replace(clipping, lr=self._lr_at)
        super().__init__(
            list(model.parameters()) if params is None else params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        self.preconditioner = KFACPreconditioner(model, lr=self._lr_at, **options)

    def __repr__(self) -> str:
        """Describe the parameter groups and the preconditioner."""
        return f"{super().__repr__()}\n{self.preconditioner!r}"

    def _lr_at(self, step: int) -> float:
        return float(self.param_groups[0]["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Precondition the gradients, then take a step of SGD.

        Args:
            closure: Function that computes the loss and its gradients again.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.preconditioner.step()
        super().step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of SGD and of the preconditioner.

        See :meth:`KFACPreconditioner.state_dict` for sharded parameters.
        """
        return {
            **super().state_dict(),
            "preconditioner": self.preconditioner.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state.

        Args:
            state_dict: A state of :meth:`state_dict`.

        Raises:
            ValueError: If it is the state of another model.
        """
        own = dict(state_dict)
        self.preconditioner.load_state_dict(own.pop("preconditioner"))
        super().load_state_dict(own)
