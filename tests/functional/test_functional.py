"""The quantities on tensors against Jacobians of torch's own modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from tests.compiler.candidates import target
from tests.messages import assert_in_form
from tests.reference import dense
from tests.reference.jacobian import kfac_factor, patches
from tests.strategies import (
    MODULES,
    convs,
    examples,
    module_input,
    modules,
    noise,
    noise_tensor,
)
from tn_extensions import Conv, functional, quantities
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.plan import candidates
from tn_extensions.conv import PADDING_MODES

APPROX = ("expand", "reduce")
FACTORS = {"expand": functional.kfac_expand, "reduce": functional.kfac_reduce}
HALF = (torch.float16, torch.bfloat16)

Case = tuple[Any, tuple[int, ...]]


def made(case: Case, batch_size: int = 2, **options: Any) -> tuple[Any, Tensor, Conv]:
    """Make a module, its input and its hyper-parameters."""
    module, sizes = case
    x = module_input(module, sizes, batch_size)
    return module, x, Conv.from_module(module, sizes, **options)


def factor_size(conv: Conv, bias: bool = False) -> int:
    """Count the rows of a factor."""
    columns = conv.in_channels // conv.groups
    for size in conv.kernel_size:
        columns *= size
    return columns + bias


def simple(num_dims: int = 2, **change: Any) -> tuple[Tensor, Conv]:
    """Make an input and an ordinary convolution."""
    options = {"kernel_size": 3, "padding": 1, "input_size": (6,) * num_dims} | change
    conv = Conv.make(4, 2, **options)
    return noise_tensor((3, 4, *conv.input_size)), conv


class TestValues:
    """Against torch's modules, over all of their hyper-parameters."""

    @examples(60)
    @given(modules(), st.sampled_from([1, 3]))
    def test_conv(self, case: Case, batch_size: int) -> None:
        module, x, conv = made(case, batch_size)
        module.bias = None
        assert_close(functional.conv(x, module.weight, conv), module(x))

    @examples(40)
    @given(modules(), st.sampled_from([1, 3]))
    def test_unfold_input_and_patch_mean(self, case: Case, batch_size: int) -> None:
        module, x, conv = made(case, batch_size)
        u = patches(module, x)
        assert_close(functional.unfold_input(x, conv), u.flatten(1, 2))
        assert_close(functional.patch_mean(x, conv), u.mean(-1))

    @examples(60)
    @given(modules(), st.sampled_from([1, 3]))
    def test_fold_output(self, case: Case, batch_size: int) -> None:
        module, x, conv = made(case, batch_size)
        x.requires_grad_()
        patched = patches(module, x).flatten(1, 2)
        u = noise_tensor(patched.shape)
        (expected,) = torch.autograd.grad(patched, x, u)
        assert_close(functional.fold_output(u, conv), expected)

    @pytest.mark.parametrize("approx", APPROX)
    @examples(60)
    @given(modules(), st.sampled_from([1, 2, 3]), st.booleans())
    def test_factors(
        self, approx: str, case: Case, batch_size: int, bias: bool
    ) -> None:
        module, x, conv = made(case, batch_size)
        factor = FACTORS[approx](x, conv, bias=bias)
        assert_close(factor, kfac_factor(module, x, approx, bias))

    @pytest.mark.parametrize("approx", APPROX)
    @examples(20)
    @given(modules(transposed=True), st.data())
    def test_output_size(self, approx: str, case: Case, data: st.DataObject) -> None:
        module, sizes = case
        least = Conv.from_module(module, sizes)
        wanted = tuple(
            dim.output_size
            - dim.output_padding
            + data.draw(st.integers(0, dim.stride - 1))
            for dim in least.dims
        )
        module, x, conv = made(case, output_size=wanted)
        expected = kfac_factor(module, x, approx, output_size=wanted)
        assert_close(FACTORS[approx](x, conv), expected)

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("mode", PADDING_MODES)
    @pytest.mark.parametrize("num_dims", [1, 2, 3])
    @pytest.mark.parametrize("padding", [2, "same"])
    def test_padding_modes(
        self, approx: str, mode: str, num_dims: int, padding: Any
    ) -> None:
        make = MODULES[False][num_dims - 1]
        module = make(2, 2, 2, padding=padding, padding_mode=mode).double()
        sizes = (5, 4, 3)[:num_dims]
        _, x, conv = made((module, sizes))
        assert_close(FACTORS[approx](x, conv), kfac_factor(module, x, approx))
        assert_close(functional.conv(x, module.weight, conv), no_bias(module)(x))

    @examples(20)
    @given(convs(max_dims=4, min_dims=4, padding_modes=PADDING_MODES), st.booleans())
    def test_four_dimensions(self, conv: Conv, bias: bool) -> None:
        array, weight = (
            noise((2, conv.in_channels, *conv.input_size)),
            noise(conv.weight_shape),
        )
        x = torch.from_numpy(array)
        y = functional.conv(x, torch.from_numpy(weight), conv)
        assert_close(y, torch.from_numpy(dense.convolve(conv, array, weight)))
        u = torch.from_numpy(dense.patches(conv, array))
        assert_close(functional.unfold_input(x, conv), u.flatten(1, 2))
        for approx in APPROX:
            expected = torch.from_numpy(dense.factor(conv, array, approx, bias))
            assert_close(FACTORS[approx](x, conv, bias=bias), expected)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"stride": 2, "padding": 3},
            {"dilation": (2, 1), "padding": (0, 1)},
            {"kernel_size": 1},
            {"kernel_size": 2, "stride": 2, "padding": 0},
        ],
    )
    def test_order_is_that_of_torchs_unfold(self, options: dict[str, Any]) -> None:
        options = {"kernel_size": (3, 2), "padding": 1} | options
        x, conv = simple(**options, input_size=(6, 8))
        u = functional.unfold_input(x, conv)
        assert_close(u, F.unfold(x, **options))
        folded = functional.fold_output(u, conv)
        assert_close(folded, F.fold(u, x.shape[2:], **options))


def no_bias(module: Any) -> Any:
    """Remove the bias of a module."""
    module.bias = None
    return module


class TestArguments:
    """``bias``, ``scale`` and ``out``."""

    @pytest.mark.parametrize("approx", APPROX)
    @examples(25)
    @given(modules(max_dims=2), st.booleans(), st.sampled_from([0.25, -2, 0, 1e-3]))
    def test_scale_replaces_the_default(
        self, approx: str, case: Case, bias: bool, scale: float
    ) -> None:
        module, x, conv = made(case, 3)
        default = 1 / 3
        if approx == "reduce":
            default /= functional.unfold_input(x, conv).shape[-1] ** 2
        expected = kfac_factor(module, x, approx, bias) * (scale / default)
        assert_close(FACTORS[approx](x, conv, bias=bias, scale=scale), expected)

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("layout", ["plain", "rows", "columns", "transposed"])
    @examples(15)
    @given(modules(max_dims=2), st.booleans(), st.sampled_from([None, 0.5]))
    def test_out_is_added_to_in_place(
        self, approx: str, layout: str, case: Case, bias: bool, scale: float | None
    ) -> None:
        module, x, conv = made(case, 2)
        size = factor_size(conv, bias)
        whole = noise_tensor((2 * conv.groups, 2 * size, 2 * size + 1))
        before, mask = whole.clone(), torch.ones_like(whole)
        view, inside = (
            {
                "plain": lambda t: t[: conv.groups, :size, :size],
                "rows": lambda t: t[::2, 1::2, 1 : size + 1],
                "columns": lambda t: t[conv.groups :, :size, 1::2],
                "transposed": lambda t: t[::2, :size, :size].mT,
            }[layout](tensor)
            for tensor in (whole, mask)
        )
        inside.zero_()
        old = view.clone()  # noise, so not symmetric
        out = FACTORS[approx](x, conv, bias=bias, scale=scale, out=view)
        assert out is view
        added = FACTORS[approx](x, conv, bias=bias, scale=scale)
        assert_close(view, old + added)
        assert_close(added, FACTORS[approx](x, conv, bias=bias, scale=scale))
        assert torch.equal(whole * mask, before * mask)

    @pytest.mark.parametrize("approx", APPROX)
    def test_factors_accumulate_over_batches(self, approx: str) -> None:
        x, conv = simple()
        out = torch.zeros(1, factor_size(conv), factor_size(conv)).double()
        storage = out.untyped_storage().data_ptr()
        for part in x.split(1):
            FACTORS[approx](part, conv, scale=0.5, out=out)
        assert out.untyped_storage().data_ptr() == storage
        assert_close(out, FACTORS[approx](x, conv, scale=0.5))

    @pytest.mark.parametrize("approx", APPROX)
    def test_inputs_are_left_alone(self, approx: str) -> None:
        x, conv = simple()
        before = x.clone()
        FACTORS[approx](x, conv, bias=True)
        assert torch.equal(x, before)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every other": lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2],
    "part of a batch": lambda x: torch.cat([x, x])[len(x) :],
    "part of channels": lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
    "expanded batch": lambda x: x[:1].expand_as(x),
    "expanded channels": lambda x: x[:, :1].expand_as(x),
    "expanded space": lambda x: x[..., :1].expand_as(x),
}


class TestInputs:
    """Layouts, types and sizes of inputs."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    @examples(12)
    @given(modules())
    def test_strides_do_not_matter(self, layout: str, case: Case) -> None:
        module, x, conv = made(case, 3)
        x = LAYOUTS[layout](x)
        plain = x.contiguous()
        for call in (*FACTORS.values(), functional.unfold_input, functional.patch_mean):
            assert_close(call(x, conv), call(plain, conv))
        y = functional.conv(x, module.weight, conv)
        assert_close(y, functional.conv(plain, module.weight, conv))

    @pytest.mark.parametrize("approx", APPROX)
    @examples(20)
    @given(modules(), st.booleans())
    def test_empty_batches(self, approx: str, case: Case, bias: bool) -> None:
        _, x, conv = made(case, 0)
        size = factor_size(conv, bias)
        factor = FACTORS[approx](x, conv, bias=bias)
        assert torch.equal(factor, torch.zeros(conv.groups, size, size).double())
        out = noise_tensor(factor.shape)
        before = out.clone()
        assert FACTORS[approx](x, conv, bias=bias, out=out) is out
        assert torch.equal(out, before)

    @examples(20)
    @given(modules())
    def test_empty_batches_of_differentiable_functions(self, case: Case) -> None:
        module, x, conv = made(case, 0)
        full = module_input(module, conv.input_size, 1)
        y = functional.conv(x, module.weight, conv)
        assert y.shape == (0, *no_bias(module)(full).shape[1:])
        u = functional.unfold_input(full, conv)
        assert functional.unfold_input(x, conv).shape == (0, *u.shape[1:])
        mean = functional.patch_mean(full, conv)
        assert functional.patch_mean(x, conv).shape == (0, *mean.shape[1:])
        assert y.dtype == mean.dtype == torch.float64

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("dtype", [*HALF, torch.float32])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("options", [{}, {"padding_mode": "reflect"}])
    def test_lower_precisions_accumulate_in_float32(
        self, approx: str, dtype: torch.dtype, bias: bool, options: dict[str, Any]
    ) -> None:
        x, conv = simple(input_size=(20, 20), **options)
        x = x.to(dtype)
        exact = FACTORS[approx](x.double(), conv, bias=bias)
        factor = FACTORS[approx](x, conv, bias=bias)
        assert factor.dtype == torch.float32
        scale = exact.abs().max().item()
        assert_close(factor.double(), exact, rtol=1e-5, atol=1e-6 * scale)
        out = torch.zeros_like(factor)
        assert_close(FACTORS[approx](x, conv, bias=bias, out=out), factor)

    @pytest.mark.parametrize("dtype", HALF)
    def test_other_functions_return_float32(self, dtype: torch.dtype) -> None:
        x, conv = simple()
        x, weight = x.to(dtype), noise_tensor(conv.weight_shape, dtype)
        results = {
            "conv": functional.conv(x, weight, conv),
            "unfold_input": functional.unfold_input(x, conv),
            "patch_mean": functional.patch_mean(x, conv),
        }
        expected = {
            "conv": F.conv2d(x.double(), weight.double(), padding=1),
            "unfold_input": F.unfold(x.double(), 3, padding=1),
            "patch_mean": F.unfold(x.double(), 3, padding=1).mean(-1)[:, None],
        }
        for name, result in results.items():
            assert result.dtype == torch.float32
            assert_close(result.double(), expected[name], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("dtype", HALF)
    @pytest.mark.parametrize("options", [{}, {"kernel_size": 1, "padding": 0}])
    def test_autocast_does_not_change_factors(
        self, approx: str, dtype: torch.dtype, options: dict[str, Any]
    ) -> None:
        x, conv = simple(**options)
        x = x.float()
        expected = FACTORS[approx](x, conv, bias=True)
        with torch.autocast("cpu", dtype=dtype):
            factor = FACTORS[approx](x, conv, bias=True)
        assert factor.dtype == torch.float32
        assert torch.equal(factor, expected)

    def test_autocast_is_restored(self) -> None:
        x, conv = simple()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            functional.kfac_expand(x.float(), conv)
            assert torch.is_autocast_enabled("cpu")
            assert (x.float()[0, 0] @ x.float()[0, 0]).dtype == torch.bfloat16

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("bias", [False, True])
    def test_what_is_added_in_place_is_detached(self, approx: str, bias: bool) -> None:
        x, conv = simple()
        factor = FACTORS[approx](x, conv, bias=bias)
        x.requires_grad_()
        out = torch.zeros_like(factor)
        assert not FACTORS[approx](x, conv, bias=bias, out=out).requires_grad
        assert_close(out, factor)
        with torch.no_grad():
            assert not FACTORS[approx](x, conv, bias=bias).requires_grad

    @pytest.mark.parametrize("approx", APPROX)
    def test_inference_mode(self, approx: str) -> None:
        x, conv = simple()
        expected = FACTORS[approx](x, conv)
        with torch.inference_mode():
            assert_close(FACTORS[approx](x, conv), expected)


class TestDerivatives:
    """Linear quantities and the factors are differentiable."""

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("bias", [False, True])
    @examples(10)
    @given(modules(max_dims=2))
    def test_factors(self, approx: str, bias: bool, case: Case) -> None:
        _, x, conv = made(case)
        expected = FACTORS[approx](x, conv, bias=bias)
        x.requires_grad_()

        def factor(x: Tensor) -> Tensor:
            return FACTORS[approx](x, conv, bias=bias)

        assert_close(factor(x).detach(), expected)
        assert gradcheck(factor, x, fast_mode=True)
        assert gradgradcheck(factor, x, fast_mode=True)

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("bias", [False, True])
    def test_factors_under_transforms(self, approx: str, bias: bool) -> None:
        x, conv = simple(stride=2)

        def factor(x: Tensor) -> Tensor:
            return FACTORS[approx](x, conv, bias=bias)

        batched = torch.func.vmap(factor)(torch.stack([x, 2 * x]))
        assert_close(batched[0], factor(x))
        assert_close(batched[1], factor(2 * x))
        _, change = torch.func.jvp(factor, (x,), (x,))
        (gradient,) = torch.func.vjp(factor, x)[1](change)
        assert_close((gradient * x).sum(), change.square().sum())
        assert torch.func.grad(lambda x: factor(x).sum())(x[:0]).shape == x[:0].shape

    @examples(20)
    @given(modules(max_dims=2))
    def test_gradcheck(self, case: Case) -> None:
        module, x, conv = made(case)
        x.requires_grad_()
        weight = module.weight.detach().requires_grad_()
        assert gradcheck(lambda x: functional.unfold_input(x, conv), x, fast_mode=True)
        assert gradcheck(lambda x: functional.patch_mean(x, conv), x, fast_mode=True)
        assert gradcheck(
            lambda x, w: functional.conv(x, w, conv), (x, weight), fast_mode=True
        )

    @examples(30)
    @given(modules())
    def test_gradients_are_those_of_the_module(self, case: Case) -> None:
        module, x, conv = made(case)
        x.requires_grad_()
        y = no_bias(module)(x)
        upstream = noise_tensor(y.shape)
        expected = torch.autograd.grad(y, (x, module.weight), upstream)
        ours = functional.conv(x, module.weight, conv)
        result = torch.autograd.grad(ours, (x, module.weight), upstream)
        for one, other in zip(result, expected, strict=True):
            assert_close(one, other)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"padding": 0},
            {"kernel_size": 1, "padding": 0},
            {"kernel_size": 1, "padding": 0, "stride": 2},
            {"kernel_size": 2, "padding": 0, "stride": 2},
            {"kernel_size": 6, "padding": 0},
            {"padding_mode": "circular"},
        ],
    )
    @pytest.mark.parametrize("num_dims", [1, 2, 3])
    def test_unfold_input_is_a_new_tensor(
        self, options: dict[str, Any], num_dims: int
    ) -> None:
        x, conv = simple(num_dims, **options)
        before = x.clone()
        u = functional.unfold_input(x, conv)
        assert u.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        u.add_(1)
        assert torch.equal(x, before)
        # writing to an entry changes that entry only
        v = functional.unfold_input(x, conv)
        v[0, 0, 0] += 1
        changed = (v != functional.unfold_input(x, conv)).sum()
        assert changed == 1


FRAMED = [
    {},
    {"stride": 2},
    {"dilation": 2, "padding": 2},
    {"padding": 0},
    {"groups": 4},
    {"groups": 16},
]


class TestAccuracy:
    """Errors in float32 are no larger than those of unfolding."""

    @pytest.mark.parametrize("options", FRAMED)
    @pytest.mark.parametrize("frame", [1.0, 1e4])
    def test_a_heavy_border_costs_no_digits(
        self, options: dict[str, Any], frame: float
    ) -> None:
        options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1} | options
        groups = options["groups"]
        conv = Conv.make(16, 16, 3, (28, 28), **options)
        x = noise_tensor((4, 16, 28, 28)).float()
        x[..., 1:-1, 1:-1] /= frame
        options.pop("groups")

        def unfolded(x: Tensor) -> Tensor:
            u = F.unfold(x, 3, **options).unflatten(1, (groups, -1))
            return torch.einsum("ngap,ngbp->gab", u, u)

        exact = unfolded(x.double())
        # entries that are small among large ones are compared to their own size
        size = exact.diagonal(dim1=1, dim2=2).sqrt()
        scale = size[:, :, None] * size[:, None]

        def error(factor: Tensor) -> float:
            return ((factor.double() - exact).abs() / scale).max().item()

        # kernels add some thousand terms one by one; cancelling loses all digits
        limit = 2 * error(unfolded(x)) + 16 * torch.finfo(torch.float32).eps
        network = quantities.kfac_expand(conv, 4)
        for way in candidates(network, target(itemsize=4)):
            if way.name == "einsum" and way.cost.flops > 2.5e8:
                continue  # takes seconds, and is what no plan chooses
            out = torch.full(network.shape, torch.nan)
            way.run({"x": x}, Accumulator(out, 1.0, fresh=True))
            assert error(out) <= limit, (error(out), way.name, way.label)

    def test_reduce_does_not_cancel(self) -> None:
        x, conv = simple(input_size=(40, 40))
        x[..., 1:-1, 1:-1] /= 1e4
        exact = functional.kfac_reduce(x, conv)
        factor = functional.kfac_reduce(x.float(), conv)
        assert_close(factor.double(), exact, rtol=1e-5, atol=1e-6 * exact.max().item())


@pytest.mark.parametrize("name", get_args(quantities.Quantity))
def test_plans_can_be_looked_at(name: Any) -> None:
    x, conv = simple()
    arguments = {"num_vectors": 2} if "ggn" in name else {}
    chosen = functional.plan(name, x.float(), conv, **arguments)
    assert chosen.candidate.name in str(chosen)
    half = functional.plan(name, x.half(), conv, **arguments)
    assert half is chosen  # computed in float32
    assert functional.plan(name, x, conv, **arguments) is not chosen


@pytest.mark.parametrize(
    ("quantity", "arguments", "argument"),
    [
        ("ggn_diagonal", {}, "num_vectors"),
        ("bias_ggn_gram", {}, "num_vectors"),
        ("ggn_gram", {"num_vectors": None}, "num_vectors"),
        ("ggn_gram", {"num_vectors": 2.0}, "num_vectors"),
        ("ggn_gram", {"num_vectors": [2]}, "num_vectors"),
        ("per_sample_grad", {"num_vectors": "2"}, "num_vectors"),
        ("ggn_diagonal", {"num_vectors": 2, "number": 2}, "number"),
        ("kfac_expand", {"num_vectors": 2}, "num_vectors"),
        ("kfac_expand", {"scale": 2}, "scale"),
        ("weight_vjp", {"batch_size": 2}, "batch_size"),
    ],
)
def test_plans_need_the_arguments_of_the_quantity(
    quantity: Any, arguments: dict[str, Any], argument: str
) -> None:
    x, conv = simple()
    with pytest.raises(TypeError) as caught:
        functional.plan(quantity, x, conv, **arguments)
    assert_in_form(caught.value, "plan", argument)


ROTATED = ("rotated_grad", "kfac_moments")


@pytest.mark.parametrize("name", get_args(quantities.Quantity))
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_without_output_positions_all_is_zero(name: str, empty: int) -> None:
    """As padding of a transposed convolution may leave none."""
    padding, kernel_size, sizes = [0, 0, 0], [3, 3, 3], [2, 2, 2]
    padding[empty], kernel_size[empty], sizes[empty] = 2, 2, 3
    options: Any = {"padding": padding, "groups": 2, "transposed": True}
    conv = Conv.make(4, 6, kernel_size, sizes, **options)
    assert conv.output_size[empty] == 0
    number = {"num_vectors": 3} if "ggn" in name else {}
    if name in ("patch_sum", "patch_total"):
        result = functional.patch_mean(torch.ones(2, 4, *sizes), conv)
        assert torch.equal(result, torch.zeros(2, 2, 2 * 18))
        return
    tensors = {
        "x": torch.ones(2, 4, *sizes),
        "x_dot": torch.ones(2, 4, *sizes),
        "g": torch.ones(2, 6, *conv.output_size),
        "u": torch.ones(2, 4 * 18, 0),
        "S": torch.ones(3, 2, 6, *conv.output_size),
        "weight": torch.ones(conv.weight_shape, requires_grad=True),
        "weight_dot": torch.ones(conv.weight_shape),
        "vectors": torch.ones(conv.weight_shape),
        "h": torch.ones(2, 6, *conv.output_size),
        "QA": torch.ones(2, 36, 4),
        "QB": torch.ones(2, 3, 2),
    }
    number |= {"rank_a": 4, "rank_b": 2} if name in ROTATED else {}
    function = getattr(functional, name)
    taken = [j for j in inspect.signature(function).parameters if j in tensors]
    result = function(*(tensors[j] for j in taken), conv)
    assert not result.any() and not result.isnan().any()
    if "bias" not in name:
        network = getattr(quantities, name)(conv, 2, **number)
        assert result.shape == network.shape
    if "weight" in taken:
        result.sum().backward()
        assert torch.equal(tensors["weight"].grad, torch.zeros(conv.weight_shape))
