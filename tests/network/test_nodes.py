"""Affine positions, operands, patterns and pairs against brute force."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import dense
from tests.strategies import conv_dims, examples, noise
from tn_extensions.conv import ConvDim
from tn_extensions.network import Affine, Axis, Operand, Pair, Pattern, Selection

DIMS = st.booleans().flatmap(conv_dims)


def pattern_of(dim: ConvDim) -> tuple[Pattern, dict[str, int]]:
    """Make the pattern of a dimension, as a convolution, and its sizes."""
    ends = [dim.input_size, dim.output_size]
    i, o = reversed(ends) if dim.transposed else ends
    position = Affine((("o", dim.stride), ("k", dim.dilation)), -dim.padding[0])
    return Pattern("i", position), {"i": i, "o": o, "k": dim.kernel_size}


def test_terms_of_a_position_have_no_order() -> None:
    one, other = Affine((("o", 2), ("k", 3))), Affine((("k", 3), ("o", 2)))
    assert one == other
    assert hash(one) == hash(other)
    assert one.indices == ("k", "o")
    assert (one.stride("o"), one.stride("k")) == (2, 3)


def test_positions_substitute_and_rename() -> None:
    position = Affine((("o", 2), ("k", 3)), 1)
    inserted = position.substitute("o", Affine((("a", 5), ("b", 7)), -2))
    assert inserted == Affine((("k", 3), ("a", 10), ("b", 14)), -3)
    assert position.substitute("x", Affine(())) == position
    assert position.drop("o") == Affine((("k", 3),), 1)
    assert position.rename(str.upper) == Affine((("O", 2), ("K", 3)), 1)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 4)), max_size=3),
    st.integers(-5, 5),
)
def test_bounds_are_those_of_all_positions(
    terms: list[tuple[int, int]], start: int
) -> None:
    sizes = {f"j{m}": size for m, (_, size) in enumerate(terms)}
    strides = [stride for stride, _ in terms]
    position = Affine(tuple(zip(sizes, strides, strict=True)), start)
    values = dense.position(position, list(sizes), sizes)
    assert position.bounds(sizes) == (values.min(), values.max())


def test_axis_splits_with_the_last_index_fastest() -> None:
    axis = Axis.of(24, ("a", 2), ("b", 3), ("c", 4))
    values = dense.position(axis.position, "abc", {"a": 2, "b": 3, "c": 4})
    assert np.array_equal(values, np.arange(24).reshape(2, 3, 4))


def test_operand_orders_indices_as_they_lie_in_memory() -> None:
    axes = (Axis.of(6, ("z", 2), ("a", 3)), Axis.of(4, ("n", 4)))
    operand = Operand("x", axes)
    assert operand.indices == ("z", "a", "n")
    assert operand.shape == (6, 4)
    assert operand.rename(str.upper).indices == ("Z", "A", "N")
    view = operand.substitute("n", Affine((("m", 2),), 1))
    array, sizes = noise((6, 4)), {"z": 2, "a": 3, "m": 2}
    expected = array.reshape(2, 3, 4)[:, :, 1::2]
    assert np.array_equal(dense.operand(view, array, sizes), expected)


@examples(60)
@given(DIMS)
def test_pattern_is_dense_by_its_definition(dim: ConvDim) -> None:
    pattern, sizes = pattern_of(dim)
    array = pattern.dense(sizes)
    assert pattern.indices == ("i", "k", "o")
    assert np.array_equal(array, dense.pattern(pattern, sizes))
    for (i, k, o), value in np.ndenumerate(array):
        hits = i == dim.stride * o + dim.dilation * k - dim.padding[0]
        assert value == hits


@examples(30)
@given(DIMS)
def test_pattern_is_symmetric_under_the_swap(dim: ConvDim) -> None:
    pattern, sizes = pattern_of(dim)
    exchange = {"k": "o", "o": "k", "i": "i"}
    position = Affine((("k", dim.dilation), ("o", dim.stride)), -dim.padding[0])
    assert Pattern("i", position) == pattern
    swapped = pattern.rename(exchange.__getitem__)
    image = swapped.dense({exchange[j]: size for j, size in sizes.items()})
    assert np.array_equal(pattern.dense(sizes), image.swapaxes(1, 2))


@examples(60)
@given(DIMS, st.permutations(["k", "o"]), st.integers(0, 2))
def test_summed_patterns(dim: ConvDim, order: list[str], count: int) -> None:
    pattern, sizes = pattern_of(dim)
    expected, kept = pattern.dense(sizes), [*pattern.indices]
    for index in order[:count]:
        pattern = pattern.sum(index, sizes[index])
        expected = expected.sum(kept.index(index))
        kept.remove(index)
    assert np.array_equal(pattern.dense(sizes), expected)
    assert np.array_equal(dense.pattern(pattern, sizes), expected)


@examples(60)
@given(DIMS, st.sampled_from(["i", "k", "o"]), st.sampled_from(["", "k", "o"]))
def test_hull_encloses_exactly_what_takes_part(
    dim: ConvDim, index: str, summed: str
) -> None:
    pattern, sizes = pattern_of(dim)
    if summed and summed != index:
        pattern = pattern.sum(summed, sizes[summed])
    array = pattern.dense(sizes)
    axis = pattern.indices.index(index)
    others = tuple(a for a in range(array.ndim) if a != axis)
    (hits,) = np.nonzero(array.sum(axis=others))
    expected = (hits[0], hits[-1]) if len(hits) else None
    assert pattern.hull(index, sizes) == expected


@examples(60)
@given(DIMS, st.permutations(["i", "k", "o"]))
def test_progressions_list_what_is_read(dim: ConvDim, order: list[str]) -> None:
    pattern, sizes = pattern_of(dim)
    read, shared, free = order
    if "i" not in (read, shared):
        return  # hit positions enumerate or are read
    rebuilt = np.zeros((sizes[free], sizes[shared], sizes[read]))
    stride = 1 if read == "i" else pattern.position.stride(read)
    for number, values in enumerate(pattern.progressions(read, shared, sizes)):
        assert values.free == number
        assert values.begin <= values.end
        for t in range(values.begin, values.end):
            rebuilt[
                number,
                values.residue + stride * t,
                values.offset + values.step * t,
            ] += 1
    axes = [pattern.indices.index(j) for j in (free, shared, read)]
    assert np.array_equal(rebuilt, pattern.dense(sizes).transpose(axes))


@examples(40)
@given(DIMS, st.sampled_from(["i", "k", "o"]))
def test_pair_is_dense_by_its_definition(dim: ConvDim, shared: str) -> None:
    first, sizes = pattern_of(dim)
    second = first.rename(lambda j: j if j == shared else j + "p")
    sizes |= {j + "p": size for j, size in sizes.items()}
    pair = Pair(first, second, shared, sizes[shared])
    assert pair == Pair(second, first, shared, sizes[shared])
    assert shared not in pair.indices
    del sizes[shared]
    assert np.array_equal(pair.dense(sizes), dense.pair(pair, sizes))
    renamed = pair.rename(lambda j: j.upper())
    upper = {j.upper(): size for j, size in sizes.items()}
    order = [renamed.indices.index(j.upper()) for j in pair.indices]
    assert np.array_equal(renamed.dense(upper).transpose(order), pair.dense(sizes))


@examples(60)
@given(DIMS, st.sampled_from(["i", "k", "o"]))
def test_patterns_are_solved_for_each_index(dim: ConvDim, wanted: str) -> None:
    pattern, sizes = pattern_of(dim)
    others = [index for index in pattern.indices if index != wanted]
    grids = np.ix_(*(np.arange(sizes[index]) for index in others))
    given = dict(zip(others, grids, strict=True))
    values, exact = pattern.solve(wanted, given, sizes)
    hits = np.moveaxis(pattern.dense(sizes), pattern.indices.index(wanted), -1)
    expected = np.where(hits.any(-1), hits.argmax(-1), -1)
    assert np.array_equal(np.broadcast_to(values, expected.shape), expected)
    # without an end, there is something wherever the division has no rest
    if wanted == "i":
        assert exact.all()
    else:
        strides = {"k": dim.dilation, "o": dim.stride}
        (other,) = strides.keys() - {wanted}
        rest = given["i"] + dim.padding[0] - strides[other] * given[other]
        assert np.array_equal(exact, rest % strides[wanted] == 0)


def test_selections() -> None:
    node = Selection("si1", "i1")
    assert node.indices == ("si1", "i1")
    assert node.rename(str.upper) == Selection("SI1", "I1")


def test_nodes_are_frozen() -> None:
    pattern = Pattern("i", Affine((("o", 1),)))
    for node, field in ((pattern, "index"), (pattern.position, "start")):
        with pytest.raises(FrozenInstanceError):
            setattr(node, field, None)
