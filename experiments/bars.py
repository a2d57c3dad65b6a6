"""The issue's bars as data, and what was measured against each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, Literal

Record = dict[str, Any]
Aim = Literal["at least", "at most"]

BAR_BATCH_SIZES = (8, 32)
ROUNDING_FACTOR = 2.0
ROUNDING_FLOOR = 2.0**-22
MEMORY_RESOLUTION_BYTES = 2**18


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured.

    Args:
        text: The bar in words.
        aim: Whether the bar is a lower or an upper limit.
        limit: The limit.
        value: What was measured; ``None`` if nothing was.
        worst: The layer that decides it, where one does.
    """

    text: str
    aim: Aim
    limit: float
    value: float | None
    worst: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; ``None`` if not measured."""
        if self.value is None:
            return None
        above = self.value >= self.limit
        return above if self.aim == "at least" else self.value <= self.limit

    def __str__(self) -> str:
        """One line for a report."""
        sign = ">=" if self.aim == "at least" else "<="
        bar = f"{self.text}: bar {sign} {self.limit:.3g}"
        if self.value is None:
            return f"{bar}: not measured"
        worst = f" ({self.worst})" if self.worst else ""
        met = "met" if self.met else "**not met**"
        return f"{bar}: {self.value:.3g}{worst}, {met}"


@dataclass(frozen=True)
class SpeedBar:
    """A bar on the time of a stock contender over ours.

    Args:
        text: The bar in words.
        quantity: The quantity it holds for.
        against: The stock contender.
        layers: Which layers it holds for.
        statistic: How the layers are combined; see :data:`STATISTICS`.
        limits: Least ratio per batch size, or for all of them.
    """

    text: str
    quantity: str
    against: str
    layers: Callable[[Record], bool]
    statistic: Literal["geometric mean", "least", "sum"]
    limits: float | Mapping[int, float]

    def judge(self, records: Iterable[Record], batch_size: int) -> Verdict | None:
        """Compare records with the bar; ``None`` where it sets no limit."""
        limit = (
            self.limits
            if isinstance(self.limits, float)
            else self.limits.get(batch_size)
        )
        if limit is None:
            return None
        chosen = [
            record
            for record in _of(records, self.quantity, batch_size)
            if self.layers(record) and ratio(record, self.against) is not None
        ]
        value, worst = STATISTICS[self.statistic](chosen, self.against)
        return Verdict(self.text, "at least", limit, value, worst)


def ratio(record: Record, against: str) -> float | None:
    """Time of a contender over ours on one layer."""
    value = record["contenders"].get(against, {}).get("ratio")
    return None if value is None else float(value)


def geometric_mean_ratio(
    records: list[Record], against: str
) -> tuple[float | None, None]:
    """Geometric mean of the ratios over layers."""
    ratios = [value for r in records if (value := ratio(r, against)) is not None]
    return (geometric_mean(ratios) if ratios else None), None


def sum_ratio(records: list[Record], against: str) -> tuple[float | None, None]:
    """Ratio of the total times, every layer as often as its network has it."""
    totals = {"ours": 0.0, against: 0.0}
    for record in records:
        if ratio(record, against) is not None:
            for name in totals:
                seconds = record["contenders"][name]["seconds"]
                totals[name] += record["layer"]["count"] * seconds
    if not totals["ours"]:
        return None, None
    return totals[against] / totals["ours"], None


def least_ratio(records: list[Record], against: str) -> tuple[float | None, str | None]:
    """Smallest ratio, and the layer that has it."""
    ratios = [
        (value, record["layer"]["name"])
        for record in records
        if (value := ratio(record, against)) is not None
    ]
    return min(ratios, default=(None, None))


STATISTICS: dict[
    str, Callable[[list[Record], str], tuple[float | None, str | None]]
] = {
    "geometric mean": geometric_mean_ratio,
    "sum": sum_ratio,
    "least": least_ratio,
}


def _family(name: str) -> Callable[[Record], bool]:
    return lambda record: bool(record["layer"]["family"] == name)


def _pixels(record: Record) -> int:
    return int(min(record["layer"]["input_size"]))


def _resnet18(record: Record) -> bool:
    return bool(record["layer"]["network"] == "resnet18")


def _every(record: Record) -> bool:
    return True


def _stride_1_from_14(record: Record) -> bool:
    return _family("3x3 stride 1")(record) and _pixels(record) >= 14


def _512_at_7(record: Record) -> bool:
    return bool(record["layer"]["in_channels"] == 512) and _pixels(record) == 7


_MEAN: Literal["geometric mean"] = "geometric mean"
_EXPAND = "`kfac_expand` against unfold, "
_REDUCE = "`kfac_reduce`, "
SPEED_BARS: tuple[SpeedBar, ...] = (
    SpeedBar(
        _EXPAND + "3x3 stride 1, 14 or more pixels, geometric mean",
        "expand",
        "unfold",
        _stride_1_from_14,
        _MEAN,
        6.0,
    ),
    SpeedBar(
        _EXPAND + "depthwise, geometric mean",
        "expand",
        "unfold",
        _family("depthwise"),
        _MEAN,
        11.0,
    ),
    SpeedBar(
        _EXPAND + "3x3 stride 2, geometric mean",
        "expand",
        "unfold",
        _family("3x3 stride 2"),
        _MEAN,
        1.8,
    ),
    SpeedBar(
        _EXPAND + "7x7 first layer",
        "expand",
        "unfold",
        _family("7x7 first"),
        _MEAN,
        3.0,
    ),
    SpeedBar(
        _EXPAND + "512 channels, 7x7 pixels",
        "expand",
        "unfold",
        _512_at_7,
        _MEAN,
        {8: 1.7, 32: 3.0},
    ),
    SpeedBar(
        _EXPAND + "sum over all of ResNet-18's layers",
        "expand",
        "unfold",
        _resnet18,
        "sum",
        {8: 3.5, 32: 4.5},
    ),
    SpeedBar(_EXPAND + "slowest layer", "expand", "unfold", _every, "least", 1.0),
    *(
        SpeedBar(
            f"{_REDUCE}against {stock}, ResNet-18's layers, geometric mean",
            "reduce",
            stock,
            _resnet18,
            _MEAN,
            limit,
        )
        for stock, limit in (
            ("unfold", 10.0),
            ("curvlinops", 2.5),
            ("einconv", 3.0),
            ("einconv prepared", 3.0),
        )
    ),
    *(
        SpeedBar(
            f"{_REDUCE}against {stock}, slowest layer",
            "reduce",
            stock,
            _every,
            "least",
            1.0,
        )
        for stock in ("unfold", "curvlinops", "einconv", "einconv prepared")
    ),
    SpeedBar(
        "patch means against curvlinops, ResNet-18's layers, geometric mean",
        "mean",
        "curvlinops",
        _resnet18,
        _MEAN,
        5.0,
    ),
)


def judge(records: list[Record], batch_size: int) -> list[Verdict]:
    """All bars on the records of one batch size."""
    speed = (bar.judge(records, batch_size) for bar in SPEED_BARS)
    return [
        *(verdict for verdict in speed if verdict is not None),
        *_judge_memory(records, batch_size),
        *_judge_accuracy(records, batch_size),
    ]


def _judge_memory(records: list[Record], batch_size: int) -> list[Verdict]:
    """Peak memory beyond input and output, ours over stock's (unfold)."""

    def large_stride_1(record: Record) -> bool:
        # the issue has a bar of its own for depthwise layers
        layer = record["layer"]
        strided = any(s != 1 for s in layer["stride"])
        special = layer["family"] in ("depthwise", "transposed")
        return not strided and not special and _pixels(record) >= 28

    bars = (
        ("stride 1, 28 or more pixels", large_stride_1, 1 / 3),
        ("depthwise", _family("depthwise"), 0.1),
        ("all layers", _every, 1.0),
    )
    verdicts = []
    for quantity in ("expand", "reduce"):
        for text, layers, limit in bars:
            shares = []
            for record in _of(records, quantity, batch_size):
                ours, stock = _both(record, "memory_bytes")
                if ours is None or stock is None or not layers(record):
                    continue
                excess = max(ours - MEMORY_RESOLUTION_BYTES, 0)
                share = excess / stock if stock else math.inf if excess else 0.0
                shares.append((share, record["layer"]["name"]))
            value, worst = max(shares, default=(None, None))
            text_in_full = (
                f"peak memory of `kfac_{quantity}` (less a quarter MiB of resolution) "
                f"over unfold's, {text}"
            )
            verdicts.append(Verdict(text_in_full, "at most", limit, value, worst))
    return verdicts


def _judge_accuracy(records: list[Record], batch_size: int) -> list[Verdict]:
    """Float32 errors over the error that stock's rounding would excuse."""
    verdicts = []
    for quantity in ("expand", "reduce", "mean"):
        for field, text in (
            ("error", "normal input"),
            ("error_framed", "border 1e4 times the interior"),
        ):
            excesses = []
            for record in _of(records, quantity, batch_size):
                ours, stock = _both(record, field)
                if ours is None or stock is None:
                    continue
                allowed = ROUNDING_FACTOR * stock + ROUNDING_FLOOR
                excesses.append((ours / allowed, record["layer"]["name"]))
            value, worst = max(excesses, default=(None, None))
            text_in_full = (
                f"error of {quantity} over ({ROUNDING_FACTOR:.0f} x unfold's + 2^-22), "
                f"{text}"
            )
            verdicts.append(Verdict(text_in_full, "at most", 1.0, value, worst))
    return verdicts


def _both(record: Record, field: str) -> tuple[float | None, float | None]:
    contenders = record["contenders"]
    return contenders["ours"][field], contenders.get("unfold", {}).get(field)


def _of(records: Iterable[Record], quantity: str, batch_size: int) -> list[Record]:
    return [
        record
        for record in records
        if record["quantity"] == quantity and record["batch_size"] == batch_size
    ]
