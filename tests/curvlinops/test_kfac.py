"""KFAC against curvlinops where that is right, and the Jacobian's GGN elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import curvlinops as stock
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.messages import assert_in_form
from tests.reference import curvature
from tests.strategies import (
    BATCHES,
    examples,
    module_input,
    modules,
    noise_tensor,
    with_stale_attributes,
)
from tn_extensions import curvlinops as ours
from tn_extensions.curvlinops.stored import kept

APPROX = ["expand", "reduce"]
LOSSES = [nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss]
NAME = "KFACLinearOperator"


def cnn(x: Tensor) -> nn.Sequential:
    return classifier(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, (1, 3), padding="same", bias=False),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Conv2d(4, 2, (2, 1)),
        x=x,
    )


def grouped(x: Tensor) -> nn.Sequential:
    return classifier(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, stride=2, groups=6),
        nn.AdaptiveAvgPool2d(2),
        x=x,
    )


def operator(module: Any, model: nn.Module, data: Any, **options: Any) -> Any:
    loss = options.pop("loss", nn.CrossEntropyLoss())
    params = list(model.parameters())
    kind = options.pop("kind", "KFACLinearOperator")
    return getattr(module, kind)(model, loss, params, data, **options)


def dense(op: Any) -> Tensor:
    return op @ torch.eye(op.shape[1], dtype=torch.float64)


def check_equals_stock(
    x: Tensor,
    loss: nn.Module,
    fisher: str,
    separate: bool,
    approx: str,
    kind: str = "KFACLinearOperator",
) -> tuple[Any, Any]:
    """Build ours and stock's on two batches, and compare all but their inverses."""
    labels = (images(len(x), 3) > 0).double()
    y = targets(len(x)) if isinstance(loss, nn.CrossEntropyLoss) else labels
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    model = cnn(x)
    options = {
        "loss": loss,
        "fisher_type": fisher,
        "separate_weight_and_bias": separate,
        "kfac_approx": approx,
        "mc_samples": 2 if fisher == "mc" else 1,
        "kind": kind,
    }
    mine, theirs = (operator(m, model, data, **options) for m in (ours, stock))
    assert isinstance(mine, getattr(stock, kind))
    tight = {"rtol": 1e-10, "atol": 1e-12}
    assert_close(dense(mine), dense(theirs), **tight)
    for name in ("trace", "det", "frobenius_norm"):
        assert_close(getattr(mine, name), getattr(theirs, name), **tight)
    return mine, theirs


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("fisher", ["type-2", "mc", "empirical", "forward-only"])
@pytest.mark.parametrize("kind", LOSSES)
def test_equals_stock(
    kind: Any, fisher: str, separate: bool, reduction: str, approx: str
) -> None:
    loss = kind(reduction=reduction)
    x = images(5, 2, 8, 7)
    mine, theirs = check_equals_stock(x, loss, fisher, separate, approx)
    v = noise_tensor([mine.shape[1]]).numpy()
    assert_close(torch.from_numpy(mine.to_scipy() @ v), dense(theirs) @ torch.tensor(v))
    for damping in DAMPINGS:
        inverse = stock.KFACInverseLinearOperator(theirs, **damping)
        assert_close(
            dense(mine.inverse(**damping)), dense(inverse), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
def test_averaged_groups_are_stocks(kind: str) -> None:
    x = images(4, 4, 6, 6)
    model = classifier(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), x=x)
    data = [(x, targets(4))]
    options: dict[str, Any] = {"fisher_type": "type-2", "kind": kind}
    mine = operator(ours, model, data, groups="average", **options)
    theirs = operator(stock, model, data, **options)
    assert_close(dense(mine), dense(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fisher", ["type-2", "forward-only"])
def test_kernels_that_were_exchanged(fisher: str) -> None:
    x = images(5, 2, 6, 7)
    model, data = grouped(x), [(x, targets(5))]
    wanted = dense(operator(ours, model, data, fisher_type=fisher))
    with_stale_attributes(model)
    assert_close(dense(operator(ours, model, data, fisher_type=fisher)), wanted)


def block_of(op: Any, name: str, g: int) -> Tensor:
    """``B (x) A`` of a group, from the stored factors."""
    a, b = op._input_covariances[name], op._gradient_covariances[name]
    return torch.kron(b[g], a[g]) if a.dim() == 3 else torch.kron(b, a)


@pytest.mark.parametrize("approx", APPROX)
def test_matrix_functions_and_inverse_with_groups(approx: str) -> None:
    x = images(40, 2, 5, 4)
    model = grouped(x)
    options = {"kfac_approx": approx, "fisher_type": "mc", "mc_samples": 3}
    for separate in (True, False):
        options["separate_weight_and_bias"] = separate
        op = operator(ours, model, [(x, targets(40))], **options)
        matrix = dense(op)
        assert_close(matrix, matrix.T)
        assert_close(op.trace, matrix.trace())
        assert_close(op.frobenius_norm, torch.linalg.norm(matrix))
        damped = matrix + 0.3 * torch.eye(len(matrix), dtype=matrix.dtype)
        exact = op.inverse(damping=0.3, use_exact_damping=True)
        assert_close(dense(exact), torch.linalg.inv(damped))
        for heuristic in (False, True):
            inverse = op.inverse(damping=1e-2, use_heuristic_damping=heuristic)
            assert torch.linalg.eigvalsh(dense(inverse)).min() > 0
        spd = dense(op.inverse(damping=1e-3))
        for name in op._mapping:
            a, b = op._input_covariances[name], op._gradient_covariances[name]
            op._input_covariances[name] = a + 1e-3 * torch.eye(a.shape[-1]).to(a)
            op._gradient_covariances[name] = b + 1e-3 * torch.eye(b.shape[-1]).to(b)
        op._reset_matrix_properties()
        assert_close(spd @ dense(op), torch.eye(len(spd)).to(spd), atol=1e-7, rtol=0)
        assert_close(op.logdet, -torch.logdet(spd))


DAMPINGS: list[dict[str, Any]] = [
    {"damping": 0.1},
    {"damping": (0.1, 0.2)},
    {"damping": 0.1, "use_heuristic_damping": True},
    {"damping": 0.1, "use_exact_damping": True},
]


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("num_data", [5, 30])
def test_few_data_keep_low_rank_factors(
    num_data: int, separate: bool, approx: str
) -> None:
    """Factors of fewer vectors than half their size are kept as these."""
    x = images(num_data, 12, 3, 3)
    y = targets(num_data)
    model = classifier(nn.Conv2d(12, 20, 3, padding=1, stride=2), nn.Tanh(), x=x)
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    options: dict[str, Any] = {"fisher_type": "empirical", "kfac_approx": approx}
    options["separate_weight_and_bias"] = separate
    mine, theirs = (operator(m, model, data, **options) for m in (ours, stock))
    assert_close(dense(mine), dense(theirs), rtol=1e-10, atol=1e-12)
    is_few = num_data == 5 or approx == "reduce"
    assert (kept(mine._input_covariances)["0"].shape[1] <= 54) == is_few
    for name in ("trace", "frobenius_norm"):
        assert_close(getattr(mine, name), getattr(theirs, name))
    assert mine.det == 0
    for damping in DAMPINGS:
        inverse = stock.KFACInverseLinearOperator(theirs, **damping)
        assert_close(dense(mine.inverse(**damping)), dense(inverse))
    for exact in (False, True):
        with pytest.raises(torch.linalg.LinAlgError, match="Increase the damping"):
            dense(mine.inverse(use_exact_damping=exact))


def wide(x: Tensor) -> nn.Sequential:
    """Of five data, layers whose factors are of low rank."""
    layers = nn.Conv2d(4, 12, 3, stride=2), nn.Tanh(), nn.Conv2d(12, 4, 1, groups=2)
    return classifier(*layers, x=x)


READINGS: dict[str, Callable[[Any], Any]] = {
    "values": lambda factors: factors.values(),
    "items": lambda factors: [factor for _, factor in factors.items()],
    "keys": lambda factors: [factors[name] for name in factors],
    "get": lambda factors: [factors.get(name) for name in list(factors)],
    "copied": lambda factors: dict(factors).values(),
}


@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
def test_changes_in_place(read: Any) -> None:
    """Of factors that are read; the operator uses what it hands out."""
    x, y = images(5, 4, 4, 3), targets(5)
    options: dict[str, Any] = {"fisher_type": "empirical"}
    op = operator(ours, wide(x), [(x, y)], groups="average", **options)
    op.compute_kronecker_factors()
    theirs = operator(stock, op._model_func, [(x, y)], **options)
    for attribute in ("_input_covariances", "_gradient_covariances"):
        mine = getattr(op, attribute)
        assert any(own.shape[1] < own.shape[2] for own in kept(mine).values())
        for factors in (mine, getattr(theirs, attribute)):
            for factor in read(factors):
                factor.mul_(2).add_(0.1 * torch.eye(factor.shape[-1]).to(factor))
    assert_close(dense(op), dense(theirs))
    for name in ("trace", "logdet", "frobenius_norm"):
        assert_close(getattr(op, name), getattr(theirs, name))
    inverse = stock.KFACInverseLinearOperator(theirs, damping=0.1)
    assert_close(dense(op.inverse(damping=0.1)), dense(inverse))


def test_changes_in_place_with_groups() -> None:
    x, y = images(5, 4, 4, 3), targets(5)
    op = operator(ours, wide(x), [(x, y)])
    op.compute_kronecker_factors()
    for factors in (op._input_covariances, op._gradient_covariances):
        for factor in factors.values():
            factor.zero_().add_(torch.eye(factor.shape[-1]).to(factor))
    identity = torch.eye(op.shape[1]).double()
    assert_close(dense(op), identity)
    assert op.logdet == 0


@pytest.mark.parametrize("least", [0.0, -1e-20])
@pytest.mark.parametrize("attribute", ["_input_covariances", "_gradient_covariances"])
@pytest.mark.parametrize("groups", [1, 2])
def test_singular_factors(groups: int, attribute: str, least: float) -> None:
    """Rounding may leave an eigenvalue of zero negative."""
    x, y = images(5, 4, 4, 3), targets(5)
    model = classifier(nn.Conv2d(4, 6, 2, groups=groups), x=x)
    op = operator(ours, model, [(x, y)])
    op.compute_kronecker_factors()
    for factors in (op._input_covariances, op._gradient_covariances):
        for factor in factors.values():
            factor.copy_(torch.eye(factor.shape[-1]).expand_as(factor))
    assert op.logdet == 0
    op._reset_matrix_properties()
    getattr(op, attribute)["0"][..., 1, 1] = least
    assert op.logdet == -math.inf


@examples(60)
@given(case=st.data())
def test_factors_of_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    approx = case.draw(st.sampled_from(APPROX))
    model = nn.Sequential(module, nn.Flatten()).double()
    with torch.no_grad():
        y = noise_tensor(model(x).shape)
    op = operator(
        ours,
        model,
        [(x, y)],
        loss=nn.MSELoss(),
        fisher_type="empirical",
        kfac_approx=approx,
        check_deterministic=False,
    )
    op.compute_kronecker_factors()
    expected = curvature.input_factor(module, x, approx)
    found = op._input_covariances["0"]
    assert_close(found if found.dim() == 3 else found[None], expected)
    # the gradients of the outputs, by hand
    output = module(x).detach()
    flat = output.flatten(1)
    g = (2 / flat.shape[1]) * (flat - y) / len(x) * math.sqrt(flat.shape[1])
    g = g.reshape(*output.shape[:1], module.groups, -1, *output.shape[2:]).flatten(3)
    if approx == "reduce":
        g = g.sum(3, keepdim=True)
    expected = torch.einsum("ngao,ngbo->gab", g, g) * len(x)
    found = op._gradient_covariances["0"]
    assert_close(found if found.dim() == 3 else found[None], expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_exact_where_theory_says_so(
    groups: int, separate: bool, transposed: bool
) -> None:
    """One datum, one output position: each layer's block is the GGN's."""
    x = images(1, 4, 3, 3) if not transposed else images(1, 4, 1, 1)
    layer = (
        nn.ConvTranspose2d(4, 6, 1, groups=groups)
        if transposed
        else nn.Conv2d(4, 6, 3, groups=groups)
    )
    model = nn.Sequential(layer, nn.Flatten()).double()
    y = targets(1)
    op = operator(
        ours, model, [(x, y)], fisher_type="type-2", separate_weight_and_bias=separate
    )
    exact = operator(stock, model, [(x, y)], kind="GGNLinearOperator")
    found, ggn = dense(op), dense(exact)
    # blocks of groups (and of weight and bias) are what KFAC keeps
    kept = found != 0
    assert_close(found[kept], ggn[kept])
    assert kept.sum() >= found.numel() / groups / 4
    assert_close(found.diagonal(), ggn.diagonal())


class DeepLinear(nn.Module):
    """Linear in its input: a layer of weight sharing, and one that mixes its channels.

    Loss terms are of each position (the setting of KFAC-expand), or of their mean (that
    of KFAC-reduce).
    """

    def __init__(self, layer: Any, approx: str) -> None:
        super().__init__()
        self.layer, self.approx = layer, approx
        self.last = nn.Linear(layer.out_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.layer(x).flatten(2).mT
        output: Tensor = self.last(positions)
        return output if self.approx == "expand" else output.mean(1)


SHARING = {
    "circular": (nn.Conv1d(4, 6, 3, padding=2, dilation=2, padding_mode="circular"), 7),
    "grouped": (nn.Conv2d(4, 6, (2, 3), stride=2, padding="valid", groups=2), 5),
    "same": (nn.Conv2d(4, 4, (2, 4), padding="same", groups=4), 4),
    "3d": (nn.Conv3d(4, 2, 2, bias=False), 3),
    "up": (nn.ConvTranspose1d(4, 4, 3, stride=2, output_padding=1, groups=2), 4),
    "upsampling": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2), 3),
}


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize(("layer", "side"), SHARING.values(), ids=SHARING)
def test_exact_for_deep_linear_networks(layer: Any, side: int, approx: str) -> None:
    """Eschenhagen et al. 2023, sections 3.2 and 3.3, for the square loss."""
    model = DeepLinear(layer, approx).double()
    x = images(3, 4, *[side] * (layer.weight.dim() - 2))
    with torch.no_grad():
        y = noise_tensor(model(x).shape)
    data = [(x[:1], y[:1]), (x[1:], y[1:])]
    options: dict[str, Any] = {"loss": nn.MSELoss(), "check_deterministic": False}
    exact = dense(operator(stock, model, data, kind="GGNLinearOperator", **options))
    options |= {"fisher_type": "type-2", "kfac_approx": approx}
    options |= {"separate_weight_and_bias": False}
    found = dense(operator(ours, model, data, **options))
    # blocks of groups, the last layer being one more, are what KFAC keeps
    groups = torch.arange(layer.groups)
    of_layer = [
        groups.repeat_interleave(parameter.numel() // layer.groups)
        for parameter in layer.parameters()
    ]
    others = sum(parameter.numel() for parameter in model.last.parameters())
    block = torch.cat([*of_layer, torch.full((others,), layer.groups)])
    assert_close(found, exact * (block == block[:, None]))
    assert_close(found.diagonal(), exact.diagonal())


@pytest.mark.parametrize("approx", APPROX)
def test_uses_share_the_weight_as_positions_do(approx: str) -> None:
    """A layer used twice is the layer once on both inputs, one after another."""

    class Twice(nn.Module):
        def __init__(self, split: bool) -> None:
            super().__init__()
            self.layer = nn.Conv1d(2, 3, 3, stride=3).double()
            self.split = split

        def forward(self, x: Tensor) -> Tensor:
            if not self.split:
                return self.layer(x).sum(2)
            left, right = x[..., :6], x[..., 6:]
            return self.layer(left).sum(2) + self.layer(right).sum(2)

    x = images(4, 2, 9)
    once, twice = Twice(False), Twice(True)
    twice.load_state_dict(once.state_dict())
    found, expected = (
        dense(
            operator(ours, m, [(x, targets(4))], fisher_type="mc", kfac_approx=approx)
        )
        for m in (twice, once)
    )
    assert_close(found, expected)


CROSS_ENTROPIES = {
    "ignored by default": {},
    "ignored": {"ignore_index": 1},
    "smoothed": {"label_smoothing": 0.2},
    "weighted": {"ignore_index": 1, "weight": torch.tensor([0.5, 2, 3]).double()},
    "all": {
        "ignore_index": 1,
        "weight": torch.tensor([0.5, 2, 3]).double(),
        "label_smoothing": 0.2,
    },
}


@pytest.mark.parametrize("fisher", ["type-2", "mc"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)
def test_weighted_cross_entropy(
    options: dict[str, Any], reduction: str, fisher: str
) -> None:
    """Exact for linear models on data that are all alike; ignored rows do not count."""
    x = images(1, 4).repeat(3, 1)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    y = torch.tensor([0, 1, 2] if options else [0, -100, 2])
    data = [(x, y)]
    loss = nn.CrossEntropyLoss(reduction=reduction, **options)
    many = {"mc_samples": 20_000} if fisher == "mc" else {}
    op = operator(
        ours,
        model,
        data,
        loss=loss,
        fisher_type=fisher,
        check_deterministic=False,
        separate_weight_and_bias=False,
        **many,
    )
    exact = dense(operator(stock, model, data, kind="GGNLinearOperator", loss=loss))
    loose = {"rtol": 0.0, "atol": 0.03 * float(exact.abs().max())}
    assert_close(dense(op), exact, **(loose if fisher == "mc" else {}))


@pytest.mark.parametrize("fisher", ["type-2", "mc"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weighted_binary_cross_entropy(reduction: str, fisher: str) -> None:
    """Exact for linear models on one datum, whatever the targets."""
    x, y = images(1, 4), torch.tensor([[0.3, 1.0, 0.0]]).double()
    model = nn.Sequential(nn.Linear(4, 3)).double()
    weights = {"weight": torch.tensor([1, 2, 3]), "pos_weight": torch.tensor([0.5])}
    loss = nn.BCEWithLogitsLoss(reduction=reduction, **weights)
    many = {"mc_samples": 20_000} if fisher == "mc" else {}
    options = {"loss": loss, "check_deterministic": False}
    joint = {"separate_weight_and_bias": False, "fisher_type": fisher, **many}
    found = dense(operator(ours, model, [(x, y)], **joint, **options))
    exact = operator(stock, model, [(x, y)], kind="GGNLinearOperator", **options)
    loose = {"rtol": 0.0, "atol": 0.03 * float(dense(exact).abs().max())}
    assert_close(found, dense(exact), **(loose if fisher == "mc" else {}))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("layer", "positions"),
    [(nn.Linear(4, 3), ()), (nn.Conv1d(4, 3, 1), (2,)), (nn.Conv2d(4, 3, 1), (1, 2))],
)
def test_probabilities_as_targets(
    layer: nn.Module, positions: tuple[int, ...], reduction: str
) -> None:
    """Exact for linear models on inputs that are all alike; one class is that class."""
    model = nn.Sequential(layer).double()
    x = images(1, 4, *[1] * len(positions)).repeat(3, 1, *positions)
    y = images(3, 3, *positions).softmax(1)
    options: dict[str, Any] = {"check_deterministic": False}
    weight = torch.tensor([0.5, 2, 3]).double()
    loss = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=0.1)
    exact = operator(
        stock, model, [(x, y)], kind="GGNLinearOperator", loss=loss, **options
    )
    options["separate_weight_and_bias"] = False
    op = operator(ours, model, [(x, y)], loss=loss, fisher_type="type-2", **options)
    assert_close(dense(op), dense(exact))
    # without weights, by whose sum a mean over classes is divided
    loss, classes = nn.CrossEntropyLoss(reduction=reduction), y.argmax(1)
    certain = nn.functional.one_hot(classes, 3).double().movedim(-1, 1)
    for options["fisher_type"] in ("type-2", "mc", "forward-only", "empirical"):
        found, expected = (
            operator(ours, model, [(x, own)], loss=loss, **options)
            for own in (certain, classes)
        )
        assert_close(dense(found), dense(expected))


def test_batches_and_seed() -> None:
    x = images(6, 2, 5, 4)
    model, y = grouped(x), targets(6)
    whole = operator(ours, model, [(x, y)], fisher_type="type-2")
    parts = [(x[:1], y[:1]), (x[1:], y[1:])]
    assert_close(
        dense(whole), dense(operator(ours, model, parts, fisher_type="type-2"))
    )
    first, second = (dense(operator(ours, model, parts, seed=3)) for _ in range(2))
    assert torch.equal(first, second)


def test_state() -> None:
    x = images(3, 2, 5, 4)
    model, data = grouped(x), [(x, targets(3))]
    loss = nn.CrossEntropyLoss(torch.rand(3).double())
    op = operator(ours, model, data, loss=loss)
    matrix = dense(op)
    with pytest.warns(UserWarning, match="overwrite"):
        loaded = ours.KFACLinearOperator.from_state_dict(
            op.state_dict(), model, list(model.parameters()), data
        )
    assert torch.equal(dense(loaded), matrix)
    loaded.compute_kronecker_factors()
    assert_close(dense(loaded), matrix)


def test_state_of_stock() -> None:
    x = images(4, 4, 6, 6)
    model = classifier(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), x=x)
    data = [(x, targets(4))]
    theirs = operator(stock, model, data)
    matrix = dense(theirs)
    with pytest.warns(UserWarning, match="overwrite"):
        loaded = ours.KFACLinearOperator.from_state_dict(
            theirs.state_dict(), model, list(model.parameters()), data
        )
    assert_close(dense(loaded), matrix)
    loaded.compute_kronecker_factors()
    assert_close(dense(loaded), matrix)


def test_frozen_weights() -> None:
    x = images(3, 2, 5, 4)
    model = grouped(x)
    model[0].weight.requires_grad_(False)
    params = [p for p in model.parameters() if p.requires_grad]
    args = nn.CrossEntropyLoss(), params, [(x, targets(3))]
    op = ours.KFACLinearOperator(model, *args)
    assert op.shape[0] == parameters_to_vector(params).numel()
    assert "0" not in op._input_covariances
    frozen = model[0].weight.numel()
    model[0].weight.requires_grad_(True)
    assert_close(dense(op), dense(operator(ours, model, args[2]))[frozen:, frozen:])


def test_an_unused_use_does_not_reach_the_next_batch() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.layer(x), self.layer(2 * x)
            return second if float(x[0, 0].detach()) < 0 else first

    x = images(4, 3)
    x[:2, 0], x[2:, 0] = -1, 1
    model, y = Unused(), targets(4)
    halves = [(x[:2], y[:2]), (x[2:], y[2:])]
    options: dict[str, Any] = {"fisher_type": "type-2", "kfac_approx": "reduce"}
    options |= {"num_data": 4, "num_per_example_loss_terms": 1}
    whole, *parts = (
        operator(ours, model, data, **options)
        for data in (halves, halves[:1], halves[1:])
    )
    for op in (whole, *parts):
        op.compute_kronecker_factors()
    factors = [op._gradient_covariances["layer"] for op in (whole, *parts)]
    assert_close(factors[0], factors[1] + factors[2])


def test_bad_input() -> None:
    x = images(3, 2, 5, 4)
    model, data = grouped(x), [(x, targets(3))]
    loss = nn.CrossEntropyLoss()
    kfac: Any = ours.KFACLinearOperator
    other = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="params") as error:
        kfac(model, loss, [other], data)
    assert_in_form(error.value, NAME, "params")
    norm = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    with pytest.raises(NotImplementedError, match=r"un-supported.*1\.weight, 1\.bias"):
        kfac(norm, loss, list(norm.parameters()), data)
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(NotImplementedError, match="share all") as refusal:
        kfac(tied, loss, list(tied.parameters()), data)
    assert_in_form(refusal.value, NAME, "layers 0 and 1")
    with pytest.raises(ValueError, match="data") as error:
        operator(ours, model, [])
    assert_in_form(error.value, NAME, "data")
    with pytest.raises(ValueError, match="groups") as error:
        operator(ours, model, data, groups="all")
    assert_in_form(error.value, NAME, "groups")
    for wrong_targets in (images(3, 4), images(3), images(3, 3).long()):
        op = operator(ours, model, [(x, wrong_targets)], check_deterministic=False)
        with pytest.raises(ValueError, match="targets") as error:
            op.compute_kronecker_factors()
        assert_in_form(error.value, NAME, "targets")
    regression = [(x, images(3))]
    with pytest.raises(ValueError, match="Unsqueeze"):
        operator(ours, model, regression, loss=nn.MSELoss())
    for wrong in ({"fisher_type": "exact"}, {"kfac_approx": "both"}):
        with pytest.raises(ValueError, match="Invalid"):
            operator(ours, model, data, **wrong)
    with pytest.raises(TypeError) as kind:
        ours.KFACInverseLinearOperator(operator(stock, cnn(x), data))  # type: ignore[arg-type]
    assert_in_form(kind.value, "KFACInverseLinearOperator", "A")


WRONG_DAMPING: dict[str, tuple[dict[str, Any], str, Any]] = {
    "negative": ({"damping": -1e-3}, "damping", ValueError),
    "nan": ({"damping": math.nan}, "damping", ValueError),
    "infinite": ({"damping": torch.tensor(torch.inf)}, "damping", ValueError),
    "text": ({"damping": "0.1"}, "damping", TypeError),
    "bool": ({"damping": True}, "damping", TypeError),
    "none": ({"damping": None}, "damping", TypeError),
    "complex": ({"damping": 1 + 0j}, "damping", TypeError),
    "list": ({"damping": [0.1, 0.2]}, "damping", TypeError),
    "one": ({"damping": (0.1,)}, "damping", ValueError),
    "three": ({"damping": (0.1, 0.2, 0.3)}, "damping", ValueError),
    "first": ({"damping": (-0.1, 0.2)}, "damping[0]", ValueError),
    "second": ({"damping": (0.1, "0.2")}, "damping[1]", TypeError),
    "min": ({"min_damping": -1.0}, "min_damping", ValueError),
    "min text": ({"min_damping": "1"}, "min_damping", TypeError),
}


@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
@pytest.mark.parametrize(
    ("options", "argument", "error"), WRONG_DAMPING.values(), ids=WRONG_DAMPING
)
def test_wrong_damping(
    options: dict[str, Any], argument: str, error: Any, kind: str
) -> None:
    x = images(3, 2, 5, 4)
    data = [(x, targets(3))]
    op = operator(ours, grouped(x), data, kind=kind, check_deterministic=False)
    for way in ("use_exact_damping", "use_heuristic_damping"):
        with pytest.raises(error) as refusal:
            op.inverse(**options, **{way: True})
        assert_in_form(refusal.value, "KFACInverseLinearOperator", argument)
    assert not op._gradient_covariances


@pytest.mark.parametrize("is_exact", [True, False])
def test_no_inverse_is_indefinite(is_exact: bool) -> None:
    """Nor is one refused since rounding made an eigenvalue of zero negative."""
    x = images(5, 4, 4, 3)
    op = operator(ours, classifier(nn.Conv2d(4, 6, 2), x=x), [(x, targets(5))])
    factor = op._gradient_covariances["0"]
    factor[0], factor[:, 0] = 0, 0
    for least, is_refused in ((-1e-18, False), (-0.1, True)):
        factor[0, 0] = least
        # numbers of other kinds are numbers
        damping = torch.tensor(1e-9 if is_exact else 1e-3, dtype=torch.float64)
        inverse = op.inverse(damping, use_exact_damping=is_exact)
        if is_refused:
            with pytest.raises(torch.linalg.LinAlgError, match="damping") as refusal:
                dense(inverse)
            assert "layer '0' must be positive definite" in str(refusal.value)
        else:
            assert torch.linalg.eigvalsh(dense(inverse)).min() > 0


def test_a_failure_leaves_nothing() -> None:
    x = images(3, 2, 5, 4)
    model = grouped(x)
    op = operator(ours, model, [(x, targets(3))])
    dense(op)
    op._data = [(x, targets(3)), (x * torch.nan, targets(3))]
    with pytest.raises((ValueError, RuntimeError)):
        op.compute_kronecker_factors()
    assert not op._input_covariances and not op._gradient_covariances
    assert all(not module._forward_hooks for module in model.modules())
    op = operator(
        ours,
        model,
        [(x * torch.nan, targets(3))],
        check_deterministic=False,
        fisher_type="empirical",
    )
    with pytest.raises(ValueError, match="'0'") as error:
        op.compute_kronecker_factors()
    assert "of layer '0' must be finite" in str(error.value)


class Tied(nn.Module):
    """Layers of the same parameters, or one of them twice."""

    def __init__(self, make: Callable[[], Any], is_one: bool) -> None:
        super().__init__()
        self.first, self.second = make().double(), make().double()
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        if is_one:
            self.second = self.first
        self.last = nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh().flatten(1), self.second(x.flip(0)).flatten(1)
        return torch.as_tensor(self.last(hidden[0] * hidden[1]))


TIED = {
    "linear": (lambda: nn.Linear(4, 6), (4,)),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2), (4, 2, 2)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 3, 2, groups=1), (4, 1)),
}


@pytest.mark.parametrize("kind", ["KFAC", "EKFAC", "KFOC", "GGNDiagonal"])
@pytest.mark.parametrize(("make", "shape"), TIED.values(), ids=TIED)
def test_tied_layers_are_one_layer_used_twice(make: Any, shape: Any, kind: str) -> None:
    x, y = images(3, *shape), targets(3)
    options: dict[str, Any] = {"kind": f"{kind}LinearOperator"}
    if kind != "GGNDiagonal":
        options |= {"fisher_type": "type-2", "separate_weight_and_bias": False}
    once, twice = (Tied(make, is_one) for is_one in (True, False))
    once.load_state_dict(twice.state_dict(), strict=False)
    found, expected = (
        dense(operator(ours, model, [(x, y)], **options)) for model in (twice, once)
    )
    assert_close(found, expected)


@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
@pytest.mark.parametrize("separate", [False, True])
def test_tied_layers_are_exact(separate: bool, kind: str) -> None:
    """For a datum, and paths that do not meet."""

    class Paths(Tied):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.first(x[:, :4]), self.second(x[:, 4:])], 1)

    model = Paths(lambda: nn.Linear(4, 6), False)
    del model.last
    data = [(images(1, 8), images(1, 12))]
    options: dict[str, Any] = {"loss": nn.MSELoss()}
    exact = dense(operator(stock, model, data, kind="GGNLinearOperator", **options))
    options |= {"fisher_type": "type-2", "separate_weight_and_bias": separate}
    found = dense(operator(ours, model, data, kind=kind, **options))
    number = torch.tensor([0] * 24 + [int(separate)] * 6)
    assert_close(found, exact * (number == number[:, None]))
