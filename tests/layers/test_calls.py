"""Calls of torch's functions, seen by the names of their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.layers.calls import Calls


def test_other_functions_pass() -> None:
    def on_call(func: Any, arguments: dict[str, Any]) -> Tensor:
        raise AssertionError(func)

    with Calls(on_call):
        nn.LayerNorm(3)(torch.rand(2, 3)).softmax(1).matmul(torch.rand(3, 2))
