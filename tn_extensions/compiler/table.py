"""Plans as tables: what a plan does, what that takes, and what was rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tn_extensions.compiler.candidate import Candidate, Target
from tn_extensions.network import Step, TensorNetwork
from tn_extensions.network.text import node_text, output_text
from tn_extensions.recognise import recognise

_MEBI = 2**20


def plan_table(
    network: TensorNetwork,
    rewriting: Iterable[Step],
    candidate: Candidate,
    target: Target,
    rejected: Iterable[Candidate],
) -> str:
    """Write a plan: totals, a row for each operation, rejected candidates.

    Args:
        network: What is evaluated.
        rewriting: The simplifications that come first.
        candidate: What was chosen.
        target: What was planned for.
        rejected: The other candidates, best first.
    """
    cost = candidate.cost
    held, budget = candidate.peak * target.itemsize, target.budget
    totals = [
        ("candidate", candidate.name),
        ("multiply-adds", si(cost.flops)),
        ("moved", f"{mebi(cost.bytes)} MiB"),
        ("memory", f"{mebi(held)} MiB of a budget of {mebi(budget)} MiB"),
        ("time", f"about {milli(cost.seconds)} ms"),
    ]
    rules = Counter(step.rule for step in rewriting)
    if rules:
        steps = (rule if n == 1 else f"{rule} {n} times" for rule, n in rules.items())
        totals.append(("rewriting", ", ".join(steps)))
    axes = {operand.name: operand for operand in reversed(network.operands)}
    for operand in reversed(axes.values()):
        text = node_text(operand, network.sizes)
        totals.append(("operand", f"{text} of shape {list(operand.shape)}"))
    text = output_text(network.output)
    totals.append(("output", f"{text} of shape {list(network.shape)}"))
    head = ("operation", "shapes", "times", "multiply-adds", "MiB moved", "ms")
    rows = []
    for row in candidate.operations:
        total = row.cost.times(row.times)
        numbers = si(total.flops), mebi(total.bytes), milli(total.seconds)
        shown = ("" if number == "0" else number for number in numbers)
        rows.append((row.name, row.shapes, str(row.times), *shown))
    parts = [
        f"Plan of {recognise(network) or 'a network'}",
        *aligned(totals, indent=2),
        *ruled(head, rows, text_columns=2),
    ]
    others = _reasons(candidate, target, rejected)
    if others:
        parts += ["rejected", *aligned(others, indent=2)]
    return "\n".join(parts)


def _reasons(
    chosen: Candidate, target: Target, rejected: Iterable[Candidate]
) -> list[tuple[str, str]]:
    """Say of each primitive why the best of its candidates was not chosen."""
    others = list(rejected)
    versions = Counter(other.name for other in others)
    best: dict[str, Candidate] = {}
    for other in others:
        best.setdefault(other.name, other)
    rows = []
    for name, other in best.items():
        count = versions[name]
        title = name if count == 1 else f"{name}, best of {count}"
        rows.append((title, _reason(chosen, target, other)))
    return rows


def _reason(chosen: Candidate, target: Target, other: Candidate) -> str:
    excess = other.peak * target.itemsize - target.budget
    if excess > 0 and other.peak > chosen.peak:
        return f"{mebi(excess)} MiB over the budget"
    ratio = other.cost.seconds / chosen.cost.seconds if chosen.cost.seconds else 1.0
    if ratio >= 1.005:
        return f"slower by a factor of {ratio:.3g}"
    more = (other.peak - chosen.peak) * target.itemsize
    return f"not faster, holds {mebi(more)} MiB more" if more > 0 else "not faster"


def ruled(
    head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int
) -> list[str]:
    r"""Write a table between rules.

    Args:
        head: Titles of the columns.
        rows: The cells.
        text_columns: How many columns are text; what follows are numbers.

    >>> print(*ruled(["name", "size"], [["a", "1"], ["bc", "12"]], 1), sep="\n")
    ----------
    name  size
    ----------
    a        1
    bc      12
    ----------
    """
    title, *lines = aligned([head, *rows], text_columns)
    rule = "-" * max(map(len, [title, *lines]))
    return [rule, title, rule, *lines, rule]


def aligned(
    rows: Sequence[Sequence[str]], text_columns: int = 2, indent: int = 0
) -> list[str]:
    """Write rows whose columns line up: text from the left, numbers from the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            " " * indent
            + "  ".join(
                f"{cell:<{width}}" if number < text_columns else f"{cell:>{width}}"
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def si(number: float) -> str:
    """Write a number with a unit prefix.

    >>> si(950), si(1234567.0), si(3e16)
    ('950', '1.23 M', '30 P')
    """
    for unit in ("", " k", " M", " G", " T"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def mebi(count: float) -> str:
    """Write bytes in MiB.

    >>> mebi(2**28), mebi(12345), mebi(3e11)
    ('256', '0.012', '286102')
    """
    return _short(count / _MEBI)


def milli(seconds: float) -> str:
    """Write seconds in milliseconds.

    >>> milli(1.5), milli(2.345e-5)
    ('1500', '0.023')
    """
    return _short(seconds * 1e3)


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 999.5 else f"{round(number, 3):.3g}"
