"""Factors of every convolution against those from Jacobians."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from tests.backpack.run import (
    APPROX,
    NAMES,
    assert_as_reference,
    classifier,
    extension,
    images,
    run_copy,
    targets,
)
from tests.messages import assert_in_form
from tests.reference import curvature
from tests.strategies import MODULES, examples, module_input, modules
from tn_extensions import backpack as ours


def sandwiched(module: Any, x: Tensor) -> nn.Module:
    """Make a model that backpropagates through the module to another convolution."""
    first = type(module)(module.in_channels, module.in_channels, 1)
    return classifier(first, module, nn.Sigmoid(), x=x)


@examples(80)
@given(modules(), st.sampled_from(NAMES), st.sampled_from(APPROX))
def test_all_hyper_parameters(case: Any, name: str, approx: str) -> None:
    module, sizes = case
    x = module_input(module, sizes, 2)
    assert_as_reference(name, sandwiched(module, x), x, approx)


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_groups(transposed: bool, num_dims: int, name: str, approx: str) -> None:
    x = images(2, 4, *(3, 4, 2)[:num_dims])
    module: Any = MODULES[transposed][num_dims - 1](4, 6, 2, padding=1, groups=2)
    model = sandwiched(module, x)
    assert_as_reference(name, model, x, approx)
    factors = run_copy(model, extension(ours, name, approx=approx), x)
    columns = 2 * 2**num_dims
    assert [f.shape for f in factors["1.weight"]] == [(2, 3, 3), (2, columns, columns)]
    assert [f.shape for f in factors["1.bias"]] == [(2, 3, 3)]
    # one group has the form of stock
    assert [f.shape for f in factors["0.weight"]] == [(4, 4), (4, 4)]
    assert [f.shape for f in factors["0.bias"]] == [(4, 4)]


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_linear(name: str, approx: str, shape: tuple[int, ...]) -> None:
    """On inputs with any number of axes, of which all but the last are positions."""
    x = images(2, *shape)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))
    model = classifier(*model, x=x)
    assert_as_reference(name, model, x, approx)


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_kronecker_product_is_the_ggn_where_kfac_is_exact(
    transposed: bool, groups: int, approx: str
) -> None:
    """One sample and one output position: rows and columns of the GGN match."""
    size = (2, 3)
    padding = (1, 2) if transposed else 0
    module = MODULES[transposed][1](4, 6, size, padding=padding, groups=groups)
    x = images(1, 4, *size)
    model = classifier(module, x=x)
    assert module(x).shape == (1, 6, 1, 1)

    def logits(weight: Tensor) -> Tensor:
        parameters = dict(model.named_parameters()) | {"0.weight": weight}
        return functional_call(model, parameters, x)

    weight = module.weight.detach()
    j = jacrev(logits)(weight)[0].unflatten(1, (groups, -1))
    if transposed:  # [C, G, CI, CO, K] to [C, G, CO, CI, K]
        j = j.transpose(2, 3)
    j = j.flatten(2)
    criterion = nn.CrossEntropyLoss()
    hessian = curvature.loss_hessian(
        lambda z: criterion(z, targets(1)), logits(weight)
    )[0, :, 0]
    wanted = torch.einsum("cgi,cd,dgj->gij", j, hessian, j)

    b, a = run_copy(model, ours.KFLR(approx=approx), x)["0.weight"]
    if groups == 1:
        b, a = b[None], a[None]
    actual = torch.stack([torch.kron(*pair) for pair in zip(b, a, strict=True)])
    assert_close(actual, wanted)


class Upsample(nn.Sequential):
    """Passes an output size to a transposed convolution."""

    size: Any = None
    by_position = True

    def forward(self, x: Tensor) -> Tensor:
        first, second, *others = self
        x = first(x)
        if self.by_position:
            x = second(x, self.size)
        else:
            x = second(x, output_size=self.size)
        for module in others:
            x = module(x)
        return x


@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(9, 8), [8, 9]])
def test_output_size(name: str, size: Any, by_position: bool) -> None:
    """It equals the output padding that leads to that size."""
    x = images(2, 2, 4, 4)
    padding = tuple(wanted - 8 for wanted in size)
    wanted = classifier(
        nn.Conv2d(2, 2, 1),
        nn.ConvTranspose2d(2, 3, 2, stride=2, output_padding=padding),
        x=x,
    )
    model = Upsample(*copy.deepcopy(wanted))
    model.size, model.by_position = size, by_position
    reference = run_copy(wanted, extension(ours, name), x)
    model[1].output_padding = (0, 0)
    actual = run_copy(model, extension(ours, name), x)
    assert actual.keys() == reference.keys()
    for key, factors in reference.items():
        assert_close(actual[key], factors)
    assert_as_reference(name, wanted, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = images(2, 2, 4, 4)
    model = classifier(nn.Conv2d(2, 2, 2, padding="same"), nn.ReLU(), x=x)
    wanted = run_copy(model, ours.KFLR(), x)
    actual = run_copy(model.to(dtype), ours.KFLR(), x.to(dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for key, factors in wanted.items():
        for own, exact in zip(actual[key], factors, strict=True):
            assert_close(own.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("approx", ["kfac", "Expand", None, 1, ["expand"]])
def test_unknown_approximation(name: str, approx: Any) -> None:
    with pytest.raises(ValueError) as caught:
        getattr(ours, name)(approx=approx)
    assert_in_form(caught.value, name, "approx")
    message = str(caught.value)
    assert message.endswith(f"got {approx!r}.")
    assert all(repr(known) in message for known in APPROX)
