"""Arguments that are refused, and how errors name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.functional.test_functional import APPROX, FACTORS, factor_size
from tests.messages import assert_in_form
from tn_extensions import Conv, functional


class Forbid(TorchDispatchMode):
    """No operation on tensors may run."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            raise AssertionError(f"{func} ran before the arguments were checked")
        return func(*args, **kwargs)


X = torch.ones(2, 4, 6, 6)


CONV = Conv.make(4, 2, 3, (6, 6))


WEIGHT = torch.ones(CONV.weight_shape)


CALLS: dict[str, Callable[..., Any]] = {
    "conv": lambda x, conv: functional.conv(x, WEIGHT, conv),
    "unfold_input": functional.unfold_input,
    "patch_mean": functional.patch_mean,
    "kfac_expand": functional.kfac_expand,
    "kfac_reduce": functional.kfac_reduce,
    "plan": lambda x, conv: functional.plan("kfac_expand", x, conv),
}


def assert_refused(
    call: Callable[[], Any], error: type[Exception], name: str, argument: str
) -> None:
    """Exactly this error, in form, before anything is computed."""
    with pytest.raises(Exception) as caught, Forbid():
        call()
    assert type(caught.value) is error, caught.value
    assert_in_form(caught.value, name, argument)


class TestBadInput:
    """Refused in a line, before any computation."""

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize(
        ("x", "error", "argument"),
        [
            (X[0], ValueError, "x.dim()"),
            (X[None], ValueError, "x.dim()"),
            (X[..., 0], ValueError, "x.dim()"),
            (X[:, :3], ValueError, "x.shape[1]"),
            (X[:0, :3], ValueError, "x.shape[1]"),
            (X[..., :5], ValueError, "x.shape[2:]"),
            (X.int(), TypeError, "x"),
            (X.bool(), TypeError, "x"),
            (X.to(torch.complex64), TypeError, "x"),
            (X.numpy(), TypeError, "x"),
            (None, TypeError, "x"),
            ([[1.0]], TypeError, "x"),
        ],
        ids=str,
    )
    def test_inputs(
        self, name: str, x: Any, error: type[Exception], argument: str
    ) -> None:
        assert_refused(lambda: CALLS[name](x, CONV), error, name, argument)

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("conv", [None, nn.Conv2d(4, 2, 3), 3, (3, 3)], ids=str)
    def test_convs_of_the_wrong_kind(self, name: str, conv: Any) -> None:
        assert_refused(lambda: CALLS[name](X, conv), TypeError, name, "conv")

    @pytest.mark.parametrize("name", CALLS)
    def test_convs_that_do_not_fit(self, name: str) -> None:
        for conv, argument in (
            (Conv.make(4, 2, 3, 6), "x.dim()"),
            (Conv.make(2, 2, 3, (6, 6)), "x.shape[1]"),
            (Conv.make(4, 2, 3, (6, 7)), "x.shape[2:]"),
        ):
            assert_refused(lambda c=conv: CALLS[name](X, c), ValueError, name, argument)

    @pytest.mark.parametrize(
        ("weight", "error", "argument"),
        [
            (WEIGHT[:1], ValueError, "weight.shape"),
            (WEIGHT.mT[..., :2], ValueError, "weight.shape"),
            (WEIGHT.double(), ValueError, "weight.dtype"),
            (WEIGHT.half(), ValueError, "weight.dtype"),
            (WEIGHT.to("meta"), ValueError, "weight.device"),
            (WEIGHT.long(), TypeError, "weight"),
            (WEIGHT.numpy(), TypeError, "weight"),
            (None, TypeError, "weight"),
        ],
        ids=str,
    )
    def test_weights(self, weight: Any, error: type[Exception], argument: str) -> None:
        call = lambda: functional.conv(X, weight, CONV)  # noqa: E731
        assert_refused(call, error, "conv", argument)

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("batch_size", [0, 2])
    @pytest.mark.parametrize(
        ("change", "error", "argument"),
        [
            (lambda out: out[0], ValueError, "out.shape"),
            (lambda out: out[:, 1:, 1:], ValueError, "out.shape"),
            (lambda out: out.repeat(2, 1, 1), ValueError, "out.shape"),
            (lambda out: out.double(), ValueError, "out.dtype"),
            (lambda out: out.half(), ValueError, "out.dtype"),
            (lambda out: out.long(), ValueError, "out.dtype"),
            (lambda out: out.to("meta"), ValueError, "out.device"),
            (lambda out: out.numpy(), TypeError, "out"),
            (lambda out: [out], TypeError, "out"),
        ],
    )
    def test_out(
        self,
        approx: str,
        bias: bool,
        batch_size: int,
        change: Callable[[Tensor], Any],
        error: type[Exception],
        argument: str,
    ) -> None:
        size = factor_size(CONV, bias)
        out, x = change(torch.full((1, size, size), 7.0)), X[:batch_size]

        def call() -> Tensor:
            return FACTORS[approx](x, CONV, bias=bias, out=out)

        assert_refused(call, error, f"kfac_{approx}", argument)
        if isinstance(out, Tensor) and out.device.type != "meta":
            assert torch.equal(out, torch.full_like(out, 7))

    @pytest.mark.parametrize("approx", APPROX)
    def test_out_shares_no_memory_with_x(self, approx: str) -> None:
        conv = Conv.make(4, 2, 1, (6, 6))
        x = torch.ones(2, 4, 6, 6)
        out = x.view(-1)[:16].view(1, 4, 4)

        def call() -> Tensor:
            return FACTORS[approx](x, conv, out=out)

        assert_refused(call, ValueError, f"kfac_{approx}", "out")
        assert torch.equal(x, torch.ones_like(x))

    @pytest.mark.parametrize("approx", APPROX)
    @pytest.mark.parametrize("scale", ["1", [1.0], True, 1j, torch.ones(2)], ids=str)
    def test_scale(self, approx: str, scale: Any) -> None:
        out = torch.full((1, 36, 36), 7.0)

        def call() -> Tensor:
            return FACTORS[approx](X, CONV, scale=scale, out=out)

        assert_refused(call, TypeError, f"kfac_{approx}", "scale")
        assert torch.equal(out, torch.full_like(out, 7))

    @pytest.mark.parametrize("approx", APPROX)
    def test_out_is_untouched_after_any_error(self, approx: str) -> None:
        out = torch.full((1, 36, 36), 7.0)
        for x in (X[:, :3], X[..., :5], X.int(), X.double(), X[0], None):
            with pytest.raises((TypeError, ValueError)):
                FACTORS[approx](x, CONV, out=out)
            assert torch.equal(out, torch.full_like(out, 7))

    @pytest.mark.parametrize("quantity", ["unfold", "", None, "ggn", "plan"])
    def test_quantities_that_do_not_exist(self, quantity: Any) -> None:
        def call() -> Any:
            return functional.plan(quantity, X, CONV)

        assert_refused(call, ValueError, "plan", "quantity")

    @pytest.mark.parametrize("approx", APPROX)
    def test_empty_batch_has_no_nan(self, approx: str) -> None:
        factor = FACTORS[approx](X[:0], CONV, bias=True)
        assert torch.equal(factor, torch.zeros(1, 37, 37))


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_messages_on_single_samples_and_complex_layers(num_dims: int) -> None:
    x = torch.rand(2, 4, *[5] * num_dims)
    conv = Conv.make(4, 2, 3, (5,) * num_dims)
    with pytest.raises(ValueError, match=r"such as x\[None\] for a single sample"):
        functional.kfac_expand(x[0], conv)
    with pytest.raises(TypeError, match="Complex layers are not supported"):
        functional.kfac_expand(x.to(torch.complex64), conv)
    with pytest.raises(TypeError, match=r"x\.float\(\)"):
        functional.kfac_expand(x.int(), conv)
