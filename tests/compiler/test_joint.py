"""Joint plans: what is shared, in which chunks, and that results stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import BATCHES, convs, examples, noise_tensor
from tn_extensions import Conv, TensorNetwork, planning, quantities, wisdom
from tn_extensions.compiler import plan
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.joint import JointPlan, joint_plan

CONV = Conv.make(8, 8, 3, (12, 12), padding=1)
N = 4


def networks(conv: Conv = CONV, batch_size: int = N) -> list[TensorNetwork]:
    """Of all kinds: kept, summed, squared, multiplied; and one of something else."""
    return [
        quantities.per_sample_grad_norm(conv, batch_size, 2),
        quantities.ggn_diagonal(conv, batch_size, 2),
        quantities.ggn_diagonal(conv, batch_size, 2, per_sample=True),
        quantities.ggn_gram(conv, batch_size, 2),
        quantities.kfac_reduce(conv, batch_size),
    ]


def tensors(networks: list[TensorNetwork]) -> dict[str, Tensor]:
    shapes = {one.name: one.shape for own in networks for one in own.operands}
    return {name: noise_tensor(shape) for name, shape in shapes.items()}


def planned(
    networks: list[TensorNetwork], budget: int = 2**28, mode: str = "estimate"
) -> JointPlan:
    return JointPlan(networks, torch.float64, "cpu", budget, mode)  # type: ignore[arg-type]


def apart(networks: list[TensorNetwork]) -> list[Tensor]:
    given = tensors(networks)
    return [
        plan(one, torch.float64).run({o.name: given[o.name] for o in one.operands})
        for one in networks
    ]


@pytest.mark.parametrize("with_part", [False, True])
@examples(15)
@given(conv=convs(), batch_size=BATCHES)
def test_values(conv: Conv, batch_size: int, with_part: bool) -> None:
    """Of each sharing, chosen or not."""
    asked = networks(conv, batch_size)
    if with_part:
        asked.append(quantities.per_sample_grad(conv, batch_size, 2))
    found, expected = planned(asked), apart(asked)
    for sharing in (None, *found.sharings):
        assert_close(found._execute(sharing, tensors(asked)), expected)


def test_part_that_is_asked_for() -> None:
    """It is the result itself; whatever the budget, no other is held."""
    part = quantities.per_sample_grad(CONV, N)
    asked = [quantities.per_sample_grad_norm(CONV, N), part]
    found = planned(asked)
    assert found.sharing is not None and found.sharing.part.network == part
    norms, gradients = found.run(tensors(asked))
    assert_close(norms, gradients.flatten(1).square().sum(1))


def test_what_has_nothing_in_common() -> None:
    asked = [quantities.kfac_reduce(CONV, N), quantities.bias_vjp(CONV, N)]
    found = planned(asked)
    assert found.sharings == () and found.sharing is None
    assert_close(found.run(tensors(asked)), apart(asked))


def test_two_parts() -> None:
    """The networks that one sharing leaves are planned in the same way."""
    conv = Conv.make(32, 32, 3, (28, 28), padding=1)
    asked = [
        quantities.ggn_diagonal(conv, N, 2),
        quantities.ggn_gram(conv, N, 2),
        quantities.bias_ggn_gram(conv, N, 2),
        quantities.bias_per_sample_grad(conv, N, 2),
    ]
    found = planned(asked)
    assert found.sharing is not None and {*found.sharing.members} == {0, 1}
    assert_close(found.run(tensors(asked)), apart(asked))
    assert str(found).count("at once") == 2 + len(found.sharings)


def test_traced() -> None:
    """Derivatives flow as through plans of their own."""
    asked = [quantities.per_sample_grad(CONV, N), quantities.weight_vjp(CONV, N)]
    given = tensors(asked)
    given["x"].requires_grad_()
    gradients, total = planned(asked).run(given)
    assert gradients.requires_grad and total.requires_grad
    assert_close(gradients.sum(0), total)


def test_text() -> None:
    text = str(planned(networks()))
    assert text.startswith("Joint plan of per_sample_grad_norm, ggn_diagonal")
    for part in ("chosen", "estimated", "at once", "rejected", "each on its own"):
        assert part in text


def test_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All alternatives are, once, and are remembered."""
    monkeypatch.setenv("TN_EXTENSIONS_CACHE", str(tmp_path))
    asked = networks()
    wisdom.forget()
    with planning("measure"):
        found = joint_plan(asked, torch.float64)
        assert not found.measured
        assert_close(found.run(tensors(asked)), apart(asked))
    assert {"each on its own", found.sharings[0].title} <= {*found.measured}
    assert planned(asked).measured == found.measured
    assert ", measured" in str(found)
    wisdom.forget()


def test_nothing_is_measured_if_torch_is_deterministic(cache: Path) -> None:
    asked = networks()
    torch.use_deterministic_algorithms(True)
    try:
        with planning("measure"):
            found = joint_plan(asked, torch.float64)
            assert_close(found.run(tensors(asked)), apart(asked))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not found.measured and not [*cache.rglob("*.json")]


def test_cached() -> None:
    asked = tuple(networks())
    assert joint_plan(asked) is joint_plan(list(asked))
    assert joint_plan(asked) is not joint_plan(asked, budget=2**20)


def test_half_that_shares_all_indices() -> None:
    """Squares of one operand, of which no index has a copy."""
    network = quantities.unfold_input(CONV, N)
    squares = network.times_copy(network.sizes, [("n",)])
    half = Half.of(squares)
    assert half is not None and half.batch == ("n",) and not half.columns
    assert len(half.operands) == 1
    (expected,) = apart([squares])
    unfolded = torch.nn.functional.unfold(tensors([squares])["x"], 3, padding=1)
    assert_close(expected, unfolded.square().sum((1, 2)))
