"""What is seen of a network, and how far passes go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tn_extensions.layers.observe import innermost, observed


class Branches(nn.Module):
    """Two layers see the input, one of them again what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = (nn.Linear(3, 3) for _ in range(3))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        once = torch.relu_(self.first(x)) + self.again(x)
        return torch.as_tensor(self.last(self.again(once)))


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3)])
def test_innermost(shape: tuple[int, ...]) -> None:
    """Also where an activation works in place, on what may be a view."""
    model, x = Branches(), torch.rand(shape)
    seen: list[tuple[str, int]] = []
    layers = dict(model.named_children())
    with observed(
        "test", layers, "separate", lambda name, n, _: seen.append((name, n))
    ) as uses:
        output = model(x)
        names = innermost(output, uses)
        ends = [p for name in names for p in layers[name].parameters()]
        torch.autograd.grad(output.sum(), ends)
    assert names == {"first", "again"}
    assert sorted(seen) == [("again", 0), ("again", 1), ("first", 0), ("last", 0)]
    assert innermost(x, {}) == set()
