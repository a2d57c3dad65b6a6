"""The closest Kronecker product, against the singular vectors of the exact block."""

from __future__ import annotations

from typing import Any

import curvlinops as stock
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.messages import assert_in_form
from tn_extensions import curvlinops as ours
from tn_extensions.layers.module import kernel_matrices, transposed_groups

NAME = "KFOCLinearOperator"
LAYERS = {
    "1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "grouped": (nn.Conv2d(4, 4, 2, groups=2), (4, 3, 3)),
    "transposed": (nn.ConvTranspose1d(4, 4, 2, stride=2, groups=2), (4, 3)),
    "3d": (nn.Conv3d(1, 2, 2), (1, 2, 3, 2)),
}


def closest(block: Tensor, channels: int) -> Tensor:
    columns = len(block) // channels
    sides = 2 * (channels, columns)
    rearranged = block.reshape(sides).transpose(1, 2).flatten(2).flatten(0, 1)
    left, values, right = torch.linalg.svd(rearranged, full_matrices=False)
    found = values[0] * torch.outer(left[:, 0], right[0])
    square = (channels, channels, columns, columns)
    return found.reshape(square).transpose(1, 2).reshape(block.shape)


@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_closest_to_the_exact_matrix(layer: Any, shape: Any, fisher: str) -> None:
    x, y = images(4, *shape), targets(4)
    model = classifier(layer, nn.Tanh(), x=x)
    params, loss = list(model.parameters()), nn.CrossEntropyLoss()
    data = [(x[:3], y[:3]), (x[3:], y[3:])]
    options: dict[str, Any] = {"fisher_type": fisher, "tolerance": 1e-12}
    op = ours.KFOCLinearOperator(model, loss, params, data, max_sweeps=5000, **options)
    kind = "GGN" if fisher == "type-2" else "EF"
    exact = getattr(stock, f"{kind}LinearOperator")(model, loss, params, data)
    eye = torch.eye(op.shape[1], dtype=torch.float64)
    found, matrix = op @ eye, exact @ eye
    # where a layer's weight and bias lie in the vectors, by group, channel and column
    numbers = torch.arange(layer.weight.numel()).view(1, *layer.weight.shape)
    groups = layer.groups
    (rows,) = kernel_matrices(numbers, groups, transposed_groups(layer))
    biases = layer.weight.numel() + torch.arange(len(layer.bias))
    rows = torch.cat([rows, biases.view(groups, -1, 1)], 2)
    for own in rows:
        places = own.flatten()
        best = closest(matrix[places[:, None], places], len(own))
        mine = found[places[:, None], places]
        assert_close(mine, best, rtol=1e-7, atol=1e-8 * float(best.abs().max()))
    # nothing between groups
    first, others = rows[0].flatten(), rows[1:].flatten()
    assert not found[first[:, None], others].any()


def test_closer_than_kfac_and_inverted() -> None:
    x, y = images(6, 2, 4, 4), targets(6)
    model = classifier(nn.Conv2d(2, 3, 3), nn.Tanh(), x=x)
    arguments = model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)]
    options: dict[str, Any] = {"fisher_type": "type-2"}
    op = ours.KFOCLinearOperator(*arguments, **options)
    options["separate_weight_and_bias"] = False
    eye = torch.eye(op.shape[1], dtype=torch.float64)
    kfac = ours.KFACLinearOperator(*arguments, **options) @ eye
    exact = stock.GGNLinearOperator(*arguments) @ eye
    found = op @ eye
    kept = kfac != 0
    mine, others = ((each - exact)[kept].norm() for each in (found, kfac))
    assert mine < others
    inverse = op.inverse(damping=0.1, use_exact_damping=True) @ eye
    assert_close(inverse, torch.linalg.inv(found + 0.1 * eye))
    assert_close(op.trace, found.trace())


def test_single_parameters() -> None:
    """A weight without its bias; a bias, whose block is exact."""
    x, y = images(5, 4), targets(5)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    loss, data = nn.CrossEntropyLoss(), [(x, y)]
    weight, bias = model[0].parameters()
    for parameter in (weight, bias):
        options: dict[str, Any] = {"fisher_type": "type-2", "tolerance": 1e-12}
        op = ours.KFOCLinearOperator(model, loss, [parameter], data, **options)
        eye = torch.eye(op.shape[1], dtype=torch.float64)
        exact = stock.GGNLinearOperator(model, loss, [parameter], data) @ eye
        assert_close(op @ eye, closest(exact, 3) if parameter is weight else exact)


def test_bad_input() -> None:
    x, y = images(5, 4), targets(5)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    arguments = model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)]
    wrong: dict[str, Any] = {
        "tolerance": 0.0,
        "max_sweeps": 1,
        "kfac_approx": "reduce",
        "fisher_type": "forward-only",
        "separate_weight_and_bias": True,
    }
    for name, value in wrong.items():
        with pytest.raises((ValueError, NotImplementedError)) as error:
            ours.KFOCLinearOperator(*arguments, **{name: value})
        assert_in_form(error.value, NAME, name)
