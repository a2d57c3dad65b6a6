"""Gradients of samples, their norms, GGN diagonals and Gram matrices of a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import prod
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import unfold

from experiments.contenders import convolutions
from experiments.contenders.quantities import Asked
from experiments.harness.case import Build, Call, Unsupported
from tn_extensions import planning

_FACTORS = get_args(convolutions.Quantity)
_MOST_VECTORS = 50
"""Whose gradients are held at once in float64."""


def contenders(asked: Asked, device: torch.device) -> dict[str, Build]:
    """List all contenders, ready to be built."""
    if asked.quantity in _FACTORS:
        quantity: Any = asked.quantity
        return convolutions.contenders(quantity, asked.layer, asked.batch_size, device)
    prepare: dict[str, Callable[[Asked, torch.device], Call]] = {
        name: partial(_stock, compute)
        for name, compute in COMPUTE[asked.quantity].items()
    }
    prepare["ours"] = partial(_ours, "estimate")
    prepare["ours, measured"] = partial(_ours, "measure")
    return {
        name: partial(_build, each, asked, device) for name, each in prepare.items()
    }


def stock_of(quantity: str) -> str:
    """Name the contender that is a toolkit's default."""
    return "stock" if quantity in _FACTORS else "BackPACK"


class _Given(NamedTuple):
    """A layer as a toolkit has it.

    Args:
        module: The convolution, as BackPACK's hooks leave it after a forward pass.
        x: Its input.
        vectors: Gradients ``[N, C_out, ...]``, or a square root ``[V, N, C_out, ...]``.
    """

    module: Any
    x: Tensor
    vectors: Tensor

    @property
    def root(self) -> Tensor:
        """The vectors with their axis."""
        given = self.vectors
        return given[None] if given.dim() == self.x.dim() else given


_Compute = Callable[[_Given], Tensor]


def _build(
    prepare: Callable[[Asked, torch.device], Call],
    asked: Asked,
    device: torch.device,
    small: bool = False,
) -> Call:
    if small:
        fewer = min(asked.num_vectors, 2)
        asked = asked._replace(batch_size=1, num_vectors=fewer)
    return prepare(asked, device)


def _ours(mode: Any, asked: Asked, device: torch.device) -> Call:
    compute = asked.call(asked.tensors(device))

    def call() -> Any:
        with planning(mode):
            return compute()

    return call


def _given(asked: Asked, device: torch.device) -> _Given:
    module = asked.layer.module(str(device)).requires_grad_(False)
    x, vectors = asked.tensors(device).values()
    module.input0, module.output = x, x.new_empty(1).expand(vectors.shape[-x.dim() :])
    return _Given(module, x, vectors)


def _stock(compute: _Compute, asked: Asked, device: torch.device) -> Call:
    return partial(compute, _given(asked, device))


def _unfold(module: Any, x: Tensor) -> Tensor:
    return unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)


def _backpack_gradients(given: _Given, lean: bool = False) -> Tensor:
    """Take BackPACK's way, with or without its option to save memory."""
    saving = import_module("backpack.core.derivatives.convnd").weight_jac_t_save_memory
    module = import_module("backpack.core.derivatives.conv2d")
    with saving(lean):
        found: Tensor = module.Conv2DDerivatives().param_mjp(
            "weight", given.module, None, None, given.vectors, sum_batch=False
        )
    return found


def _torch_func_gradients(given: _Given) -> Tensor:
    def inner(weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
        output = functional_call(given.module, {"weight": weight}, (x[None],))
        return (output[0] * g).sum()

    each = vmap(grad(inner), in_dims=(None, 0, 0))
    return each(given.module.weight, given.x, given.vectors)


def _opacus_gradients(given: _Given) -> Tensor:
    module, sampler = given.module, import_module("opacus.grad_sample.conv")
    # it leaves out what is not to be trained
    module.weight.requires_grad_()
    found = sampler.compute_conv_grad_sample(module, [given.x], given.vectors)
    gradients: Tensor = found[module.weight]
    return gradients


def _opacus_norms(given: _Given) -> Tensor:
    """Take its ghost clipping's way: a convolution has gradients, then norms."""
    return _opacus_gradients(given).flatten(1).square().sum(1)


def _backpack_norms(given: _Given) -> Tensor:
    if given.module.groups > 1:
        raise Unsupported("BackPACK has no norms with groups")
    factors = import_module("backpack.utils.conv").get_weight_gradient_factors
    x, g = factors(given.x, given.vectors, given.module)
    return torch.einsum("nmi,nki,nmj,nkj->n", g, x, g, x)


def _backpack_diagonal(given: _Given) -> Tensor:
    diagonal = import_module("backpack.utils.conv").extract_weight_diagonal
    u = _unfold(given.module, given.x)
    found: Tensor = diagonal(given.module, u, given.vectors)
    return found


def _gram_of_gradients(given: _Given) -> Tensor:
    rows = _backpack_gradients(given).flatten(0, 1).flatten(1)
    return rows @ rows.mT


COMPUTE: dict[str, dict[str, _Compute]] = {
    "per_sample_grad": {
        "BackPACK": _backpack_gradients,
        "BackPACK, saving memory": partial(_backpack_gradients, lean=True),
        "torch.func": _torch_func_gradients,
        "Opacus": _opacus_gradients,
    },
    "per_sample_grad_norm": {"BackPACK": _backpack_norms, "Opacus": _opacus_norms},
    "ggn_diagonal": {"BackPACK": _backpack_diagonal},
    "ggn_gram": {"BackPACK": _gram_of_gradients},
}
"""Functions of the toolkits and ours, by quantity and name."""


def reference(asked: Asked, device: torch.device) -> Tensor:
    """Compute the quantity in float64, by unfolding one sample at a time."""
    if asked.quantity in _FACTORS:
        quantity: Any = asked.quantity
        return convolutions.reference(quantity, asked.layer, asked.batch_size, device)
    module, x, _ = given = _given(asked, device)
    groups, shape = module.groups, module.weight.shape
    diagonal = torch.zeros(shape, dtype=torch.float64, device=device)
    rows = []
    for n, sample in enumerate(x.double().split(1)):
        u = _unfold(module, sample)[0].unflatten(0, (groups, -1))
        for some in given.root[:, n].split(_MOST_VECTORS):
            s = some.double().flatten(2).unflatten(1, (groups, -1))
            row = torch.einsum("gkp,vgcp->vgck", u, s).reshape(len(s), prod(shape))
            if asked.quantity == "ggn_diagonal":
                diagonal += row.square_().sum(0).reshape(shape)
            else:
                rows.append(row)
    if asked.quantity == "ggn_diagonal":
        return diagonal
    # [V, N, ...], the order of all toolkits
    gradients = torch.cat(rows).unflatten(0, (len(x), -1)).transpose(0, 1)
    if asked.quantity == "per_sample_grad":
        return gradients[0].reshape(len(x), *shape)
    if asked.quantity == "per_sample_grad_norm":
        return gradients[0].square().sum(1)
    matrix = gradients.flatten(0, 1)
    return matrix @ matrix.mT
