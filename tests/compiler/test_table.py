"""Plans print as one table, by names of indices, in the units of the budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.diagram.networks import DEFINED, conv
from tn_extensions import Conv, memory_budget, quantities
from tn_extensions.compiler import Plan, plan
from tn_extensions.compiler.candidate import Candidate, Operation
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.table import in_a_line, mebi, milli, plan_table, si
from tn_extensions.network import build

NETWORK = build({"x": ["n", "i"]}, "n", {"n": 8, "i": 4}, summed="i")


def candidate(name: str, seconds: float, peak: int = 0, note: str = "") -> Candidate:
    """One that cannot run."""
    rows = (
        Operation("copy", note),
        Operation("sum", "4 x 8", Cost(1e3, 2**20, 1, 0, seconds / 4), times=4),
    )
    return Candidate(name, rows, peak, lambda tensors, into: None)


def table(
    chosen: Candidate, *rejected: Candidate, measured: Mapping[str, float] | None = None
) -> str:
    """Of a plan of 4-byte elements and a budget of 2 MiB."""
    target = replace(plan(NETWORK).target, budget=2**21)
    return plan_table(NETWORK, (), chosen, target, rejected, measured or {})


EXPECTED = """\
Plan of a network
  candidate      fast
  multiply-adds  4 k
  moved          4 MiB
  memory         1 MiB of a budget of 2 MiB
  estimated      2 ms
  operand        x[n, i] of shape [8, 4]
  output         [n] of shape [8]
----------------------------------------------------------------
operation  shapes  times  multiply-adds  MiB moved  estimated ms
----------------------------------------------------------------
copy                   1
sum        4 x 8       4            4 k          4             2
----------------------------------------------------------------
rejected
  slow, best of 2  slower by a factor of 1.5
  large            not faster, holds 1 MiB more
  huge             3 MiB over the budget"""


def test_table() -> None:
    MEBI = 2**18  # elements
    text = table(
        candidate("fast", 2e-3, MEBI),
        candidate("slow", 3e-3),
        candidate("slow", 4e-3, note="other"),
        candidate("large", 2e-3, 2 * MEBI),
        candidate("huge", 1e-3, 5 * MEBI),
    )
    assert text == EXPECTED


def test_measured_times_decide() -> None:
    fast, slow, other = (candidate(name, 1e-3) for name in ("fast", "slow", "other"))
    text = table(fast, slow, other, measured={fast.label: 2e-3, slow.label: 3e-3})
    assert "  estimated      1 ms\n  measured       2 ms\n" in text
    assert "  slow   slower by a factor of 1.5, measured\n" in text
    assert text.endswith("  other  not faster")


def test_in_a_line() -> None:
    assert in_a_line(NETWORK) == "x [8, 4] -> [8]"
    network = quantities.kfac_expand(Conv.make(2, 3, 3, 5), 4)
    assert in_a_line(network) == "kfac_expand: x [4, 2, 5] -> [1, 6, 6]"


def test_nothing_rejected() -> None:
    text = table(candidate("only", 0.0))
    assert "rejected" not in text


@pytest.mark.parametrize("name", DEFINED)
def test_plans_print_what_they_hold(name: str) -> None:
    network = DEFINED[name](conv(2))
    chosen = plan(network)
    text = str(chosen)
    assert repr(chosen) == text
    assert text.splitlines()[0] == f"Plan of {name}"
    for index in network.output_indices:
        assert index in text
    for rule in {step.rule for step in chosen.rewriting}:
        assert rule in text
    for operation in chosen.candidate.operations:
        assert f"{operation.name} " in text
        assert operation.shapes in text
    head, _, rejected = text.partition("\nrejected\n")
    assert chosen.candidate.name in head
    lines = rejected.splitlines()
    names = dict.fromkeys(other.name for other in chosen.rejected)
    assert len(lines) == len(names)
    for line, other in zip(lines, names, strict=True):
        assert line.startswith(f"  {other}")
        assert re.search("slower|faster|over the budget", line)


def over_budget(chosen: Plan) -> set[str]:
    """Names of rejected candidates that are said not to fit."""
    lines = str(chosen).partition("\nrejected\n")[2].splitlines()
    return {line.split()[0] for line in lines if "over the budget" in line}


def test_a_smaller_budget_rejects_more() -> None:
    network = quantities.kfac_expand(Conv.make(8, 8, 3, (12, 12), padding=1), 4)
    assert not over_budget(plan(network))
    with memory_budget(2**14):
        tight = plan(network)
    assert over_budget(tight)
    assert "of a budget of 0.016 MiB" in str(tight)


def test_numbers() -> None:
    assert [si(0), si(12), si(999.6), si(2.5e9)] == ["0", "12", "1 k", "2.5 G"]
    assert [mebi(0), mebi(2**20), mebi(3 * 2**30)] == ["0", "1", "3072"]
    assert [milli(0), milli(1e-6), milli(0.99999)] == ["0", "0.001", "1000"]
