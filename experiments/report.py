"""Renders the JSON of ``experiments.factors`` as Markdown; measures nothing.

``python -m experiments.report RESULT.json ... [--output REPORT.md]``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import storage
from experiments.bars import (
    BAR_BATCH_SIZES,
    Record,
    geometric_mean_ratio,
    judge,
    ratio,
    sum_ratio,
)

_TITLES = {
    "expand": "KFAC-expand factor",
    "reduce": "KFAC-reduce factor",
    "mean": "Patch means",
}
_EXPLANATION = (
    "Times are medians of alternating rounds in one process; `x` columns are a "
    "contender's time over ours (above 1: ours is faster). Memory is the peak beyond "
    "input and result in a fresh process. Errors are the largest over all entries, "
    "against float64 and relative to an entry's scale (see `experiments.accuracy`); "
    "`framed` is an input whose one-pixel border is 1e4 times its interior. `unfold` "
    "is BackPACK's way; `einconv prepared` leaves building and simplifying the "
    "expression out, which the toolkit needs for every batch."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    print(write(args.results, args.output))


def write(results: Sequence[Path], output: Path | None = None) -> Path:
    """Render result files into one report.

    Args:
        results: JSON files of ``experiments.factors``.
        output: The report. Default: the first file with the ending ``.md``.

    Returns:
        Path of the report.
    """
    output = results[0].with_suffix(".md") if output is None else output
    contents = [storage.read_json(path) for path in results]
    storage.write_text(output, "\n\n".join(map(render, contents)) + "\n")
    return output


def render(content: dict[str, Any]) -> str:
    """Render one result file.

    Args:
        content: Its ``metadata`` and ``records``.

    Returns:
        Markdown.
    """
    metadata, records = content["metadata"], content["records"]
    parts = [
        f"# KFAC's input factors on {metadata['device_name']}",
        _render_metadata(metadata),
        _EXPLANATION,
        "## Bars",
    ]
    batch_sizes = _unique(record["batch_size"] for record in records)
    if not _bars_apply(metadata):
        parts.append(
            "The bars are set for float32 on CPU with 2 threads; here they are for "
            "orientation only."
        )
    if not metadata["all_layers"]:
        parts.append(
            "Not all layers were measured: means, sums and extremes are partial."
        )
    for batch_size in batch_sizes:
        heading = f"### Batch size {batch_size}"
        if batch_size not in BAR_BATCH_SIZES:
            heading += " (none of the bars')"
        parts += [heading, "\n".join(f"- {v}" for v in judge(records, batch_size))]
    for quantity in _unique(record["quantity"] for record in records):
        for batch_size in batch_sizes:
            chosen = [
                record
                for record in records
                if record["quantity"] == quantity and record["batch_size"] == batch_size
            ]
            if chosen:
                parts += _render_quantity(chosen)
    return "\n\n".join(parts)


def _bars_apply(metadata: dict[str, Any]) -> bool:
    measured = [metadata[name] for name in ("device", "threads", "dtype")]
    return measured == ["cpu", 2, "float32"]


def _render_metadata(metadata: dict[str, Any]) -> str:
    return "\n".join(
        f"- {name.replace('_', ' ')}: {value}" for name, value in metadata.items()
    )


def _render_quantity(records: list[Record]) -> list[str]:
    """Section of one quantity and batch size."""
    title, batch_size = _TITLES[records[0]["quantity"]], records[0]["batch_size"]
    stock = [
        name
        for name in _unique(name for r in records for name in r["contenders"])
        if name != "ours"
    ]
    parts = [
        f"## {title}, batch size {batch_size}",
        _table(
            ["layer", "count", "ours ms", *(f"{name} x" for name in stock)]
            + ["MiB ours", *(f"MiB {name}" for name in stock), "plan"],
            [_speed_row(record, stock) for record in records],
        ),
        "### Errors",
        _table(
            ["layer", "ours", *stock, "framed: ours", *(f"framed: {n}" for n in stock)],
            [_error_row(record, stock) for record in records],
        ),
        "### Geometric means by family, and sums over networks",
        _table(
            ["layers", "number", *(f"{name} x" for name in stock)],
            [*_family_rows(records, stock), *_network_rows(records, stock)],
        ),
    ]
    reasons = _reasons(records)
    return [*parts, "### Left out", reasons] if reasons else parts


def _speed_row(record: Record, stock: list[str]) -> list[str]:
    layer, contenders = record["layer"], record["contenders"]
    seconds = contenders["ours"]["seconds"]
    memory = [contenders[name]["memory_bytes"] for name in ("ours", *stock)]
    return [
        layer["name"],
        str(layer["count"]),
        _number(seconds and 1e3 * seconds),
        *(_number(ratio(record, name)) for name in stock),
        *(_number(size if size is None else size / 2**20) for size in memory),
        (record["plan"] or "").replace("|", "\\|"),
    ]


def _error_row(record: Record, stock: list[str]) -> list[str]:
    return [
        record["layer"]["name"],
        *(
            "" if error is None else f"{error:.1e}"
            for field in ("error", "error_framed")
            for name in ("ours", *stock)
            for error in [record["contenders"][name][field]]
        ),
    ]


def _family_rows(records: list[Record], stock: list[str]) -> list[list[str]]:
    rows = []
    for family in _unique(record["layer"]["family"] for record in records):
        chosen = [r for r in records if r["layer"]["family"] == family]
        means = [geometric_mean_ratio(chosen, name)[0] for name in stock]
        rows.append([family, str(len(chosen)), *map(_number, means)])
    return rows


def _network_rows(records: list[Record], stock: list[str]) -> list[list[str]]:
    rows = []
    for network in _unique(record["layer"]["network"] for record in records):
        if network == "single":
            continue
        chosen = [r for r in records if r["layer"]["network"] == network]
        cells = []
        for name in stock:
            able = sum(ratio(record, name) is not None for record in chosen)
            partly = f" ({able} of {len(chosen)})" if 0 < able < len(chosen) else ""
            cells.append(_number(sum_ratio(chosen, name)[0]) + partly)
        number = sum(record["layer"]["count"] for record in chosen)
        rows.append([f"sum over {network}", str(number), *cells])
    return rows


def _reasons(records: list[Record]) -> str:
    lines: dict[str, list[str]] = {}
    for record in records:
        for name, outcome in record["contenders"].items():
            if outcome["reason"]:
                line = f"{name}: {outcome['reason']}"
                lines.setdefault(line, []).append(record["layer"]["name"])
    return "\n".join(f"- {line} ({', '.join(names)})" for line, names in lines.items())


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


if __name__ == "__main__":
    main()
