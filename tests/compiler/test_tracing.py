"""Who watches: autograd, function transforms and compilers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tn_extensions.compiler.constant import Constant
from tn_extensions.compiler.tracing import holds_data, is_traced


def test_autograd() -> None:
    x, leaf = torch.ones(2), torch.ones(2, requires_grad=True)
    assert not is_traced([x]) and not is_traced([])
    assert is_traced([x, leaf]) and is_traced([2 * leaf])
    with torch.no_grad():
        assert not is_traced([x, leaf])
    with torch.inference_mode():
        assert not is_traced([leaf])


def test_function_transforms() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_traced([x]))
        return x.sum()

    torch.func.vmap(look)(torch.ones(2, 3))
    torch.func.grad(look)(torch.ones(3))
    torch.func.jvp(look, (torch.ones(3),), (torch.ones(3),))
    assert seen == [True] * 3
    assert not is_traced([torch.ones(3)])


def test_tensors_without_data() -> None:
    with FakeTensorMode():
        fake = torch.ones(2)
    assert not is_traced([fake]) and not holds_data(fake)

    def look(x: Tensor) -> Tensor:
        assert is_traced([x]) and not holds_data(x)
        return x + 1

    make_fx(look, tracing_mode="fake")(torch.ones(2))
    assert holds_data(torch.ones(2)) and holds_data(nn.Parameter(torch.ones(2)))


def test_constants_do_not_outlive_a_trace() -> None:
    constant = Constant(lambda: np.arange(3.0))
    with FakeTensorMode():
        traced = constant.like(torch.ones(2))
    assert not holds_data(traced)
    real = constant.like(torch.ones(2))
    assert real.tolist() == [0, 1, 2] and constant.like(torch.ones(1)) is real
