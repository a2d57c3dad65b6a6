"""The convolution's derivatives against torch's automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import examples, module_input, modules, noise_tensor
from tn_extensions import Conv, functional

Case = tuple[Any, tuple[int, ...]]


def made(case: Case, batch_size: int) -> tuple[Any, Tensor, Tensor, Tensor, Conv]:
    """Make a module without bias, its tensors and its hyper-parameters."""
    module, sizes = case
    module.bias = None
    x = module_input(module, sizes, batch_size).requires_grad_()
    conv = Conv.from_module(module, sizes)
    g = noise_tensor((batch_size, conv.out_channels, *conv.output_size))
    return module, x, module.weight, g, conv


def toeplitz(conv: Conv, weight: Tensor) -> Tensor:
    """Images of all unit inputs, a column each."""
    size = conv.in_channels * prod(conv.input_size)
    units = np.eye(size).reshape(size, conv.in_channels, *conv.input_size)
    images = dense.convolve(conv, units, weight.detach().numpy())
    return torch.from_numpy(images.reshape(size, -1).T)


class TestValues:
    @examples(60)
    @given(modules(), st.sampled_from([1, 3]))
    def test_vjps(self, case: Case, batch_size: int) -> None:
        module, x, weight, g, conv = made(case, batch_size)
        expected = torch.autograd.grad(module(x), (x, weight), g)
        assert_close(functional.input_vjp(weight, g, conv), expected[0])
        assert_close(functional.weight_vjp(x, g, conv), expected[1])

    @examples(40)
    @given(modules(), st.sampled_from([1, 3]))
    def test_jvps(self, case: Case, batch_size: int) -> None:
        module, x, weight, _, conv = made(case, batch_size)
        x_dot, weight_dot = noise_tensor(x.shape) + 1, noise_tensor(weight.shape) - 1
        by_input = functional.input_jvp(weight, x_dot, conv)
        assert_close(by_input, module(x_dot))
        module.weight = torch.nn.Parameter(weight_dot)
        assert_close(functional.weight_jvp(x, weight_dot, conv), module(x))

    @examples(60)
    @given(modules(), st.sampled_from([1, 3]))
    def test_diagonal_backward(self, case: Case, batch_size: int) -> None:
        _, x, weight, h, conv = made(case, batch_size)
        jacobian = toeplitz(conv, weight)
        expected = h.flatten(1) @ jacobian.square()
        found = functional.diagonal_backward(weight, h, conv)
        assert_close(found, expected.view_as(x))

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
    @pytest.mark.parametrize(
        "options",
        [
            {"kernel_size": 5, "padding": 2},
            {"kernel_size": (5, 3), "padding": ((3, 1), (0, 2)), "stride": (2, 1)},
            {"kernel_size": 3, "padding": 3, "dilation": 2, "groups": 2},
            {"kernel_size": (6, 2), "padding": ((2, 3), (3, 0)), "stride": 2},
        ],
        ids=["wide", "uneven", "dilated", "wider than the input"],
    )
    def test_inputs_that_are_read_several_times(
        self, mode: Any, options: dict[str, Any]
    ) -> None:
        """Copies of an input add up before they are squared."""
        conv = Conv.make(2, 4, input_size=(4, 5), padding_mode=mode, **options)
        weight = noise_tensor(conv.weight_shape)
        h = noise_tensor((2, 4, *conv.output_size))
        expected = h.flatten(1) @ toeplitz(conv, weight).square()
        found = functional.diagonal_backward(weight, h, conv)
        assert_close(found.flatten(1), expected)
        alone = conv.explicitly_padded
        squares = functional.input_vjp(weight.square(), h, alone)
        assert not torch.allclose(squares.sum((2, 3)), found.sum((2, 3)))

    @examples(40)
    @given(modules(max_dims=2))
    def test_unfold_weight(self, case: Case) -> None:
        module, x, weight, g, conv = made(case, 1)
        matrix = functional.unfold_weight(weight, conv)
        expected = jacobian(module, x.detach())
        assert_close(matrix, expected.reshape(g.numel(), x.numel()))

    @pytest.mark.parametrize("num_dims", [4, 5])
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("mode", ["zeros", "circular"])
    def test_more_dimensions_than_torch_has(
        self, num_dims: int, transposed: bool, mode: Any
    ) -> None:
        if transposed and mode != "zeros":
            pytest.skip("torch pads transposed convolutions with zeros only")
        conv = Conv.make(
            2,
            2,
            (2, 1) * 2 + (2,) * (num_dims - 4),
            (3,) * num_dims,
            padding=1 - transposed,
            groups=2,
            transposed=transposed,
            padding_mode=mode,
        )
        x = noise_tensor((2, 2, *conv.input_size)).requires_grad_()
        weight = noise_tensor(conv.weight_shape).requires_grad_()
        y = functional.conv(x, weight, conv)
        g = noise_tensor(y.shape)
        expected = torch.autograd.grad(y, (x, weight), g)
        assert_close(functional.input_vjp(weight, g, conv), expected[0])
        assert_close(functional.weight_vjp(x, g, conv), expected[1])
        matrix = functional.unfold_weight(weight, conv)
        assert_close(x.flatten(1) @ matrix.mT, y.flatten(1))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_returns_float32(self, dtype: torch.dtype) -> None:
        conv = Conv.make(4, 2, 3, (6, 5), padding=1)
        x, g = noise_tensor((3, 4, 6, 5), dtype), noise_tensor((3, 2, 6, 5), dtype)
        weight = noise_tensor(conv.weight_shape, dtype)
        for call, arguments in calls(x, weight, g):
            result = call(*arguments, conv)
            assert result.dtype == torch.float32
            exact = call(*(tensor.double() for tensor in arguments), conv)
            assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)

    @examples(20)
    @given(modules())
    def test_empty_batches(self, case: Case) -> None:
        _, x, weight, g, conv = made(case, 0)
        for call, arguments in calls(x, weight, g):
            if call is not functional.unfold_weight:
                result = call(*arguments, conv)
                like = {
                    "weight_vjp": weight,
                    "input_vjp": x,
                    "diagonal_backward": x,
                }.get(call.__name__, g)
                assert torch.equal(result, torch.zeros_like(like))

    def test_layouts(self) -> None:
        conv = Conv.make(4, 6, 3, (6, 5), stride=2, padding=1, groups=2)
        x, g = noise_tensor((3, 4, 6, 5)), noise_tensor((3, 6, 3, 3))
        weight = noise_tensor(conv.weight_shape)
        last = torch.channels_last
        strided = (t.to(memory_format=last) for t in (x, weight, g))
        for one, other in zip(calls(x, weight, g), calls(*strided), strict=True):
            assert_close(one[0](*one[1], conv), other[0](*other[1], conv))


def calls(
    x: Tensor, weight: Tensor, g: Tensor
) -> list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Return the functions with their tensors."""
    return [
        (functional.conv, (x, weight)),
        (functional.input_jvp, (weight, x)),
        (functional.weight_jvp, (x, weight)),
        (functional.weight_vjp, (x, g)),
        (functional.input_vjp, (weight, g)),
        (functional.unfold_weight, (weight,)),
        (functional.diagonal_backward, (weight, g)),
    ]


class TestDerivatives:
    """All are differentiable, twice, and work under torch.func."""

    @pytest.mark.parametrize("number", range(7))
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"padding_mode": "reflect"},
            {"padding": ((0, 2), (2, 1)), "stride": 2},
            {"transposed": True, "stride": 2, "output_padding": 1},
        ],
    )
    def test_gradgradcheck(self, number: int, options: dict[str, Any]) -> None:
        conv = Conv.make(
            2,
            4,
            **{"kernel_size": 3, "input_size": (4, 3), "padding": 1, "groups": 2}
            | options,
        )
        x = noise_tensor((2, 2, *conv.input_size)).requires_grad_()
        weight = noise_tensor(conv.weight_shape).requires_grad_()
        g = noise_tensor((2, 4, *conv.output_size)).requires_grad_()
        call, arguments = calls(x, weight, g)[number]

        def function(*tensors: Tensor) -> Tensor:
            return call(*tensors, conv)

        assert gradcheck(function, arguments, fast_mode=True)
        if len(arguments) > 1:
            assert gradgradcheck(function, arguments, fast_mode=True)

    def test_functional_transforms(self) -> None:
        conv = Conv.make(4, 6, 3, (5, 6), stride=2, padding=1, groups=2)
        x, weight = noise_tensor((3, 4, 5, 6)), noise_tensor(conv.weight_shape)
        y = functional.conv(x, weight, conv)
        g = noise_tensor(y.shape)

        per_sample = torch.func.vmap(
            lambda x, g: functional.weight_vjp(x[None], g[None], conv)
        )(x, g)
        assert_close(per_sample.sum(0), functional.weight_vjp(x, g, conv))
        assert_close(
            torch.func.vmap(lambda x: functional.conv(x[None], weight, conv)[0])(x), y
        )
        _, change = torch.func.jvp(
            lambda w: functional.conv(x, w, conv), (weight,), (weight,)
        )
        assert_close(change, y)


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("options", [{}, {"padding_mode": "circular"}])
def test_compiled_in_one_graph(number: int, options: dict[str, Any]) -> None:
    conv = Conv.make(4, 6, 3, (5, 6), padding=1, groups=2, **options)
    x, weight = noise_tensor((3, 4, 5, 6)), noise_tensor(conv.weight_shape)
    g = functional.conv(x, weight, conv)
    function, arguments = calls(x, weight, g)[number]
    torch.compiler.reset()

    def call(*tensors: Tensor) -> Tensor:
        return 2 * function(*tensors, conv)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    inputs = [tensor.clone().requires_grad_() for tensor in arguments]
    expected = call(*inputs)
    result = compiled(*inputs)
    assert_close(result, expected)
    found, gradients = (
        torch.autograd.grad(output.square().sum(), inputs)
        for output in (result, expected)
    )
    for one, other in zip(found, gradients, strict=True):
        assert_close(one, other)
    # what was traced with is not kept
    assert_close(call(*arguments), expected.detach())


class TestFoldOutput:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"padding_mode": "reflect"},
            {"padding": ((0, 2), (2, 1)), "stride": 2},
            {"transposed": True, "stride": 2, "output_padding": 1},
            {"input_size": (4, 3, 2), "stride": (1, 2, 1), "padding": 1},
            {"input_size": 5},
            {"kernel_size": 1, "padding": 0},
        ],
        ids=str,
    )
    def test_is_differentiable_and_its_derivative_unfolds(
        self, options: dict[str, Any]
    ) -> None:
        given = {"kernel_size": 3, "input_size": (4, 3), "padding": 1} | options
        conv = Conv.make(2, 2, **given)
        x = noise_tensor((2, 2, *conv.input_size))
        unfolded = functional.unfold_input(x, conv)
        u = noise_tensor(unfolded.shape).requires_grad_()

        def function(u: Tensor) -> Tensor:
            return functional.fold_output(u, conv)

        (gradient,) = torch.autograd.grad(function(u), u, x)
        assert_close(gradient, unfolded)
        assert gradcheck(function, u, fast_mode=True)
        assert gradgradcheck(lambda u: function(u).square(), u, fast_mode=True)

    @pytest.mark.parametrize("kernel_size", [1, 2, 3])
    def test_is_a_new_tensor(self, kernel_size: int) -> None:
        conv = Conv.make(2, 2, kernel_size, (6, 6), stride=min(kernel_size, 2))
        x = noise_tensor((3, 2, 6, 6))
        u = functional.unfold_input(x, conv)
        before = u.clone()
        functional.fold_output(u, conv).add_(1)
        assert torch.equal(u, before)

    @pytest.mark.parametrize("mode", ["zeros", "circular"])
    def test_compiled_in_one_graph(self, mode: Any) -> None:
        conv = Conv.make(2, 2, 3, (6, 5), padding=1, padding_mode=mode)
        u = noise_tensor((2, 18, 30))
        torch.compiler.reset()

        def call(u: Tensor) -> Tensor:
            return 2 * functional.fold_output(u, conv)

        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert_close(compiled(u), call(u))

    def test_empty_and_half_precision(self) -> None:
        conv = Conv.make(2, 2, 3, (6, 5), padding=1)
        assert functional.fold_output(noise_tensor((0, 18, 30)), conv).shape[0] == 0
        u = noise_tensor((2, 18, 30), torch.bfloat16)
        result = functional.fold_output(u, conv)
        assert result.dtype == torch.float32
        exact = functional.fold_output(u.double(), conv)
        assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("change", "argument", "error"),
        [
            ({"u": noise_tensor((2, 18, 29))}, "u.shape", ValueError),
            ({"u": noise_tensor((2, 17, 30))}, "u.shape", ValueError),
            ({"u": noise_tensor((18, 30))}, "u.shape", ValueError),
            ({"u": torch.tensor(1.0)}, "u.shape", ValueError),
            ({"u": torch.ones(2, 18, 30, dtype=torch.int64)}, "u", TypeError),
            ({"u": None}, "u", TypeError),
            ({"conv": None}, "conv", TypeError),
        ],
        ids=["positions", "entries", "axes", "scalar", "integers", "none", "conv"],
    )
    def test_refused(
        self, change: dict[str, Any], argument: str, error: type[Exception]
    ) -> None:
        conv = Conv.make(2, 2, 3, (6, 5), padding=1)
        given = {"u": noise_tensor((2, 18, 30)), "conv": conv} | change
        with pytest.raises(error) as caught:
            functional.fold_output(**given)
        assert_in_form(caught.value, "fold_output", argument)


class TestBadInput:
    X, CONV = noise_tensor((3, 4, 6, 5)), Conv.make(4, 2, 3, (6, 5), padding=1)
    G, WEIGHT = noise_tensor((3, 2, 6, 5)), noise_tensor((2, 4, 3, 3))

    @pytest.mark.parametrize(
        ("name", "change", "argument", "error"),
        [
            ("weight_vjp", {"g": G[:2]}, "g.shape", ValueError),
            ("weight_vjp", {"g": G[0]}, "g.shape", ValueError),
            ("weight_vjp", {"g": X}, "g.shape", ValueError),
            ("weight_vjp", {"g": G.float()}, "g.dtype", ValueError),
            ("weight_vjp", {"g": G.int()}, "g", TypeError),
            ("weight_vjp", {"x": G}, "x.shape[1]", ValueError),
            ("weight_vjp", {"x": [1]}, "x", TypeError),
            ("weight_vjp", {"conv": 3}, "conv", TypeError),
            ("input_vjp", {"g": X}, "g.shape", ValueError),
            ("input_vjp", {"g": G[0]}, "g.shape", ValueError),
            ("input_vjp", {"g": torch.tensor(1.0)}, "g.shape", ValueError),
            ("input_vjp", {"g": None}, "g", TypeError),
            ("diagonal_backward", {"h": X}, "h.shape", ValueError),
            ("diagonal_backward", {"h": G.float()}, "weight.dtype", ValueError),
            ("diagonal_backward", {"weight": X}, "weight.shape", ValueError),
            ("diagonal_backward", {"conv": None}, "conv", TypeError),
            ("input_vjp", {"weight": WEIGHT[:1]}, "weight.shape", ValueError),
            ("input_vjp", {"weight": WEIGHT.float()}, "weight.dtype", ValueError),
            ("input_vjp", {"weight": WEIGHT.to("meta")}, "weight.device", ValueError),
            ("input_vjp", {"conv": None}, "conv", TypeError),
            ("input_jvp", {"x_dot": X[0]}, "x_dot.dim()", ValueError),
            ("input_jvp", {"x_dot": G}, "x_dot.shape[1]", ValueError),
            ("input_jvp", {"weight": WEIGHT.mT[..., :2]}, "weight.shape", ValueError),
            ("weight_jvp", {"weight_dot": G}, "weight_dot.shape", ValueError),
            ("weight_jvp", {"x": X.mT}, "x.shape[2:]", ValueError),
            ("unfold_weight", {"weight": X}, "weight.shape", ValueError),
            ("unfold_weight", {"weight": WEIGHT.long()}, "weight", TypeError),
        ],
    )
    def test_refused(
        self, name: str, change: dict[str, Any], argument: str, error: type
    ) -> None:
        arguments = {
            "weight_vjp": {"x": self.X, "g": self.G},
            "input_vjp": {"weight": self.WEIGHT, "g": self.G},
            "diagonal_backward": {"weight": self.WEIGHT, "h": self.G},
            "input_jvp": {"weight": self.WEIGHT, "x_dot": self.X},
            "weight_jvp": {"x": self.X, "weight_dot": self.WEIGHT},
            "unfold_weight": {"weight": self.WEIGHT},
        }[name]
        call = getattr(functional, name)
        call(**arguments, conv=self.CONV)
        with pytest.raises(error) as caught:
            call(**({**arguments, "conv": self.CONV} | change))
        assert_in_form(caught.value, name, argument)
