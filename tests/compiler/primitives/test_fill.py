"""Fill: zeros for dropped slices, and the whole network evaluated."""

from __future__ import annotations

import torch
from hypothesis import given

from tests.compiler.candidates import assert_all_evaluate, matched, target
from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tests.sampling.estimates import narrowed_networks
from tests.strategies import examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.plan import candidates
from tn_extensions.compiler.primitives.fill import fill
from tn_extensions.network import Selection, simplify
from tn_extensions.sampling.narrowed import narrow


@given(narrowed_networks())
@examples(60)
def test_sampled_networks(network: TensorNetwork) -> None:
    assert assert_all_evaluate(fill, network) == bool(network.selections)
    assert_all_evaluate(fill, simplify(network))


def test_matches_what_is_sampled() -> None:
    assert matched(fill) == {"sampled"}


def test_no_other_candidate_sees_selections() -> None:
    for counts in ((("i1", 2),), (("o1", 2), ("i2", 3))):
        conv = Conv.make(2, 3, 3, (6, 6), padding=1)
        network = narrow(quantities.weight_vjp(conv, 2), counts)
        names = {one.name.split("(")[0] for one in candidates(network, target())}
        assert names == {"gather", "fill", "einsum"}


def test_positions_in_the_result_are_contracted() -> None:
    """No zeros can be written to what is not summed."""
    network = quantities.weight_vjp(Conv.make(1, 1, 2, 5), 1)
    sampled = narrow(network, (("i1", 3),))
    (selection,) = sampled.selections
    kept = sampled.replace(output=[*sampled.output, [selection.kept]])
    assert assert_all_evaluate(fill, kept) == 0
    arrays = arrays_of(kept)
    expected = torch.from_numpy(dense.evaluate(kept, arrays))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = plan(kept, torch.float64).run(tensors)
    assert torch.allclose(found, expected)
    assert selection == Selection("si1", "i1")


def test_is_differentiated_with_zeros_instead() -> None:
    """Sums over positions write into memory, which cannot be differentiated."""
    conv = Conv.make(16, 16, 3, (20, 20), padding=1)
    network = narrow(quantities.weight_vjp(conv, 2), (("i1", 6), ("i2", 6)))
    arrays = arrays_of(network)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    chosen = plan(network, torch.float64)
    expected = chosen.run(tensors)
    g = tensors["g"].requires_grad_()
    result = chosen.run(tensors)
    assert torch.allclose(result, expected)
    (gradient,) = torch.autograd.grad(result.square().sum(), g)
    assert gradient.any()
