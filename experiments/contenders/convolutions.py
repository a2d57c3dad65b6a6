"""Quantities of a convolution: torch's, by unfolding, by einconv, and ours.

Whatever a contender can prepare once for a layer, for any data, stays outside of the
call: our plans, einconv's index patterns and contraction path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Literal

import opt_einsum
import torch
from torch import Tensor
from torch.nn.functional import unfold

from experiments.harness.case import Build, Call, Unsupported
from experiments.subjects.layers import Layer
from tn_extensions import functional, planning

Quantity = Literal["forward", "input_vjp", "weight_vjp", "kfac_expand", "kfac_reduce"]

NAMES = (
    "stock",
    "einconv",
    "einconv simplified",
    "curvlinops",
    "ours",
    "ours, measured",
)


def contenders(
    quantity: Quantity, layer: Layer, batch_size: int, device: torch.device
) -> dict[str, Build]:
    """List all contenders, ready to be built."""
    return {
        name: partial(_build, name, quantity, layer, batch_size, device)
        for name in NAMES
        if name != "curvlinops" or quantity.startswith("kfac")
    }


def _build(
    name: str,
    quantity: Quantity,
    layer: Layer,
    batch_size: int,
    device: torch.device,
    small: bool = False,
) -> Call:
    tensors = inputs(quantity, layer, 1 if small else batch_size, device)
    return PREPARE[name](quantity, layer, tensors)


def inputs(
    quantity: Quantity, layer: Layer, batch_size: int, device: torch.device
) -> dict[str, Tensor]:
    """Make normally distributed arguments, by the names of our functions' arguments."""
    shapes = {
        "x": layer.input_shape(batch_size),
        "weight": layer.conv.weight_shape,
        "g": layer.output_shape(batch_size),
    }
    wanted = {
        "forward": ("x", "weight"),
        "input_vjp": ("weight", "g"),
        "weight_vjp": ("x", "g"),
    }
    return {
        name: normal(shapes[name], device, seed)
        for seed, name in enumerate(wanted.get(quantity, ("x",)))
    }


def normal(shape: tuple[int, ...], device: torch.device, seed: int = 0) -> Tensor:
    """Draw a normal tensor, equal on all devices."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)


def reference(
    quantity: Quantity, layer: Layer, batch_size: int, device: torch.device
) -> Tensor:
    """Compute the quantity in float64: torch's own, or by unfolding each sample."""
    tensors = inputs(quantity, layer, batch_size, device)
    if not quantity.startswith("kfac"):
        exact = {name: each.double() for name, each in tensors.items()}
        found: Tensor = _stock(quantity, layer, exact)()
        return found
    total = torch.zeros((), dtype=torch.float64, device=device)
    for sample in tensors["x"].double().split(1):
        total = total + _stock(quantity, layer, {"x": sample})()
    return total / batch_size


def _stock(quantity: Quantity, layer: Layer, tensors: dict[str, Tensor]) -> Call:
    if quantity == "forward":
        sizes = _torch_arguments(layer)
        return lambda: torch.convolution(tensors["x"], tensors["weight"], None, *sizes)
    if quantity in ("input_vjp", "weight_vjp"):
        return _torch_backward(quantity, layer, tensors)
    return partial(_unfolded, quantity, layer, tensors["x"])


def _torch_arguments(layer: Layer) -> tuple[Any, ...]:
    m = layer.module()
    return m.stride, m.padding, m.dilation, False, (0,) * len(m.padding), m.groups


def _torch_backward(
    quantity: Quantity, layer: Layer, tensors: dict[str, Tensor]
) -> Call:
    sizes, g = _torch_arguments(layer), tensors["g"]
    x = tensors.get("x")
    # the kernel that is asked for one gradient does not read what only shapes tell it
    if x is None:
        x = g.new_empty(()).expand(layer.input_shape(len(g)))
    weight = tensors.get("weight")
    if weight is None:
        weight = g.new_empty(layer.conv.weight_shape)
    wanted = quantity == "weight_vjp"
    mask = [not wanted, wanted, False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(g, x, weight, None, *sizes, mask)[int(wanted)]


def _unfolded(quantity: Quantity, layer: Layer, x: Tensor) -> Tensor:
    """Unfold the input and multiply, as BackPACK and curvlinops do, group by group."""
    m = layer.module()
    u = unfold(x, m.kernel_size, m.dilation, m.padding, m.stride)
    u = u.unflatten(1, (m.groups, -1))
    if quantity == "kfac_reduce":
        u = u.mean(-1)
        return torch.einsum("nga,ngb->gab", u, u) / len(x)
    if m.groups == 1:
        rows = u[:, 0]
        return torch.einsum("nap,nbp->ab", rows, rows)[None] / len(x)
    return torch.einsum("ngap,ngbp->gab", u, u) / len(x)


def _curvlinops(quantity: Quantity, layer: Layer, tensors: dict[str, Tensor]) -> Call:
    if layer.conv.groups > 1:
        raise Unsupported("curvlinops averages the input over groups")
    utils = import_module("curvlinops.kfac_utils")
    names = {
        "kfac_expand": "extract_patches",
        "kfac_reduce": "extract_averaged_patches",
    }
    extract, m, x = getattr(utils, names[quantity]), layer.module(), tensors["x"]
    sizes = (m.kernel_size, m.stride, m.padding, m.dilation, m.groups)

    def compute() -> Tensor:
        a: Tensor = extract(x, *sizes).flatten(0, -2)
        return (a.T @ a).div_(len(x))

    return compute


_EINCONV = {
    "forward": "convNd_forward",
    "input_vjp": "convNd_input_vjp",
    "weight_vjp": "convNd_weight_vjp",
    "kfac_expand": "convNd_kfc",
    "kfac_reduce": "convNd_kfac_reduce",
}


def _einconv(
    quantity: Quantity, layer: Layer, tensors: dict[str, Tensor], simplify: bool
) -> Call:
    """Contract einconv's network along the path that opt_einsum finds."""
    define = import_module(f"einconv.expressions.{_EINCONV[quantity]}")
    m = layer.module()
    arguments = {
        "stride": m.stride,
        "padding": m.padding,
        "dilation": m.dilation,
        "groups": m.groups,
        "simplify": simplify,
    }
    if quantity == "input_vjp":
        arguments["input_size"] = layer.conv.input_size
    elif quantity != "forward":
        arguments["kernel_size"] = m.kernel_size
    named = {{"g": "v"}.get(name, name): each for name, each in tensors.items()}
    equation, operands, shape = define.einsum_expression(**named, **arguments)
    contract = opt_einsum.contract_expression(equation, *(t.shape for t in operands))
    return lambda: contract(*operands).reshape(shape)


def _ours(
    quantity: Quantity,
    layer: Layer,
    tensors: dict[str, Tensor],
    mode: Literal["estimate", "measure"],
) -> Call:
    name = "conv" if quantity == "forward" else quantity
    compute: Callable[..., Tensor] = getattr(functional, name)
    like = next(iter(tensors.values()))
    batch_size = len(tensors["g" if quantity == "input_vjp" else "x"])

    def call() -> Tensor:
        with planning(mode):
            return compute(*tensors.values(), layer.conv)

    with planning(mode):
        x = like.new_empty(()).expand(layer.input_shape(batch_size))
        functional.plan(name, x, layer.conv)

    return call


PREPARE: dict[str, Callable[[Quantity, Layer, dict[str, Tensor]], Call]] = {
    "stock": _stock,
    "einconv": partial(_einconv, simplify=False),
    "einconv simplified": partial(_einconv, simplify=True),
    "curvlinops": _curvlinops,
    "ours": partial(_ours, mode="estimate"),
    "ours, measured": partial(_ours, mode="measure"),
}
"""Make a contender's call, of the layer and of given tensors."""
