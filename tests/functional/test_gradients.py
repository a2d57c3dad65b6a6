"""Per-sample gradients and what is made of them, against automatic differentiation."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import (
    examples,
    module_input,
    modules,
    noise,
    noise_tensor,
)
from tn_extensions import Conv, functional, memory_budget

Case = tuple[Any, tuple[int, ...]]
VECTORS = 2


def made(case: Case, batch_size: int) -> tuple[Tensor, Tensor, Tensor, Conv]:
    """Input, vectors, the kernel's gradient by each of them, and hyper-parameters."""
    module, sizes = case
    module.bias = None
    x, conv = module_input(module, sizes, batch_size), Conv.from_module(module, sizes)
    vectors = noise_tensor((VECTORS, batch_size, conv.out_channels, *conv.output_size))
    rows = [
        torch.autograd.grad(module(x[n : n + 1]), module.weight, vectors[v, n : n + 1])
        for v in range(VECTORS)
        for n in range(batch_size)
    ]
    gradients = torch.stack([row for (row,) in rows]).unflatten(0, (VECTORS, -1))
    return x, vectors, gradients, conv


class TestValues:
    @examples(40)
    @given(modules(), st.sampled_from([1, 3]))
    def test_per_sample_grad(self, case: Case, batch_size: int) -> None:
        x, vectors, gradients, conv = made(case, batch_size)
        assert_close(functional.per_sample_grad(x, vectors, conv), gradients)
        assert_close(functional.per_sample_grad(x, vectors[0], conv), gradients[0])

    @examples(40)
    @given(modules(), st.sampled_from([1, 3]), st.sampled_from([2**28, 100]))
    def test_per_sample_grad_norm(
        self, case: Case, batch_size: int, budget: int
    ) -> None:
        x, vectors, gradients, conv = made(case, batch_size)
        expected = gradients.flatten(2).square().sum(-1)
        with memory_budget(budget):
            norm = functional.per_sample_grad_norm(x, vectors, conv)
            one = functional.per_sample_grad_norm(x, vectors[0], conv)
        assert_close(norm, expected)
        assert_close(one, expected[0])

    @examples(40)
    @given(modules(), st.sampled_from([1, 3]), st.sampled_from([2**28, 100]))
    def test_ggn_diagonal(self, case: Case, batch_size: int, budget: int) -> None:
        x, vectors, gradients, conv = made(case, batch_size)
        expected = gradients.square()
        with memory_budget(budget):
            summed = functional.ggn_diagonal(x, vectors, conv)
            kept = functional.ggn_diagonal(x, vectors, conv, per_sample=True)
        assert_close(summed, expected.sum((0, 1)))
        assert_close(kept, expected.sum(0))

    @examples(40)
    @given(modules(), st.sampled_from([1, 3]))
    def test_ggn_gram(self, case: Case, batch_size: int) -> None:
        x, vectors, gradients, conv = made(case, batch_size)
        rows = gradients.flatten(0, 1).flatten(1)
        assert_close(functional.ggn_gram(x, vectors, conv), rows @ rows.mT)

    @examples(40)
    @given(
        modules(),
        st.sampled_from([1, 3]),
        st.sampled_from([2**28, 100]),
        st.integers(0, 3),
    )
    def test_ggn_matvec(
        self, case: Case, batch_size: int, budget: int, number: int
    ) -> None:
        x, S, gradients, conv = made(case, batch_size)
        rows = gradients.flatten(0, 1).flatten(1)
        vectors = noise_tensor((number, *conv.weight_shape))
        with memory_budget(budget):
            many = functional.ggn_matvec(x, S, vectors, conv)
            one = functional.ggn_matvec(x, S, vectors.sum(0), conv)
        expected = vectors.flatten(1) @ rows.mT @ rows
        assert_close(many, expected.view_as(vectors))
        assert_close(one, expected.sum(0).view(conv.weight_shape))

    @pytest.mark.parametrize("batch_size", [0, 2])
    @pytest.mark.parametrize("num_vectors", [0, 1])
    def test_empty(self, batch_size: int, num_vectors: int) -> None:
        conv = Conv.make(4, 2, 3, (6, 5), padding=1, groups=2)
        x = noise_tensor((batch_size, 4, 6, 5))
        vectors = noise_tensor((num_vectors, batch_size, 2, 6, 5))
        total = num_vectors * batch_size
        shapes = {
            "per_sample_grad": (num_vectors, batch_size, *conv.weight_shape),
            "per_sample_grad_norm": (num_vectors, batch_size),
            "ggn_diagonal": conv.weight_shape,
            "ggn_gram": (total, total),
        }
        for name, shape in shapes.items():
            result = getattr(functional, name)(x, vectors, conv)
            assert result.shape == shape and result.dtype == x.dtype
            assert total or not result.any()
        for number in ((), (3,)):
            kernels = noise_tensor((*number, *conv.weight_shape))
            result = functional.ggn_matvec(x, vectors, kernels, conv)
            assert result.shape == kernels.shape and result.dtype == x.dtype
            assert total or not result.any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_returns_float32(self, dtype: torch.dtype) -> None:
        conv = Conv.make(4, 2, 3, (6, 5), padding=1)
        x, vectors = (noise_tensor(s, dtype) for s in ((3, 4, 6, 5), (2, 3, 2, 6, 5)))
        for name in NAMES:
            call = getattr(functional, name)
            result = call(x, vectors, conv)
            assert result.dtype == torch.float32
            exact = call(x.double(), vectors.double(), conv)
            assert_close(result.double(), exact, rtol=1e-4, atol=1e-3)
        kernel = noise_tensor(conv.weight_shape, dtype)
        result = functional.ggn_matvec(x, vectors, kernel, conv)
        assert result.dtype == torch.float32
        exact = functional.ggn_matvec(
            x.double(), vectors.double(), kernel.double(), conv
        )
        assert_close(result.double(), exact, rtol=1e-4, atol=1e-2)

    def test_large_layers_are_planned_in_chunks(self) -> None:
        conv = Conv.make(32, 64, 3, (10, 10), padding=1)
        x = noise_tensor((4, 32, 10, 10), torch.float32)
        vectors = noise_tensor((20, 4, 64, 10, 10), torch.float32)
        gradients = functional.per_sample_grad(x.double(), vectors.double(), conv)
        with memory_budget(2**20):
            diagonal = functional.ggn_diagonal(x, vectors, conv)
            norm = functional.per_sample_grad_norm(x, vectors, conv)
        expected = gradients.square().sum((0, 1))
        assert_close(diagonal.double(), expected, rtol=1e-4, atol=1e-3)
        expected = gradients.flatten(2).square().sum(-1)
        assert_close(norm.double(), expected, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("num_dims", [4, 5])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_more_dimensions_than_torch_has(
        self, num_dims: int, transposed: bool
    ) -> None:
        conv = Conv.make(
            2,
            4,
            (2, 1, 2, 1, 2)[:num_dims],
            (2, 3, 2, 2, 2)[:num_dims],
            stride=(1, 2, 1, 1, 1)[:num_dims],
            padding=(1, 0, 0, 0, 0)[:num_dims],
            groups=2,
            transposed=transposed,
        )
        x = noise((2, 2, *conv.input_size))
        S = noise((3, 2, 4, *conv.output_size))
        units = np.eye(prod(conv.weight_shape)).reshape(-1, *conv.weight_shape)
        images = np.stack([dense.convolve(conv, x, unit) for unit in units])
        rows = np.einsum(
            "unz,vnz->vnu", images.reshape(len(units), 2, -1), S.reshape(3, 2, -1)
        )
        gradients = torch.from_numpy(rows)
        arguments = torch.from_numpy(x), torch.from_numpy(S), conv
        found = functional.per_sample_grad(*arguments).flatten(2)
        assert_close(found, gradients)
        norms = functional.per_sample_grad_norm(*arguments)
        assert_close(norms, gradients.square().sum(2))
        diagonal = functional.ggn_diagonal(*arguments).flatten()
        assert_close(diagonal, gradients.square().sum((0, 1)))
        gram = functional.ggn_gram(*arguments)
        assert_close(gram, gradients.flatten(0, 1) @ gradients.flatten(0, 1).mT)
        vectors = noise_tensor((2, *conv.weight_shape))
        products = functional.ggn_matvec(*arguments[:2], vectors, conv)
        ggn = gradients.flatten(0, 1).mT @ gradients.flatten(0, 1)
        assert_close(products.flatten(1), vectors.flatten(1) @ ggn)


NAMES = ("per_sample_grad", "per_sample_grad_norm", "ggn_diagonal", "ggn_gram")


@pytest.mark.parametrize("options", [{}, {"transposed": True}, {"groups": 2}])
def test_per_sample_gradients_are_differentiable(options: dict[str, Any]) -> None:
    conv = Conv.make(2, 4, 3, (4, 3), padding=1, **options)
    x = noise_tensor((2, 2, 4, 3)).requires_grad_()
    vectors = noise_tensor((2, 2, 4, *conv.output_size)).requires_grad_()
    assert gradcheck(
        lambda x, g: functional.per_sample_grad(x, g, conv),
        (x, vectors),
        fast_mode=True,
    )
    for name in NAMES[1:]:
        assert not getattr(functional, name)(x, vectors, conv).requires_grad


@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2}])
def test_function_transforms(options: dict[str, Any]) -> None:
    conv = Conv.make(4, 6, 3, (5, 6), padding=1, **options)
    x, vectors = noise_tensor((3, 4, 5, 6)), noise_tensor((2, 3, 6, *conv.output_size))
    g = vectors[0]
    cases: list[tuple[Any, tuple[Tensor, ...]]] = [
        (functional.per_sample_grad, (x, vectors)),
        (functional.bias_per_sample_grad, (vectors,)),
        (functional.bias_vjp, (g,)),
        (functional.unfold_input, (x,)),
        (functional.fold_output, (functional.unfold_input(x, conv),)),
        (functional.patch_mean, (x,)),
    ]
    for call, arguments in cases:

        def function(*tensors: Tensor, call: Any = call) -> Tensor:
            result: Tensor = call(*tensors, conv)
            return result

        expected = function(*arguments)
        pairs = [torch.stack([tensor, 2 * tensor]) for tensor in arguments]
        batched = torch.func.vmap(function)(*pairs)
        assert_close(batched[0], expected)
        assert_close(batched[1], expected * 2 ** len(arguments))
        _, change = torch.func.jvp(function, arguments, arguments)
        assert_close(change, expected * len(arguments))
        leaves = [tensor.clone().requires_grad_() for tensor in arguments]
        assert gradgradcheck(function, leaves, fast_mode=True)


class TestBadInput:
    X, CONV = noise_tensor((3, 4, 6, 5)), Conv.make(4, 2, 3, (6, 5), padding=1)
    S = noise_tensor((7, 3, 2, 6, 5))

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("change", "argument", "error"),
        [
            ({"x": S[0]}, "x.shape[1]", ValueError),
            ({"x": 1}, "x", TypeError),
            ({"conv": "conv"}, "conv", TypeError),
            ({"vectors": S[:, :2]}, "{}.shape", ValueError),
            ({"vectors": S[0, 0]}, "{}.shape", ValueError),
            ({"vectors": S[None]}, "{}.shape", ValueError),
            ({"vectors": S.mT}, "{}.shape", ValueError),
            ({"vectors": S.float()}, "{}.dtype", ValueError),
            ({"vectors": S.to("meta")}, "{}.device", ValueError),
            ({"vectors": S.int()}, "{}", TypeError),
            ({"vectors": None}, "{}", TypeError),
        ],
    )
    def test_refused(
        self, name: str, change: dict[str, Any], argument: str, error: type
    ) -> None:
        arguments = {"x": self.X, "vectors": self.S, "conv": self.CONV}
        call = getattr(functional, name)
        call(*arguments.values())
        with pytest.raises(error) as caught:
            call(*(arguments | change).values())
        called = "S" if name.startswith("ggn") else "g"
        assert_in_form(caught.value, name, argument.format(called))

    @pytest.mark.parametrize(
        ("change", "argument", "error"),
        [
            ({"x": S[0]}, "x.shape[1]", ValueError),
            ({"S": S[0]}, "S.shape", ValueError),
            ({"S": S.float()}, "S.dtype", ValueError),
            ({"vectors": X}, "vectors.shape", ValueError),
            ({"vectors": torch.ones(1, 1, *CONV.weight_shape)}, None, ValueError),
            ({"vectors": torch.ones(())}, "vectors.shape", ValueError),
            ({"vectors": torch.ones(CONV.weight_shape)}, "vectors.dtype", ValueError),
            ({"vectors": None}, "vectors", TypeError),
            ({"conv": None}, "conv", TypeError),
        ],
    )
    def test_products_with_the_ggn(
        self, change: dict[str, Any], argument: str | None, error: type
    ) -> None:
        vectors = noise_tensor((2, *self.CONV.weight_shape))
        arguments = {"x": self.X, "S": self.S, "vectors": vectors, "conv": self.CONV}
        functional.ggn_matvec(**arguments)
        with pytest.raises(error) as caught:
            functional.ggn_matvec(**(arguments | change))
        assert_in_form(caught.value, "ggn_matvec", argument or "vectors.shape")

    @pytest.mark.parametrize("name", ["ggn_diagonal", "ggn_gram"])
    def test_square_roots_have_columns(self, name: str) -> None:
        with pytest.raises(ValueError) as caught:
            getattr(functional, name)(self.X, self.S[0], self.CONV)
        assert_in_form(caught.value, name, "S.shape")
