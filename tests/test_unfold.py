"""Modules that unfold and fold: torch's in two dimensions, adjoint in all cases."""

from __future__ import annotations

import copy
import pickle
import warnings
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import convs, examples, noise, noise_tensor
from tn_extensions import Conv, Fold, Unfold
from tn_extensions.conv import PADDING_MODES


def options_of(conv: Conv) -> dict[str, Any]:
    """Return the options of a convolution that both modules take."""
    names = ("kernel_size", "dilation", "padding", "stride", "padding_mode")
    names += ("transposed", "output_padding")
    return {name: getattr(conv, name) for name in names}


class TestAnyConvolution:
    @examples(100)
    @given(convs(padding_modes=PADDING_MODES), st.sampled_from([1, 3]))
    def test_patches_by_definition(self, conv: Conv, batch_size: int) -> None:
        x = noise((batch_size, conv.in_channels, *conv.input_size))
        shape = (batch_size, -1, prod(conv.output_size))
        expected = torch.from_numpy(dense.patches(conv, x)).reshape(shape)
        unfold = Unfold(**options_of(conv))
        assert_close(unfold(torch.from_numpy(x)), expected)
        assert_close(unfold(torch.from_numpy(x[0])), expected[0])

    @examples(100)
    @given(convs(padding_modes=PADDING_MODES), st.sampled_from([1, 3]))
    def test_folding_is_the_adjoint(self, conv: Conv, batch_size: int) -> None:
        size = prod(conv.input_size)
        one = Conv(1, 1, conv.dims, padding_mode=conv.padding_mode)
        units = np.eye(size).reshape(size, 1, *conv.input_size)
        of_units = dense.patches(one, units)
        columns, outputs = of_units.shape[2:]
        channels = conv.in_channels
        u = noise_tensor((batch_size, channels * columns, outputs))
        expected = torch.einsum(
            "ngko,iko->ngi",
            u.reshape(batch_size, channels, columns, outputs),
            torch.from_numpy(of_units[:, 0]),
        ).reshape(batch_size, channels, *conv.input_size)
        fold = Fold(conv.input_size, **options_of(conv))
        assert_close(fold(u), expected)
        assert_close(fold(u[0]), expected[0])

    @pytest.mark.parametrize("num_dims", [1, 2, 3])
    def test_numbers_stand_for_all_dimensions(self, num_dims: int) -> None:
        x = noise_tensor((2, 3, *(6, 5, 7)[:num_dims]))
        for options in ({"padding": "same"}, {"dilation": 2, "stride": 2}):
            u = Unfold(2, **options)(x)
            assert_close(u, Unfold((2,) * num_dims, **options)(x))
            folded = Fold(x.shape[2:], 2, **options)(u)
            assert_close((folded * x).sum(), u.square().sum())

    @pytest.mark.parametrize("mode", ["zeros", "circular"])
    def test_of_an_even_kernel_same_pads_more_on_the_right(self, mode: Any) -> None:
        x = noise_tensor((2, 3, 6))
        padded = nn.functional.pad(x, (1, 2), "constant" if mode == "zeros" else mode)
        expected = padded.unfold(2, 4, 1).mT.flatten(1, 2)
        assert_close(Unfold(4, padding="same", padding_mode=mode)(x), expected)


class TestLikeTorch:
    OPTIONS: tuple[dict[str, Any], ...] = (
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "padding": (2, 1)},
        {"kernel_size": 2, "stride": (2, 3), "dilation": 2},
        {"kernel_size": [2, 3], "stride": [1, 2]},
        {"kernel_size": 1},
    )

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("batch_size", [0, 1, 3])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_values(
        self, options: dict[str, Any], batch_size: int, layout: torch.memory_format
    ) -> None:
        x = noise_tensor((batch_size, 2, 6, 5)).to(memory_format=layout)
        before = x.clone()
        u = nn.Unfold(**options)(x)
        found = Unfold(**options)(x)
        assert_close(found, u)
        assert_close(Fold((6, 5), **options)(u), nn.Fold((6, 5), **options)(u))
        assert found.is_contiguous()
        assert_close(x, before)

    def test_arguments_by_position(self) -> None:
        x, options = noise_tensor((2, 3, 8, 8)), (2, 3, 1, 2)
        u = nn.Unfold(*options)(x)
        assert_close(Unfold(*options)(x), u)
        assert_close(Fold(8, *options)(u), nn.Fold(8, *options)(u))

    def test_a_single_image(self) -> None:
        x = noise_tensor((2, 6, 5))
        u = nn.Unfold((3, 3))(x)
        assert_close(Unfold((3, 3))(x), u)
        assert_close(Fold((6, 5), 3)(u), nn.Fold((6, 5), 3)(u))

    @pytest.mark.parametrize("kernel_size", [1, 3])
    def test_results_are_new_tensors(self, kernel_size: int) -> None:
        x = noise_tensor((2, 3, 5, 5))
        u = Unfold(kernel_size)(x)
        patches, before = u.clone(), x.clone()
        Fold(5, kernel_size)(u).zero_()
        assert torch.equal(u, patches)
        u.zero_()
        assert torch.equal(x, before)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_the_dtype_stays(self, dtype: torch.dtype) -> None:
        x = noise_tensor((2, 3, 6, 5), dtype)
        u = Unfold(3, padding=1)(x)
        assert u.dtype == dtype
        assert torch.equal(u, nn.Unfold(3, padding=1)(x))
        folded = Fold((6, 5), 3, padding=1)(u)
        exact = nn.Fold((6, 5), 3, padding=1)(u.double())
        assert_close(folded, exact.to(dtype))

    @pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
    def test_prints(self, options: dict[str, Any]) -> None:
        assert repr(Unfold(**options)) == repr(nn.Unfold(**options))
        assert repr(Fold((6, 5), **options)) == repr(nn.Fold((6, 5), **options))
        ours = Unfold(**options, transposed=True, output_padding=0)
        assert repr(ours) == repr(nn.Unfold(**options))[:-1] + ", transposed=True)"

    def test_attributes_may_be_set(self) -> None:
        x = noise_tensor((2, 3, 6, 6))
        unfold = Unfold(3)
        unfold(x)
        unfold.stride, unfold.padding = 2, [1, 0]
        assert_close(unfold(x), nn.Unfold(3, stride=2, padding=(1, 0))(x))
        for other in (copy.deepcopy(unfold), pickle.loads(pickle.dumps(unfold))):
            assert_close(other(x), unfold(x))


X, U = noise_tensor((2, 3, 6, 5)), noise_tensor((2, 27, 12))


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "x", "name", "argument", "error"),
        [
            ({}, X[0, 0], "Unfold", "x.dim()", ValueError),
            ({"kernel_size": (3, 3)}, X[0, 0], "Unfold", "x.dim()", ValueError),
            ({"kernel_size": (3, 3)}, X[None], "Unfold", "x.dim()", ValueError),
            ({}, X.long(), "Unfold", "x", TypeError),
            ({}, None, "Unfold", "x", TypeError),
            ({"kernel_size": 7}, X, "ConvDim", "output_size", ValueError),
            ({"kernel_size": True}, X, "Conv.make", "kernel_size", TypeError),
            ({"stride": 0}, X, "ConvDim", "stride", ValueError),
            (
                {"kernel_size": (3, 3), "stride": (1,)},
                X,
                "Conv.make",
                "stride",
                ValueError,
            ),
            ({"padding_mode": "mirror"}, X, "Conv", "padding_mode", ValueError),
            ({"output_padding": 1}, X, "ConvDim", "output_padding", ValueError),
        ],
        ids=[
            "axes",
            "axes, dimensions known",
            "too many axes",
            "integers",
            "none",
            "kernel",
            "bool",
            "stride",
            "length",
            "mode",
            "output padding",
        ],
    )
    def test_unfold(
        self, options: dict[str, Any], x: Any, name: str, argument: str, error: Any
    ) -> None:
        Unfold(1)(X)  # not taken for another one's options, which are equal
        with pytest.raises(error) as caught:
            Unfold(**({"kernel_size": 3} | options))(x)
        assert_in_form(caught.value, name, argument)

    @pytest.mark.parametrize(
        ("options", "u", "name", "argument", "error"),
        [
            ({}, U[:, :26], "Fold", "u.shape", ValueError),
            ({}, U[..., :11], "Fold", "u.shape", ValueError),
            ({}, U[0, 0], "Fold", "u.shape", ValueError),
            ({}, U[None], "Fold", "u.shape", ValueError),
            ({}, U.long(), "Fold", "u", TypeError),
            ({"output_size": 6}, U, "Fold", "u.shape", ValueError),
            ({"output_size": (2, 5)}, U, "ConvDim", "output_size", ValueError),
            ({"kernel_size": (3,)}, U, "Conv.make", "kernel_size", ValueError),
        ],
        ids=[
            "entries",
            "positions",
            "axes",
            "too many axes",
            "integers",
            "another size",
            "image",
            "length",
        ],
    )
    def test_fold(
        self, options: dict[str, Any], u: Any, name: str, argument: str, error: Any
    ) -> None:
        with pytest.raises(error) as caught:
            Fold(**({"output_size": (6, 5), "kernel_size": 3} | options))(u)
        assert_in_form(caught.value, name, argument)


class Model(nn.Module):
    """Unfolds, multiplies, and folds at another stride."""

    def __init__(self, mode: Any) -> None:
        super().__init__()
        options = {"padding": [(1, 0), (0, 2)], "padding_mode": mode}
        self.unfold = Unfold(2, **options)
        self.matrix = nn.Linear(12, 8, dtype=torch.float64)
        self.fold = Fold((13, 14), (2, 2), 1, 0, 2)

    def forward(self, x: Tensor) -> Tensor:
        u: Tensor = self.fold(self.matrix(self.unfold(x).mT).mT)
        return u.tanh()


@pytest.mark.parametrize("mode", ["zeros", "circular"])
class TestCompiled:
    def test_in_one_graph(self, mode: Any) -> None:
        torch.compiler.reset()
        model = Model(mode)
        compiled = torch.compile(
            model, fullgraph=True, dynamic=True, backend="aot_eager"
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*lru_cache")
            for batch_size in (2, 5):
                x = noise_tensor((batch_size, 3, 6, 6)).requires_grad_()
                results = compiled(x), model(x)
                assert_close(*results)
                gradients = [
                    torch.autograd.grad(y.square().sum(), (x, *model.parameters()))
                    for y in results
                ]
                assert_close(*gradients)

    @pytest.mark.parametrize("strict", [False, True])
    def test_exported(self, mode: Any, strict: bool) -> None:
        model = Model(mode)
        exported = torch.export.export(
            model,
            (noise_tensor((2, 3, 6, 6)),),
            dynamic_shapes=({0: torch.export.Dim("batch_size")},),
            strict=strict,
        ).module()
        x = noise_tensor((5, 3, 6, 6))
        assert_close(exported(x), model(x))
