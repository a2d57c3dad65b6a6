"""The measurement of tensor dropout runs, and knows what is saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.dropout import compare, main, saved_share
from tn_extensions.dropout import TensorDropoutConv2d


def test_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--threads", str(torch.get_num_threads())])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("| 64x28 k3 | ")
    assert lines[2].count("(0.25") == 5  # output positions save less


def test_depthwise_channels_are_groups() -> None:
    layer = nn.Conv2d(8, 8, 3, groups=8)
    ratio, share = compare(layer, (4, 8, 12, 12), {"n": 0.5, "ci": 0.5}, "fixed", 5)
    assert ratio > 0 and share == pytest.approx(0.25, abs=0.02)


def test_saved_share() -> None:
    x = torch.rand(4, 8, 28, 28, requires_grad=True)
    assert saved_share(nn.Conv2d(8, 8, 3), x) == 1
    layer = TensorDropoutConv2d(8, 8, 3, keep={"n": 0.5}, sampler="fixed")
    assert saved_share(layer, x) == pytest.approx(0.5, abs=0.01)
