"""Nodes of a tensor network: operands, index patterns, their pairs and selections.

All of them are built from affine positions ``start + sum stride * index``. An operand's
axis is read at such a position, which makes slices, reshapes and strided views the same
thing. An index pattern is one where an index equals such a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tn_extensions.network.index import letters

Rename = Callable[[str], str]
Sizes = Mapping[str, int]
Values = NDArray[np.signedinteger[Any]]


class _Ordered:
    """A node that can be sorted, by its text."""

    @cached_property
    def order(self) -> str:
        """Key by which a network sorts its nodes."""
        return repr(self)


@dataclass(frozen=True)
class Affine:
    """A position ``start + sum_j stride_j * index_j``.

    Args:
        terms: Pairs ``(index, stride)``; sorted, since their order has no meaning.
        start: The position where all indices are zero.
    """

    terms: tuple[tuple[str, int], ...]
    start: int = 0
    indices: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The indices, sorted."""

    def __post_init__(self) -> None:
        terms = self.terms if len(self.terms) < 2 else tuple(sorted(self.terms))
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "indices", tuple(index for index, _ in terms))

    def stride(self, index: str) -> int:
        """Return the stride of an index."""
        return dict(self.terms)[index]

    def rename(self, rename: Rename) -> Affine:
        """Rename the indices."""
        return Affine(tuple((rename(j), s) for j, s in self.terms), self.start)

    def substitute(self, index: str, position: Affine) -> Affine:
        """Insert ``index = position``."""
        if index not in self.indices:
            return self
        factor = self.stride(index)
        kept = tuple((j, s) for j, s in self.terms if j != index)
        added = tuple((j, factor * s) for j, s in position.terms)
        return Affine(kept + added, self.start + factor * position.start)

    def drop(self, index: str) -> Affine:
        """Set an index to zero."""
        return self.substitute(index, Affine(()))

    def bounds(self, sizes: Sizes) -> tuple[int, int]:
        """Return the smallest and largest position for indices of the given sizes."""
        low = high = self.start
        for index, stride in self.terms:
            end = stride * (sizes[index] - 1)
            if end > 0:
                high += end
            else:
                low += end
        return low, high


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of ``extent`` entries of an operand, read at an affine position."""

    position: Affine
    extent: int

    @classmethod
    def of(cls, extent: int, *indices: tuple[str, int]) -> Axis:
        """Make an axis that splits into indices of given sizes, the last one fastest.

        >>> Axis.of(6, ("g", 2), ("ci", 3)).position.terms
        (('ci', 1), ('g', 3))
        """
        stride, terms = 1, []
        for index, size in reversed(indices):
            terms.append((index, stride))
            stride *= size
        return cls(Affine(tuple(terms)), extent)

    def whole(self, sizes: Sizes) -> tuple[str, ...] | None:
        """Return the indices, slowest first, if they read the whole axis in order."""
        terms = sorted(
            self.position.terms, key=lambda term: (-term[1], -sizes[term[0]])
        )
        indices = tuple(index for index, _ in terms)
        split = [(index, sizes[index]) for index in indices]
        full = Axis.of(prod(size for _, size in split), *split)
        return indices if self == full else None


@dataclass(frozen=True)
class Operand(_Ordered):
    """A named tensor, each axis read at an affine position of the network's indices."""

    name: str
    axes: tuple[Axis, ...]

    @cached_property
    def indices(self) -> tuple[str, ...]:
        """Indices in the order of the axes, fastest last within an axis."""
        return tuple(
            index
            for axis in self.axes
            for index, _ in sorted(axis.position.terms, key=lambda term: -abs(term[1]))
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(axis.extent for axis in self.axes)

    def rename(self, rename: Rename) -> Operand:
        """Rename the indices."""
        return self._map(lambda position: position.rename(rename))

    def substitute(self, index: str, position: Affine) -> Operand:
        """Insert ``index = position``: a view of the tensor."""
        return self._map(lambda old: old.substitute(index, position))

    def resized(self, old: Sizes, new: Sizes, names: Mapping[str, str]) -> Operand:
        """Change the sizes of all axes that are read whole.

        Args:
            old: Present sizes of the indices.
            new: New sizes, by the new names.
            names: New names of some indices.

        Returns:
            The resized operand.
        """
        axes = []
        for axis in self.axes:
            own = axis.whole(old)
            if own is None:
                axes.append(axis)
            else:
                parts = [(j, new[j]) for j in (names.get(j, j) for j in own)]
                axes.append(Axis.of(prod(size for _, size in parts), *parts))
        return Operand(self.name, tuple(axes))

    def _map(self, change: Callable[[Affine], Affine]) -> Operand:
        axes = tuple(Axis(change(axis.position), axis.extent) for axis in self.axes)
        return replace(self, axes=axes)


class Progression(NamedTuple):
    """Positions ``offset + step * t``, ``begin <= t < end``, that one ``free`` reads.

    Two values of the free index share values of ``t`` only if their residues are equal.
    """

    free: int
    residue: int
    offset: int
    step: int
    begin: int
    end: int

    @property
    def positions(self) -> range:
        """The positions as a range."""
        first, last = (self.offset + self.step * t for t in (self.begin, self.end))
        return range(first, last, self.step)


@dataclass(frozen=True)
class Pattern(_Ordered):
    """Index pattern: the indicator of ``index = position``.

    ``P[index, terms] = #{summed : index = start + sum_j stride_j * term_j + sum_m
    stride_m * summed_m}``. For a convolution, ``i = s o + d k - l``. The order of the
    terms has no meaning, so swapping ``(k, d)`` with ``(o, s)`` changes nothing.

    Args:
        index: The index that is hit; ``0 <= index < size`` clips at the border.
        position: The position that it equals.
        summed: Terms ``(stride, size)`` that have been summed (window sums).
    """

    index: str
    position: Affine
    summed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, index: str, terms: Mapping[str, int], start: int = 0) -> Pattern:
        """Make the pattern that is one where ``index = start + sum stride * term``.

        Args:
            index: The index that is hit.
            terms: Stride of each term; plans need strides of at least 1.
            start: The position where all terms are zero.

        Returns:
            The pattern.

        >>> Pattern.of("i", {"o": 2, "k": 1}, start=-1).indices
        ('i', 'k', 'o')
        """
        return cls(index, Affine(tuple(terms.items()), start))

    @cached_property
    def indices(self) -> tuple[str, ...]:
        """The index that is hit, then the indices of the terms."""
        return (self.index, *self.position.indices)

    def rename(self, rename: Rename) -> Pattern:
        """Rename the indices."""
        return Pattern(rename(self.index), self.position.rename(rename), self.summed)

    def substitute(self, index: str, position: Affine) -> Pattern:
        """Insert ``index = position``, where ``position`` has at most one term."""
        if index != self.index:
            return replace(self, position=self.position.substitute(index, position))
        (name, step), *_ = position.terms
        shifted = self.position.start - position.start
        strides = [s for _, s in self.position.terms] + [s for s, _ in self.summed]
        assert all(number % step == 0 for number in [shifted, *strides])
        terms = tuple((j, s // step) for j, s in self.position.terms)
        summed = tuple((s // step, size) for s, size in self.summed)
        return Pattern(name, Affine(terms, shifted // step), summed)

    def sum(self, index: str, size: int) -> Pattern:
        """Sum over one of the terms."""
        stride = self.position.stride(index)
        summed = tuple(sorted((*self.summed, (stride, size))))
        return replace(self, position=self.position.drop(index), summed=summed)

    def dense(self, sizes: Sizes) -> NDArray[np.float64]:
        """Compute the pattern as an array over :attr:`indices`."""
        terms = self.position.indices
        shape = tuple(sizes[index] for index in self.indices)
        result = np.zeros(shape)
        counts = [sizes[term] for term in terms] + [size for _, size in self.summed]
        strides = [s for _, s in self.position.terms] + [s for s, _ in self.summed]
        grids = np.indices(counts).reshape(len(counts), prod(counts))
        hit = self.position.start + np.asarray(strides, dtype=int) @ grids
        inside = (hit >= 0) & (hit < shape[0])
        where = (hit[inside], *(grid[inside] for grid in grids[: len(terms)]))
        np.add.at(result, where, 1.0)
        return result

    def solve(
        self, wanted: str, given: Mapping[str, Values], sizes: Sizes
    ) -> tuple[Values, NDArray[np.bool_]]:
        """Solve for one index of a pattern without summed terms.

        Args:
            wanted: The index.
            given: Values of all other indices, in arrays that broadcast.
            sizes: Sizes of the indices.

        Returns:
            Values of the index, -1 where there is no solution within its size; and an
            array that is True where there is an integer solution of any size.
        """
        terms = dict(self.position.terms)
        hit = np.asarray(self.position.start)
        for index, stride in terms.items():
            if index != wanted:
                hit = hit + stride * given[index]
        if wanted == self.index:
            values, exact = hit, np.ones(hit.shape, dtype=bool)
        else:
            values, rest = np.divmod(given[self.index] - hit, terms[wanted])
            exact = rest == 0
        inside = exact & (values >= 0) & (values < sizes[wanted])
        return np.where(inside, values, -1), exact

    def hull(self, index: str, sizes: Sizes) -> tuple[int, int] | None:
        """Return the smallest and largest contributing value of an index, or None."""
        terms = [(j, s, sizes[j]) for j, s in self.position.terms]
        terms += [("", s, size) for s, size in self.summed]
        # solving for the longest term leaves least to enumerate
        terms.sort(key=lambda term: (term[0] != index, -term[2]))
        hits = index == self.index
        return _hull(
            self.position.start, tuple(t[1:] for t in terms), sizes[self.index], hits
        )

    def progressions(
        self, read: str, shared: str, sizes: Sizes
    ) -> tuple[Progression, ...]:
        """Return the positions of an axis that each value of the free index reads.

        Args:
            read: The index of the operand's axis.
            shared: The index that enumerates the positions. The third one is free.
            sizes: Sizes of the indices.

        Returns:
            One progression per value of the free index, in order. An empty one has
            ``begin == end``.
        """
        free = [j for j in self.indices if j not in (read, shared)]
        stride, size = (
            (self.position.stride(free[0]), sizes[free[0]]) if free else (0, 1)
        )
        start, ends = self.position.start, (sizes[read], sizes[shared])
        if read == self.index:
            return _hit(start, stride, size, self.position.stride(shared), *ends)
        return _hitting(start, stride, size, self.position.stride(read), *ends)


@lru_cache(maxsize=256)
def _hull(
    start: int, terms: tuple[tuple[int, int], ...], extent: int, hits: bool
) -> tuple[int, int] | None:
    """Return the smallest and largest value of the first term, or of the index hit.

    Args:
        start: The position where all terms are zero.
        terms: Strides and sizes.
        extent: Size of the index that is hit.
        hits: Whether to return values of the index that is hit.

    Returns:
        The two values; None if no position is inside.
    """
    (stride, size), *others = terms or ((1, 1),)
    at = np.asarray(start)
    for step, count in others:
        at = np.add.outer(at, step * np.arange(count))
    low = np.maximum(-(at // stride), 0)
    high = np.minimum((extent - 1 - at) // stride, size - 1)
    taken = low <= high
    if not taken.any():
        return None
    if hits:
        low, high = at + stride * low, at + stride * high
    return int(low[taken].min()), int(high[taken].max())


@lru_cache(maxsize=64)
def _hit(
    start: int, stride: int, size: int, step: int, read: int, shared: int
) -> tuple[Progression, ...]:
    """Return progressions that read ``start + stride * free + step * shared``."""
    found = []
    for free in range(size):
        at = start + stride * free
        begin = max(-(at // step), 0)
        end = min((read - 1 - at) // step + 1, shared)
        found.append(Progression(free, 0, at, step, begin, max(begin, end)))
    return tuple(found)


@lru_cache(maxsize=64)
def _hitting(
    start: int, stride: int, size: int, step: int, read: int, shared: int
) -> tuple[Progression, ...]:
    """Return progressions with ``shared = start + stride * free + step * read``.

    The position read advances by one when ``shared`` advances by ``step``.
    """
    found = []
    for free in range(size):
        at = start + stride * free
        residue = at % step
        offset = (residue - at) // step
        begin = max(-offset, 0)
        end = min(read - offset, -((residue - shared) // step))
        found.append(Progression(free, residue, offset, 1, begin, max(begin, end)))
    return tuple(found)


@dataclass(frozen=True)
class Pair(_Ordered):
    """Two patterns, multiplied and summed over an index that they share.

    If the shared index is a convolution's output, the pair is the lag structure that
    KFAC-expand needs instead of the unfolded input.
    """

    first: Pattern
    second: Pattern
    shared: str
    size: int

    @cached_property
    def indices(self) -> tuple[str, ...]:
        """Indices of both patterns except the shared one."""
        both = (*self.first.indices, *self.second.indices)
        return tuple(dict.fromkeys(index for index in both if index != self.shared))

    def __post_init__(self) -> None:
        ordered = sorted((self.first, self.second), key=lambda node: node.order)
        object.__setattr__(self, "first", ordered[0])
        object.__setattr__(self, "second", ordered[1])

    def rename(self, rename: Rename) -> Pair:
        """Rename the indices."""
        first, second = self.first.rename(rename), self.second.rename(rename)
        return Pair(first, second, rename(self.shared), self.size)

    def dense(self, sizes: Sizes) -> NDArray[np.float64]:
        """Compute the pair as an array over :attr:`indices`."""
        sizes = {**sizes, self.shared: self.size}
        symbol = letters([*self.indices, self.shared])
        terms = (
            "".join(symbol[j] for j in node.indices)
            for node in (self.first, self.second, self)
        )
        first, second, result = terms
        equation = f"{first},{second}->{result}"
        dense = np.einsum(equation, self.first.dense(sizes), self.second.dense(sizes))
        return np.asarray(dense, dtype=np.float64)


@dataclass(frozen=True)
class Selection(_Ordered):
    """Sampled positions of an index: one where ``index = positions[kept]``.

    The positions are data: a tensor of distinct, ascending integers, passed along with
    the tensors of operands under the name of the kept index. The network only knows
    their number, so one plan serves all draws of that number.

    Args:
        kept: The index that enumerates the positions; operands carry it.
        index: The index that is sampled.
    """

    kept: str
    index: str

    @property
    def indices(self) -> tuple[str, ...]:
        """Both indices."""
        return self.kept, self.index

    def rename(self, rename: Rename) -> Selection:
        """Rename the indices."""
        return Selection(rename(self.kept), rename(self.index))


Node = Operand | Pattern | Pair | Selection
