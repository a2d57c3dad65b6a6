"""Every function as an operator of torch: eagerly, compiled, traced and exported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from shutil import which
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.strategies import convs, examples, noise_tensor
from tn_extensions import Conv, functional
from tn_extensions.conv import PADDING_MODES

OTHERS = ("plan", "plan_together", "together")
NAMES = [name for name in functional.__all__ if name not in OTHERS]
OPERATORS = torch.ops.tn_extensions

CONVS = {
    "same, uneven": Conv.make(2, 3, (2, 3), (4, 3), padding="same"),
    "strided, groups": Conv.make(4, 2, 3, (5,), 2, padding=((2, 0),), groups=2),
    "transposed": Conv.make(
        2, 2, (3, 2), (3, 2), 2, 1, transposed=True, output_padding=(1, 0)
    ),
}
MORE_CONVS = CONVS | {
    "depthwise, dilated": Conv.make(2, 4, 2, (4, 4), dilation=2, groups=2),
    "3d": Conv.make(1, 2, 2, (3, 2, 3), padding=(0, 1, 1)),
    "one position": Conv.make(2, 2, 3, (3, 3)),
    "one entry": Conv.make(2, 3, 1, (2, 3)),
    **{
        mode: Conv.make(2, 2, 2, (3, 4), padding=(1, 2), padding_mode=mode)
        for mode in PADDING_MODES[1:]
    },
}


def operator(name: str) -> Any:
    return getattr(OPERATORS, name).default


def tensors(name: str, conv: Conv, batch_size: int, bias: bool = False) -> list[Tensor]:
    """Make the tensors that a function takes."""
    columns = conv.in_channels // conv.groups * prod(conv.kernel_size) + bias
    output = (batch_size, conv.out_channels, *conv.output_size)
    shapes = {
        "x": (batch_size, conv.in_channels, *conv.input_size),
        "g": output,
        "S": (2, *output),
        "weight": conv.weight_shape,
        "QA": (conv.groups, columns, 2),
        "QB": (conv.groups, conv.out_channels // conv.groups, 1),
        "h": output,
        "u": (
            batch_size,
            conv.in_channels * prod(conv.kernel_size),
            prod(conv.output_size),
        ),
        "vectors": (2, *conv.weight_shape),
    }
    shapes |= {"x_dot": shapes["x"], "weight_dot": shapes["weight"]}
    named = inspect.signature(getattr(functional, name)).parameters
    return [noise_tensor(shapes[name]) for name in named if name in shapes]


def options(name: str) -> list[dict[str, Any]]:
    """Values of what a function takes beyond tensors and hyper-parameters."""
    grids: dict[str, list[Any]] = {
        "bias": [False, True],
        "scale": [None, 0.5],
        "per_sample": [False, True],
    }
    found: list[dict[str, Any]] = [{}]
    for key in inspect.signature(getattr(functional, name)).parameters:
        found = [one | {key: value} for one in found for value in grids.get(key, [0])]
    return [{key: one[key] for key in one if key in grids} for one in found]


def differentiable(name: str) -> bool:
    return hasattr(OPERATORS, f"{name}_backward")


class TestOperators:
    """Called as ``torch.ops.tn_extensions.<name>``."""

    def test_are_all_there(self) -> None:
        assert all(hasattr(OPERATORS, name) for name in NAMES)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("case", CONVS)
    def test_opcheck(self, name: str, case: str) -> None:
        chosen = options(name)[-1]
        inputs = tensors(name, CONVS[case], 3, chosen.get("bias", False))
        inputs = [tensor.requires_grad_() for tensor in inputs]
        opcheck(operator(name), (*inputs, CONVS[case].to_ints()), chosen)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("case", MORE_CONVS)
    @pytest.mark.parametrize("batch_size", [0, 1, 2])
    def test_schema_and_shapes(self, name: str, case: str, batch_size: int) -> None:
        conv = MORE_CONVS[case]
        for chosen in options(name):
            inputs = tensors(name, conv, batch_size, chosen.get("bias", False))
            arguments = (*inputs, conv.to_ints())
            checks = ("test_schema", "test_faketensor")
            opcheck(operator(name), arguments, chosen, test_utils=checks)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("name", NAMES)
    def test_precision_and_layout(self, name: str, dtype: torch.dtype) -> None:
        conv = CONVS["same, uneven"]
        inputs = [tensor.to(dtype) for tensor in tensors(name, conv, 2)]
        inputs = [
            t.to(memory_format=torch.channels_last) if t.dim() == 4 else t
            for t in inputs
        ]
        result = operator(name)(*inputs, conv.to_ints())
        assert result.dtype == torch.float32 and result.is_contiguous()
        assert torch.equal(result, getattr(functional, name)(*inputs, conv))
        checks = ("test_schema", "test_faketensor")
        opcheck(operator(name), (*inputs, conv.to_ints()), test_utils=checks)

    @pytest.mark.parametrize("name", NAMES)
    @examples(6)
    @given(convs(max_dims=2, padding_modes=PADDING_MODES), st.sampled_from([1, 3]))
    def test_values_and_gradients(self, name: str, conv: Conv, batch_size: int) -> None:
        function = getattr(functional, name)
        inputs = tensors(name, conv, batch_size)
        result = operator(name)(*inputs, conv.to_ints())
        assert_close(result, function(*inputs, conv))
        inputs = [tensor.requires_grad_() for tensor in inputs]
        result = operator(name)(*inputs, conv.to_ints())
        assert result.requires_grad == function(*inputs, conv).requires_grad
        assert result.requires_grad <= differentiable(name)
        if not result.requires_grad:
            return
        expected = torch.autograd.grad(
            function(*inputs, conv).square().sum(), inputs, create_graph=True
        )
        found = torch.autograd.grad(
            result.square().sum(), inputs, create_graph=True, materialize_grads=True
        )
        upstream = 2 * function(*inputs, conv).detach()
        inner = [tensor.detach() for tensor in inputs]
        backward = getattr(OPERATORS, f"{name}_backward")
        wanted = [True] * len(inputs)
        recorded = backward(upstream, wanted, *inner, conv.to_ints())
        assert_close(list(found), list(expected))
        assert_close(recorded, [tensor.detach() for tensor in expected])

    @pytest.mark.parametrize("name", NAMES)
    def test_vmap(self, name: str) -> None:
        conv = CONVS["strided, groups"]
        first = tensors(name, conv, 2)
        stacked = [torch.stack([tensor, 2 * tensor], -1) for tensor in first]

        def call(*inputs: Tensor) -> Any:
            return operator(name)(*inputs, conv.to_ints())

        found = torch.vmap(call, in_dims=-1)(*stacked)
        second = [2 * tensor for tensor in first]
        assert_close(found, torch.stack([call(*first), call(*second)]))

    def test_transforms(self) -> None:
        conv = CONVS["same, uneven"]
        x, weight = tensors("conv", conv, 2)

        def loss(weight: Tensor, call: Callable[..., Tensor], conv: Any) -> Tensor:
            return call(x, weight, conv).square().sum()

        found = torch.func.grad(loss)(weight, OPERATORS.conv, conv.to_ints())
        assert_close(found, torch.func.grad(loss)(weight, functional.conv, conv))

    @pytest.mark.parametrize(
        "numbers",
        [
            [0, 2, 1, 0, 0, 8, 3, 1, 1, 0, 0, 0],
            [4, 2, 1, 4, 0, 8, 3, 1, 1, 0, 0, 0],
            [4, 2, 1, 0, 2, 8, 3, 1, 1, 0, 0, 0],
            [4, 2, 1, 0, 0, 8, 3, 1, 1, 0, 0],
            [4, 2, 1, 0, 0],
            [],
        ],
        ids=["channels", "mode", "transposed", "too few", "no dimension", "none"],
    )
    def test_refuses_other_integers(self, numbers: list[int]) -> None:
        with pytest.raises(ValueError, match="must"):
            OPERATORS.kfac_expand(noise_tensor((2, 4, 8)), numbers)

    @pytest.mark.parametrize("case", MORE_CONVS)
    def test_integers_are_the_convolution(self, case: str) -> None:
        assert Conv.from_ints(MORE_CONVS[case].to_ints()) == MORE_CONVS[case]


class Network(nn.Module):
    """Factors, per-sample gradients and norms of two layers, from one backward pass."""

    def __init__(self) -> None:
        super().__init__()
        modes = ("zeros", "circular")
        first, second = (
            nn.Conv2d(channels, 4, 3, 2, 1, bias=False, padding_mode=mode)
            for channels, mode in zip((2, 4), modes, strict=True)
        )
        self.first, self.second = first.double(), second.double()

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = self.first(x).tanh()
        conv = Conv.from_module(self.second, hidden.shape[2:])
        g = self.second(hidden)
        upstream = functional.input_vjp(self.second.weight, g, conv)
        upstream = upstream * (1 - hidden.square())
        return [
            result
            for layer, inputs, gradient in (
                (self.first, x, upstream),
                (self.second, hidden, g),
            )
            for result in quantities(layer, inputs, gradient)
        ]


def quantities(layer: nn.Conv2d, x: Tensor, g: Tensor) -> list[Tensor]:
    conv = Conv.from_module(layer, x.shape[2:])
    factor = functional.kfac_reduce(x, conv, scale=2)
    return [
        functional.kfac_expand(x, conv, bias=True),
        functional.kfac_expand(x.detach(), conv, out=factor.detach() + 1),
        factor,
        functional.gradient_factor_expand(g, conv),
        functional.per_sample_grad(x, g, conv),
        functional.per_sample_grad_norm(x, g, conv),
    ]


@pytest.fixture
def network() -> Network:
    torch.compiler.reset()
    return Network()


def batch(batch_size: int) -> Tensor:
    return noise_tensor((batch_size, 2, 7, 6))


CALLS = 13
"""Operators that a pass of the network calls: six for each layer, and a VJP."""


def called(graph: torch.fx.Graph) -> list[str]:
    """Names of our operators in a graph."""
    targets = (str(node.target) for node in graph.nodes)
    return [one for one in targets if one.startswith("tn_extensions.")]


class TestRecorded:
    """The functions where a compiler records: operators, for any batch size."""

    def test_compiled_once(self, network: Network) -> None:
        backend = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=True)
        for batch_size in (4, 2, 7):
            x = batch(batch_size)
            assert_close(compiled(x), network(x))
        assert backend.frame_count == 1

    @pytest.mark.skipif(which("g++") is None, reason="the backend compiles C++")
    def test_compiled_by_the_default_backend(self) -> None:
        torch.compiler.reset()
        conv = CONVS["same, uneven"]
        (x,) = tensors("kfac_expand", conv, 2)

        def call(x: Tensor) -> Tensor:
            return functional.kfac_expand(x, conv) + 1

        assert_close(torch.compile(call, fullgraph=True)(x), call(x))

    def test_compiled_gradients(self, network: Network) -> None:
        compiled = torch.compile(
            network, backend="aot_eager", fullgraph=True, dynamic=True
        )
        parameters = [*network.parameters()]
        for batch_size in (4, 3):
            x = batch(batch_size).requires_grad_()
            expected, found = (
                torch.autograd.grad(
                    sum(t.square().sum() for t in call(x)), [x, *parameters]
                )
                for call in (network, compiled)
            )
            assert_close(found, expected)

    @pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
    def test_make_fx(self, network: Network, mode: str) -> None:
        parameters = {name: p.detach() for name, p in network.named_parameters()}

        def call(parameters: dict[str, Tensor], x: Tensor) -> Any:
            return torch.func.functional_call(network, parameters, (x,))

        # sizes that are equal get one symbol: the batch's is like no other
        graph = make_fx(call, tracing_mode=mode)(parameters, batch(5))
        assert len(called(graph.graph)) == CALLS
        for batch_size in (5, 3) if mode == "symbolic" else (5,):
            x = batch(batch_size)
            assert_close(graph(parameters, x), network(x))

    @pytest.mark.parametrize("strict", [False, True])
    def test_export(self, network: Network, strict: bool) -> None:
        shapes = ({0: torch.export.Dim("N")},)
        program = torch.export.export(
            network, (batch(4),), dynamic_shapes=shapes, strict=strict
        )
        assert len(called(program.graph)) == CALLS
        for batch_size in (1, 5):
            x = batch(batch_size)
            assert_close(program.module()(x), network(x))

    @pytest.mark.parametrize(
        ("change", "argument"),
        [
            ({"x": batch(2)[:, :1]}, r"x\.shape\[1\]"),
            ({"x": batch(2)[0]}, r"x\.dim\(\)"),
            ({"x": batch(2).int()}, "x must"),
            ({"x": [1]}, "'x'"),
            ({"conv": None}, "'conv'"),
            ({"scale": "1"}, "'scale'"),
            ({"out": torch.zeros(1, 2, 2)}, r"out\.shape"),
        ],
        ids=["channels", "axes", "integers", "list", "conv", "scale", "out"],
    )
    def test_errors_name_the_argument(
        self, change: dict[str, Any], argument: str
    ) -> None:
        torch.compiler.reset()
        conv = Conv.make(2, 2, 3, (7, 6))
        arguments = {"x": batch(2), "conv": conv} | change

        def call() -> Tensor:
            return functional.kfac_expand(**arguments)

        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        with pytest.raises(Exception, match=argument):
            compiled()

    def test_nothing_is_recorded_outside(self) -> None:
        """Calls cost what they did: no operator is dispatched."""
        seen: list[str] = []

        class Look(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                seen.append(str(func))
                return func(*args, **(kwargs or {}))

        conv = CONVS["same, uneven"]
        with Look():
            functional.kfac_expand(tensors("kfac_expand", conv, 2)[0], conv)
        assert seen and not any(one.startswith("tn_extensions") for one in seen)
