"""Functions of upper layers are methods of networks and traces, too."""

from __future__ import annotations

import pytest
import torch

import tn_extensions
from tests.diagram.networks import conv
from tn_extensions import TensorNetwork, quantities
from tn_extensions.network import Trace, simplify
from tn_extensions.network.methods import method_of

NETWORK = quantities.kfac_reduce(conv(1), 2)


def test_methods_take_what_the_function_takes() -> None:
    class First:
        """One class."""

    class Second:
        """Another."""

    @method_of(First, Second, name="described")
    def describe(given: First | Second, /, ending: str = ".") -> str:
        return f"{type(given).__name__}{ending}"

    assert describe(First()) == "First."
    assert First().described("!") == "First!"  # type: ignore[attr-defined]
    assert Second().described(ending="?") == "Second?"  # type: ignore[attr-defined]
    assert not hasattr(First, "describe")


def test_method_is_named_as_the_function() -> None:
    class Network:
        """A class."""

    @method_of(Network)
    def size(network: Network) -> int:
        return 3

    assert Network().size() == size(Network()) == 3  # type: ignore[attr-defined]


def test_networks_and_traces_have_what_they_declare() -> None:
    for owner in (TensorNetwork, Trace):
        declared = [
            name for name, kind in owner.__annotations__.items() if "ClassVar" in kind
        ]
        assert declared
        for name in declared:
            assert getattr(owner, name).__doc__


def test_one_call_from_a_network() -> None:
    x = torch.rand(NETWORK.operands[0].shape)
    assert torch.equal(tn_extensions.evaluate(NETWORK, x=x), NETWORK.evaluate(x=x))
    assert tn_extensions.explain(NETWORK, n=3).network == NETWORK.explain(n=3).network
    assert tn_extensions.tikz(NETWORK) == NETWORK.to_tikz()
    _, trace = simplify(NETWORK, trace=True)
    assert trace.to_tikz().count(r"\begin{document}") == 1
    pytest.importorskip("matplotlib")
    size = tn_extensions.draw(NETWORK, scale=2).get_size_inches()
    assert tuple(size) == tuple(NETWORK.draw(scale=2).get_size_inches())


def test_operands_of_any_name() -> None:
    a = torch.rand(3)
    network = tn_extensions.network.build(
        {"network": ["i"], "self": ["i"]}, [], {"i": 3}
    )
    assert torch.allclose(network.evaluate(network=a, self=a), a @ a)
