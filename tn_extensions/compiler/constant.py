"""Constants of a plan, such as dense patterns, as tensors of any dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tn_extensions.compiler.tracing import holds_data


class Constant:
    """An array that is made at its first use and kept for each dtype and device.

    Candidates that never run need not make their arrays.
    """

    def __init__(self, make: Callable[[], NDArray[Any]]) -> None:
        self._make = make
        self._tensors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the constant on a tensor's device, with its dtype or another one."""
        key = (dtype or tensor.dtype, tensor.device)
        found = self._tensors.get(key)
        if found is None or not holds_data(tensor):
            # autograd could not use a tensor made in inference mode later
            with torch.inference_mode(False):
                array = torch.from_numpy(self._make())
                found = array.to(device=key[1], dtype=key[0])
            if holds_data(found):  # a compiler's tensors are gone after tracing
                self._tensors[key] = found
        return found
