"""Quantities of a layer: who computes them, and what is correct.

What a contender can prepare once for a layer, for any data, stays outside of the call:
our plans, einconv's index patterns and contraction path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import opt_einsum
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import unfold

from experiments.harness.case import Contest, Unsupported
from experiments.harness.measure import Build, Call
from experiments.subjects.layers import Layer
from tn_extensions import Conv, functional, planning
from tn_extensions.compiler import Plan

QUANTITIES = tuple(
    name
    for name in functional.__all__
    if name not in ("plan", "plan_together", "together")  # they take others' names
)
"""The functions that compute one thing."""

MAIN = (
    "kfac_expand",
    "kfac_reduce",
    "per_sample_grad",
    "per_sample_grad_norm",
    "ggn_diagonal",
    "ggn_gram",
)
"""The quantities that toolkits need."""

VARIOUS = tuple(
    Layer("various", conv)
    for conv in (
        Conv.make(3, 64, 7, (224, 224), 2, 3),
        Conv.make(64, 64, 3, (56, 56), 1, 1),
        Conv.make(128, 128, 3, (28, 28), 1, 1),
        Conv.make(256, 256, 3, (14, 14), 1, 1),
        Conv.make(512, 512, 3, (7, 7), 1, 1),
        Conv.make(96, 96, 3, (32, 32), 1, 1),
        Conv.make(64, 128, 3, (56, 56), 2, 1),
        Conv.make(256, 512, 3, (14, 14), 2, 1),
        Conv.make(64, 128, 1, (56, 56), 2),
        Conv.make(256, 256, 1, (14, 14)),
        Conv.make(3, 128, 4, (224, 224), 4),
        Conv.make(144, 144, 3, (56, 56), 1, 1, groups=144),
        Conv.make(128, 128, 7, (56, 56), 1, 3, groups=128),
        Conv.make(512, 512, 3, (28, 28), 1, 1, groups=32),
        Conv.make(64, 64, 3, (28, 28), 1, 2, dilation=2),
        Conv.make(64, 64, 9, 1024, 1, 4),
        Conv.make(32, 32, 3, (8, 28, 28), 1, 1),
    )
)
"""Layers of many kinds, with one to three dimensions."""

SMALL = Layer("small", Conv.make(2, 3, 3, (5, 5), 1, 1))
"""A layer with next to no arithmetic."""

_MOST_VECTORS = 50
"""Whose gradients are held at once in float64."""

Tensors = dict[str, Tensor]
"""Arguments by name, in the order of our functions' arguments."""


class Asked(NamedTuple):
    """A quantity of a layer.

    Args:
        quantity: A function of :mod:`tn_extensions.functional`.
        layer: The layer.
        batch_size: Number of samples.
        num_vectors: Number of vectors per sample, where the quantity has their axis.
    """

    quantity: str
    layer: Layer
    batch_size: int = 8
    num_vectors: int = 10

    @property
    def has_vectors(self) -> bool:
        """Tell whether the quantity takes several vectors per sample."""
        return "ggn" in self.quantity

    @property
    def key(self) -> dict[str, Any]:
        """Columns that tell it from others."""
        return {
            "quantity": self.quantity,
            "network": self.layer.network,
            "layer": self.layer.name,
            "batch_size": self.batch_size,
            "num_vectors": self.num_vectors if self.has_vectors else 0,
        }

    def tensors(self, device: torch.device) -> Tensors:
        """Make normally distributed arguments."""
        conv = self.layer.conv
        inputs = self.layer.input_shape(self.batch_size)
        outputs = self.layer.output_shape(self.batch_size)
        inner = conv.in_channels // conv.groups * prod(conv.kernel_size)
        outer = conv.out_channels // conv.groups
        positions = prod(conv.output_size)
        shapes: dict[str, tuple[int, ...]] = {
            "x": inputs,
            "x_dot": inputs,
            "weight": conv.weight_shape,
            "weight_dot": conv.weight_shape,
            "g": outputs,
            "h": outputs,
            "vectors": conv.weight_shape,
            "S": (self.num_vectors, *outputs),
            "u": (self.batch_size, conv.groups * inner, positions),
            "QA": (conv.groups, inner, inner),
            "QB": (conv.groups, outer, outer),
        }
        function = getattr(functional, self.quantity)
        parameters = inspect.signature(function).parameters.values()
        names = [each.name for each in parameters if each.default is each.empty]
        return {
            name: normal(shapes[name], device, seed)
            for seed, name in enumerate(names)
            if name != "conv"
        }

    def call(self, tensors: Tensors) -> Call:
        """Return what calls the function on its arguments."""
        function = getattr(functional, self.quantity)
        return partial(function, *tensors.values(), self.layer.conv)

    def plan(self, device: torch.device) -> Plan:
        """Plan what the function evaluates."""
        x = torch.empty(self.layer.input_shape(self.batch_size), device=device)
        # patches are summed by a network, and divided afterwards
        name: Any = {"patch_mean": "patch_sum"}.get(self.quantity, self.quantity)
        arguments = {"num_vectors": self.num_vectors} if self.has_vectors else {}
        return functional.plan(name, x, self.layer.conv, **arguments)


def normal(shape: tuple[int, ...], device: torch.device, seed: int = 0) -> Tensor:
    """Draw a normal tensor, equal on all devices."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)


def contest(
    asked: Asked, device: torch.device, names: Sequence[str] = (), **options: Any
) -> Contest:
    """Let contenders compute a quantity.

    Args:
        asked: The quantity.
        device: Where to compute.
        names: Names of contenders; ``"stock"`` is the usual toolkit, whichever it is.
            Default: all.
        options: Of the contest.
    """
    builds: dict[str, Build] = {
        name: partial(_build, name, asked, device)
        for name in CONTENDERS[asked.quantity]
    }
    stock = next(iter(builds.values()))
    some = {name: builds.get(name, stock) for name in names} or builds
    return Contest(some, lambda: reference(asked, asked.tensors(device)), **options)


def _build(name: str, asked: Asked, device: torch.device, small: bool = False) -> Call:
    if small:
        fewer = min(asked.num_vectors, 2)
        asked = asked._replace(batch_size=1, num_vectors=fewer)
    return CONTENDERS[asked.quantity][name](asked, asked.tensors(device))


def reference(asked: Asked, tensors: Tensors) -> Tensor:
    """Compute a quantity in float64: torch's own, or by unfolding each sample."""
    if asked.quantity in _NATIVE:
        exact = {name: each.double() for name, each in tensors.items()}
        found: Tensor = CONTENDERS[asked.quantity]["stock"](asked, exact)()
        return found
    x, *others = tensors.values()
    module, conv = asked.layer.module(), asked.layer.conv
    total: Any = 0
    rows = []
    for n, sample in enumerate(x.double().split(1)):
        u = unfolded(module, sample)[0]
        if asked.quantity.startswith("kfac"):
            u = u.mean(-1, keepdim=True) if asked.quantity == "kfac_reduce" else u
            total = total + u @ u.mT / len(x)
        for given in others:
            root = given[None] if given.dim() == x.dim() else given
            for some in root[:, n].split(_MOST_VECTORS):
                s = some.double().flatten(2).unflatten(1, (conv.groups, -1))
                row = torch.einsum("gkp,vgcp->vgck", u, s).flatten(1)
                if asked.quantity == "ggn_diagonal":
                    total = total + row.square_().sum(0).reshape(conv.weight_shape)
                else:
                    rows.append(row)
    if not rows:
        return torch.as_tensor(total)
    # [V, N, ...], the order of all toolkits
    gradients = torch.cat(rows).unflatten(0, (len(x), -1)).transpose(0, 1)
    if asked.quantity == "per_sample_grad":
        return gradients[0].reshape(len(x), *conv.weight_shape)
    if asked.quantity == "per_sample_grad_norm":
        return gradients[0].square().sum(1)
    matrix = gradients.flatten(0, 1)
    return matrix @ matrix.mT


def unfolded(module: Any, x: Tensor) -> Tensor:
    """Unfold an input of two dimensions, ``[N, G, CI K1 K2, O1 O2]``."""
    sizes = (module.kernel_size, module.dilation, module.padding, module.stride)
    return unfold(x, *sizes).unflatten(1, (module.groups, -1))


# -- contenders: all are prepared from what is asked and from its tensors

Prepare = Callable[[Asked, Tensors], Call]


def _by(compute: Callable[..., Tensor]) -> Prepare:
    """Let a function compute, which takes a layer and tensors.

    The layer knows what BackPACK's hooks leave in it after a forward pass.
    """

    def prepare(asked: Asked, tensors: Tensors) -> Call:
        first, layer, size = next(iter(tensors.values())), asked.layer, asked.batch_size
        module = layer.module(str(first.device)).to(first.dtype).requires_grad_(False)
        empty = first.new_empty(())
        module.input0 = tensors.get("x", empty.expand(layer.input_shape(size)))
        module.output = empty.expand(layer.output_shape(size))
        return partial(compute, module, *tensors.values())

    return prepare


def _ours(mode: Any, asked: Asked, tensors: Tensors) -> Call:
    compute = asked.call(tensors)

    def call() -> Any:
        with planning(mode):
            return compute()

    return call


def _torch_conv(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    return torch.convolution(x, weight, None, *_torch_sizes(module))


def _torch_input_vjp(module: Any, weight: Tensor, g: Tensor) -> Tensor:
    return _torch_vjps(module, g, module.input0, weight, [True, False, False])[0]


def _torch_weight_vjp(module: Any, x: Tensor, g: Tensor) -> Tensor:
    return _torch_vjps(module, g, x, module.weight, [False, True, False])[1]


def _torch_vjps(
    module: Any, g: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
) -> Sequence[Tensor]:
    backward = torch.ops.aten.convolution_backward
    found: Sequence[Tensor] = backward(g, x, weight, None, *_torch_sizes(module), mask)
    return found


def _torch_sizes(module: Any) -> tuple[Any, ...]:
    no_output_padding = (0,) * len(module.padding)
    sizes = (module.stride, module.padding, module.dilation)
    return *sizes, False, no_output_padding, module.groups


def _unfolded_expand(module: Any, x: Tensor) -> Tensor:
    """Unfold the input and multiply, as BackPACK and curvlinops do, group by group."""
    u = unfolded(module, x)
    if module.groups == 1:
        rows = u[:, 0]
        return torch.einsum("nap,nbp->ab", rows, rows)[None] / len(x)
    return torch.einsum("ngap,ngbp->gab", u, u) / len(x)


def _unfolded_reduce(module: Any, x: Tensor) -> Tensor:
    u = unfolded(module, x).mean(-1)
    return torch.einsum("nga,ngb->gab", u, u) / len(x)


def _curvlinops(name: str, module: Any, x: Tensor) -> Tensor:
    if module.groups > 1:
        raise Unsupported("curvlinops averages the input over groups")
    extract = getattr(import_module("curvlinops.kfac_utils"), name)
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    a: Tensor = extract(x, *sizes, module.groups).flatten(0, -2)
    return (a.T @ a).div_(len(x))


def _einconv(name: str, simplify: bool, asked: Asked, tensors: Tensors) -> Call:
    """Contract einconv's network along the path that opt_einsum finds."""
    define = import_module(f"einconv.expressions.convNd_{name}").einsum_expression
    m = asked.layer.module()
    arguments = {
        "stride": m.stride,
        "padding": m.padding,
        "dilation": m.dilation,
        "groups": m.groups,
        "simplify": simplify,
    }
    if name == "input_vjp":
        arguments["input_size"] = asked.layer.conv.input_size
    elif name != "forward":
        arguments["kernel_size"] = m.kernel_size
    named = {{"g": "v"}.get(key, key): each for key, each in tensors.items()}
    equation, operands, shape = define(**named, **arguments)
    contract = opt_einsum.contract_expression(equation, *(t.shape for t in operands))
    return lambda: contract(*operands).reshape(shape)


def _backpack_gradients(
    module: Any, x: Tensor, vectors: Tensor, lean: bool = False
) -> Tensor:
    """Take BackPACK's way, with or without its option to save memory."""
    saving = import_module("backpack.core.derivatives.convnd").weight_jac_t_save_memory
    derivatives = import_module("backpack.core.derivatives.conv2d").Conv2DDerivatives()
    with saving(lean):
        found: Tensor = derivatives.param_mjp(
            "weight", module, None, None, vectors, sum_batch=False
        )
    return found


def _backpack_norms(module: Any, x: Tensor, g: Tensor) -> Tensor:
    if module.groups > 1:
        raise Unsupported("BackPACK has no norms with groups")
    factors = import_module("backpack.utils.conv").get_weight_gradient_factors
    x, g = factors(x, g, module)
    return torch.einsum("nmi,nki,nmj,nkj->n", g, x, g, x)


def _backpack_diagonal(module: Any, x: Tensor, s: Tensor) -> Tensor:
    extract = import_module("backpack.utils.conv").extract_weight_diagonal
    diagonal: Tensor = extract(module, unfolded(module, x).flatten(1, 2), s)
    return diagonal


def _backpack_gram(module: Any, x: Tensor, s: Tensor) -> Tensor:
    rows = _backpack_gradients(module, x, s).flatten(0, 1).flatten(1)
    return rows @ rows.mT


def _torch_func_gradients(module: Any, x: Tensor, g: Tensor) -> Tensor:
    def inner(weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
        output = functional_call(module, {"weight": weight}, (x[None],))
        return (output[0] * g).sum()

    return vmap(grad(inner), in_dims=(None, 0, 0))(module.weight, x, g)


def _opacus_gradients(module: Any, x: Tensor, g: Tensor) -> Tensor:
    sampler = import_module("opacus.grad_sample.conv").compute_conv_grad_sample
    # it leaves out what is not to be trained
    module.weight.requires_grad_()
    gradients: Tensor = sampler(module, [x], g)[module.weight]
    return gradients


def _opacus_norms(module: Any, x: Tensor, g: Tensor) -> Tensor:
    """Take its ghost clipping's way: a convolution has gradients, then norms."""
    return _opacus_gradients(module, x, g).flatten(1).square().sum(1)


_NATIVE: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "conv": ("forward", _torch_conv),
    "input_vjp": ("input_vjp", _torch_input_vjp),
    "weight_vjp": ("weight_vjp", _torch_weight_vjp),
}


def _of_the_paper(theirs: str, compute: Callable[..., Tensor]) -> dict[str, Prepare]:
    return {
        "stock": _by(compute),
        "einconv": partial(_einconv, theirs, False),
        "einconv simplified": partial(_einconv, theirs, True),
    }


CONTENDERS: dict[str, dict[str, Prepare]] = {
    **{name: _of_the_paper(*each) for name, each in _NATIVE.items()},
    "kfac_expand": {
        **_of_the_paper("kfc", _unfolded_expand),
        "curvlinops": _by(partial(_curvlinops, "extract_patches")),
    },
    "kfac_reduce": {
        **_of_the_paper("kfac_reduce", _unfolded_reduce),
        "curvlinops": _by(partial(_curvlinops, "extract_averaged_patches")),
    },
    "per_sample_grad": {
        "BackPACK": _by(_backpack_gradients),
        "BackPACK, saving memory": _by(partial(_backpack_gradients, lean=True)),
        "torch.func": _by(_torch_func_gradients),
        "Opacus": _by(_opacus_gradients),
    },
    "per_sample_grad_norm": {
        "BackPACK": _by(_backpack_norms),
        "Opacus": _by(_opacus_norms),
    },
    "ggn_diagonal": {"BackPACK": _by(_backpack_diagonal)},
    "ggn_gram": {"BackPACK": _by(_backpack_gram)},
}
"""Who computes a quantity, the usual toolkit first."""

for _table in CONTENDERS.values():
    _table["ours"] = partial(_ours, "estimate")
    _table["ours, measured"] = partial(_ours, "measure")
