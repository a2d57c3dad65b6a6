"""Constants of a plan, such as dense patterns, as tensors of the right kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tn_extensions.compiler.tracing import holds_data


class Constant:
    """An array that is made when first used, then kept per dtype and device.

    Plans that are priced but never run should not pay for their patterns.
    """

    def __init__(self, make: Callable[[], NDArray[Any]]) -> None:
        self._make = make
        self._tensors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The constant on the device of a tensor, of its or another dtype."""
        key = (dtype or tensor.dtype, tensor.device)
        found = self._tensors.get(key)
        if found is None or not holds_data(tensor):
            # what is made in inference mode could not be differentiated through later
            with torch.inference_mode(False):
                array = torch.from_numpy(self._make())
                found = array.to(device=key[1], dtype=key[0])
            if holds_data(found):  # what a compiler traces with is gone after that
                self._tensors[key] = found
        return found
