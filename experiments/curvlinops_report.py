"""Renders the JSON of ``experiments.curvlinops_suite``; measures nothing.

``python -m experiments.curvlinops_report RESULT.json``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import storage
from experiments.bars import Record, Verdict
from experiments.figures import bar_chart
from experiments.markdown import error, judged, limit, number, table
from experiments.report_command import write_reports

BAR_NETWORK = "resnet18"
"""The network of all bars but those on products, which are for every network."""
SPEED_BARS = {
    ("expand", 224): 1.8,
    ("expand", 64): 1.5,
    ("reduce", 224): 1.3,
    ("reduce", 64): 1.3,
    ("ekfac", 224): 2.0,
    ("ekfac", 64): 2.0,
}
"""Building, by operator and pixels."""
MEMORY_BARS = {"expand": 0.5, "ekfac": 0.2}
PRODUCT_BAR = 1.0

_EXPLANATION = (
    "Times are medians of alternating rounds in one process; `x` columns are stock's "
    "time over ours (above 1: ours is faster), `range` the least and the largest of "
    "the rounds' ratios. Building is `cls(...)`, `compute_kronecker_factors()` and, of "
    "EKFAC, `compute_eigenvalue_correction()`, on one batch; `plain` is the network's "
    "forward and backward pass alone, and `beyond plain x` of the times less it. What "
    "makes stock decompose factors has rounds of its own number (`slow_rounds`). Both "
    "sides build for the parameters that stock "
    "supports, those of `Linear` and `Conv2d`; `all` is ours for all that it supports. "
    "Errors are of products with a random vector, the largest over all entries, "
    "relative to the largest entry of the parameter's; `trace` is the relative "
    "difference of the operators' traces. EKFACs, and more so their inverses, may "
    "differ by more than rounding where factors have close eigenvalues, as their "
    "eigenvectors do; their traces may not."
)
_PRODUCTS = (
    "`first` is making the inverse and its first product, which inverts the factors; "
    "`again` is another product with the same inverse."
)
_MEMORY = (
    "Peak of building in a fresh process, beyond that of a forward and a backward "
    "pass; `share` is ours over stock's, 1 where the difference is less than can be "
    "measured. This includes what an operator keeps, and plans and caches for later "
    "passes; `passing share` is without what it keeps."
)
_LAYERS = (
    "The input factor of each layer: building KFAC with `fisher_type='forward-only'` "
    "for the layer alone, on the input that it has in the network, less the forward "
    "pass. `n` layers have the same sizes; times are of one of them, the sum counts "
    "each of them. Stock has no factors of the layers without `stock ms`."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    write_reports("experiments.curvlinops_report", __doc__, write, arguments)


def write(result: Path) -> list[Path]:
    """Write a report and its figures beside a result file; their paths."""
    content = storage.read_json(result)
    figures = {
        result.with_name(f"{result.stem}-{name}.svg"): svg
        for name, svg in _figures(content["records"])
    }
    report = result.with_suffix(".md")
    storage.write_text(report, render(content, [path.name for path in figures]))
    for path, svg in figures.items():
        storage.write_text(path, svg)
    return [report, *figures]


def render(content: dict[str, Any], figures: Sequence[str] = ()) -> str:
    """A Markdown report of all records."""
    metadata, records = content["metadata"], content["records"]
    operators = [one for one in records if one.get("part") == "operator"]
    parts = [
        f"# Operators of curvlinops on {metadata['device_name']}",
        "\n".join(f"- {key}: {value}" for key, value in metadata.items()),
        _EXPLANATION,
        *(f"![{name}]({name})" for name in figures),
        "## Bars",
        table([["bar", "limit", "measured", "met"], *map(_bar_row, verdicts(records))]),
        "## Building",
        table([_BUILD_HEAD, *map(_build_row, operators)]),
        table([_PARAMETERS_HEAD, *_parameter_rows(operators)]),
        "## Products",
        _PRODUCTS,
        table([_PRODUCT_HEAD, *(row for one in operators for row in _products(one))]),
        "## Memory",
        _MEMORY,
        table(
            [_MEMORY_HEAD, *(_memory_row(one) for one in operators if _weighed(one))]
        ),
        "## Layers",
        _LAYERS,
    ]
    for record in records:
        if record.get("layers"):
            parts += [
                f"### {record['title']}",
                table([*_layer_table(record["layers"])]),
            ]
    if failed := [line for record in records for line in _failures(record)]:
        parts += ["## Not measured", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def verdicts(records: Sequence[Record]) -> Iterator[Verdict]:
    """All bars and what was measured."""
    operators = [
        one
        for one in records
        if one.get("part") == "operator" and one["fisher_type"] == "empirical"
    ]
    at_bar = [one for one in operators if one["network"] == BAR_NETWORK]
    for one in at_bar:
        if (bar := SPEED_BARS.get((one["kind"], one["pixels"]))) is not None:
            yield Verdict(f"build {one['title']}", "at least", bar, one.get("ratio"))
    for one in at_bar:
        if (bar := MEMORY_BARS.get(one["kind"])) is not None:
            share = one.get("memory_share")
            yield Verdict(f"memory of {one['title']}", "at most", bar, share)
    for one in operators:
        for name, product in one.get("products", {}).items():
            text = f"{name}, {one['title']}"
            yield Verdict(text, "at least", PRODUCT_BAR, product.get("ratio"))


def _bar_row(verdict: Verdict) -> list[str]:
    return [verdict.text, limit(verdict), *judged(verdict)]


_BUILD_HEAD = ["", "ours ms", "stock ms", "plain ms", "x", "range", "rounds"]
_BUILD_HEAD += ["beyond plain x", "all ms", "error", "trace"]
_PARAMETERS_HEAD = ["network", "parameters", "of stock and ours", "of ours (all)"]
_PRODUCT_HEAD = ["", "product", "ours ms", "stock ms", "x", "range", "rounds", "error"]
_MEMORY_HEAD = ["", "MiB ours", "MiB stock", "share", "passing share"]
_MEMORY_HEAD += ["kept: MiB ours", "MiB stock", "plain MiB"]


def _timing(record: Record) -> list[str]:
    """Stock's time over ours, its range, and the number of rounds."""
    return [
        number(record.get("ratio")),
        "-".join(map(number, record.get("ratio_range", ()))),
        str(record.get("rounds", "")),
    ]


def _build_row(record: Record) -> list[str]:
    seconds = record.get("seconds", {})
    return [
        record["title"],
        *(number(seconds.get(side), 1e3) for side in ("ours", "stock", "plain")),
        *_timing(record),
        number(_beyond_plain(seconds)),
        number(seconds.get("all"), 1e3),
        error(record.get("error")),
        error(record.get("trace_error")),
    ]


def _beyond_plain(seconds: dict[str, float]) -> float | None:
    if not seconds:
        return None
    ours, stock = (seconds[side] - seconds["plain"] for side in ("ours", "stock"))
    return stock / ours if ours > 0 else None


def _parameter_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    known = {
        one["network"]: one["num_parameters"]
        for one in records
        if "num_parameters" in one
    }
    for network, counts in known.items():
        yield [network, *(f"{counts[key]:,}" for key in ("network", "both", "ours"))]


def _products(record: Record) -> Iterator[list[str]]:
    for name, product in record.get("products", {}).items():
        seconds = product.get("seconds", {})
        yield [
            record["title"],
            name,
            *(number(seconds.get(side), 1e3) for side in ("ours", "stock")),
            *_timing(product),
            error(product.get("error")),
        ]


def _weighed(record: Record) -> bool:
    return "memory_share" in record


def _memory_row(record: Record) -> list[str]:
    beyond, kept = record["memory_bytes"], record["kept_bytes"]
    return [
        record["title"],
        *(number(beyond[side], 2**-20) for side in ("ours", "stock")),
        number(record["memory_share"]),
        number(record["passing_share"]),
        *(number(kept[side], 2**-20) for side in ("ours", "stock")),
        number(record["peak_bytes"]["plain"], 2**-20),
    ]


def _layer_table(layers: Sequence[Record]) -> Iterator[list[str]]:
    yield ["layer", "", "input", "n", "ours ms", "stock ms", "x", "forward ms", "error"]
    sums = {"ours": 0.0, "stock": 0.0}
    for layer in layers:
        ours, stock = (layer["factor_seconds"][side] for side in ("ours", "stock"))
        if ours is not None and stock is not None:
            sums["ours"] += layer["count"] * ours
            sums["stock"] += layer["count"] * stock
        yield [
            layer["layer"],
            layer["module"],
            "x".join(map(str, layer["input"])),
            str(layer["count"]),
            *_factor(ours, stock),
            number(layer["forward_seconds"], 1e3),
            error(layer.get("error")),
        ]
    total = _factor(sums["ours"], sums["stock"])
    yield ["sum of what both have", "", "", "", *total, "", ""]


def _factor(ours: float | None, stock: float | None) -> list[str]:
    """Times and their ratio, where the forward pass did not drown them."""
    ratio = None
    if ours is not None and stock is not None and min(ours, stock) > 0:
        ratio = stock / ours
    return [number(ours, 1e3), number(stock, 1e3), number(ratio)]


def _figures(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Names and SVGs."""
    built = [one for one in records if one.get("ratio") is not None]
    if built:
        titles = [one["title"] for one in built]
        ratios: list[float | None] = [one["ratio"] for one in built]
        title = "Building an operator: stock's time over ours"
        yield "building", bar_chart(title, titles, {"x": ratios}, mark=1.0)
    for record in records:
        layers = record.get("layers")
        if not layers or record["network"] != BAR_NETWORK or record["pixels"] != 224:
            continue
        names = [f"{one['count']} x {one['layer']}" for one in layers]
        milliseconds = {
            side: [_milliseconds(one["factor_seconds"][side]) for one in layers]
            for side in ("ours", "stock")
        }
        title = f"Input factors, {record['title']}, ms per layer"
        yield f"layers-{record['kind']}", bar_chart(title, names, milliseconds)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else max(seconds, 0.0) * 1e3


def _failures(record: Record) -> Iterator[str]:
    """Why a row is not complete."""
    title = f"- **{record['title']}**"
    if not record.get("agrees", True):
        yield f"{title}: ours DIFFERS from stock's, so not timed"
    for name, product in record.get("products", {}).items():
        if not product["agrees"]:
            yield f"{title}, {name}: ours DIFFERS from stock's, so not timed"
    for layer in record.get("layers", ()):
        if not layer.get("agrees", True):
            yield f"{title}, {layer['layer']}: ours DIFFERS from stock's, so not timed"
    if "reason" in record:
        yield f"{title}: {record['reason']}"


if __name__ == "__main__":
    main()
