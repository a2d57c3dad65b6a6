"""Window sums: sum an operand over windows of positions.

Axes whose only window has all positions are summed at once. Other windows of one length
differ only at their borders. So a dimension is summed once over the positions that all
windows share, and the border rows are added. Small maps are multiplied with the window
matrices, or their Kronecker product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import prod

import numpy as np
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.constant import Constant
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.strided import View, arrangement
from tn_extensions.network import Affine, Operand, Pattern, TensorNetwork

_KRONECKER_LIMIT = 256
"""Number of positions up to which the Kronecker product is formed."""


@dataclass(frozen=True, slots=True)
class WindowDim:
    """A dimension of windows: each value of ``free`` sums a range of ``read``."""

    read: str
    free: str | None
    size: int
    ranges: tuple[range, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix ``[K, I]``."""
        return len(self.ranges), self.size

    @property
    def is_whole(self) -> bool:
        """True if there is a single window, of all positions."""
        return self.free is None and self.ranges == (range(self.size),)

    @property
    def matrix(self) -> np.ndarray:
        """The windows as a matrix ``[K, I]``."""
        result = np.zeros(self.shape)
        for row, positions in zip(result, self.ranges, strict=True):
            row[positions.start : positions.stop : positions.step] = 1.0
        return result


def window_dim(
    pattern: Pattern, operand: Operand, network: TensorNetwork
) -> WindowDim | None:
    """Read a pattern as windows of an operand; None if it is not of that form."""
    sizes = dict(network.sizes)
    kept = set(network.output_indices)
    free = [j for j in pattern.position.indices if j in kept]
    read = [j for j in pattern.indices if j in operand.indices and j not in kept]
    alone = len(network.carriers(pattern.index)) == 1 and pattern.index not in kept
    others = len(pattern.indices) - len(free)
    if len(read) != 1 or len(free) > 1 or set(free) & set(operand.indices):
        return None
    if read[0] == pattern.index and len(pattern.summed) == 1 and others == 1:
        # the summed term enumerates the positions that are read
        ((step, count),) = pattern.summed
        terms = (*pattern.position.terms, (_SUMMED, step))
        pattern = Pattern(pattern.index, Affine(terms, pattern.position.start))
        shared, sizes = _SUMMED, {**sizes, _SUMMED: count}
    elif alone and others == 2 and not pattern.summed:
        shared = pattern.index  # all positions that hit anything
    else:
        return None
    found = pattern.progressions(read[0], shared, sizes)
    ranges = tuple(progression.positions for progression in found)
    return WindowDim(read[0], free[0] if free else None, sizes[read[0]], ranges)


_SUMMED = ""
"""Name of the index over which a pattern has been summed."""


def window(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Sum whole axes, then windows, dimension by dimension or several at once."""
    if len(network.operands) != 1 or not network.patterns or network.pairs:
        return
    (operand,) = network.operands
    dims = [window_dim(p, operand, network) for p in network.patterns]
    found = [dim for dim in dims if dim is not None]
    if len(found) != len(dims) or 0 in network.sizes.values():
        return
    taken = [j for dim in found for j in (dim.read, dim.free) if j is not None]
    if len(set(taken)) < len(taken):
        return
    found = [dim for dim in found if not dim.is_whole]
    # outer dimensions first, in their order in memory
    found.sort(key=lambda dim: operand.indices.index(dim.read))
    for leading in range(len(found) + 1):
        yield _candidate(network, operand, found[:leading], found[leading:], target)


def _candidate(
    network: TensorNetwork,
    operand: Operand,
    leading: Sequence[WindowDim],
    trailing: Sequence[WindowDim],
    target: Target,
) -> Candidate:
    dims = (*leading, *trailing)
    reads = [dim.read for dim in dims]
    kept = [j for j in operand.indices if j in network.output_indices]
    summed = [j for j in operand.indices if j not in (*kept, *reads)]
    order = (*kept, *summed, *reads)
    factors = _factors(trailing)
    constants = [Constant(partial(_matrix, factor)) for factor in factors]
    sizes, name = network.sizes, operand.name
    free = [dim.free for dim in dims if dim.free is not None]
    present = [*kept, *free]
    outer = prod(sizes[j] for j in kept)
    summed_axes = tuple(range(len(kept), len(kept) + len(summed)))
    read = View(operand, order, sizes)
    arrange = arrangement(present, network.output, sizes)

    def compute(tensors: Tensors) -> Tensor:
        x = read(tensors[name])
        if summed:
            x = x.sum(summed_axes)
        if not dims:
            return arrange(x)
        done = outer
        x = x.reshape(done, *x.shape[len(kept) :])
        for dim in leading:
            rest = x.shape[2:]
            x = sum_windows(x.flatten(2) if rest else x[..., None], dim.ranges)
            done *= len(dim.ranges)
            x = x.reshape(done, *rest)
        x = _multiply(x, [constant.like(x) for constant in constants])
        return arrange(x)

    def run(tensors: Tensors, into: Accumulator) -> None:
        into.put(into.out, compute(tensors))

    operations = [*_operations(outer, leading, trailing, factors, target)]
    elements, held = outer * prod(dim.size for dim in dims), 0
    if summed:
        counts = [elements, *(sizes[j] for j in summed)]
        cost = _read(prod(counts), sizes[operand.indices[-1]], target)
        text = " x ".join(map(str, counts))
        operations.insert(0, Operation(f"sum {' '.join(summed)}", text, cost))
        held = elements
    for dim in (*leading, *reversed(trailing)):
        elements = elements // dim.size * len(dim.ranges)
        held = max(held, 2 * elements)
    return Candidate("window", tuple(operations), held, run, compute)


def _factors(dims: Sequence[WindowDim]) -> list[Sequence[WindowDim]]:
    """Group the dimensions: one window matrix is formed for each group."""
    if not dims:
        return []
    if prod(dim.size for dim in dims) <= _KRONECKER_LIMIT:
        return [dims]
    return [(dim,) for dim in dims]


def _matrix(dims: Sequence[WindowDim]) -> np.ndarray:
    """Compute the Kronecker product of the window matrices of some dimensions."""
    return reduce(np.kron, (dim.matrix for dim in dims))


def _multiply(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply the trailing axes with window matrices, the last one first."""
    if not factors:
        return x
    if len(factors) == 1:
        return x.flatten(1) @ factors[0].mT
    x = x @ factors[-1].mT
    for axis, factor in reversed(list(enumerate(factors[:-1], start=1))):
        x = factor @ x.flatten(axis + 1)
    return x


def sum_windows(x: Tensor, ranges: Sequence[range]) -> Tensor:
    """Sum ``x`` over ranges of axis 1: ``[M, I, R] -> [M, K, R]``.

    Positions that all ranges of a phase share are summed once. The others are added;
    nothing is subtracted.
    """
    result = x.new_empty(x.shape[0], len(ranges), x.shape[2])
    phases: dict[int, list[int]] = {}
    for value, positions in enumerate(ranges):
        phases.setdefault(positions.start % positions.step, []).append(value)
    for values in phases.values():
        low = max(ranges[value].start for value in values)
        high = min(ranges[value].stop for value in values)
        step = ranges[values[0]].step
        interior = x[:, low:high:step].sum(1) if low < high else None
        for value in values:
            start, stop = ranges[value].start, ranges[value].stop
            if interior is None:
                pieces = [x[:, start:stop:step].sum(1)]
            else:
                pieces = [interior]
                for a, b in ((start, low), (high, stop)):
                    if b - a == 1 or (a < b and step >= b - a):
                        pieces.append(x[:, a])
                    elif a < b:
                        pieces.append(x[:, a:b:step].sum(1))
            total = reduce(Tensor.add, pieces[1:], pieces[0])
            result[:, value] = total
    return result


def _operations(
    outer: int,
    leading: Sequence[WindowDim],
    trailing: Sequence[WindowDim],
    factors: Sequence[Sequence[WindowDim]],
    target: Target,
) -> Iterator[Operation]:
    rates = target.rates
    sizes = [dim.size for dim in (*leading, *trailing)]
    for dim in leading:
        sizes = sizes[1:]
        inner = prod(sizes)
        touched = outer * inner * (dim.size + 3 * len(dim.ranges))
        run = inner if inner > 1 else dim.size
        cost = _read(touched, run, target) + rates.overhead(4)
        if inner == 1:  # sums of short rows, one by one
            cost = cost + Cost(seconds=outer * len(dim.ranges) * rates.call / 120)
        shape = f"{outer} x {dim.size} x {inner} -> {len(dim.ranges)}"
        yield Operation(f"sum windows of {dim.read}", shape, cost)
        outer *= len(dim.ranges)
    shapes = [[dim.shape for dim in dims] for dims in factors]
    if len(factors) == 1:
        rows, columns = (prod(axes) for axes in zip(*shapes[0], strict=True))
        yield _skinny("all windows", outer, columns, rows, target)
    elif factors:
        for dim, ((rows, columns),) in zip(
            reversed(trailing), reversed(shapes), strict=True
        ):
            height = outer * prod(sizes[:-1])
            yield _skinny(f"windows of {dim.read}", height, columns, rows, target)
            sizes = sizes[:-1]
            outer *= rows


def _read(entries: float, run: int, target: Target) -> Cost:
    """Estimate a sum: cheaper than a copy, which also writes."""
    return target.rates.move(entries / 4, target.itemsize, run)


def _skinny(
    windows: str, rows: int, inner: int, columns: int, target: Target
) -> Operation:
    """Estimate a product with few columns: one read, slower with more columns."""
    moved = target.itemsize * rows * inner
    read = moved * (1 + columns / 10) / target.rates.cached_copy
    overhead = (1 + rows / 1500) * target.rates.call
    cost = Cost(float(rows) * inner * columns, moved, 1, 0, read + overhead)
    return Operation(f"multiply by {windows}", f"{rows} x {inner} @ {columns}", cost)
