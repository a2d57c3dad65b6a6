"""Vectors of losses against Hessians and gradients by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.strategies import noise_tensor
from tn_extensions.layers import losses

WEIGHT = torch.tensor([0.5, 2.0, 3.0]).double()
CROSS_ENTROPIES: list[dict[str, Any]] = [
    {},
    {"weight": WEIGHT},
    {"label_smoothing": 0.2},
    {"weight": WEIGHT, "label_smoothing": 0.2},
    {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 1},
]
IMAGES = [2, 3, 4, 5]


def positive(*shape: int) -> Tensor:
    return 0.1 + noise_tensor(shape).abs()


BINARY: dict[str, tuple[list[int], dict[str, Tensor]]] = {
    "rows": ([4, 3], {"weight": positive(3), "pos_weight": positive(3)}),
    "each": ([4, 3], {"weight": positive(4, 3), "pos_weight": positive(4, 1)}),
    "channels": (IMAGES, {"pos_weight": positive(3, 1, 1)}),
    "pixels": (IMAGES, {"weight": positive(4, 5), "pos_weight": positive(5)}),
    "all": (IMAGES, {"weight": positive(*IMAGES), "pos_weight": positive(3, 4, 1)}),
    "one": (IMAGES, {"weight": positive(), "pos_weight": positive(1)}),
    "sequence": ([2, 3, 4], {"weight": positive(2, 1, 1)}),
}


def ordered(output: Tensor, is_last: bool) -> Tensor:
    """Positions of the outputs' entries as rows ``[R, C]``."""
    positions = torch.arange(output.numel()).reshape(output.shape)
    moved = positions if is_last else positions.movedim(1, -1)
    return moved.reshape(-1, moved.shape[-1])


def check(loss: Any, output: Tensor, y: Tensor, is_last: bool) -> None:
    """The root's columns make the Hessian, and the gradient is the gradient."""
    order = ordered(output, is_last)
    size = output.numel()
    exact = hessian(lambda f: loss(f, y), output).reshape(size, size)  # type: ignore[no-untyped-call]
    of_rows, rows, targets = losses.in_rows(loss, output, y)
    assert_close(rows, output.flatten()[order])
    scale = losses.scale(of_rows, rows, targets)
    columns = losses.hessian_columns(losses.plain(of_rows), rows)
    root = torch.stack([*losses.scaled(columns, scale)], 2)
    # as curvlinops scales them: blocks of a mean's are divided by the rows once more
    is_mean = loss.reduction == "mean"
    found = torch.zeros_like(exact)
    for own, block in zip(order, root @ root.mT, strict=True):
        found[own[:, None], own] = block * (len(rows) if is_mean else 1)
    assert_close(found, exact)
    leaf = output.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, y), leaf)
    gradient = losses.gradient(of_rows, rows, targets)
    over_classes = is_mean and is_last
    root_of_classes = order.shape[1] ** 0.5 if over_classes else 1
    assert_close(gradient, expected.flatten()[order] * root_of_classes)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", CROSS_ENTROPIES)
@pytest.mark.parametrize("shape", [[4, 3], [2, 3, 4], [2, 3, 2, 2]])
@pytest.mark.parametrize("is_soft", [True, False])
def test_cross_entropy(
    is_soft: bool, shape: list[int], options: dict[str, Any], reduction: str
) -> None:
    loss = nn.CrossEntropyLoss(reduction=reduction, **options)
    output, others = noise_tensor([2, *shape])
    if is_soft and "ignore_index" in options:
        with pytest.raises(ValueError, match="ignored") as error:
            losses.in_rows(loss, output, others)
        assert_in_form(error.value, "CrossEntropyLoss", "targets")
        return
    # torch does not ask that they sum to one
    y = others.softmax(1) * 1.3 if is_soft else others.argmax(1)
    check(loss, output, y, is_last=False)
    assert losses.num_terms(loss, y) == output.numel() // 3


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("shape", "weights"), BINARY.values(), ids=BINARY)
def test_binary_cross_entropy(
    shape: list[int], weights: dict[str, Tensor], reduction: str
) -> None:
    loss = nn.BCEWithLogitsLoss(reduction=reduction, **weights)
    output, y = noise_tensor([2, *shape])
    check(loss, output, y.sigmoid(), is_last=True)
    assert losses.num_terms(loss, y) == output.numel() // shape[-1]


def test_small_integers_are_classes() -> None:
    """They index, and are no masks."""
    loss = nn.CrossEntropyLoss(WEIGHT)
    output, y = noise_tensor([4, 3]), torch.tensor([0, 1, 2, 1])
    assert_close(
        losses.scale(loss, output, y.to(torch.uint8)), losses.scale(loss, output, y)
    )


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_weights_that_do_not_fit(name: str) -> None:
    loss = nn.BCEWithLogitsLoss(**{name: torch.ones(3)})
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 5\]") as error:
        losses.in_rows(loss, torch.zeros(IMAGES), torch.zeros(IMAGES))
    assert_in_form(error.value, "BCEWithLogitsLoss", name)
