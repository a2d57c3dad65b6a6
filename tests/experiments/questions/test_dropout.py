"""Errors, bytes and trainings of tensor dropout are what they are called."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.contenders.dropout import (
    AXES,
    MaskedReLU,
    batch_error,
    named,
    operands_of,
    sampled_cnn,
    sampling_errors,
    saved_bytes,
    spread,
)
from experiments.harness.case import Options
from experiments.questions import dropout
from experiments.questions.dropout import BATCH, EXACT, LAYERS, QUESTION, WAYS, summary
from experiments.subjects import images
from experiments.subjects.images import Images, Split, digits
from tn_extensions import functional

QUICK = Options(quick=True)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    few = Images(data.name, data.train.first(128), data.test.first(20))
    monkeypatch.setattr(images, "digits", lambda: few)


def random_batch(size: int = 8) -> Split:
    return Split(torch.rand(size, 1, 16, 16), torch.arange(size))


def test_operands_are_those_of_the_weights_gradients() -> None:
    torch.manual_seed(0)
    model, batch = sampled_cnn(16, {}, width=2), random_batch()
    nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
    for name in LAYERS:
        conv, x, g = operands_of(model, name, batch)
        expected = model.get_parameter(f"{name}.weight").grad
        assert expected is not None
        actual = functional.weight_vjp(x, g, conv).reshape(expected.shape)
        torch.testing.assert_close(actual, expected)


def test_errors_of_channels_are_known() -> None:
    """Channels are slices of the gradient: of equal ones, a share would be lost."""
    torch.manual_seed(0)
    found = operands_of(sampled_cnn(16, {}), "middle", random_batch())
    same = found._replace(x=found.x[:, :1].expand_as(found.x).contiguous())
    rows = list(sampling_errors(same, [0.5], ["fixed"], 2))
    errors = {row["axes"]: row["error"] for row in rows}
    assert list(errors) == [named(axes) for axes in AXES]
    assert errors["ci"] == pytest.approx(1.0)  # sqrt(1 / p - 1)
    shares = {row["axes"]: row["share"] for row in rows}
    assert shares["n"] == shares["ci"] == shares["i1"] == 0.5
    assert 0.3 < shares["n x ci"] < 0.7


def test_a_batch_of_all_data_has_no_error() -> None:
    model, batch = sampled_cnn(16, {}, width=2), random_batch()
    twice = Split(*(torch.cat([tensor, tensor.flip(0)]) for tensor in batch))
    for data in (batch, twice):
        assert batch_error(model, "late", batch, data) < 1e-5


def test_masks_are_a_quarter_of_what_is_held() -> None:
    x = torch.rand(4, 1, 16, 16)
    size = {
        activation: saved_bytes(sampled_cnn(16, {}, activation, 4), x)
        for activation in (MaskedReLU, nn.ReLU, nn.SiLU)
    }
    # inputs of convolutions; then what each activation holds
    inputs = 4 * 4 * (256 + 4 * 64 + 8 * 64 + 8 * 16 + 16 * 16)
    activations = 4 * 4 * (4 * 64 + 8 * 64 + 8 * 16 + 16 * 16)
    assert size[nn.ReLU] == inputs
    assert size[MaskedReLU] == inputs + activations // 4
    assert size[nn.SiLU] == inputs + activations
    torch.testing.assert_close(MaskedReLU()(x - 0.5), (x - 0.5).relu())


def test_ways_to_train_start_alike_and_draw_alike() -> None:
    assert WAYS["n x ci, 0.25"] == {"n": 0.5, "ci": 0.5}
    assert spread(("n",), 0.3) == {"n": 0.3}
    gradients, batch = [], random_batch()
    for way in ("n x ci, 0.25", "n x ci, 0.25", EXACT):
        torch.manual_seed(3)
        model = sampled_cnn(16, WAYS[way])
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        weight = model.get_parameter("middle.weight")
        assert weight.grad is not None
        gradients.append((weight.detach(), weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0][0], gradients[2][0])
    assert (gradients[0][1] - gradients[2][1]).norm() > 0


@pytest.fixture
def rows() -> pd.DataFrame:
    """Rows of the smallest case of each part."""
    cases = {case.title: case for case in QUESTION.cases(QUICK)}
    wanted = ("trained CNN", "n x i1", "bytes", "exact", "n, 0.5")
    return pd.DataFrame(
        {**case.key, **row}
        for title, case in cases.items()
        if title.endswith(wanted) or title.startswith("errors, trained")
        for row in case.measure(QUICK)
    )


def test_the_question_is_answered(rows: pd.DataFrame) -> None:
    assert "reason" not in rows
    errors = rows[rows["part"] == "errors"]
    assert set(errors["layer"]) == set(LAYERS) and BATCH in set(errors["axes"])
    layers = rows[rows["part"] == "layers"].set_index("contender")
    assert layers["seconds"].min() > 0
    assert layers["saved"].to_dict() == pytest.approx({"stock": 1, "ours": 0.25}, 1e-2)
    found = summary(rows)
    exact, half = (found.loc[("digits", way)] for way in (EXACT, "n, 0.5"))
    assert exact["points lost"] == 0
    lost = 100 * (exact["accuracy"] - half["accuracy"])
    assert half["points lost"] == pytest.approx(lost)
    assert len(QUESTION.figures(rows)) == 1
    assert len(QUESTION.tables(rows)) == 5


def test_wrong_gradients_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(layer: nn.Module, *_: object, **__: object) -> nn.Module:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1.1)
        return layer

    monkeypatch.setattr(dropout, "convert", wrong)
    stock, ours = dropout._backward("64x28 k3", ("n", "i1"), Options(memory=False))
    assert stock["seconds"] > 0
    assert "relative error" in ours["reason"] and "seconds" not in ours
