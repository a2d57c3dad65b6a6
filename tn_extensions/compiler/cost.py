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


_BATCHED = 4
"""Matrices of a batch that cost about as much overhead as a call."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds of a device; multiply-adds per second, bytes per second, seconds.

    Args:
        gemm: Large matrix products.
        native: Torch's convolutions and their weight gradients, of many channels.
        native_depthwise: Weight gradients with one channel per group.
        depthwise: Convolutions with one channel per group.
        copy: Contiguous copies.
        cached_copy: Contiguous copies that stay in the cache.
        cache: Bytes that do.
        scatter: Elements per second through strided views with short rows.
        call: Overhead of one operator.
        half_size: Side of a matrix product at which its rate is half of ``gemm``.
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
        """Cost of a (batched) matrix product."""
        flops = float(batch) * rows * columns * inner
        moved = itemsize * batch * (rows * inner + inner * columns + rows * columns)
        share = prod(n / (n + self.half_size) for n in (rows, columns, inner))
        # batches are small products, one after the other
        copy = self.copy if moved > self.cache and batch == 1 else self.cached_copy
        seconds = max(flops / (self.gemm * max(share, 1e-3)), moved / copy)
        # thin ones are summed in pieces, see :mod:`~tn_extensions.compiler.product`
        pieces = max(1, inner // 256) if min(rows, columns) < 16 else 1
        overhead = (1 + (batch * pieces - 1) / _BATCHED) * self.call
        return Cost(flops, moved, 1, 0, seconds + overhead)

    def overhead(self, calls: int) -> Cost:
        """Cost of calling operators, whatever they do."""
        return Cost(calls=calls, seconds=calls * self.call)

    def move(self, elements: float, itemsize: int = 4, run: float = 64) -> Cost:
        """Cost of a copy whose contiguous runs have ``run`` elements."""
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
"""Rates by device type; others are priced as a CPU.

Those of CPUs were fitted, on an AMD EPYC with AVX2 and two threads, so that the choices
of `python -m experiments plans` come out best; only their ratios matter. Those of CUDA
devices are guesses from data sheets that no measurement has corrected yet.
"""


def rates(device_type: str) -> Rates:
    """Constants of a device type."""
    return RATES.get(device_type, RATES["cpu"])
