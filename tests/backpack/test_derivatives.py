"""Backpropagation through modules equals multiplication with their Jacobians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backpack.custom_module.scale_module import ScaleModule
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.testing import assert_close

from tests.reference.curvature import jacobian
from tests.strategies import (
    MODULES,
    examples,
    module_input,
    modules,
    noise_tensor,
)
from tn_extensions import Conv
from tn_extensions.backpack.derivatives import (
    BatchNormDerivatives,
    ConvDerivatives,
    DenseDerivatives,
    LinearModuleDerivatives,
    MaxPoolDerivatives,
    SumDerivatives,
)

COLUMNS = 2


def check(derivatives: Any, module: Any, x: Tensor, *args: Any) -> None:
    """Propagating forward, and both ways of backpropagating."""
    module.input0, module.output = x, module(x, *args).detach()
    j = jacobian(lambda x: module(x, *args), x)

    tangents = noise_tensor((COLUMNS, *x.shape))
    wanted = torch.einsum("ncmi,vmi->vnc", j, tangents.flatten(2))
    actual = derivatives.jac_mat_prod(module, None, None, tangents)
    assert_close(actual, wanted.view_as(actual), rtol=1e-9, atol=1e-11)

    mat = noise_tensor((COLUMNS, *module.output.shape))
    wanted = torch.einsum("ncmi,vnc->vmi", j, mat.flatten(2))
    actual = derivatives.jac_t_mat_prod(module, None, None, mat)
    assert_close(actual, wanted.reshape(COLUMNS, *x.shape), rtol=1e-9, atol=1e-11)

    root = noise_tensor((module.output[0].numel(), COLUMNS))
    block = root @ root.T
    wanted = torch.einsum("ncmi,cd,ndmj->ij", j, block, j) / len(x)
    actual = derivatives.ea_jac_t_mat_jac_prod(module, None, None, block)
    assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


@examples(60)
@given(modules(), st.sampled_from([1, 3]))
def test_convolutions(case: Any, batch_size: int) -> None:
    module, sizes = case
    check(ConvDerivatives(), module, module_input(module, sizes, batch_size))


@examples(30)
@given(modules(transposed=True), st.data())
def test_output_size(case: Any, data: st.DataObject) -> None:
    module, sizes = case
    smallest = [
        dim.output_size - dim.output_padding
        for dim in Conv.from_module(module, sizes).dims
    ]
    size = [
        data.draw(st.integers(least, least + stride - 1))
        for least, stride in zip(smallest, module.stride, strict=True)
    ]
    check(ConvDerivatives(), module, module_input(module, sizes, 2), size)


def options_of(num_dims: int, mode: str) -> list[dict[str, Any]]:
    """Uneven 'same', and padding as wide as the mode allows."""
    last: dict[str, Any] = {"padding_mode": mode, "groups": 2}
    return [
        last | {"kernel_size": (2, 4, 2)[:num_dims], "padding": "same"},
        last | {"kernel_size": 3, "padding": (3, 1, 2)[:num_dims], "stride": 2},
        last | {"kernel_size": 2, "padding": 2, "dilation": (3, 1, 2)[:num_dims]},
    ]


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding(num_dims: int, mode: str) -> None:
    for options in options_of(num_dims, mode):
        module = MODULES[False][num_dims - 1](2, 4, **options).double()
        check(ConvDerivatives(), module, noise_tensor((2, 2, *(4, 4, 3)[:num_dims])))


def test_convolution_of_other_layouts_and_dtypes() -> None:
    module: Any = nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2)
    x = noise_tensor((2, 4, 5, 6))
    check(ConvDerivatives(), module.double(), x.to(memory_format=torch.channels_last))
    mat = noise_tensor((COLUMNS, 2, 5, 6, 6)).movedim(-1, 2)
    full = ConvDerivatives().jac_t_mat_prod(module, None, None, mat)
    half = ConvDerivatives().jac_t_mat_prod(module, None, None, mat.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_close(half.double(), full, rtol=0.05, atol=0.05)


LINEAR = [
    (nn.AvgPool1d(2), (5,)),
    (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (6, 5)),
    (nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), (5, 5)),
    (nn.AvgPool3d((1, 2, 2)), (2, 4, 3)),
    (nn.AdaptiveAvgPool1d(3), (7,)),
    (nn.AdaptiveAvgPool2d((2, None)), (5, 3)),
    (nn.AdaptiveAvgPool2d(4), (3, 5)),
    (nn.AdaptiveAvgPool3d((1, 2, 3)), (3, 3, 4)),
    (nn.Identity(), (3,)),
    (ScaleModule(0.5), (3,)),
]
MAX = [
    (nn.MaxPool1d(2), (5,)),
    (nn.MaxPool2d(3, stride=2, padding=1, dilation=(2, 1)), (7, 6)),
    (nn.MaxPool2d(2, stride=1, ceil_mode=True), (4, 5)),
    (nn.MaxPool3d(2), (4, 2, 3)),
    (nn.AdaptiveMaxPool1d(3), (7,)),
    (nn.AdaptiveMaxPool2d((2, 3)), (5, 4)),
    (nn.AdaptiveMaxPool3d(2), (3, 2, 4)),
]


@pytest.mark.parametrize(("module", "sizes"), LINEAR, ids=str)
def test_linear_modules(module: nn.Module, sizes: tuple[int, ...]) -> None:
    check(LinearModuleDerivatives(), module, noise_tensor((3, 2, *sizes)))


@pytest.mark.parametrize(("module", "sizes"), MAX, ids=str)
def test_maximum_pooling(module: Any, sizes: tuple[int, ...]) -> None:
    x = noise_tensor((3, 2, *sizes))
    check(MaxPoolDerivatives(), module, x)
    assert not module.return_indices

    mat = noise_tensor((COLUMNS, *module.output.shape))
    full = MaxPoolDerivatives().jac_t_mat_prod(module, None, None, mat)
    some = [2, 0]
    part = MaxPoolDerivatives().jac_t_mat_prod(
        module, None, None, mat[:, some], subsampling=some
    )
    assert torch.equal(part, full[:, some])


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


@examples(40)
@given(modules(), st.sampled_from([1, 3]))
def test_parameters_of_convolutions(case: Any, batch_size: int) -> None:
    """Jacobians with respect to input, kernel and bias, and their transposes."""
    module, sizes = case
    x = module_input(module, sizes, batch_size)
    derivatives: Any = ConvDerivatives()
    module.input0, module.output = x, module(x).detach()
    tangents = noise_tensor((COLUMNS, *x.shape))
    wanted = torch.stack([jvp(lambda x: module(x), x, t) for t in tangents])
    assert_close(derivatives.jac_mat_prod(module, None, None, tangents), wanted)
    mat = noise_tensor((COLUMNS, *module.output.shape))
    for name, parameter in module.named_parameters():

        def output(p: Tensor, name: str = name) -> Tensor:
            return functional_call(module, {name: p}, x)

        value = parameter.detach()
        tangents = noise_tensor((COLUMNS, *value.shape))
        apply = getattr(derivatives, f"{name}_jac_mat_prod")
        wanted = torch.stack([jvp(output, value, t) for t in tangents])
        assert_close(apply(module, None, None, tangents), wanted)

        j = jacrev(output)(value).flatten(1, -value.dim() - 1)
        products = torch.einsum("nc...,vnc->vn...", j, mat.flatten(2))
        for samples in (None, [0], [batch_size - 1, 0]):
            chosen, subset = (
                (products, mat)
                if samples is None
                else (products[:, samples], mat[:, samples])
            )
            found = derivatives.param_mjp(
                name, module, None, None, subset, sum_batch=False, subsampling=samples
            )
            assert_close(found, chosen)
            total = derivatives.param_mjp(
                name, module, None, None, subset, subsampling=samples
            )
            assert_close(total, chosen.sum(1))


def jvp(function: Any, x: Tensor, tangent: Tensor) -> Tensor:
    """Directional derivative."""
    product: Tensor = torch.func.jvp(function, (x,), (tangent,))[1]
    return product


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_dense(shape: tuple[int, ...]) -> None:
    module = nn.Linear(4, 2).double()
    check(DenseDerivatives(), module, noise_tensor((3, *shape)))


def test_sums_of_branches() -> None:
    module: Any = nn.Identity()  # with respect to one branch
    check(SumDerivatives(), module, noise_tensor((3, 2, 4)))


@pytest.mark.parametrize("num_channels", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_max_pool_chooses_as_torch_among_equals(
    num_channels: int, dtype: torch.dtype
) -> None:
    """After a ReLU there are many: the gradient goes to one of them."""
    module: Any = nn.MaxPool2d(3, stride=2, padding=1)
    x = noise_tensor((2, num_channels, 9, 8), dtype).round().relu().requires_grad_()
    module.input0, module.output = x, module(x)
    g = noise_tensor((1, *module.output.shape), dtype)
    (wanted,) = torch.autograd.grad(module.output, x, g[0])
    actual = MaxPoolDerivatives().jac_t_mat_prod(module, None, None, g)
    assert_close(actual[0], wanted)
