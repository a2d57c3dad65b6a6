"""The cost model: what a step does, and how long a device takes for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True, slots=True)
class Cost:
    """What an evaluation does, in units that do not depend on the machine.

    Args:
        flops: Multiply-adds, all kinds.
        bytes: Bytes moved from and to memory.
        calls: Kernel launches.
        peak: Largest number of elements held beyond inputs and output.
        seconds: Estimated time.
    """

    flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0
    peak: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Cost of one after the other, temporaries of both held."""
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.calls + other.calls,
            self.peak + other.peak,
            self.seconds + other.seconds,
        )

    def times(self, count: float) -> Cost:
        """Cost of repeating this, with the temporaries of one repetition."""
        return Cost(
            self.flops * count,
            self.bytes * count,
            self.calls * count,
            self.peak,
            self.seconds * count,
        )

    def holding(self, elements: int) -> Cost:
        """The same with a different number of elements held."""
        return replace(self, peak=elements)


_NARROW, PIECE, LONG = 100, 448, 8192
"""Rows or columns below which products are slow, terms between which they are.

See :mod:`~tn_extensions.compiler.product` for why.
"""


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds of a device; multiply-adds per second, bytes per second, seconds.

    Args:
        gemm: Large matrix products.
        narrow: Products of few rows or columns and few terms, or not contiguous.
        batched: Batches of small matrix products.
        correlate: Native weight gradients of convolutions, many channels.
        correlate_depthwise: The same, one channel per group.
        depthwise: Native depthwise convolutions with large kernels.
        copy: Contiguous copies.
        cached_copy: Contiguous copies that stay in the cache.
        cache: Bytes that do.
        scatter: Elements per second through strided views with short rows.
        call: Overhead of one kernel.
        half_size: Side of a matrix product at which its rate is half of ``gemm``.
        batched_half_size: The same for ``batched``.
    """

    gemm: float
    narrow: float
    batched: float
    correlate: float
    correlate_depthwise: float
    depthwise: float
    copy: float
    cached_copy: float
    cache: float
    scatter: float
    call: float
    half_size: float
    batched_half_size: float

    def product(
        self,
        rows: int,
        columns: int,
        inner: int,
        batch: int = 1,
        itemsize: int = 4,
        contiguous: bool = False,
    ) -> Cost:
        """Cost of a (batched) matrix product, of contiguous operands or of views."""
        flops = float(batch) * rows * columns * inner
        moved = itemsize * batch * (rows * inner + inner * columns + rows * columns)
        rate = self.gemm
        if batch > 1:
            # wide products are made one by one, by all threads
            rate = self.batched * (1.5 if min(rows, columns) >= _NARROW else 1.0)
        elif not (contiguous and (inner >= LONG or inner <= PIECE)):
            wide = max(1.0, min(rows, columns) / _NARROW)
            rate = min(rate, self.narrow * wide**0.8)
        share = self.share(rows, columns, inner, batched=batch > 1)
        # batches are small products, one after the other
        copy = self.copy if moved > self.cache and batch == 1 else self.cached_copy
        seconds = max(flops / (rate * max(share, 1e-3)), moved / copy)
        return Cost(flops, moved, 1, 0, seconds + self.call)

    def overhead(self, calls: int) -> Cost:
        """Cost of calling operators, whatever they do."""
        return Cost(calls=calls, seconds=calls * self.call)

    def share(self, *sides: int, batched: bool = False) -> float:
        """The share of its rate that a product of these sides reaches."""
        half = self.batched_half_size if batched else self.half_size
        return prod(side / (side + half) for side in sides)

    def move(self, elements: float, itemsize: int = 4, run: float = 64) -> Cost:
        """Cost of a copy whose contiguous runs have ``run`` elements."""
        moved = 2.0 * itemsize * elements
        copy = self.cached_copy if itemsize * elements <= self.cache else self.copy
        seconds = max(moved / copy, elements / (self.scatter * run**0.5))
        return Cost(0, moved, 1, 0, seconds + self.call)


FITTED: dict[str, Rates] = {
    "cpu": Rates(
        gemm=2.2e11,
        narrow=1e11,
        batched=5.5e10,
        correlate=1.7e11,
        correlate_depthwise=3.5e9,
        depthwise=2e10,
        copy=1.6e10,
        cached_copy=4e10,
        cache=2e7,
        scatter=4e8,
        call=6e-6,
        half_size=12.0,
        batched_half_size=3.0,
    ),
    "cuda": Rates(
        gemm=2.5e13,
        narrow=2.5e13,
        batched=1e13,
        correlate=1.0e13,
        correlate_depthwise=2e11,
        depthwise=2e11,
        copy=2.0e12,
        cached_copy=4e12,
        cache=4e7,
        scatter=2e11,
        call=8e-6,
        half_size=64.0,
        batched_half_size=32.0,
    ),
}
"""Constants by device type, fitted to the times of whole plans."""

RATES = dict(FITTED)
"""The constants in force; other device types are priced as a CPU."""


def rates(device_type: str) -> Rates:
    """Constants of a device type."""
    return RATES.get(device_type, RATES["cpu"])
