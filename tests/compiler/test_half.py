"""Halves of mirrored networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from tests.compiler.candidates import OTHERS, layer, with_pairs
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise
from tn_extensions import Conv, quantities
from tn_extensions.compiler.half import Half


@examples(40)
@given(convs(), BATCHES)
def test_half_times_itself_is_the_network(conv: Conv, batch_size: int) -> None:
    x = noise((batch_size, conv.in_channels, *conv.input_size))
    for quantity in (quantities.kfac_expand, quantities.kfac_reduce):
        network = quantity(conv, batch_size)
        half = Half.of(network)
        assert half is not None and half.dims == ()
        alone = half.network(half.batch, half.columns, half.rows)
        value = dense.evaluate(alone, {"x": x})
        expected = dense.evaluate(network, {"x": x})
        assert_allclose(value @ value.swapaxes(1, 2), expected, atol=1e-10)


def test_roles_follow_from_structure() -> None:
    half = Half.of(quantities.kfac_expand(layer(), 3))
    assert half is not None
    assert half.operand.name == "x"
    assert half.batch == ("g",)
    assert half.columns == half.unpaired_columns == ("ci", "k1", "k2")
    assert set(half.rows) == {"n", "o1", "o2"}
    assert len(half.patterns) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_paired_dimensions(count: int) -> None:
    half = Half.of(with_pairs(quantities.kfac_expand(layer(), 3), count))
    assert half is not None
    assert len(half.dims) == count
    assert len(half.patterns) == 2 - count
    assert len(half.unpaired_columns) == 3 - count
    for dim in half.dims:
        assert dim.read.startswith("i") and dim.free == f"k{dim.read[1]}"
        offsets = [progression.offset for progression in dim.progressions]
        assert offsets == [-1, 0, 1]


def test_lags_need_kernel_positions_in_each_dimension() -> None:
    network = quantities.kfac_expand(layer(), 3)
    single, half = Half.of(network), Half.of(with_pairs(network))
    assert single is not None and not single.has_lags
    assert half is not None and half.has_lags
    first, second = half.dims
    assert not replace(half, dims=(replace(first, free=None), second)).has_lags


def test_halves_of_two_operands() -> None:
    half = Half.of(quantities.ggn_gram(layer(), 2, 3))
    assert half is not None
    assert {operand.name for operand in half.operands} == {"x", "g"}
    assert half.batch == () and half.columns == ("v", "n")
    assert set(half.rows) == set(half.shared) == {"g", "ci", "co", "k1", "k2"}


@pytest.mark.parametrize("per_sample", [False, True])
def test_halves_that_share_what_the_result_keeps(per_sample: bool) -> None:
    half = Half.of(quantities.ggn_diagonal(layer(), 2, 3, per_sample))
    assert half is not None and half.columns == ()
    kept = {"g", "ci", "co", "k1", "k2", *(["n"] if per_sample else [])}
    assert set(half.batch) == kept
    assert set(half.rows) == {"v", "n"} - kept
    assert set(half.shared) == {*half.batch, *half.rows}


@pytest.mark.parametrize("name", ["conv", "unfold_input", "patch_sum"])
def test_other_networks_have_no_half(name: str) -> None:
    assert Half.of(OTHERS[name]) is None


def test_one_sided_outputs_have_no_half() -> None:
    network = quantities.kfac_expand(layer(), 3)
    group, columns, copies = network.output
    assert Half.of(network.replace(output=[group, copies, columns])) is not None
    assert Half.of(network.replace(output=[columns, group, copies])) is None
    alone = Half.of(network.replace(output=[columns, copies]))
    assert alone is not None and alone.batch == () and "g" in alone.rows
    joined = with_pairs(network)
    assert Half.of(joined.replace(output=[columns, copies])) is None
    other = network.operands[1]
    renamed = type(other)("y", other.axes)
    assert Half.of(network.replace([other], [renamed])) is None
