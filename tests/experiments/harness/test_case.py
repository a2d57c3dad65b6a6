"""Contests say who is wrong, who failed, who is slow, and who holds how much."""

from __future__ import annotations

import math
import time
from functools import partial

import pytest
import torch
from torch import Tensor

from experiments.harness.case import (
    Case,
    Contest,
    Options,
    Unsupported,
    relative_error,
)
from experiments.harness.measure import Call

MIB = 2**20


def build(value: float, small: bool = False) -> Call:
    return lambda: {"a": [torch.full((3,), value)]}


def build_slow(small: bool = False) -> Call:
    def call() -> Tensor:
        time.sleep(0.02)
        return torch.ones(3)

    return call


def build_heavy(mebi: int, small: bool = False) -> Call:
    def call() -> Tensor:
        return torch.ones((1 if small else mebi) * MIB // 4).sum()

    return call


class Prepared:
    """Returns how often it was prepared since it was called last."""

    def __init__(self, small: bool = False) -> None:
        self.prepared = 0

    def before(self) -> None:
        self.prepared += 1
        time.sleep(0.02)

    def __call__(self) -> Tensor:
        prepared, self.prepared = self.prepared, 0
        assert prepared == 1
        return torch.ones(3)


def build_none(small: bool = False) -> Call:
    raise Unsupported("no such thing")


def test_wrong_and_failing_contenders_are_not_timed() -> None:
    contest = Contest(
        {
            "correct": partial(build, 1.0),
            "wrong": partial(build, 1.1),
            "none": build_none,
        },
        reference=lambda: torch.ones(3, dtype=torch.float64),
        notes=lambda name: {"remark": name.upper()},
        weighed=False,
    )
    correct, wrong, none = contest.rows(Options())
    assert correct["contender"] == "correct"
    assert correct["error"] == 0 and correct["seconds"] > 0
    assert len(correct["rounds"]) == 5 and correct["remark"] == "CORRECT"
    assert wrong["error"] == pytest.approx(0.1)
    assert wrong["reason"].startswith("relative error 1.0e-01")
    assert none["reason"] == "no such thing"
    assert not {"seconds", "remark"} & {*wrong, *none}


def test_without_a_reference_the_first_one_counts() -> None:
    builds = {"a": partial(build, 2.0), "b": partial(build, 1.0)}
    a, b = Contest(builds, weighed=False).rows(Options())
    assert a["error"] == 0 and b["error"] == pytest.approx(0.5)


def test_baselines_are_timed_and_weighed_but_not_compared() -> None:
    contest = Contest(
        {"a": partial(build, 2.0)},
        baselines={"less": partial(build, 1.0), "none": build_none},
    )
    a, less, none = contest.rows(Options())
    assert a["error"] == 0 and "error" not in less and "reason" not in less
    assert less["seconds"] > 0 and less["bytes"] >= 0
    assert none == {"contender": "none", "reason": "no such thing"}


def test_what_is_read_is_compared() -> None:
    builds = {"a": partial(build, 2.0), "b": partial(build, 3.0)}
    contest = Contest(builds, read=lambda found: found["a"][0] * 0 + 1, timed=False)
    a, b = contest.rows(Options(memory=False))
    assert a["error"] == b["error"] == 0
    contest = Contest(builds, read=lambda found: None, timed=False)
    for row in contest.rows(Options(memory=False)):
        assert row["reason"].startswith("0 tensors")


def test_calls_are_prepared_untimed() -> None:
    (row,) = Contest({"prepared": Prepared}).rows(Options())
    assert "reason" not in row, row["reason"]
    assert row["seconds"] < 0.01 and row["bytes"] < MIB


def test_medians() -> None:
    builds = {"fast": partial(build, 1.0), "slow": build_slow}
    fast, slow = Contest(builds, weighed=False).rows(Options())
    assert slow["seconds"] > 0.019 > fast["seconds"]


def test_memory_is_that_of_the_call() -> None:
    builds = {"light": partial(build_heavy, 2), "heavy": partial(build_heavy, 32)}
    contest = Contest(builds, tolerance=math.inf, timed=False)
    light, heavy = contest.rows(Options())
    assert "seconds" not in light
    assert 30 * MIB < heavy["bytes"] < 36 * MIB and light["bytes"] < 6 * MIB
    assert all("bytes" not in row for row in contest.rows(Options(memory=False)))


@pytest.mark.parametrize(
    ("found", "exact", "error"),
    [
        ([[1.0, 1.0]], [[1.0, 1.0]], 0.0),
        ([[0.0]], [[0.0]], 0.0),
        ([[1.0]], [[0.0]], math.inf),
        ([[3.0, 4.0], [1.0]], [[3.0, 4.0], [2.0]], 0.5),
    ],
)
def test_relative_error(
    found: list[list[float]], exact: list[list[float]], error: float
) -> None:
    tensors = [[torch.tensor(one) for one in each] for each in (found, exact)]
    assert relative_error(*tensors) == error


def test_relative_error_of_what_does_not_compare() -> None:
    assert math.isnan(relative_error([torch.tensor([math.nan])], [torch.ones(1)]))
    with pytest.raises(ArithmeticError, match="2 tensors instead of 1"):
        relative_error([torch.ones(1)] * 2, [torch.ones(1)])
    with pytest.raises(ArithmeticError, match=r"shape \[2\] instead of \[1\]"):
        relative_error([torch.ones(2)], [torch.ones(1)])


def test_other_devices_are_refused() -> None:
    case = Case({}, lambda x, options: [{"seconds": x}], 1.0, cpu_only=True)
    assert list(case.measure(Options())) == [{"seconds": 1.0}]
    with pytest.raises(Unsupported, match="CPUs only"):
        list(case.measure(Options(torch.device("cuda"))))
