"""The plans that somebody uses can be listed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

import tn_extensions
from tn_extensions import Conv, functional, memory_budget, plans, quantities
from tn_extensions.compiler.plan import listeners
from tn_extensions.compiler.table import in_a_line
from tn_extensions.optim import KFACPreconditioner

CONV = Conv.make(4, 6, 3, (7, 7), padding=1, groups=2)
X = torch.rand(2, 4, 7, 7)


def test_lists_plans_and_counts_runs() -> None:
    with plans() as used:
        for _ in range(3):
            functional.kfac_expand(X, CONV)
        functional.kfac_reduce(X[:1], CONV)
    functional.kfac_reduce(X, CONV)
    expand = functional.plan("kfac_expand", X, CONV)
    reduce = functional.plan("kfac_reduce", X[:1], CONV)
    assert list(used.items()) == [(expand, 3), (reduce, 1)]
    assert not listeners


def test_prints_a_table() -> None:
    with plans() as used:
        functional.kfac_expand(X, CONV)
        functional.kfac_expand(X, CONV)
        quantities.conv(CONV, 2).vmap("x", "v", 3)  # not run
    title, _, head, _, row, _ = str(used).splitlines()
    (plan,) = used
    assert title.startswith("1 plan(s), 2 run(s), estimated ")
    for name in ("plan", "candidate", "runs", "estimated ms", "measured ms"):
        assert name in head
    assert row.startswith(in_a_line(plan.network))
    assert plan.candidate.name in row
    assert repr(used) == str(used)


def test_prints_without_plans() -> None:
    with plans() as used:
        pass
    assert str(used).startswith("0 plan(s), 0 run(s)")


def test_a_run_counts_once_wherever_it_writes() -> None:
    out = torch.zeros(2, 18, 18).mT
    with plans() as used:
        functional.kfac_expand(X, CONV, out=out)
        functional.kfac_expand(X, CONV)
    assert list(used.values()) == [2]


def test_contexts_nest() -> None:
    with plans() as outer:
        functional.kfac_expand(X, CONV)
        with plans() as inner:
            functional.kfac_expand(X, CONV)
    assert list(outer.values()) == [2]
    assert list(inner.values()) == [1]


def test_closed_after_an_exception() -> None:
    with pytest.raises(KeyError), plans():
        raise KeyError
    assert not listeners


def test_other_threads_count_unless_they_list_themselves() -> None:
    def own() -> int:
        with plans() as used:
            functional.kfac_expand(X, CONV)
        return sum(used.values())

    with ThreadPoolExecutor(1) as pool, plans() as used:
        pool.submit(functional.kfac_expand, X, CONV).result()
        assert list(used.values()) == [1]
        assert pool.submit(own).result() == 1
        assert list(used.values()) == [1]


def test_threads_lose_no_run() -> None:
    def run() -> None:
        barrier.wait()
        for _ in range(50):
            functional.kfac_reduce(X, CONV)

    barrier = Barrier(4)
    with ThreadPoolExecutor(4) as pool, plans() as used:
        for done in [pool.submit(run) for _ in range(4)]:
            done.result()
    assert list(used.values()) == [200]


def test_plans_of_a_preconditioner() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Flatten())
    preconditioner = KFACPreconditioner(model, damping=1e-2)
    with plans() as used:
        model(X).square().mean().backward()
        preconditioner.step()
    names = {tn_extensions.explain(plan.network).quantity for plan in used}
    assert "kfac_expand" in names


def test_plans_of_other_budgets_are_others() -> None:
    with plans() as used:
        functional.kfac_expand(X, CONV)
        with memory_budget(2**12):
            functional.kfac_expand(X, CONV)
    assert [plan.target.budget for plan in used][1] == 2**12
