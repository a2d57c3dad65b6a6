"""Plans as tables: operations, their costs, and rejected candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from tn_extensions.compiler.candidate import Candidate, Target
from tn_extensions.network import Step, TensorNetwork
from tn_extensions.network.text import node_text, output_text, si
from tn_extensions.recognise import recognise

_MEBI = 2**20


def plan_table(
    network: TensorNetwork,
    rewriting: Iterable[Step],
    candidate: Candidate,
    target: Target,
    rejected: Iterable[Candidate],
    measured: Mapping[str, float],
) -> str:
    """Write a plan: totals, a row for each operation, rejected candidates.

    Args:
        network: The network.
        rewriting: The steps of its simplification.
        candidate: The chosen candidate.
        target: The target of the plan.
        rejected: The other candidates, best first.
        measured: Measured seconds of candidates, by label.

    Returns:
        The text.
    """
    cost = candidate.cost
    held, budget = candidate.peak * target.itemsize, target.budget
    totals = [
        ("candidate", candidate.name),
        ("multiply-adds", si(cost.flops)),
        ("moved", f"{mebi(cost.bytes)} MiB"),
        ("memory", f"{mebi(held)} MiB of a budget of {mebi(budget)} MiB"),
        ("estimated", f"{milli(cost.seconds)} ms"),
    ]
    if candidate.label in measured:
        totals.append(("measured", f"{milli(measured[candidate.label])} ms"))
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
    head = (
        "operation",
        "shapes",
        "times",
        "multiply-adds",
        "MiB moved",
        "estimated ms",
    )
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
    reasons = _reasons(candidate, target, rejected, measured)
    if reasons:
        parts += ["rejected", *aligned(reasons, indent=2)]
    return "\n".join(parts)


def in_a_line(network: TensorNetwork) -> str:
    """Write the name of a network's quantity, if it has one, and its shapes."""
    shapes = {one.name: list(one.shape) for one in network.operands}
    operands = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    quantity = recognise(network)
    title = f"{quantity}: " if quantity else ""
    return f"{title}{operands} -> {list(network.shape)}"


def _reasons(
    chosen: Candidate,
    target: Target,
    rejected: Iterable[Candidate],
    measured: Mapping[str, float],
) -> list[tuple[str, str]]:
    """Give for each primitive the reason why its best candidate was not chosen."""
    versions: dict[str, list[Candidate]] = {}
    for other in rejected:
        versions.setdefault(other.name, []).append(other)

    def time(other: Candidate) -> float:
        return measured.get(other.label, inf)

    rows = []
    for name, others in versions.items():
        best = min(others, key=time)  # without measurements, the first one
        title = name if len(others) == 1 else f"{name}, best of {len(others)}"
        rows.append((title, _reason(chosen, target, best, measured)))
    return rows


def _reason(
    chosen: Candidate, target: Target, other: Candidate, measured: Mapping[str, float]
) -> str:
    excess = other.peak * target.itemsize - target.budget
    if excess > 0 and other.peak > chosen.peak:
        return f"{mebi(excess)} MiB over the budget"
    first, second, source = chosen.cost.seconds, other.cost.seconds, ""
    if {chosen.label, other.label} <= measured.keys():
        first, second = measured[chosen.label], measured[other.label]
        source = ", measured"
    ratio = second / first if first else 1.0
    if ratio >= 1.005:
        return f"slower by a factor of {ratio:.3g}{source}"
    more = (other.peak - chosen.peak) * target.itemsize
    held = f", holds {mebi(more)} MiB more" if more > 0 else ""
    return f"not faster{source}{held}"


def ruled(
    head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int
) -> list[str]:
    r"""Write a table with horizontal lines above and below its head and its end.

    Args:
        head: Titles of the columns.
        rows: The cells.
        text_columns: Number of leading columns with text; the others have numbers.

    Returns:
        The lines of text.

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
    """Write rows with aligned columns: text to the left, numbers to the right."""
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
