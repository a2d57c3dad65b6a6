"""Ways to compute a layer's input-based KFAC factors: ours and the toolkits' own.

A contender prepares a call: whatever the toolkit does once per layer stays outside,
whatever it does for every batch is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import opt_einsum
import torch
from curvlinops.kfac_utils import extract_averaged_patches, extract_patches
from einconv.expressions import convNd_kfac_reduce, convNd_kfc
from einops import einsum as einops_einsum
from einops import rearrange
from torch import Tensor, einsum, nn
from torch.nn.functional import unfold
from unfoldNd import unfold_transposeNd, unfoldNd

from tn_extensions import Conv, functional, quantities

Quantity = Literal["expand", "reduce", "mean"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
ConvModule = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d
Prepare = Callable[[ConvModule, Tensor], Callable[[], Tensor]]

_OURS: dict[Quantity, Callable[[Tensor, Conv], Tensor]] = {
    "expand": functional.kfac_expand,
    "reduce": functional.kfac_reduce,
    "mean": functional.patch_mean,
}
_NETWORKS: dict[Quantity, quantities.Quantity] = {
    "expand": "kfac_expand",
    "reduce": "kfac_reduce",
    "mean": "patch_sum",
}


class Unsupported(Exception):
    """The contender does not define the quantity for the layer."""


def conv_of(module: nn.Module, x: Tensor) -> Conv:
    """Hyper-parameters of a module on a batch of inputs."""
    return Conv.from_module(module, tuple(x.shape[2:]))


def plan_summary(quantity: Quantity, module: nn.Module, x: Tensor) -> str:
    """How we compute the quantity, in one line."""
    plan = functional.plan(_NETWORKS[quantity], x, conv_of(module, x))
    return plan.summary


def unfold_input(module: ConvModule, x: Tensor) -> Tensor:
    """Unfold as BackPACK 1.7.1 does (``backpack.utils.conv`` and ``.conv_transpose``).

    Args:
        module: The convolution.
        x: Its input, ``[N, C_in, I1, ...]``.

    Returns:
        Unfolded input ``[N, C_in * K, O]``.

    Raises:
        Unsupported: If BackPACK cannot unfold for these hyper-parameters.
    """
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise Unsupported("unfold knows zero padding by numbers only")
    if isinstance(module, nn.ConvTranspose2d):
        if any(module.output_padding):
            raise Unsupported("BackPACK ignores output_padding")
        return cast(
            Tensor,
            unfold_transposeNd(
                x,
                module.kernel_size,
                stride=module.stride,
                padding=module.padding,
                output_padding=0,
                dilation=module.dilation,
            ),
        )
    arguments = {
        "kernel_size": module.kernel_size,
        "dilation": module.dilation,
        "padding": module.padding,
        "stride": module.stride,
    }
    if x.dim() == 4:
        return unfold(x, **arguments)
    return cast(Tensor, unfoldNd(x, **arguments))


def _ours(quantity: Quantity) -> Prepare:
    compute = _OURS[quantity]

    def prepare(module: ConvModule, x: Tensor) -> Callable[[], Tensor]:
        conv = conv_of(module, x)
        return lambda: compute(x, conv)

    return prepare


def _unfold_expand(module: ConvModule, x: Tensor) -> Callable[[], Tensor]:
    """BackPACK's own, extended to groups by the group index."""
    groups = module.groups

    def stock() -> Tensor:
        u = unfold_input(module, x)
        return einsum("bik,bjk->ij", u, u) / u.shape[0]

    def grouped() -> Tensor:
        u = unfold_input(module, x).unflatten(1, (groups, -1))
        return einsum("ngap,ngbp->gab", u, u) / u.shape[0]

    return stock if groups == 1 else grouped


def _unfold_mean(module: ConvModule, x: Tensor) -> Callable[[], Tensor]:
    return lambda: unfold_input(module, x).mean(-1)


def _unfold_reduce(module: ConvModule, x: Tensor) -> Callable[[], Tensor]:
    groups = module.groups

    def stock() -> Tensor:
        mean = unfold_input(module, x).mean(-1)
        return einsum("bi,bj->ij", mean, mean) / mean.shape[0]

    def grouped() -> Tensor:
        mean = unfold_input(module, x).mean(-1).unflatten(1, (groups, -1))
        return einsum("nga,ngb->gab", mean, mean) / mean.shape[0]

    return stock if groups == 1 else grouped


def _curvlinops(quantity: Quantity) -> Prepare:
    """The covariance of one batch as in curvlinops 3.0.1, scaled as ours."""

    def prepare(module: ConvModule, x: Tensor) -> Callable[[], Tensor]:
        if not isinstance(module, nn.Conv2d):
            raise Unsupported("curvlinops supports Conv2d only")
        if module.groups != 1:
            raise Unsupported("curvlinops averages the input over groups")
        arguments = (
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
        )

        def patches() -> Tensor:
            extract = extract_patches if quantity == "expand" else mean_patches
            return rearrange(extract(x, *arguments), "b ... d -> (b ...) d")

        def covariance() -> Tensor:
            a = patches()
            return einops_einsum(a, a, "b i, b j -> i j").div_(len(x))

        mean_patches = extract_averaged_patches
        return patches if quantity == "mean" else covariance

    return prepare


def _einconv(quantity: Quantity, once: bool) -> Prepare:
    """The simplified expression of einconv along opt_einsum's path.

    The operands contain the input, so that a user has to build the expression for
    every batch. With ``once``, building and simplifying it stays outside the call.
    """
    define = {"expand": convNd_kfc, "reduce": convNd_kfac_reduce}[quantity]

    def prepare(module: ConvModule, x: Tensor) -> Callable[[], Tensor]:
        if module.transposed:
            raise Unsupported("einconv has no transposed convolution")
        if module.padding_mode != "zeros":
            raise Unsupported("einconv knows zero padding only")

        def expression() -> tuple[str, list[Tensor], tuple[int, ...]]:
            return define.einsum_expression(
                x,
                module.kernel_size,
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                groups=module.groups,
                simplify=True,
            )

        equation, operands, shape = expression()
        contract = opt_einsum.contract_expression(
            equation, *(t.shape for t in operands)
        )

        def rebuild() -> Tensor:
            _, operands, shape = expression()
            return contract(*operands).reshape(shape)

        return (lambda: contract(*operands).reshape(shape)) if once else rebuild

    return prepare


CONTENDERS: dict[Quantity, dict[str, Prepare]] = {
    "expand": {
        "ours": _ours("expand"),
        "unfold": _unfold_expand,
        "curvlinops": _curvlinops("expand"),
        "einconv prepared": _einconv("expand", once=True),
    },
    "reduce": {
        "ours": _ours("reduce"),
        "unfold": _unfold_reduce,
        "curvlinops": _curvlinops("reduce"),
        "einconv": _einconv("reduce", once=False),
        "einconv prepared": _einconv("reduce", once=True),
    },
    "mean": {
        "ours": _ours("mean"),
        "unfold": _unfold_mean,
        "curvlinops": _curvlinops("mean"),
    },
}


def make_input(
    shape: Sequence[int], device: torch.device | str, seed: int = 0
) -> Tensor:
    """A normally distributed batch of inputs, equal on all devices."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator).to(device)


def prepare_for_memory(
    quantity: Quantity,
    name: str,
    make_module: Callable[..., ConvModule],
    input_shape: Sequence[int],
    device: torch.device | str,
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """What :func:`experiments.measure.peak_memory` calls in a fresh process.

    Args:
        quantity: What to compute.
        name: The contender.
        make_module: Builds the convolution.
        input_shape: Shape of the batch of inputs.
        device: Where to compute.

    Returns:
        The computation on two samples, as a warm-up, and on the batch.
    """
    prepare = CONTENDERS[quantity][name]
    module = make_module(device="meta")
    x = make_input(input_shape, device)
    return prepare(module, x[:2].clone()), prepare(module, x)
