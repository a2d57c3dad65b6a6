"""Renders the JSON of ``experiments.backpack_suite`` as Markdown; measures nothing.

``python -m experiments.backpack_report RESULT.json``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import storage
from experiments.bars import Record, Verdict
from experiments.markdown import error, judged, limit, number, table

BAR_NETWORKS = ("allcnnc", "resnet18")
"""The networks that bars are stated for; memory may nowhere be more than stock's."""
SPEED_BARS = {
    "BatchGrad": 3.0,
    "BatchL2Grad": 1.5,
    "DiagGGNMC": 1.3,
    "DiagGGNExact": 1.7,
    "KFAC": 2.0,
}
MEMORY_BARS = {"DiagGGNExact": 1 / 3, "KFAC": 1 / 3}

_EXPLANATION = (
    "Times are medians of alternating rounds in one process, of the backward pass "
    "only; `x` columns are stock's time over ours (above 1: ours is faster), `range` "
    "the least and the largest of the rounds' ratios. `plain` is a backward pass of "
    "the same extended network without extension. `extraction` "
    "is the part of the time spent in the methods for parameters, the rest goes to "
    "gradients and to backpropagation. Memory is the peak of a backward pass in a "
    "fresh process, beyond that of a plain one and what the extension saves; in a "
    "first pass on a batch of this size, plans and caches for later ones count as "
    "well. `share` is ours over stock's, 1 where the difference is less than can be "
    "measured. Errors are the largest over all entries, relative to the tensor's "
    "largest entry."
)
_REPLACEMENT = (
    "Stock cannot backpropagate through some modules of ResNet-18. For the extensions "
    "listed here, ours and stock's ran on the same network without them: BatchNorm in "
    "evaluation mode is folded into the convolution before it, adaptive average "
    "pooling is `AvgPool2d`."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.backpack_report",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    print(write(args.result, args.output))


def write(result: Path, output: Path | None = None) -> Path:
    """Render a result file.

    Args:
        result: JSON file of ``experiments.backpack_suite``.
        output: The report. Default: the same name with the ending ``.md``.

    Returns:
        Path of the report.
    """
    output = result.with_suffix(".md") if output is None else output
    storage.write_text(output, render(storage.read_json(result)))
    return output


def render(content: dict[str, Any]) -> str:
    """A Markdown report of all records."""
    metadata, records = content["metadata"], content["records"]
    parts = [
        f"# Backward passes with BackPACK on {metadata['device_name']}",
        "\n".join(f"- {key}: {value}" for key, value in metadata.items()),
        _EXPLANATION,
        "## Bars",
        table(
            [["bar", "limit", "whole", "met", "extraction", "met"], *_speed(records)]
        ),
        table([_SHARE_HEAD, *_memory(records)]),
        "## Time",
        table([_TIME_HEAD, *map(_time_row, records)]),
        "## Memory",
        table([_MEMORY_HEAD, *map(_memory_row, records)]),
    ]
    if replaced := [record for record in records if record.get("replaced")]:
        lines = [f"- {one['title']}: {', '.join(one['replaced'])}" for one in replaced]
        parts += ["## Replaced modules", _REPLACEMENT, "\n".join(lines)]
    if failed := [line for record in records for line in _failures(record)]:
        parts += ["## Not measured", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def speed_verdicts(records: Sequence[Record]) -> list[tuple[Verdict, Verdict]]:
    """Bars on whole backward passes, and the same limits on extraction alone."""
    return [
        (
            Verdict(one["title"], "at least", bar, one.get("ratio")),
            Verdict(one["title"], "at least", bar, one.get("extraction_ratio")),
        )
        for one in records
        if one["network"] in BAR_NETWORKS
        and (bar := SPEED_BARS.get(one["extension"])) is not None
    ]


def memory_verdicts(records: Sequence[Record]) -> list[Verdict]:
    """Bars on ours over stock's memory."""
    return [
        Verdict(one["title"], "at most", _memory_limit(one), one.get("memory_share"))
        for one in records
    ]


def _memory_limit(record: Record) -> float:
    if record["network"] not in BAR_NETWORKS:
        return 1.0
    return MEMORY_BARS.get(record["extension"], 1.0)


def _speed(records: Sequence[Record]) -> list[list[str]]:
    return [
        [
            whole.text,
            limit(whole),
            *(cell for one in (whole, extraction) for cell in judged(one)),
        ]
        for whole, extraction in speed_verdicts(records)
    ]


def _memory(records: Sequence[Record]) -> list[list[str]]:
    return [
        [verdict.text, limit(verdict), *judged(verdict)]
        for verdict in memory_verdicts(records)
    ]


_SPEED_HEAD = ["time", "limit", "whole x", "met", "extraction x", "met"]
_SHARE_HEAD = ["memory", "limit", "share", "met"]
_TIME_HEAD = ["", "batch", "ours ms", "stock ms", "plain ms", "whole x", "range"]
_TIME_HEAD += ["extraction: ours ms", "stock ms", "extraction x", "error"]
_MEMORY_HEAD = ["", "batch", "MiB ours", "MiB stock", "share", "MiB saved"]
_MEMORY_HEAD += ["peak MiB ours", "stock", "plain"]


def _time_row(record: Record) -> list[str]:
    seconds = record.get("seconds", {})
    within = record.get("extraction_seconds", {})
    return [
        record["title"],
        str(record.get("batch_size", "")),
        *(number(seconds.get(side), 1e3) for side in ("ours", "stock", "plain")),
        number(record.get("ratio")),
        "-".join(map(number, record.get("ratio_range", ()))),
        *(number(within.get(side), 1e3) for side in ("ours", "stock")),
        number(record.get("extraction_ratio")),
        error(record.get("error")),
    ]


def _memory_row(record: Record) -> list[str]:
    beyond = record.get("memory_bytes", {})
    peaks = record.get("peak_bytes", {})
    return [
        record["title"],
        str(record.get("batch_size", "")),
        *(number(beyond.get(side), 2**-20) for side in ("ours", "stock")),
        number(record.get("memory_share")),
        number(record.get("saved_bytes", {}).get("ours"), 2**-20),
        *(number(peaks.get(side), 2**-20) for side in ("ours", "stock", "plain")),
    ]


def _failures(record: Record) -> Iterator[str]:
    """Why a row is not complete."""
    if not record.get("agrees", True):
        yield f"- **{record['title']}**: ours DIFFERS from stock's, so not timed"
    if "reason" in record:
        yield f"- **{record['title']}**: {record['reason']}"


if __name__ == "__main__":
    main()
