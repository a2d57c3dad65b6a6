"""Derivatives of BatchNorm by its input, weight and bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.testing import assert_close

from tests.backpack.derivatives.products import COLUMNS, check, jvp
from tests.strategies import (
    noise_tensor,
)
from tn_extensions.backpack.derivatives import (
    BatchNormDerivatives,
    ConvDerivatives,
    MaxPoolDerivatives,
)

BATCH_NORMS = [
    (nn.BatchNorm1d, ()),
    (nn.BatchNorm1d, (3,)),
    (nn.BatchNorm2d, (2, 3)),
    (nn.BatchNorm3d, (2, 1, 2)),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("kind", "sizes"), BATCH_NORMS)
def test_batch_norm(
    kind: type[nn.Module], sizes: tuple[int, ...], affine: bool, training: bool
) -> None:
    # a large eps counts in the derivative of the standard deviation
    module: Any = kind(2, affine=affine, eps=0.1)
    module = module.double()
    with torch.no_grad():
        module.running_mean.copy_(torch.tensor([0.3, -1]))
        module.running_var.copy_(torch.tensor([0.5, 2]))
        if affine:
            module.weight.copy_(torch.tensor([-1.5, 0.7]))
    module.train(training)
    check(BatchNormDerivatives(), module, noise_tensor((4, 2, *sizes)))


@pytest.mark.parametrize("mode", ["train", "eval", "untracked"])
@pytest.mark.parametrize(("kind", "sizes"), BATCH_NORMS)
def test_parameters_of_batch_norm(
    kind: type[nn.Module], sizes: tuple[int, ...], mode: str
) -> None:
    """Jacobians with respect to weight and bias, and the second derivative."""
    module: Any = kind(2, eps=0.1, track_running_stats=mode != "untracked").double()
    x = noise_tensor((4, 2, *sizes))
    module(x)  # running statistics of some data
    with torch.no_grad():
        module.weight.copy_(torch.tensor([-1.5, 0.7]))
    module.train(mode == "train")
    derivatives: Any = BatchNormDerivatives()
    module.input0, module.output = x, module(x).detach()
    buffers = {key: value.clone() for key, value in module.named_buffers()}

    def output(x: Tensor, **parameters: Tensor) -> Tensor:
        copies = {key: value.clone() for key, value in buffers.items()}
        result: Tensor = functional_call(module, (parameters, copies), (x,))
        return result

    for name in ("weight", "bias"):
        value = getattr(module, name).detach()
        tangents = noise_tensor((COLUMNS, 2))
        apply = getattr(derivatives, f"{name}_jac_mat_prod")
        wanted = torch.stack(
            [
                jvp(lambda p, name=name: output(x, **{name: p}), value, t)
                for t in tangents
            ]
        )
        assert_close(apply(module, None, None, tangents), wanted)
    tangents, g = noise_tensor((COLUMNS, *x.shape)), noise_tensor((1, *x.shape))[0]
    residual = hessian(lambda x: (g * output(x)).sum())(x).flatten(0, x.dim() - 1)
    wanted = tangents.flatten(1) @ residual.flatten(1).T
    actual = derivatives.residual_mat_prod(module, None, (g,), tangents)
    assert_close(actual.flatten(1), wanted, rtol=1e-9, atol=1e-11)
    couples = mode != "eval"
    assert derivatives.hessian_is_diagonal(module) != couples


def test_batch_norm_without_running_statistics() -> None:
    module = nn.BatchNorm2d(2, track_running_stats=False).double().eval()
    check(BatchNormDerivatives(), module, noise_tensor((4, 2, 3, 2)))


def test_batch_norm_of_a_part_of_the_batch() -> None:
    module: Any = nn.BatchNorm1d(2).double()
    module.input0 = noise_tensor((4, 2))
    module.output = module(module.input0)
    mat = noise_tensor((COLUMNS, 2, 2))
    with pytest.raises(NotImplementedError) as caught:
        BatchNormDerivatives().jac_t_mat_prod(
            module, None, None, mat, subsampling=[0, 1]
        )
    assert "subsampling must be None" in str(caught.value)
    module.eval()
    scaled = BatchNormDerivatives().jac_t_mat_prod(
        module, None, None, mat, subsampling=[0, 1]
    )
    assert scaled.shape == mat.shape


@pytest.mark.parametrize("training", [False, True])
def test_hessians_that_are_zero(training: bool) -> None:
    module = nn.BatchNorm1d(2).train(training)
    assert BatchNormDerivatives().hessian_is_zero(module) != training
    assert ConvDerivatives().hessian_is_zero(nn.Conv1d(1, 1, 1))
    assert MaxPoolDerivatives().hessian_is_zero(nn.MaxPool1d(1))
