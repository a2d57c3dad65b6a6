"""All extensions against per-sample Jacobians, over all hyper-parameters."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.backpack.run import classifier
from tests.backpack.suite import SUITE, assert_as_jacobians, assert_equal, saved
from tests.strategies import examples, module_input, modules
from tn_extensions import backpack as ours


def sandwiched(module: Any, x: Tensor) -> nn.Module:
    """A model that backpropagates through the module to another convolution."""
    first = type(module)(module.in_channels, module.in_channels, 1)
    return classifier(first, module, nn.Sigmoid(), x=x)


@examples(60)
@given(modules(max_dims=2), st.sampled_from(sorted(SUITE)))
def test_all_hyper_parameters(case: Any, name: str) -> None:
    module, sizes = case
    x = module_input(module, sizes, 2)
    assert_as_jacobians(name, sandwiched(module, x), x)


@examples(20)
@given(modules(max_dims=2))
def test_together_as_alone(case: Any) -> None:
    module, sizes = case
    x = module_input(module, sizes, 2)
    model = sandwiched(module, x)
    names = [name for name in SUITE if not name.endswith("MC")]
    together = saved(model, [SUITE[name](ours) for name in names], x)
    for name, found in zip(names, together, strict=True):
        (alone,) = saved(model, [SUITE[name](ours)], x)
        assert_equal(found, alone, name)
