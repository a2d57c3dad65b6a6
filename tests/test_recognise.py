"""Networks of quantities are recognised, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.diagram.networks import DEFINED, conv
from tests.strategies import convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import Pattern
from tn_extensions.recognise import recognise


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("transposed", [False, True])
def test_quantities_are_recognised(name: str, num_dims: int, transposed: bool) -> None:
    assert recognise(DEFINED[name](conv(num_dims, transposed=transposed))) == name


@examples(40)
@given(convs())
def test_factors_of_any_convolution_are_recognised(conv: Conv) -> None:
    assert recognise(quantities.kfac_expand(conv, 2)) == "kfac_expand"
    assert recognise(quantities.ggn_diagonal(conv, 2, 3, True)) == "ggn_diagonal"


def test_others_are_not() -> None:
    half = quantities.unfold_input(Conv.make(4, 6, 3, (7, 7), padding=1, groups=2), 2)
    other = half.times_copy({"n", "g", "ci", "k1", "k2"}, [("g",), ("ci", "k1")])
    assert recognise(other) is None
    assert recognise(TensorNetwork((), (), {})) is None
    # names as a convolution's, but a stride that none has
    patch = quantities.patch_sum(Conv.make(2, 2, 3, 5), 2)
    backwards = Pattern.of("i1", {"o1": -1, "k1": 1}, 2)
    assert recognise(patch.replace(patch.patterns, [backwards])) is None
