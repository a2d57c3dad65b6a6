"""The trained parameters of a layer, and the state of their gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tn_extensions.layers.host import holds


class Trained:
    """The trained parameters of a layer, and the state of their gradients.

    Parameters may be sharded. During a pass, the layer has whole parameters instead;
    after it, each process has its part of the gradient at the sharded parameters.

    Args:
        module: The layer.
        keys: The trained parameters: ``"weight"``, ``"bias"`` or both.
    """

    def __init__(self, module: Any, keys: tuple[str, ...]) -> None:
        self._module = module
        self._keys = keys
        self._shards = {
            key: own for key, own in self.parameters.items() if isinstance(own, DTensor)
        }
        self._noted: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        """Gradients, with their versions after the last change by a pass or step."""
        self._is_new = False
        """True once a pass has added to a gradient since the last step."""
        self._expected: set[str] = set()
        """Keys of sharded gradients that passes have added to since the last step."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The tensors that still are parameters; during a pass, whole ones."""
        found = {key: self._module._parameters.get(key) for key in self._keys}
        return {k: own for k, own in found.items() if isinstance(own, nn.Parameter)}

    @property
    def resting(self) -> dict[str, Tensor]:
        """The parameters of the optimizer: sharded ones, also during a pass."""
        found = self.parameters
        for key in self._shards.keys() & found.keys():
            own = found[key]
            if isinstance(own, DTensor):
                self._shards[key] = own
            else:
                # a pass has replaced it by a whole one
                found[key] = self._shards[key]
        return found

    @property
    def is_sharded(self) -> bool:
        """Tell whether parameters are sharded between passes."""
        return bool(self._shards)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The existing gradients; sharded like the parameters."""
        found = {key: own.grad for key, own in self.resting.items()}
        return {key: own for key, own in found.items() if own is not None}

    def note(self, parameter: Tensor) -> None:
        """Record that a pass has added to a parameter's gradient."""
        self._is_new = True
        keys = [key for key, own in self.parameters.items() if own is parameter]
        if self.is_sharded:
            # this process gets its part of the gradient later in the pass
            self._expected.update(keys)
        else:
            self._note(keys)

    def note_step(self) -> None:
        """Record that the gradients are preconditioned."""
        self._is_new = False
        self._expected.clear()
        self._note(self._keys)

    def _note(self, keys: Iterable[str]) -> None:
        for key in keys:
            gradient = self.gradients.get(key)
            if gradient is None:
                self._noted.pop(key, None)
            else:
                self._noted[key] = weakref.ref(gradient), gradient._version

    def _is_as_noted(self, key: str) -> bool:
        gradient = self.gradients.get(key)
        known, version = self._noted.get(key, (None, 0))
        is_same = known is not None and known() is gradient
        return is_same and gradient is not None and gradient._version == version

    @property
    def are_preconditioned(self) -> bool:
        """Tell whether the gradients are unchanged since the last step."""
        return not self._is_new and all(map(self._is_as_noted, self.gradients))

    def are_discarded(self) -> bool:
        """Tell whether gradients that passes added to were removed or set to zero."""
        if self.is_sharded:
            return any(map(self._is_part_gone, self._expected))
        return any(map(self._is_gone, self._noted))

    def _is_gone(self, key: str) -> bool:
        gradient = self.gradients.get(key)
        return gradient is None or (
            not self._is_as_noted(key) and not holds(gradient.any())
        )

    def _is_part_gone(self, key: str) -> bool:
        gradient: Any = self.gradients.get(key)
        # without synchronisation, the whole parameter keeps the gradient
        whole = self.parameters[key].grad
        if gradient is None or whole is not None:
            return whole is None
        own = gradient.to_local()
        return bool(own.numel()) and not holds(own.any())
