"""Constants of a plan, such as dense patterns, as tensors of the right kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Constant:
    """An array that is made when first used, then kept per dtype and device.

    Plans that are priced but never run should not pay for their patterns.
    """

    def __init__(self, make: Callable[[], NDArray[Any]]) -> None:
        self._make = make
        self._tensors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """The constant with dtype and device of a tensor."""
        key = (tensor.dtype, tensor.device)
        if key not in self._tensors:
            array = torch.from_numpy(self._make())
            self._tensors[key] = array.to(device=key[1], dtype=key[0])
        return self._tensors[key]
