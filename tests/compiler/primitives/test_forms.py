"""Networks of two operands as batches of matrix products."""

from __future__ import annotations

from tests.compiler.candidates import OTHERS, layer
from tn_extensions import quantities
from tn_extensions.compiler.primitives.forms import MatrixForm


def test_a_gradient_unfolds_either_operand() -> None:
    network = quantities.per_sample_grad(layer(groups=2), 3, 40)
    first, second = MatrixForm.all(network)
    assert first.entries < second.entries
    assert first.right.operand.name == second.right.operand.name == "x"
    assert first.right.dims and not first.left.dims
    assert second.left.dims and not second.right.dims
    assert {*first.batch} == {"n", "g"} and {*first.rows} == {"v", "co"}
    assert {*first.columns} == {"ci", "k1", "k2"} and {*first.terms} == {"o1", "o2"}
    assert {*second.terms} == {"i1", "i2"}
    assert first.size(first.batch) == 6


def test_nodes_of_a_side() -> None:
    network = quantities.per_sample_grad(layer(), 3)
    for form in MatrixForm.all(network):
        for side in (form.left, form.right):
            assert len(side.nodes(network)) == (3 if side.dims else 1)


def test_other_networks_have_none() -> None:
    found = {name for name, network in OTHERS.items() if list(MatrixForm.all(network))}
    # of mirrored networks, both operands are copies
    assert found == {"conv", "kfac_expand"}
