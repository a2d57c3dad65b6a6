"""Unit-wise curvature of norm layers against gradients of one datum at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, jacrev
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.optim import test_distributed as distributed
from tests.optim.support import assert_same_state, matrix_of
from tests.optim.test_sharded import whole_parameters
from tests.strategies import noise_tensor
from tn_extensions.optim import Curvature, KFACPreconditioner

OPTIONS: dict[str, Any] = {
    "norm_layers": "unit-wise",
    "damping": 0.1,
    "kl_clip": None,
    "ema_decay": 0.7,
}
LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(3), (3,)),
    (lambda: nn.BatchNorm1d(3, track_running_stats=False), (3, 4)),
    (lambda: nn.BatchNorm2d(3, eps=0.1), (3, 2, 4)),
    (lambda: nn.BatchNorm3d(3), (3, 2, 1, 2)),
    (lambda: nn.LayerNorm(3), (3,)),
    (lambda: nn.LayerNorm(3, eps=0.1), (4, 3)),
    (lambda: nn.LayerNorm([2, 3], bias=False), (4, 2, 3)),
    (lambda: nn.GroupNorm(2, 4, eps=0.1), (4, 2, 3)),
    (lambda: nn.GroupNorm(2, 4), (4,)),
    (lambda: nn.RMSNorm(3, eps=0.1), (2, 3)),
]


CASES = [(*each, None) for each in LAYERS] + [
    (*each, frozen) for each in LAYERS[:6] for frozen in ("weight", "bias")
]


def with_noise(layer: Any) -> Any:
    """Convert a layer to float64, with random scale and shift."""
    layer = layer.double()
    for number, own in enumerate(layer.parameters()):
        own.data = noise_tensor((*own.shape, number + 1))[..., number]
    return layer


def blocks_of(layer: nn.Module, inputs: list[Tensor], gs: list[Tensor]) -> Tensor:
    """``1/N sum_n u u^T`` of each unit, ``[C, 2, 2]``, of all uses; one at a time."""
    layer = copy.deepcopy(layer)
    trained = [own for own in layer.parameters() if own.requires_grad]
    total = torch.zeros(())
    for n in range(len(inputs[0])):
        loss = sum((layer(x)[n] * g[n]).sum() for x, g in zip(inputs, gs, strict=True))
        u = torch.stack([g.flatten() for g in torch.autograd.grad(loss, trained)], 1)
        total = total + u[:, :, None] * u[:, None, :]
    return total / len(inputs[0])


def preconditioned(F: Tensor, gradients: list[Tensor], damping: float) -> list[Tensor]:
    """``(F + damping I)^-1`` times a unit's gradients."""
    v = torch.stack([own.flatten() for own in gradients], 1).unsqueeze(2)
    eye = torch.eye(F.shape[1]).to(F)
    found = (torch.linalg.inv(F + damping * eye) @ v).squeeze(2)
    return [own.view_as(g) for own, g in zip(found.unbind(1), gradients, strict=True)]


@pytest.mark.parametrize("method", ["pi", "fixed", "exact"])
@pytest.mark.parametrize(("make", "shape", "frozen"), CASES)
def test_every_norm_layer(
    make: Any, shape: tuple[int, ...], frozen: str | None, method: str
) -> None:
    """Two steps, whose blocks are averaged."""
    layer = with_noise(make())
    if frozen is not None:
        getattr(layer, frozen).requires_grad_(False)
    trained = [own for own in layer.parameters() if own.requires_grad]
    preconditioner = KFACPreconditioner(layer, damping_method=method, **OPTIONS)
    average = torch.zeros(())
    for step, count in enumerate([3, 2]):
        x, g = noise_tensor((2, count, *shape)) * (step + 1)
        layer.zero_grad()
        ((layer(x) * g).sum() / count).backward()
        before = [own.grad.clone() for own in trained if own.grad is not None]
        preconditioner.step()
        new = blocks_of(layer, [x], [g])
        average = new if step == 0 else 0.7 * average + 0.3 * new
        after = [own.grad for own in trained]
        assert_close(after, preconditioned(average, before, 0.1))


@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_uses_and_rows_of_a_datum_add_up(approx: str) -> None:
    """Frames are folded into the batch, and the layer is used twice."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = with_noise(nn.LayerNorm(3))

        def forward(self, x: Tensor) -> Tensor:
            frames = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return frames.sum(1) * self.norm(x[:, 0].sin())

    model, x, g = Twice(), noise_tensor((4, 2, 3)), noise_tensor((4, 3))
    preconditioner = KFACPreconditioner(model, approx=approx, **OPTIONS)
    ((model(x) * g).sum() / 4).backward()
    parameters = list(model.parameters())
    before = [own.grad.clone() for own in parameters if own.grad is not None]
    preconditioner.step()
    with torch.no_grad():
        frames, other = model.norm(x), model.norm(x[:, 0].sin())
    uses = [x, x[:, 0].sin()]
    gs = [(g * other)[:, None].expand(-1, 2, -1), g * frames.sum(1)]
    F = blocks_of(model.norm, uses, gs)
    assert_close([own.grad for own in parameters], preconditioned(F, before, 0.1))


def classifier() -> nn.Sequential:
    """Make a network with a norm layer of each kind, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 2),
            nn.GroupNorm(2, 4),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.LayerNorm(16),
            nn.Linear(16, 3),
        )
    return model.double()


def data() -> tuple[Tensor, Tensor]:
    return noise_tensor((5, 2, 3, 3)), torch.arange(5) % 3


def test_exact_fisher() -> None:
    """Blocks are those of the GGN, on the diagonal."""
    model, (x, y) = classifier(), data()
    preconditioner = KFACPreconditioner(model, fisher="type-2", **OPTIONS)
    nn.functional.cross_entropy(model(x), y).backward()
    parameters = {name: own.detach() for name, own in model.named_parameters()}
    p = model(x).detach().softmax(1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    preconditioner.step()
    for name in ("1", "4"):
        keys = (f"{name}.weight", f"{name}.bias")

        def logits(own: Any) -> Tensor:
            return functional_call(model, {**parameters, **own}, (x,))

        found = jacrev(logits)({key: parameters[key] for key in keys})
        J = torch.stack([found[key] for key in keys], 3)
        wanted = torch.einsum("nauk,nab,nbul->ukl", J, hessian, J) / len(x)
        actual = preconditioner._layers[name].averages["gradients"]
        assert_close(matrix_of(actual), wanted)


def train(model: nn.Module, preconditioner: Any, steps: int) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        preconditioner.step()
        optimizer.step()
    return [own.detach().clone() for own in model.parameters()]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("fisher", ["empirical", "mc"])
def test_training_resumes(fisher: str, corrected: bool) -> None:
    options = {**OPTIONS, "fisher": fisher, "eigenvalue_correction": corrected}
    model = classifier()
    preconditioner = KFACPreconditioner(model, **options)
    train(model, preconditioner, 2)
    other = copy.deepcopy(model)
    resumed = KFACPreconditioner(other, **options)
    resumed.load_state_dict(preconditioner.state_dict())
    wanted = train(model, preconditioner, 2)
    assert_close(train(other, resumed, 2), wanted, rtol=0, atol=0)
    assert_same_state(preconditioner.state_dict(), resumed.state_dict())


def check_same_as_one() -> None:
    """Sharded or not, several processes do what one does with all of their data."""
    for own in ({}, {"grad_worker_fraction": 0}, {"eigenvalue_correction": True}):
        options = {**OPTIONS, **own}
        model = classifier()
        expected = distributed.train(
            model, distributed.single(model, options), range(4), data=distributed.whole
        )
        copies, shards = DistributedDataParallel(classifier()), classifier()
        fully_shard(shards[1])
        fully_shard(shards)
        for several in (copies, shards):
            found = KFACPreconditioner(several, **options)
            share = distributed.own_share
            distributed.train(several, found, range(4), data=share)
            actual = whole_parameters(several)
            assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)
def test_several_processes() -> None:
    distributed.launch(2, check_same_as_one)


def test_half_precision() -> None:
    """Blocks are of float32, gradients stay as they are."""
    layer = nn.LayerNorm(3, dtype=torch.bfloat16)
    preconditioner = KFACPreconditioner(layer, **OPTIONS)
    layer(noise_tensor((4, 3), torch.bfloat16)).sum().backward()
    preconditioner.step()
    assert preconditioner._layers[""].averages["gradients"].dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.bfloat16


def test_plain_is_the_default() -> None:
    model = classifier()
    with pytest.warns(UserWarning, match="GroupNorm, LayerNorm keep their plain"):
        preconditioner = KFACPreconditioner(model, kl_clip=None)
    assert list(preconditioner._layers) == ["0", "5"]


@pytest.mark.parametrize(
    "options",
    [
        {"overrides": {"LayerNorm": {"norm_layers": "unit-wise"}}},
        {"norm_layers": "unit-wise", "skip_layers": ["1"]},
        {"curvature": Curvature(norm_layers="unit-wise"), "skip_layers": ["1"]},
        {"norm_layers": "unit-wise", "overrides": {"1": {"norm_layers": "plain"}}},
    ],
)
@pytest.mark.filterwarnings("ignore:KFACPreconditioner. layers of GroupNorm keep")
def test_single_layers(options: dict[str, Any]) -> None:
    if options.get("overrides", {}).get("1"):
        # it is not preconditioned, so that nothing of it can be overridden
        with pytest.raises(ValueError, match="match layers of the model"):
            KFACPreconditioner(classifier(), **options)
        return
    preconditioner = KFACPreconditioner(classifier(), **options)
    assert list(preconditioner._layers) == ["0", "4", "5"]
    assert "4: LayerNorm, B [16, 2, 2]" in repr(preconditioner)


def test_own_forward_is_left_alone() -> None:
    class ChannelsLast(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, -1)).transpose(1, -1)

    model = nn.Sequential(ChannelsLast(2), nn.Flatten(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match="layer '0' has a forward of its own"):
        preconditioner = KFACPreconditioner(model, norm_layers="unit-wise")
    assert list(preconditioner._layers) == ["2"]


def test_unknown_choice() -> None:
    with pytest.raises(ValueError, match="'plain' or 'unit-wise'") as error:
        KFACPreconditioner(classifier(), norm_layers="diagonal")  # type: ignore[arg-type]
    assert_in_form(error.value, "KFACPreconditioner", "norm_layers")
