"""Plans: every way is right, the choice is explained, bounded in memory and cached."""

from __future__ import annotations

import importlib
import statistics
import threading
import time
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.compiler.candidates import (
    LARGE,
    TINY,
    assert_evaluates,
    layer,
    target,
)
from tests.messages import assert_in_form
from tests.network.rules.identities import QUANTITIES, arrays_of
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise_tensor
from tn_extensions import Conv, TensorNetwork, functional, memory_budget, quantities
from tn_extensions.compiler import Plan, plan
from tn_extensions.compiler.budget import current_budget
from tn_extensions.compiler.candidate import Candidate, Operation
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.plan import candidates
from tn_extensions.network import Affine, Axis, Operand, Pair, Pattern, simplify

# the package's attribute of this name is the function
module = importlib.import_module("tn_extensions.compiler.plan")


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.__name__)
@pytest.mark.parametrize("budget", [LARGE, TINY])
@examples(25)
@given(convs(), BATCHES)
def test_every_way_is_right(
    quantity: Any, budget: int, conv: Conv, batch_size: int
) -> None:
    network = quantity(conv, batch_size)
    arrays = arrays_of(network)
    expected = dense.evaluate(network, arrays)
    ways = list(candidates(network, target(budget)))
    assert ways
    for way in ways:
        assert_evaluates(way, network, arrays, expected)


def test_the_planner_knows_several_candidates() -> None:
    network = simplify(quantities.kfac_expand(layer(), 2))
    kinds = {way.name.split("(")[0] for way in candidates(network, target())}
    assert {"gram", "lag", "einsum"} <= kinds
    network = simplify(quantities.kfac_reduce(layer(), 2))
    kinds = {way.name for way in candidates(network, target())}
    assert {"gram(window)", "einsum"} <= kinds


def factor_plan(
    channels: int = 8, size: int = 12, batch_size: int = 4, **options: Any
) -> Plan:
    """Plan for KFAC-expand of an ordinary layer."""
    conv = Conv.make(channels, 8, 3, (size, size), padding=1, **options)
    return plan(quantities.kfac_expand(conv, batch_size))


def test_summary_is_a_line() -> None:
    summary = factor_plan().summary
    assert "\n" not in summary
    assert summary.startswith(factor_plan().candidate.name)
    for unit in ("multiply-adds", "MiB moved", "MiB held", "ms"):
        assert unit in summary


def test_the_cheapest_way_is_chosen() -> None:
    chosen = factor_plan()

    ways = [chosen.candidate, *chosen.rejected]
    assert ways == sorted(ways, key=module._preference(chosen.target))
    assert chosen.cost == chosen.candidate.cost


def test_of_ways_about_as_fast_the_leaner_one_is_chosen() -> None:
    target = factor_plan().target

    def way(seconds: float, peak: int) -> Candidate:
        rows = (Operation("some", cost=Cost(seconds=seconds)),)
        return Candidate("some", rows, peak, lambda tensors, into: None)

    order = module._preference(target)
    assert order(way(1e-3, 10**3)) < order(way(0.99e-3, 10**6))
    assert order(way(1e-3, 10**3)) > order(way(0.5e-3, 10**6))
    # memory that the system has to clear is dear
    assert order(way(40e-3, 10**6)) < order(way(35e-3, 10**7))
    assert order(way(80e-3, 10**6)) > order(way(35e-3, 10**7))
    # what does not fit comes last, however fast
    assert order(way(1.0, 10)) < order(way(1e-6, 2 * target.budget))


def test_plans_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[TensorNetwork] = []

    def counting(network: TensorNetwork, *args: Any, **kwargs: Any) -> Any:
        calls.append(network)
        return simplify(network, *args, **kwargs)

    monkeypatch.setattr(module, "simplify", counting)
    first = factor_plan(channels=7, size=9)
    count = len(calls)
    assert count >= 1
    assert factor_plan(channels=7, size=9) is first
    assert len(calls) == count
    x = noise_tensor((4, 7, 9, 9), torch.float32)
    conv = Conv.make(7, 8, 3, (9, 9), padding=1)
    for _ in range(3):
        functional.kfac_expand(x, conv)
        functional.kfac_expand(x, Conv.make(7, 8, 3, (9, 9), padding=1), scale=2.0)
    assert functional.plan("kfac_expand", x, conv) is first
    assert len(calls) == count


def test_what_a_plan_depends_on() -> None:
    network = quantities.kfac_expand(layer(), 2)
    single = plan(network)
    assert plan(network, torch.float64) is not single
    assert plan(quantities.kfac_expand(layer(), 3)) is not single
    with memory_budget(TINY):
        assert plan(network) is not single
    assert plan(network) is single
    assert plan(network, device="cuda").target.rates != single.target.rates


def median_seconds(call: Any, repetitions: int = 200) -> float:
    """Median time of a call, after warming up."""
    times = []
    for _ in range(repetitions + 5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def test_a_repeated_call_has_little_overhead() -> None:
    conv = Conv.make(2, 2, 3, (6, 6), padding=1)
    x = torch.ones(2, 2, 6, 6)
    assert median_seconds(lambda: functional.plan("kfac_expand", x, conv)) < 1e-4
    out = torch.zeros(1, 18, 18)
    assert median_seconds(lambda: functional.kfac_expand(x, conv, out=out)) < 1e-3


@pytest.mark.parametrize("quantity", ["kfac_expand", "kfac_reduce"])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 4}])
def test_plans_fit_into_the_budget(quantity: str, options: dict[str, Any]) -> None:
    conv = Conv.make(16, 16, 3, (20, 20), padding=1, **options)
    network = getattr(quantities, quantity)(conv, 32)
    # what the leanest way of all needs for one sample
    ways = candidates(network, target(1, itemsize=4))
    least = min(4 * way.cost.peak for way in ways)
    # parts are planned within all of the budget, and something is held beside them
    least *= 2
    for budget in (least, 2 * least, 2**18, 2**20, 2**22, 2**26):
        with memory_budget(max(budget, 1)):
            chosen = plan(network)
        assert chosen.target.budget == max(budget, 1)
        if budget >= least:
            assert 4 * chosen.cost.peak <= budget


def test_a_budget_changes_the_plan() -> None:
    conv = Conv.make(16, 16, 3, (20, 20), padding=1)
    network = quantities.kfac_expand(conv, 32)
    free = plan(network)
    with memory_budget(2**16):
        tight = plan(network)
    assert tight.cost.peak < free.cost.peak
    assert tight.cost.seconds > free.cost.seconds
    x = noise_tensor((32, 16, 20, 20), torch.float32)
    with memory_budget(2**16):
        result = functional.kfac_expand(x, conv)
    assert_close(result, functional.kfac_expand(x, conv), rtol=1e-4, atol=1e-3)


def test_no_budget_is_too_small() -> None:
    x = noise_tensor((3, 2, 6, 6))
    expected = torch.from_numpy(dense.factor(layer(), x.numpy(), "expand"))
    with memory_budget(1):
        assert_close(functional.kfac_expand(x, layer()), expected)


def test_budget_is_restored_after_errors() -> None:
    before = current_budget()
    with pytest.raises(ValueError), memory_budget(TINY):
        functional.kfac_expand(torch.ones(1, 3, 6, 6), layer())
    assert current_budget() == before


@examples(25)
@given(
    convs(max_dims=2),
    BATCHES,
    st.sampled_from(["kfac_expand", "kfac_reduce"]),
    st.sampled_from(["contiguous", "rows", "columns", "transposed"]),
    st.booleans(),
)
def test_run_writes_to_any_strided_target(
    conv: Conv, batch_size: int, name: str, layout: str, accumulate: bool
) -> None:
    network = getattr(quantities, name)(conv, batch_size)
    arrays = arrays_of(network)
    expected = torch.from_numpy(dense.evaluate(network, arrays))
    groups, size, _ = network.shape
    whole = noise_tensor((groups, 2 * size + 1, 2 * size + 1))
    index = {
        "contiguous": (slice(None), slice(0, size), slice(0, size)),
        "rows": (slice(None), slice(1, None, 2), slice(1, size + 1)),
        "columns": (slice(None), slice(0, size), slice(1, None, 2)),
        "transposed": (slice(None), slice(0, size), slice(1, size + 1)),
    }[layout]
    before, untouched = whole.clone(), torch.ones_like(whole)
    untouched[index] = 0
    view = whole[index].mT if layout == "transposed" else whole[index]
    inside = view.clone()
    tensors = {"x": torch.from_numpy(arrays["x"])}
    chosen = plan(network, torch.float64)
    assert chosen.run(tensors, 0.5, view, accumulate) is view
    assert_close(view, 0.5 * expected + (inside if accumulate else 0))
    assert torch.equal(whole * untouched, before * untouched)


def test_run_returns_a_new_tensor() -> None:
    network = quantities.kfac_expand(layer(), 2)
    x = noise_tensor((2, 2, 6, 6))
    expected = torch.from_numpy(dense.evaluate(network, {"x": x.numpy()}))
    result = plan(network, torch.float64).run({"x": x}, scale=3.0)
    assert_close(result, 3 * expected)


def test_threads_share_plans() -> None:
    x = noise_tensor((2, 2, 6, 6))
    expected = functional.kfac_expand(x, layer())
    results: list[torch.Tensor] = []

    def work() -> None:
        results.extend(functional.kfac_expand(x, layer()) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        assert_close(result, expected)


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.__name__)
def test_empty_batches_have_a_plan(quantity: Any) -> None:
    network = quantity(layer(), 0)
    tensors = {o.name: torch.ones(o.shape).double() for o in network.operands}
    result = plan(network, torch.float64).run(tensors)
    assert torch.equal(result, torch.zeros(network.shape).double())


@pytest.mark.parametrize("name", ["conv", "weight_vjp", "input_vjp", "input_jvp"])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 1, "padding": 0}])
def test_plain_convolutions_are_torchs(name: str, options: dict[str, Any]) -> None:
    network = getattr(quantities, name)(layer(groups=2, **options), 3)
    chosen = plan(network)
    assert chosen.candidate.name.startswith("native ")
    labels = [other.label for other in chosen.rejected]
    assert labels and chosen.candidate.label not in labels


LONG: list[tuple[dict[str, Any], str]] = [
    (options, f"{options}")
    for options in (
        {"kernel_size": (300,), "input_size": (800,)},
        {"kernel_size": (4096,), "input_size": (8192,), "padding": 2048},
        {"kernel_size": (4096,), "input_size": (9000,), "stride": 3, "groups": 2},
        {"kernel_size": (4096,), "input_size": (500,), "stride": 2, "transposed": True},
        {"kernel_size": (31, 31), "input_size": (64, 64), "padding": 15, "groups": 2},
        {"kernel_size": (31, 31), "input_size": (40, 40), "dilation": 2, "padding": 30},
        {"kernel_size": (15, 15, 15), "input_size": (24, 24, 24), "padding": 7},
        {"kernel_size": (15, 15, 15), "input_size": (20, 20, 20), "groups": 2},
    )
]


@pytest.mark.parametrize(
    "options", [options for options, _ in LONG], ids=[name for _, name in LONG]
)
@pytest.mark.parametrize(
    ("quantity", "arguments"),
    [("kfac_expand", ()), ("kfac_reduce", ()), ("patch_sum", ()), ("ggn_gram", (3,))]
    + [
        ("per_sample_grad_norm", (None,)),
        ("ggn_diagonal", (3,)),
        ("unfold_weight", ()),
    ],
)
def test_long_kernels_are_planned_in_little_memory(
    quantity: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    conv = Conv.make(2, 2, **options)
    network = getattr(quantities, quantity)(conv, 2, *arguments)
    module.forget_plans()
    tracemalloc.start()
    try:
        plan(network)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 270, "input_size": 280, "padding": 5},
        {"kernel_size": 270, "input_size": 300, "stride": 2, "groups": 2},
        {"kernel_size": 260, "input_size": 20, "stride": 3, "transposed": True},
        {"kernel_size": (14, 15), "input_size": (16, 15), "padding": 2, "groups": 2},
    ],
)
@pytest.mark.parametrize("kind", ["expand", "reduce"])
def test_values_of_long_kernels(kind: str, options: dict[str, Any]) -> None:
    conv = Conv.make(2, 2, **options)
    x = noise_tensor((2, 2, *conv.input_size))
    expected = torch.from_numpy(dense.factor(conv, x.numpy(), kind))
    assert_close(getattr(functional, f"kfac_{kind}")(x, conv), expected)


def test_few_bytes_over_the_budget_do_not_decide() -> None:
    target = factor_plan().target

    def way(seconds: float, budgets: float) -> Candidate:
        rows = (Operation("some", cost=Cost(seconds=seconds)),)
        peak = int(budgets * target.budget / target.itemsize)
        return Candidate("some", rows, peak, lambda tensors, into: None)

    order = module._preference(target)
    assert order(way(1.0, 3.2)) < order(way(100.0, 3.1))
    assert order(way(100.0, 1.9)) < order(way(1.0, 3.1))
    assert order(way(100.0, 1.0)) < order(way(1.0, 1.01))


@pytest.mark.parametrize("stride", [0, -1])
def test_strides_are_positive(stride: int) -> None:
    """A network may be exported with others, but no primitive evaluates it."""
    backwards = Affine((("o", stride),), 2)
    read = Axis.of(3, ("i", 3))
    joined = Pattern("i", backwards), Pattern("j", backwards)
    networks = [
        [Operand("x", (Axis(backwards, 3),))],
        [Operand("x", (read,)), Pattern("i", backwards)],
        [Operand("x", (read, Axis.of(3, ("j", 3)))), Pair(*joined, "o", 3)],
    ]
    for nodes in networks:
        sizes = {index: 3 for node in nodes for index in node.indices}
        with pytest.raises(ValueError) as caught:
            plan(TensorNetwork(nodes, [], sizes))
        assert_in_form(caught.value, "plan", "network")
