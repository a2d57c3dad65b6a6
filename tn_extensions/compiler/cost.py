"""The cost model: what an operation does, and how long a device takes for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True, slots=True)
class Cost:
    """Work, memory and estimated time of an operation.

    Args:
        flops: Multiply-adds.
        bytes: Bytes moved from and to memory.
        calls: Operators called, or kernels launched on a GPU.
        peak: Largest number of elements held beyond inputs and output.
        seconds: Estimated time.
    """

    flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0
    peak: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Add the costs of two operations whose temporaries are held together."""
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.calls + other.calls,
            self.peak + other.peak,
            self.seconds + other.seconds,
        )

    def times(self, count: float) -> Cost:
        """Return the cost of repetitions, each of which reuses the temporaries."""
        return Cost(
            self.flops * count,
            self.bytes * count,
            self.calls * count,
            self.peak,
            self.seconds * count,
        )

    def holding(self, elements: int) -> Cost:
        """Return the cost with a different peak."""
        return replace(self, peak=elements)


_BATCHED = 4
"""Number of matrices in a batch whose overhead is about that of a call."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds of a device.

    Args:
        gemm: Multiply-adds per second of large matrix products.
        native: Multiply-adds per second of torch's convolutions and their weight
            gradients with many channels.
        native_depthwise: The rate of weight gradients with one channel per group.
        depthwise: The rate of convolutions with one channel per group.
        copy: Bytes per second of contiguous copies.
        cached_copy: Bytes per second of contiguous copies within the cache.
        cache: Size of the cache in bytes.
        scatter: Elements per second through strided views with short rows.
        call: Seconds of overhead of a call.
        half_size: Side of a matrix product whose rate is half of ``gemm``.
    """

    gemm: float
    native: float
    native_depthwise: float
    depthwise: float
    copy: float
    cached_copy: float
    cache: float
    scatter: float
    call: float
    half_size: float

    def product(
        self, rows: int, columns: int, inner: int, batch: int = 1, itemsize: int = 4
    ) -> Cost:
        """Estimate the cost of a (batched) matrix product."""
        flops = float(batch) * rows * columns * inner
        moved = itemsize * batch * (rows * inner + inner * columns + rows * columns)
        share = prod(n / (n + self.half_size) for n in (rows, columns, inner))
        # a batch is computed as small products, one after the other
        copy = self.copy if moved > self.cache and batch == 1 else self.cached_copy
        seconds = max(flops / (self.gemm * max(share, 1e-3)), moved / copy)
        # thin products are summed in pieces, see tn_extensions.compiler.product
        pieces = max(1, inner // 256) if min(rows, columns) < 16 else 1
        overhead = (1 + (batch * pieces - 1) / _BATCHED) * self.call
        return Cost(flops, moved, 1, 0, seconds + overhead)

    def overhead(self, calls: int) -> Cost:
        """Return the cost of calling operators, apart from their work."""
        return Cost(calls=calls, seconds=calls * self.call)

    def move(self, elements: float, itemsize: int = 4, run: float = 64) -> Cost:
        """Estimate the cost of a copy whose contiguous runs have ``run`` elements."""
        moved = 2.0 * itemsize * elements
        copy = self.cached_copy if itemsize * elements <= self.cache else self.copy
        seconds = max(moved / copy, elements / (self.scatter * run**0.5))
        return Cost(0, moved, 1, 0, seconds + self.call)


RATES: dict[str, Rates] = {
    "cpu": Rates(
        gemm=2.7e10,
        native=2.6e10,
        native_depthwise=3.5e9,
        depthwise=1.2e10,
        copy=1.6e10,
        cached_copy=4e10,
        cache=2e7,
        scatter=4e8,
        call=1.8e-5,
        half_size=12.0,
    ),
    "cuda": Rates(
        gemm=2.5e13,
        native=1.0e13,
        native_depthwise=2e11,
        depthwise=2e11,
        copy=2.0e12,
        cached_copy=4e12,
        cache=4e7,
        scatter=2e11,
        call=8e-6,
        half_size=64.0,
    ),
}
"""Rates by device type; other devices have the rates of a CPU.

The CPU's rates were fitted on an AMD EPYC with AVX2 and two threads, so that
``experiments/questions/plans.py`` saw the fastest chosen most often; only their ratios
matter. The CUDA rates are guesses from data sheets and have not been measured yet.
"""


def rates(device_type: str) -> Rates:
    """Return the rates of a device type."""
    return RATES.get(device_type, RATES["cpu"])
