"""Kronecker factors of all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from tn_extensions.conv import Conv
from tn_extensions.errors import check_choice, describe
from tn_extensions.kronecker.factors import (
    add_gradient_factor,
    add_input_factor,
    dense,
    rescale,
    squared_sums,
)
from tn_extensions.layers.hooks import exactly, unwrapped
from tn_extensions.layers.host import is_finite
from tn_extensions.layers.losses import Fisher, LossTerms, scale_of_sum
from tn_extensions.layers.module import Pairs
from tn_extensions.model.data import (
    Data,
    batches,
    check_loss,
    check_samples,
)
from tn_extensions.model.parameters import (
    Params,
    check_independent,
    trained_parameters,
)
from tn_extensions.model.passes import Batch, batch_of

_OWNER = "kfac_factors"
_RANK_LIMIT = 0.5
"""Most vectors that stand for a factor while data come in, as a part of its size."""

Approx = Literal["expand", "reduce"]


class KroneckerFactors(NamedTuple):
    """Factors of a layer, whose block of the Fisher or GGN is about ``B (x) A``.

    Of groups of channels there are as many blocks; ``G`` is 1 without groups, and for
    a ``Linear``. The bias on its own has the block ``B``.

    Attributes:
        A: Input factor, ``[G, D, D]`` with ``D = CI * K``, in the order of the kernel's
            entries of an output channel. With a joint bias, ``D`` is larger by one, and
            the bias comes last. ``None``: only the bias is among the parameters.
        B: Factor of output gradients, ``[G, CO, CO]``.
    """

    A: Tensor | None
    B: Tensor


@dataclass
class _Sums:
    """Sums over batches of a layer's outer products.

    Args:
        conv: Hyper-parameters of a use.
        like: A parameter.
        inputs: Of patches.
        gradients: Of output gradients.
    """

    conv: Conv
    like: Tensor
    inputs: Tensor | None = None
    gradients: Tensor | None = None


def kfac_factors(
    model: nn.Module,
    loss: Any,
    data: Data,
    *,
    params: Params = None,
    approx: Approx = "expand",
    fisher_type: Fisher = "mc",
    mc_samples: int = 1,
    seed: int = 2147483647,
    bias: bool = False,
) -> dict[str, KroneckerFactors]:
    """Compute KFAC's factors of each linear layer and convolution.

    With patches ``U``, backpropagated vectors ``g`` of the layer's outputs, ``S``
    positions that share the weight and ``N`` data: ``"expand"`` has ``A = 1/(N S) sum_n
    sum_s U U^T`` and ``B = c sum_n sum_s g g^T``; ``"reduce"`` has ``A = 1/N sum_n m
    m^T`` of the patches' means ``m`` and ``B`` of the gradients' sums over positions.
    ``c`` is such that ``B (x) A`` approximates the Fisher or GGN of the loss of all
    data: of a mean, ``1/N`` times the sum of each datum's. A layer that is used several
    times has all uses' positions.

    No unfolded input is held, nor what a layer has seen beyond the pass. Values are
    those of curvlinops where these are correct.

    Args:
        model: The model. It must treat each datum apart from the others.
        loss: ``CrossEntropyLoss`` (classes on the second axis of the output),
            ``MSELoss`` or ``BCEWithLogitsLoss`` (on the last one), with all of their
            options. Its reduction is ``"mean"`` or ``"sum"``.
        data: Batches ``(x, y)``, gone over once; or one batch.
        params: Parameters or their names. ``None``: all that are kernels or biases of
            ``linear`` and convolutions, and nothing else. Frozen ones are left out.
        approx: ``"expand"`` or ``"reduce"``.
        fisher_type: ``"type-2"``: the GGN; a backward pass for each class. ``"mc"``: an
            unbiased estimate, with a pass for each draw of targets. ``"empirical"``: of
            the gradients for the targets given. ``"forward-only"``: ``B`` is the
            identity.
        mc_samples: Number of draws.
        seed: Of the draws.
        bias: Whether ``A`` has a last row and column for the bias.

    Returns:
        Factors by the layer's name, of float32 or wider. A kernel that is no layer's
        ``weight`` goes by its own name.

    Raises:
        TypeError: If an argument is of the wrong kind, or the output is no tensor.
        ValueError: If an argument is not among its choices, a parameter is not the
            model's, there are no data, rows do not belong to data, data depend on each
            other, or a factor is not finite.
        NotImplementedError: If ``params`` has other parameters, or the loss is another.

    Reference: Eschenhagen et al., "Kronecker-factored approximate curvature for modern
    neural network architectures", NeurIPS 2023.
    """
    model = unwrapped(model)
    check_choice(_OWNER, "approx", approx, Approx)
    check_choice(_OWNER, "fisher_type", fisher_type, Fisher)
    check_samples(_OWNER, fisher_type, mc_samples)
    check_loss(_OWNER, loss)
    parameters = trained_parameters(_OWNER, model, params)
    check_independent(_OWNER, model)
    generator: torch.Generator | None = None
    sums: dict[str, _Sums] = {}
    total = 0

    def on_pairs(name: str, pairs: Pairs) -> None:
        # a bias whose kernel has the factor has none
        if name in sums:
            known = sums[name].gradients
            sums[name].gradients = add_gradient_factor(
                pairs, approx, known, scale, _RANK_LIMIT
            )

    for x, y in batches(_OWNER, data):
        with batch_of(_OWNER, model, parameters, x) as batch:
            if batch.others and (params is not None or not batch.observed):
                _refuse(batch.others)
            terms = LossTerms.of(_OWNER, loss, batch.output, y)
            terms.check_finite()
            if approx == "reduce":
                # the outer products of KFAC-expand are the same in whatever order
                batch.sort_rows()
            for name, uses in batch.uses.items():
                with exactly(terms.output.device):
                    _add_inputs(sums, batch, name, parameters, approx, bias)
                uses[:] = [use.without_input() for use in uses]
            num_data = batch.num_data
            scale = scale_of_sum(loss, len(terms.output), mc_samples, num_data)
            total += num_data
            if generator is None:
                generator = torch.Generator(terms.output.device).manual_seed(seed)
            vectors = terms.vectors(fisher_type, mc_samples, generator)
            for _ in batch.uses.backward(terms.output, vectors, on_pairs):
                pass
    with torch.no_grad():
        return {
            layer_name(name): _finished(name, own, loss, fisher_type, max(total, 1))
            for name, own in sums.items()
        }


def _refuse(others: list[str]) -> NoReturn:
    argument = f"parameters {', '.join(others)}"
    rule = "be kernels or biases of linear and convolutions, and nothing else"
    remedy = "Leave them out: pass the others as params"
    message = describe(_OWNER, argument, rule, "other uses", remedy)
    raise NotImplementedError(message)


def _add_inputs(
    sums: dict[str, _Sums],
    batch: Batch,
    name: str,
    parameters: Mapping[str, Tensor],
    approx: Approx,
    bias: bool,
) -> None:
    """Add a batch's input factor of the uses of a name, if it has one."""
    uses = batch.uses[name]
    seen = {use.names[1] for use in uses}
    biases = {own for own in seen if own in batch.observed}
    if name not in batch.observed or batch.observed[name] == "bias":
        # the kernel is frozen, or used in other ways
        for own in map(str, biases):
            sums.setdefault(own, _Sums(uses[0].conv, parameters[own]))
        return
    known = sums.setdefault(name, _Sums(uses[0].conv, parameters[name]))
    is_joint = bias and bool(biases)
    size = uses[0].conv.in_channels // uses[0].conv.groups
    size = size * prod(uses[0].conv.kernel_size) + is_joint
    is_other = known.inputs is not None and known.inputs.shape[2] != size
    if is_joint and len(seen) > 1 or is_other:
        rule = "have one bias in all of its uses to be one block with it"
        found = ", ".join(sorted(map(str, seen)))
        remedy = "Pass bias=False"
        argument = f"kernel {name!r}"
        raise ValueError(describe(_OWNER, argument, rule, found, remedy))
    known.inputs = add_input_factor(
        uses, approx, known.inputs, 1.0, is_joint, _RANK_LIMIT
    )


def _finished(
    name: str, own: _Sums, loss: Any, fisher_type: Fisher, num_data: int
) -> KroneckerFactors:
    """Factors as matrices, divided by the number of data."""
    A, B = own.inputs, own.gradients
    if A is not None:
        A = dense(rescale(A, 1 / num_data))
    groups, dtype = own.conv.groups, torch.promote_types(own.like.dtype, torch.float32)
    size = own.conv.out_channels // groups
    if fisher_type == "forward-only":
        identity = torch.eye(size, dtype=dtype, device=own.like.device)
        B = identity.repeat(groups, 1, 1)
    elif B is None:
        # no pass has come to it
        B = own.like.new_zeros(groups, size, size, dtype=dtype)
    else:
        B = dense(rescale(B, 1 / num_data if loss.reduction == "mean" else 1.0))
    for what, factor in (("inputs", A), ("output gradients", B)):
        if factor is not None and not is_finite(squared_sums(factor)):
            argument = f"{what} of layer {layer_name(name)!r}"
            raise ValueError(describe(_OWNER, argument, "be finite", "inf or nan"))
    return KroneckerFactors(A, B)


def layer_name(parameter: str) -> str:
    """Name the layer of a kernel or bias; another name stays as it is."""
    head, _, last = parameter.rpartition(".")
    return head if last in ("weight", "bias") else parameter
