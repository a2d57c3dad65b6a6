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
    """Check the Hessian that the root's columns make, and the gradient."""
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
        with pytest.raises(ValueError, match="ignores an index") as error:
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


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(reduction="sum")])
def test_vectors(loss: Any) -> None:
    """Draws have the GGN as their mean; targets are not needed for them."""
    output = noise_tensor([3, 2, 4])
    terms = losses.LossTerms.of("test", loss, output)
    is_cross_entropy = isinstance(loss, nn.CrossEntropyLoss)
    order = ordered(output, is_last=not is_cross_entropy)
    assert_close(terms.output, output.flatten()[order])
    root = torch.stack([*terms.vectors("type-2")], 2)
    scale = losses.scale_of_sum(loss, len(order))
    expected = scale * root @ root.mT
    # 200 samples of 100 copies of the data are as many as 20 000 of each
    copies = losses.LossTerms.of("test", loss, output.repeat(100, 1, 1))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([*copies.vectors("mc", 200, generator)], 2)
    assert not torch.equal(draws[..., 0], draws[..., 1])
    of_draws = losses.scale_of_sum(loss, len(draws), 200)
    found = (of_draws * draws @ draws.mT).unflatten(0, (100, -1)).mean(0)
    atol = 0.05 * float(expected.abs().max())
    assert_close(found, expected, rtol=0, atol=atol)
    y = output.argmax(1) if is_cross_entropy else output.sigmoid()
    with_targets = losses.LossTerms.of("test", loss, output, y)
    assert_close([*with_targets.vectors("type-2")], [*terms.vectors("type-2")])
    (gradient,) = with_targets.vectors("empirical")
    leaf = terms.output.clone().requires_grad_()
    targets = y.flatten() if is_cross_entropy else y.flatten()[order]
    (expected,) = torch.autograd.grad(loss(leaf, targets), leaf)
    assert_close(gradient, expected)
    assert not [*with_targets.vectors("forward-only")]


def test_each_term() -> None:
    vectors = noise_tensor([2, 6, 3])
    found = [*losses.each_term(vectors, 3)]
    assert len(found) == 6
    assert_close(found[0] + found[1] + found[2], vectors[0])
    assert_close(found[4][[1, 4]], vectors[1][[1, 4]])
    assert not found[4][[0, 2, 3, 5]].any()


def test_outputs_that_are_refused() -> None:
    loss, y = nn.MSELoss(), torch.ones(2, 3)
    with pytest.raises(TypeError, match="dict of logits") as error:
        losses.LossTerms.of("test", loss, {"logits": y}, y)
    assert_in_form(error.value, "test", "the model's output")
    with pytest.raises(ValueError, match="axes") as wrong:
        losses.LossTerms.of("test", loss, y[0], y[0])
    assert_in_form(wrong.value, "test", "outputs")
    with pytest.raises(ValueError, match="row") as wrong:
        losses.LossTerms.of("test", loss, y, y[:1])
    assert_in_form(wrong.value, "test", "targets")
    terms = losses.LossTerms.of("test", loss, y * torch.inf)
    with pytest.raises(ValueError, match="finite") as wrong:
        next(terms.vectors("mc"))
    assert_in_form(wrong.value, "test", "the model's output")


def test_terms_per_datum() -> None:
    loss = nn.CrossEntropyLoss()
    classes = torch.zeros(2, 3, dtype=torch.long)
    assert losses.terms_per_datum("test", loss, [classes, classes[:1]], 3) == 3
    with pytest.raises(ValueError, match="9 in all") as error:
        losses.terms_per_datum("test", loss, [classes, classes[:1]], 2)
    assert_in_form(error.value, "test", "targets")
