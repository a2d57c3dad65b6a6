"""Constants of a plan, such as dense patterns, as tensors of the right kind."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Constant:
    """An array that becomes a tensor once per dtype and device."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = torch.from_numpy(array)
        self._tensors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """The constant with dtype and device of a tensor."""
        key = (tensor.dtype, tensor.device)
        if key not in self._tensors:
            self._tensors[key] = self._array.to(device=key[1], dtype=key[0])
        return self._tensors[key]
