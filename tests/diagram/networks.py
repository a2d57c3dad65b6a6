"""Networks of all shapes that are drawn: every quantity, one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable

from docs.scenes import two_layers
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import simplify
from tn_extensions.network.rules import pair
from tn_extensions.sampling.narrowed import narrow

Define = Callable[[Conv], TensorNetwork]

DEFINED: dict[str, Define] = {
    "conv": lambda conv: quantities.conv(conv, 2),
    "unfold_input": lambda conv: quantities.unfold_input(conv, 2),
    "unfold_weight": lambda conv: quantities.unfold_weight(conv),
    "fold_output": lambda conv: quantities.fold_output(conv, 2),
    "weight_vjp": lambda conv: quantities.weight_vjp(conv, 2),
    "input_vjp": lambda conv: quantities.input_vjp(conv, 2),
    "weight_jvp": lambda conv: quantities.weight_jvp(conv, 2),
    "input_jvp": lambda conv: quantities.input_jvp(conv, 2),
    "per_sample_grad": lambda conv: quantities.per_sample_grad(conv, 2, 3),
    "per_sample_grad_norm": lambda conv: quantities.per_sample_grad_norm(conv, 2, 3),
    "ggn_diagonal": lambda conv: quantities.ggn_diagonal(conv, 2, 3),
    "ggn_gram": lambda conv: quantities.ggn_gram(conv, 2, 3),
    "ggn_matvec": lambda conv: quantities.ggn_matvec(conv, 2, 3, 2),
    "diagonal_backward": lambda conv: quantities.diagonal_backward(conv, 2),
    "bias_vjp": lambda conv: quantities.bias_vjp(conv, 2),
    "bias_per_sample_grad": lambda conv: quantities.bias_per_sample_grad(conv, 2, 3),
    "bias_per_sample_grad_norm": lambda conv: quantities.bias_per_sample_grad_norm(
        conv, 2
    ),
    "bias_ggn_diagonal": lambda conv: quantities.bias_ggn_diagonal(conv, 2, 3),
    "bias_ggn_gram": lambda conv: quantities.bias_ggn_gram(conv, 2, 3),
    "patch_sum": lambda conv: quantities.patch_sum(conv, 2),
    "patch_total": lambda conv: quantities.patch_total(conv, 2),
    "kfac_expand": lambda conv: quantities.kfac_expand(conv, 2),
    "kfac_reduce": lambda conv: quantities.kfac_reduce(conv, 2),
    "gradient_factor_expand": lambda conv: quantities.gradient_factor_expand(conv, 2),
    "gradient_factor_reduce": lambda conv: quantities.gradient_factor_reduce(
        conv, 2, 3
    ),
    "rotated_grad": lambda conv: quantities.rotated_grad(conv, 2),
    "kfac_moments": lambda conv: quantities.kfac_moments(conv, 2, 3, 2),
}
"""By name, all of ``quantities.Quantity``."""

DERIVED: dict[str, Define] = {
    "weight jacobian": lambda conv: quantities.conv(conv, 2).jacobian("weight"),
    "input jacobian": lambda conv: quantities.conv(conv, 2).jacobian("x"),
    "gram of groups": lambda conv: gram_of_groups(quantities.weight_vjp(conv, 2)),
    "sampled": lambda conv: narrow(
        quantities.weight_vjp(conv, 2), (("n", 1), ("i1", 2))
    ),
    "paired": lambda conv: exhausted(quantities.kfac_expand(conv, 2)),
}


def gram_of_groups(gradient: TensorNetwork) -> TensorNetwork:
    """Inner products of per-sample gradients, for each two groups."""
    shared = {*gradient.output_indices} - {"g"}
    return gradient.times_copy(shared, [("n", "g"), ("np", "gp")])


def exhausted(network: TensorNetwork) -> TensorNetwork:
    """All patterns paired that can be."""
    while (paired := pair(network)) is not None:
        network = paired
    return network


def conv(num_dims: int, kernel_size: int = 3, transposed: bool = False) -> Conv:
    return Conv.make(
        4,
        6,
        kernel_size,
        (7,) * num_dims,
        stride=2,
        padding=kernel_size // 2,
        groups=2,
        transposed=transposed,
    )


def cases() -> dict[str, TensorNetwork]:
    found = {"two layers": two_layers()}
    for num_dims in (1, 2, 3):
        for name, define in {**DEFINED, **DERIVED}.items():
            found[f"{name} {num_dims}d"] = define(conv(num_dims))
    for name, define in DEFINED.items():
        found[f"{name} transposed"] = define(conv(2, transposed=True))
        found[f"{name} simplified"] = simplify(define(conv(2)))
        found[f"{name} 1x1"] = simplify(define(conv(2, kernel_size=1)))
    return found


CASES = cases()
