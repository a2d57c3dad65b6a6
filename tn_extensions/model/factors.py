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
"""Largest number of rows of a low-rank factor, as a fraction of its columns."""

Approx = Literal["expand", "reduce"]


class KroneckerFactors(NamedTuple):
    """Factors of a layer; ``B (x) A`` approximates its block of the Fisher or GGN.

    There is a block for each group of channels; ``G`` is 1 without groups, and for a
    ``Linear``. The block of a separate bias is ``B``.

    Attributes:
        A: Input factor, ``[G, D, D]`` with ``D = CI * K``, in the order of the entries
            of the kernel for an output channel. With a joint bias, ``D`` is larger by
            one, and the bias comes last. ``None``: only the bias is among the
            parameters.
        B: Factor of output gradients, ``[G, CO, CO]``.
    """

    A: Tensor | None
    B: Tensor


@dataclass
class _Sums:
    """Sums of a layer's outer products over batches.

    Args:
        conv: Hyper-parameters of a use.
        like: A parameter, for dtype and device.
        inputs: Sum for patches.
        gradients: Sum for output gradients.
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

    With patches ``U``, backpropagated vectors ``g`` at the layer's outputs, ``S``
    positions that share the weight, and ``N`` data, ``"expand"`` computes ``A = 1/(N S)
    sum_n sum_s U U^T`` and ``B = c sum_n sum_s g g^T``. ``"reduce"`` computes ``A = 1/N
    sum_n m m^T`` with means ``m`` of patches over positions, and ``B = c sum_n (sum_s
    g)(sum_s g)^T``. ``c`` is such that ``B (x) A`` approximates the Fisher or GGN of
    the loss of all data; if the loss is a mean, this is ``1/N`` times the sum over
    data. If a layer is used several times, ``S`` counts the positions of all uses.

    The unfolded input is never stored, and inputs of layers are freed after each pass.
    Values equal curvlinops' where these are correct.

    Args:
        model: The model. It must process each datum independently.
        loss: ``CrossEntropyLoss`` (classes on the second axis of the output),
            ``MSELoss`` or ``BCEWithLogitsLoss`` (outputs of a loss term on the last
            axis), with all of their options. Its reduction is ``"mean"`` or ``"sum"``.
        data: Batches ``(x, y)``, read once; or a single batch.
        params: Parameters or their names. ``None``: all parameters that are only used
            as kernels or biases of ``linear`` and convolutions. Frozen ones are left
            out.
        approx: ``"expand"`` or ``"reduce"``.
        fisher_type: ``"type-2"``: the GGN; takes a backward pass per class. ``"mc"``:
            an unbiased estimate; takes a backward pass per Monte-Carlo sample of the
            targets. ``"empirical"``: use gradients for the given targets.
            ``"forward-only"``: ``B`` is the identity.
        mc_samples: Number of Monte-Carlo samples.
        seed: Seed of the samples.
        bias: Whether ``A`` has a last row and column for the bias.

    Returns:
        Factors by the layer's name, of float32 or wider. A kernel that is not the
        ``weight`` of a layer has its own name.

    Raises:
        TypeError: If an argument is of the wrong kind, or the output is not a tensor.
        ValueError: If an argument has no allowed value, a parameter is not the model's,
            there are no data, rows do not match the data, data depend on each other, or
            a factor is not finite.
        NotImplementedError: If ``params`` has other parameters, or the loss is not
            supported.

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
        # a bias whose kernel is observed uses the kernel's factor
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
                # KFAC-expand sums over rows, so their order does not matter
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
    rule = "be used only as kernels or biases of linear and convolutions"
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
    """Add a batch to the input factor of a kernel; a bias alone has none."""
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
        rule = "have the same bias in all of its uses, to form a block with it"
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
    """Convert sums to factors: matrices that are divided by the number of data."""
    A, B = own.inputs, own.gradients
    if A is not None:
        A = dense(rescale(A, 1 / num_data))
    groups, dtype = own.conv.groups, torch.promote_types(own.like.dtype, torch.float32)
    size = own.conv.out_channels // groups
    if fisher_type == "forward-only":
        identity = torch.eye(size, dtype=dtype, device=own.like.device)
        B = identity.repeat(groups, 1, 1)
    elif B is None:
        # no backward pass has reached it
        B = own.like.new_zeros(groups, size, size, dtype=dtype)
    else:
        B = dense(rescale(B, 1 / num_data if loss.reduction == "mean" else 1.0))
    for what, factor in (("inputs", A), ("output gradients", B)):
        if factor is not None and not is_finite(squared_sums(factor)):
            argument = f"{what} of layer {layer_name(name)!r}"
            raise ValueError(describe(_OWNER, argument, "be finite", "inf or nan"))
    return KroneckerFactors(A, B)


def layer_name(parameter: str) -> str:
    """Return the layer's name of a kernel or bias; return other names as they are."""
    head, _, last = parameter.rpartition(".")
    return head if last in ("weight", "bias") else parameter
