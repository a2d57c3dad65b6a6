"""KFAC against curvlinops where that is right, and the Jacobian's GGN elsewhere."""

from __future__ import annotations

from typing import Any

import curvlinops as stock
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.messages import assert_in_form
from tests.strategies import (
    noise_tensor,
    with_stale_attributes,
)
from tn_extensions import curvlinops as ours

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


DAMPINGS: list[dict[str, Any]] = [
    {"damping": 0.1},
    {"damping": (0.1, 0.2)},
    {"damping": 0.1, "use_heuristic_damping": True},
    {"damping": 0.1, "use_exact_damping": True},
]


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


SAMPLED = 1000, 20
"""Copies of the data, and samples of each: 20 passes sample as much as 20 000 would."""


@pytest.mark.parametrize("fisher", ["type-2", "mc"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)
def test_weighted_cross_entropy(
    options: dict[str, Any], reduction: str, fisher: str
) -> None:
    """Exact for linear models on data that are all alike; ignored rows do not count."""
    copies, samples = SAMPLED if fisher == "mc" else (1, 1)
    x = images(1, 4).repeat(3 * copies, 1)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    y = torch.tensor([0, 1, 2] if options else [0, -100, 2]).repeat(copies)
    data = [(x, y)]
    loss = nn.CrossEntropyLoss(reduction=reduction, **options)
    op = operator(
        ours,
        model,
        data,
        loss=loss,
        fisher_type=fisher,
        check_deterministic=False,
        separate_weight_and_bias=False,
        mc_samples=samples,
    )
    exact = dense(operator(stock, model, data, kind="GGNLinearOperator", loss=loss))
    loose = {"rtol": 0.0, "atol": 0.03 * float(exact.abs().max())}
    assert_close(dense(op), exact, **(loose if fisher == "mc" else {}))


@pytest.mark.parametrize("fisher", ["type-2", "mc"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weighted_binary_cross_entropy(reduction: str, fisher: str) -> None:
    """Exact for linear models on data that are all alike, whatever the targets."""
    copies, samples = SAMPLED if fisher == "mc" else (1, 1)
    x, y = images(1, 4), torch.tensor([[0.3, 1.0, 0.0]]).double()
    x, y = x.repeat(copies, 1), y.repeat(copies, 1)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    weights = {"weight": torch.tensor([1, 2, 3]), "pos_weight": torch.tensor([0.5])}
    loss = nn.BCEWithLogitsLoss(reduction=reduction, **weights)
    options = {"loss": loss, "check_deterministic": False}
    joint = {"separate_weight_and_bias": False, "fisher_type": fisher}
    joint["mc_samples"] = samples
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
