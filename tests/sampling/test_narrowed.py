"""Networks of which some indices are narrowed."""

from __future__ import annotations

from tests.sampling.estimates import (
    operands,
)
from tests.sampling.test_sampled import CONV, INDICES, NETWORK
from tn_extensions import Conv, quantities
from tn_extensions.network import Selection
from tn_extensions.sampling import sample
from tn_extensions.sampling.narrowed import narrow, samplable


def test_which_indices_can_be_sampled() -> None:
    assert set(samplable(NETWORK)) == set(INDICES)
    transposed = Conv.make(4, 6, 3, 5, groups=2, transposed=True)
    vjp = quantities.weight_vjp(transposed, 3)
    assert set(samplable(vjp)) == {"n", "g", "ci", "i1", "o1"}
    assert set(samplable(quantities.kfac_expand(CONV, 3))) == {"n", "g"}
    assert set(samplable(quantities.ggn_gram(CONV, 3, 2))) == {"g", "ci", "co"}
    assert "k1" in samplable(quantities.conv(CONV, 3))


def test_narrowed_operands_are_as_small_as_what_is_kept() -> None:
    keep = {"n": 0.7, "g": 0.5, "i1": 0.5, "i2": 0.5}
    sampled = sample(NETWORK, keep, sampler="fixed")
    x = sampled.narrow("x", operands(NETWORK)["x"])
    assert list(x.shape) == [2, 2, 4, 3]
    rows = sample(NETWORK, {"o1": 0.2}, sampler="fixed")  # one row meets three
    touched = rows.narrow("x", operands(NETWORK)["x"])
    assert touched.shape[2] in (2, 3)


def test_indices_of_patterns_keep_their_size() -> None:
    """Operands carry their sampled positions instead, which selections lead to."""
    narrowed = narrow(NETWORK, (("n", 2), ("ci", 1), ("i1", 3), ("o2", 2)))
    changed = {"n": 2, "ci": 1, "si1": 3, "so2": 2}
    assert narrowed.sizes == {**NETWORK.sizes, **changed}
    shapes = {operand.name: list(operand.shape) for operand in narrowed.operands}
    assert shapes == {"x": [2, 2, 3, 6], "g": [2, 6, 7, 2]}
    assert narrowed.patterns == NETWORK.patterns
    assert set(narrowed.selections) == {Selection("si1", "i1"), Selection("so2", "o2")}
