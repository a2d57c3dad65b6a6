"""The benchmark of gradient quantities, on one small layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from experiments import quantities, storage
from experiments.gradient_contenders import CONTENDERS, make_case, reference
from experiments.layers import select
from experiments.quantities import PARTS

TINY = "allcnnc/192-100x6-k1"


@pytest.mark.parametrize("quantity", CONTENDERS)
def test_contenders_agree(quantity: str) -> None:
    (layer,) = select([TINY])
    case = make_case(layer, 2, 2 if quantity.startswith("ggn") else None)
    exact = reference(quantity, case)
    for compute in CONTENDERS[quantity].values():
        result = compute(case).double()
        assert_close(result, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def test_one_layer_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "quantities.json"
    threads = torch.get_num_threads()
    line = f"--quick --layers {TINY} --rounds 5 --num-vectors 1 10 --output {output}"
    try:
        assert quantities.main([*line.split(), "--memory"]) == output
    finally:
        torch.set_num_threads(threads)
    assert str(output) in capsys.readouterr().out
    records = storage.read_json(output)["records"]
    measured = [(record["quantity"], record["num_vectors"]) for record in records]
    expected = [part[:2] for part in PARTS if (part.num_vectors or 1) <= 10]
    assert measured == expected
    for record in records:
        for outcome in record["contenders"].values():
            assert outcome["error"] < 1e-3 and outcome["ratio"] > 0
    report = output.with_suffix(".md").read_text("utf-8")
    for record in records:
        assert f"## {record['part']}\n" in report
        assert f"| {record['part']} |" in report
    assert report.count(TINY) == len(records)


def test_parts_cover_what_stock_can_hold() -> None:
    layers = select(None)
    for part in PARTS:
        covered = [layer for layer in layers if part.covers(layer)]
        assert covered
        for layer in covered:
            gradients = (part.num_vectors or 1) * part.batch_size
            assert gradients * layer.make_module(device="meta").weight.numel() < 2.6e9
