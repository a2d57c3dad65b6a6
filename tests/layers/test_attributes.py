"""Attributes of modules that a transform must not leave behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from tn_extensions.layers.attributes import attributes_kept


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.last = 2 * x
        return self.last


@pytest.mark.parametrize("fails", [False, True])
def test_tensors_are_those_of_before(fails: bool) -> None:
    module = Remembers()
    last = module.last
    if fails:
        with pytest.raises(RuntimeError), attributes_kept([module]):
            vmap(module)(torch.rand(2, 3))
            raise RuntimeError
    else:
        with attributes_kept([module]):
            vmap(module)(torch.rand(2, 3))
    assert module.last is last
