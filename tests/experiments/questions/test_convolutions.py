"""The paper's nine networks, and contenders that agree on their layers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from experiments.contenders.quantities import Asked, contest
from experiments.harness import machine
from experiments.harness.case import Options
from experiments.harness.ratios import Ratio
from experiments.harness.run import run
from experiments.harness.store import Store, load
from experiments.questions import NAMES, convolutions, find, memory
from experiments.subjects.layers import NETWORKS, TORCHVISION, Layer, layers_of
from tn_extensions import Conv

GROUPED = Layer("none", Conv.make(4, 6, (3, 1), (7, 6), (2, 1), (1, 0), groups=2))


@pytest.mark.parametrize("network", TORCHVISION)
def test_layers_are_those_of_torchvision(network: str) -> None:
    with torch.device("meta"):
        options = {"init_weights": False} if network == "inception_v3" else {}
        model = import_module("torchvision.models").get_model(network, **options)
    expected = {
        (each.in_channels, each.out_channels, each.kernel_size, each.groups)
        for each in model.modules()
        if isinstance(each, torch.nn.Conv2d)
    }
    found = set()
    for layer in layers_of(network):
        m = layer.module()
        found.add((m.in_channels, m.out_channels, m.kernel_size, m.groups))
        assert tuple(m(torch.empty(layer.input_shape(2), device="meta")).shape) == (
            layer.output_shape(2)
        )
    # Inception's auxiliary classifier has two that only training uses
    assert found <= expected and len(expected - found) <= 2


def test_every_layer_has_a_name_of_its_own() -> None:
    for network in NETWORKS:
        names = [layer.name for layer in layers_of(network)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("conv", "name", "category"),
    [
        (Conv.make(3, 4, 2, (6, 6), 2), "3-4x6 k2 s2", "dense"),
        (Conv.make(3, 4, 1, (6, 6)), "3-4x6 k1", "dense"),
        (Conv.make(3, 4, 1, (6, 6), 2), "3-4x6 k1 s2", "down-sampling"),
        (Conv.make(3, 4, (1, 3), (6, 6)), "3-4x6 k1x3", "mixed dense"),
        (Conv.make(3, 4, 2, (7, 7), 2), "3-4x7 k2 s2", "general"),
        (
            Conv.make(4, 4, 3, (6, 8), 1, 1, dilation=2, groups=2),
            "4-4x6x8 k3 d2 g2",
            "general",
        ),
    ],
)
def test_names_and_categories(conv: Conv, name: str, category: str) -> None:
    layer = Layer("none", conv)
    assert layer.name == name and layer.category == category


@pytest.mark.parametrize("layer", [layers_of("2c2d")[0], GROUPED])
@pytest.mark.parametrize("quantity", convolutions.QUANTITIES)
def test_contenders_agree(quantity: str, layer: Layer) -> None:
    asked = Asked(convolutions.QUANTITIES[quantity], layer, 2)
    own = contest(asked, torch.device("cpu"), timed=False)
    rows = list(own.rows(Options(memory=False)))
    reasons = {row["contender"]: row["reason"] for row in rows if "reason" in row}
    if layer.conv.groups > 1 and quantity.startswith("kfac"):
        assert reasons == {"curvlinops": "curvlinops averages the input over groups"}
    else:
        assert not reasons


def test_all_questions_can_be_asked() -> None:
    for name in NAMES:
        question = find(name)
        assert question.title.endswith("?")
        assert list(question.cases(Options(quick=True)))


@pytest.mark.parametrize("module", [convolutions, memory])
def test_rows_make_a_report(module: object, tmp_path: Path) -> None:
    question, path = module.QUESTION, tmp_path / "rows.jsonl"  # type: ignore[attr-defined]
    store = Store(path, machine.describe(torch.device("cpu")))
    wanted = "kfac_reduce, 3c3d, 96-128x6 k3"
    run(
        question,
        Options(quick=True),
        store,
        wanted=lambda case: case.title.startswith(wanted),
    )
    rows = load(path)
    assert {"ours", "stock"} <= set(rows["contender"])
    assert rows["reason"].isna().all() if "reason" in rows else True
    assert all(len(table) >= 0 for table in question.tables(rows).values())
    if module is convolutions:
        seconds = rows.set_index("contender")["seconds"]
        (ratio,) = Ratio(convolutions.CASE).of(rows)
        assert ratio == pytest.approx(seconds["stock"] / seconds["ours"])
        assert list(question.figures(rows)) == ["ratios"]
