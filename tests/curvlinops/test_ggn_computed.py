"""The GGN of layers that compute their kernels, and of rows that are not data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from tests.backpack.run import images, targets
from tests.curvlinops.test_ggn import assert_same_spectrum
from tests.curvlinops.test_kfac import dense
from tn_extensions import curvlinops as ours
from tn_extensions import memory_budget

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


class Standardised(nn.Conv2d):
    """Weight standardisation, and padding of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        weight = (weight - mean) / (weight.std((1, 2, 3), keepdim=True) + 1e-3)
        return F.conv2d(F.pad(x, (1, 1, 0, 1)), weight, self.bias, stride=2, groups=2)


class Masked(nn.Linear):
    """A fixed mask, and a bias that is computed, too."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones(sizes[1], sizes[0]).tril())

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        weight, bias = self.weight * self.mask, self.bias.tanh()
        return F.linear(bias=bias, weight=weight, input=input)


class LoRA(nn.Linear):
    """Two paths, one through parameters and one through layers of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.A = nn.Parameter(torch.rand(2, sizes[0]))
        self.B = nn.Parameter(torch.rand(sizes[1], 2))
        self.down, self.up = nn.Linear(sizes[0], 2), nn.Linear(2, sizes[1])

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(F.linear(input, self.A), self.B)
        return super().forward(input) + 0.5 * low + self.up(self.down(input).tanh())


class Merged(nn.Linear):
    """LoRA by layers that are not called."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.down, self.up = (
            nn.Linear(sizes[0], 2, bias=False),
            nn.Linear(2, sizes[1], bias=False),
        )

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + self.up.weight @ self.down.weight)


class Sign(torch.autograd.Function):
    """Straight-through: no batch of gradients passes through its Python."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return (
            g * 2
            if float(g.detach().sum()) > 0
            else g * (weight.abs() + 2 - weight.abs())
        )


class Binary(nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Any, bias: Any) -> Tensor:
        return super()._conv_forward(input, Sign.apply(weight), bias)


class Equalised(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight[0].numel() ** 0.5


def equalised() -> nn.Module:
    layer = nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2)
    parametrize.register_parametrization(layer, "weight", Equalised())
    parametrize.register_parametrization(layer, "bias", Equalised())
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: Standardised(2, 4, 3, groups=2),
    "weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(2, 3, 3)),
    "weight norm, new": lambda: parametrizations.weight_norm(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", groups=2)
    ),
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(2, 3, 3)).eval(),
    "pruned": lambda: prune.random_unstructured(nn.Conv2d(2, 3, 3), "weight", 0.5),
    "pruned twice": lambda: prune.random_unstructured(
        prune.l1_unstructured(nn.Conv2d(2, 3, 3), "weight", 0.3), "bias", 0.5
    ),
    "equalised": equalised,
    "masked": lambda: Masked(4, 5),
    "LoRA": lambda: LoRA(4, 3),
    "merged": lambda: Merged(4, 3),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 3)),
}


def network(layer: nn.Module, x: Tensor) -> nn.Sequential:
    """Put the layer between others, so that its input has a gradient."""
    first = nn.Linear(x.shape[-1], x.shape[-1])
    model = nn.Sequential(first, nn.Tanh(), layer, nn.Sigmoid(), nn.Flatten())
    with torch.no_grad():
        features = model.double().eval()(x).shape[1]
    return model.append(nn.Linear(features, 3).double())


def jacobian_ggn(
    model: nn.Module, x: Any, y: Tensor, loss: nn.Module, params: Any = None
) -> Tensor:
    """``J^T H J``, an output at a time."""
    params = [*model.parameters()] if params is None else params
    output = model(x)
    rows = []
    for each in output.flatten():
        grads = torch.autograd.grad(
            each, params, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    J = torch.stack(rows).double()
    H = torch.autograd.functional.hessian(lambda o: loss(o, y), output.detach())
    return J.T @ H.reshape(len(J), -1).double() @ J


def check(
    model: nn.Module,
    x: Any,
    y: Tensor,
    loss: nn.Module,
    params: Any = None,
    **options: Any,
) -> None:
    """Compare the diagonal, the Gram matrix and its products with the Jacobian's."""
    params = [*model.parameters()] if params is None else params
    matrix = jacobian_ggn(model, x, y, loss, params)
    data = options.pop("data", [(x, y)])
    args = (model, loss, params, data)
    options["check_deterministic"] = False
    op = ours.GGNDiagonalLinearOperator(*args, **options)
    assert_close(torch.cat([d.flatten() for d in op.diagonal()]), matrix.diagonal())
    gram = ours.GGNGramLinearOperator(*args, **options)
    by_products, found = dense(gram), gram.dense()
    assert_close(by_products, found)
    assert_same_spectrum(found, matrix)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_computed_kernels(make: Callable[[], nn.Module]) -> None:
    x, y = images(2, 2, 5, 4), targets(2)
    model = network(make(), x)
    check(model, x, y, nn.CrossEntropyLoss())
    # nothing is left in the model, of torch.func's transforms neither
    assert all("forward" not in vars(module) for module in model.modules())
    left = [t for t in vars(model[2]).values() if isinstance(t, Tensor)]
    assert not any(map(torch._C._functorch.is_functorch_wrapped_tensor, left))


def test_batches_and_budget() -> None:
    x, y = images(3, 4), targets(3)
    model = nn.Sequential(LoRA(4, 3), nn.Tanh(), Masked(3, 3)).double()
    with memory_budget(1):
        data = [(x[:1], y[:1]), (x[1:], y[1:])]
        check(model, x, y, nn.CrossEntropyLoss(reduction="sum"), data=data)


def test_functions_that_take_no_batch() -> None:
    x = images(3, 2, 6)
    model = nn.Sequential(nn.Tanh(), Binary(2, 3, 3), nn.Flatten()).double()
    check(model, x, images(3, 12), nn.MSELoss())


def test_some_parameters_and_several_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.utils.weight_norm(nn.Linear(4, 4))
            self.last = LoRA(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            once = self.layer(x).tanh()
            return torch.as_tensor(self.last(self.layer(once + 1)))

    model, x = Twice().double(), images(3, 4)
    y, loss = targets(3), nn.CrossEntropyLoss()
    check(model, x, y, loss)
    chosen = [model.last.A, model.last.down.weight, model.layer.weight_v]
    check(model, x, y, loss, chosen)
    # layers inside of a layer are layers of their own, for KFAC
    inner = [model.last.down.weight, model.last.up.bias]
    kfac = ours.KFACLinearOperator(model, loss, inner, [(x, y)])
    assert list(kfac._mapping) == ["last.down", "last.up"]
    assert dense(kfac).isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_probabilities_and_weights_of_images(reduction: str) -> None:
    x = images(2, 2, 3, 2)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, (2, 1))]
    model = nn.Sequential(*layers).double()
    probabilities = images(2, 3, 2, 2).softmax(1)
    weights = torch.tensor([0.5, 2, 3]).double()
    smoothed = {"label_smoothing": 0.2, "reduction": reduction}
    check(model, x, probabilities, nn.CrossEntropyLoss(weights, **smoothed))
    loss = nn.BCEWithLogitsLoss(pos_weight=weights.view(3, 1, 1), reduction=reduction)
    check(model, x, (probabilities > 0.3).double(), loss)
