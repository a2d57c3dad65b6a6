"""Ways to compute gradient quantities of a layer: ours and the toolkits' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from backpack.core.derivatives.conv2d import Conv2DDerivatives
from backpack.core.derivatives.convnd import weight_jac_t_save_memory
from backpack.utils.conv import extract_weight_diagonal, get_weight_gradient_factors
from opacus.grad_sample.conv import compute_conv_grad_sample
from torch import Tensor
from torch.func import functional_call, grad, vmap

from experiments.contenders import conv_of, make_input, unfold_input
from experiments.layers import Layer
from tn_extensions import functional


class Case(NamedTuple):
    """A layer with its input, and vectors in the space of its output.

    Args:
        module: The convolution, as BackPACK's hooks leave it after a forward pass.
        x: Its input.
        vectors: Gradients ``[N, C_out, ...]``, or a square root ``[V, N, C_out, ...]``.
    """

    module: Any
    x: Tensor
    vectors: Tensor


Compute = Callable[[Case], Tensor]


def _ours(name: str) -> Compute:
    call = getattr(functional, name)
    return lambda case: call(case.x, case.vectors, conv_of(case.module, case.x))


def _ours_plain(name: str) -> Compute:
    call = getattr(functional, name)

    def compute(case: Case) -> Tensor:
        weight, conv = case.module.weight.detach(), conv_of(case.module, case.x)
        if name == "conv":
            return call(case.x, weight, conv)
        return call(weight if name == "input_vjp" else case.x, case.vectors, conv)

    return compute


def _arguments(case: Case) -> tuple[Any, ...]:
    """What torch's own kernels take: input, kernel, no bias, hyper-parameters."""
    m = case.module
    sizes = (m.stride, m.padding, m.dilation, m.transposed, m.output_padding, m.groups)
    return case.x, m.weight.detach().to(case.x.dtype), None, *sizes


def _torch_conv(case: Case) -> Tensor:
    return torch.convolution(*_arguments(case))


def _torch_backward(number: int) -> Compute:
    """The gradient of the input (0) or of the kernel (1) by torch's own kernel."""
    mask = [number == 0, number == 1, False]

    def compute(case: Case) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(
            case.vectors, *_arguments(case), mask
        )[number]
        return found

    return compute


def _backpack_gradients(lean: bool) -> Compute:
    """BackPACK's per-sample gradients, with or without its option to save memory."""

    def compute(case: Case) -> Tensor:
        with weight_jac_t_save_memory(lean):
            result: Tensor = Conv2DDerivatives().param_mjp(
                "weight", case.module, None, None, case.vectors, sum_batch=False
            )
        return result

    return compute


def _torch_func_gradients(case: Case) -> Tensor:
    weight = case.module.weight.detach()

    def inner(weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
        output = functional_call(case.module, {"weight": weight}, (x[None],))
        return (output[0] * g).sum()

    return vmap(grad(inner), in_dims=(None, 0, 0))(weight, case.x, case.vectors)


def _opacus_gradients(case: Case) -> Tensor:
    module = case.module
    gradients: Tensor = compute_conv_grad_sample(module, [case.x], case.vectors)[
        module.weight
    ]
    return gradients


def _backpack_norm(case: Case) -> Tensor:
    x, g = get_weight_gradient_factors(case.x, case.vectors, case.module)
    return torch.einsum("nmi,nki,nmj,nkj->n", g, x, g, x)


def _backpack_diagonal(case: Case) -> Tensor:
    unfolded = unfold_input(case.module, case.x)
    return extract_weight_diagonal(case.module, unfolded, case.vectors)


def _gram_of_gradients(case: Case) -> Tensor:
    rows = _backpack_gradients(lean=False)(case).flatten(0, 1).flatten(1)
    return rows @ rows.mT


CONTENDERS: dict[str, dict[str, Compute]] = {
    "conv": {"ours": _ours_plain("conv"), "torch": _torch_conv},
    "input_vjp": {"ours": _ours_plain("input_vjp"), "torch": _torch_backward(0)},
    "weight_vjp": {"ours": _ours_plain("weight_vjp"), "torch": _torch_backward(1)},
    "per_sample_grad": {
        "ours": _ours("per_sample_grad"),
        "backpack": _backpack_gradients(lean=False),
        "backpack, saving memory": _backpack_gradients(lean=True),
        "torch.func": _torch_func_gradients,
        "opacus": _opacus_gradients,
    },
    "per_sample_grad_norm": {
        "ours": _ours("per_sample_grad_norm"),
        "backpack": _backpack_norm,
    },
    "ggn_diagonal": {"ours": _ours("ggn_diagonal"), "backpack": _backpack_diagonal},
    "ggn_gram": {"ours": _ours("ggn_gram"), "gradients": _gram_of_gradients},
}

PLAIN = ("conv", "input_vjp", "weight_vjp")
"""Quantities that torch has kernels for."""


def reference(quantity: str, case: Case) -> Tensor:
    """The quantity in float64: torch's, or by unfolding one sample at a time."""
    if quantity in PLAIN:
        exact = case._replace(x=case.x.double(), vectors=case.vectors.double())
        return CONTENDERS[quantity]["torch"](exact)
    x, groups, shape = case.x, case.module.groups, case.module.weight.shape
    vectors = case.vectors[None] if quantity.startswith("per_") else case.vectors
    diagonal = torch.zeros(shape, dtype=torch.float64)
    rows = []
    for n, sample in enumerate(x.double().split(1)):
        u = unfold_input(case.module, sample)[0].unflatten(0, (groups, -1))
        for some in vectors[:, n].split(50):  # there may be too many to hold
            s = some.double().flatten(2).unflatten(1, (groups, -1))
            row = torch.einsum("gkp,vgcp->vgck", u, s).reshape(len(s), *shape)
            if quantity == "ggn_diagonal":
                diagonal += row.square_().sum(0)
            else:
                rows.append(row)
    if quantity == "ggn_diagonal":
        return diagonal
    gradients = torch.cat(rows).unflatten(0, (len(x), -1)).transpose(0, 1)
    if quantity == "per_sample_grad":
        return gradients[0]
    if quantity == "per_sample_grad_norm":
        return gradients[0].flatten(1).square().sum(1)
    matrix = gradients.flatten(0, 1).flatten(1)
    return matrix @ matrix.mT


def make_case(
    layer: Layer, batch_size: int, num_vectors: int | None, seed: int = 0
) -> Case:
    """A layer with normally distributed input and vectors."""
    module = layer.make_module(device="cpu")
    x = make_input(layer.input_shape(batch_size), "cpu", seed)
    shape = (batch_size, layer.conv.out_channels, *layer.conv.output_size)
    lead = () if num_vectors is None else (num_vectors,)
    vectors = make_input((*lead, *shape), "cpu", seed + 1)
    # what BackPACK's hooks store
    module.input0, module.output = x, x.new_empty(1).expand(shape)
    return Case(module, x, vectors)


def prepare_for_memory(
    quantity: str, name: str, layer: Layer, batch_size: int, num_vectors: int | None
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The computation on a smaller batch, as a warm-up, and on the batch."""
    compute = CONTENDERS[quantity][name]
    fewer = None if num_vectors is None else min(num_vectors, 2)
    small = make_case(layer, 1 if batch_size <= 2 else 2, fewer)
    case = make_case(layer, batch_size, num_vectors)
    return (lambda: compute(small)), (lambda: compute(case))
