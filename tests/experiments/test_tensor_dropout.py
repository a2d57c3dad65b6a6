"""The errors, bytes and trainings of tensor dropout are measured, and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from experiments import storage, tensor_dropout, tensor_dropout_report
from experiments.dropout import saved_bytes
from experiments.images import Images, Split, digits
from experiments.sampling_errors import (
    AXES,
    batch_errors,
    operands_of,
    sampling_errors,
    spread,
)
from experiments.tensor_dropout import LAYERS, MaskedReLU, cnn, contenders
from experiments.tensor_dropout_report import EXACT, points_lost, render, verdicts
from tn_extensions import functional


def few_digits(*_: Any) -> Images:
    data = digits()
    return Images(data.name, data.train.first(128), data.test.first(20))


def random_batch(size: int = 8) -> Split:
    return Split(torch.rand(size, 1, 16, 16), torch.arange(size))


def test_operands_are_those_of_the_weights_gradients() -> None:
    torch.manual_seed(0)
    model, batch = cnn(16, width=2), random_batch()
    found = operands_of(model, LAYERS, batch)
    nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
    for name, (conv, x, g) in found.items():
        expected = model.get_parameter(f"{name}.weight").grad
        actual = functional.weight_vjp(x, g, conv).reshape(expected.shape)
        torch.testing.assert_close(actual, expected)


def test_errors_of_channels_are_known() -> None:
    """Channels are slices of the gradient: of equal ones, a share would be lost."""
    torch.manual_seed(0)
    conv, x, g = operands_of(cnn(16), LAYERS[1:2], random_batch())["middle"]
    same = x[:, :1].expand_as(x).contiguous()
    operands = type(operands_of(cnn(16), LAYERS[:1], random_batch())["early"])
    records = list(sampling_errors(operands(conv, same, g), [0.5], ["fixed"], 2))
    errors = {record["axes"]: record["error"] for record in records}
    assert list(errors) == [" x ".join(axes) for axes in AXES]
    assert errors["ci"] == pytest.approx(1.0)  # sqrt(1 / p - 1)
    shares = {record["axes"]: record["share"] for record in records}
    assert shares["n"] == shares["ci"] == shares["i1"] == 0.5
    assert 0.3 < shares["n x ci"] < 0.7


def test_a_batch_of_all_data_has_no_error() -> None:
    model, batch = cnn(16, width=2), random_batch()
    assert max(batch_errors(model, LAYERS, batch, batch).values()) < 1e-5
    twice = Split(*(torch.cat([tensor, tensor.flip(0)]) for tensor in batch))
    assert max(batch_errors(model, LAYERS, batch, twice).values()) < 1e-5


def test_masks_are_a_quarter_of_what_is_held() -> None:
    x = torch.rand(4, 1, 16, 16)
    size = {
        activation: saved_bytes(cnn(16, 4, activation), x)
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
    keeps = contenders({("n", "ci"): (0.25,)})
    assert keeps == {EXACT: {}, "n x ci, 0.25": {"n": 0.5, "ci": 0.5}}
    assert spread(["n"], 0.3) == {"n": 0.3}
    gradients, batch = [], random_batch()
    for keep in (keeps["n x ci, 0.25"], keeps["n x ci, 0.25"], None):
        torch.manual_seed(3)
        model = cnn(16, 4, keep=keep)
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        weight = model.get_parameter("middle.weight")
        gradients.append((weight.detach(), weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0][0], gradients[2][0])
    assert (gradients[0][1] - gradients[2][1]).norm() > 0


def _run(contender: str, *accuracies: float) -> list[dict[str, Any]]:
    return [
        {
            "contender": contender,
            "lr": 0.1,
            "points": [{"step": 4, "seconds": 2.0, "loss": 0.5, "accuracy": accuracy}],
        }
        for accuracy in accuracies
    ]


def _error(axes: str, sampler: str, error: float) -> dict[str, Any]:
    where = {"step": 4, "layer": "late", "axes": axes, "sampler": sampler}
    return {**where, "asked": 0.5, "share": 0.4, "error": error}


@pytest.fixture
def content() -> dict[str, Any]:
    return {
        "metadata": {"data": "digits", "device_name": "a machine"},
        "errors": [
            {"step": 4, "layer": "late", "axes": "the batch itself", "error": 0.7},
            _error("n", "bernoulli", 0.6),
            _error("n", "fixed", 0.5),
            {**_error("n", "bernoulli", 1.5), "asked": 0.1, "share": 0.1},
        ],
        "memory": [
            {"activation": kind, "contender": name, "bytes": size}
            for kind, name, size in (
                ("masked ReLU", EXACT, 10240),
                ("masked ReLU", "n, 0.5", 6144),
                ("ReLU", EXACT, 8192),
                ("ReLU", "n, 0.5", 12288),
            )
        ],
        "search": [],
        "runs": [*_run(EXACT, 0.97, 0.95), *_run("n, 0.5", 0.94, 0.93)],
    }


def test_the_report_has_bars_and_tables(content: dict[str, Any]) -> None:
    assert points_lost(content) == {"n, 0.5": pytest.approx(2.5)}
    (verdict,) = verdicts(content)
    assert verdict.met is False
    lines = render(content, "e.svg", "t.svg").splitlines()
    for line in (
        "![e.svg](e.svg)",
        "| digits, n, 0.5: points of test accuracy lost | <= 1 | 2.5 | **no** |",
        "| the batch itself | 0.7 |",
        "| n | 0.6 |",
        "| n | 0.6 | 0.5 |",
        "| n, 0.5 | 0.6 | 0.75 | 0.5 +- 0 | 93.5 +- 0.71 | 0.1 | 500 |",
        "| n, 0.5 | 6 | 12 |",
    ):
        assert line in lines
    chart = ElementTree.fromstring(tensor_dropout_report.error_chart(content))
    (curve,) = chart.findall("{*}polyline")
    assert len(curve.attrib["points"].split()) == 2


def test_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_dropout, "find_images", few_digits)
    output = tmp_path / "dropout.json"
    threads = torch.get_num_threads()
    options = f"--quick --threads {threads} --output {output}"
    assert tensor_dropout.main(options.split()) == output
    endings = (".json", ".md", "-errors.svg", "-training.svg")
    written = [str(tmp_path / f"dropout{ending}") for ending in endings]
    assert capsys.readouterr().out.splitlines()[-4:] == written
    found = storage.read_json(output)
    assert len(found["errors"]) == 3 * (1 + len(AXES) * 3 * 2)
    assert [run["contender"] for run in found["runs"]] == [EXACT, "n, 0.5"]
    report = output.with_suffix(".md").read_text("utf-8")
    output.with_suffix(".md").unlink()
    tensor_dropout_report.main([str(output)])
    assert output.with_suffix(".md").read_text("utf-8") == report


def test_nothing_is_written_before_all_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_dropout, "trainings", interrupted)
    monkeypatch.setattr(tensor_dropout, "errors", lambda *_: [])
    monkeypatch.setattr(tensor_dropout, "find_images", few_digits)
    with pytest.raises(KeyboardInterrupt):
        tensor_dropout.main(["--quick", "--output", str(tmp_path / "x.json")])
    assert not list(tmp_path.iterdir())


def test_images_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any) -> Images:
        raise FileNotFoundError("no Fashion-MNIST")

    monkeypatch.setattr(tensor_dropout, "find_images", missing)
    with pytest.raises(SystemExit):
        tensor_dropout.main(["--images", "fashion-mnist"])
    assert "--images: no Fashion-MNIST" in capsys.readouterr().err
