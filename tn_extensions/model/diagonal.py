"""The diagonal of the GGN."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import grad

from tn_extensions.compiler.budget import current_budget
from tn_extensions.errors import check_choice
from tn_extensions.layers.hooks import exactly, unwrapped
from tn_extensions.layers.losses import LossTerms, each_term, scale_of_sum
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.squares import diagonal
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
from tn_extensions.model.passes import batch_of
from tn_extensions.model.singly import sample_gradients

_OWNER = "ggn_diagonal"

GGN = Literal["type-2", "mc"]


def ggn_diagonal(
    model: nn.Module,
    loss: Any,
    data: Data,
    *,
    params: Params = None,
    fisher_type: GGN = "type-2",
    mc_samples: int = 1,
    seed: int = 2147483647,
) -> dict[str, Tensor]:
    """Compute the diagonal of the GGN of the loss of all data.

    It is ``d = c sum_n sum_v (J_n^T s_nv)^2``, where ``J_n`` is the Jacobian of the
    outputs for datum ``n`` by a parameter, and ``s_nv`` are the columns of a square
    root of the Hessian of its loss. ``c`` is 1 if the loss is a sum, and ``1/N`` if it
    is a mean.

    Per-sample gradients are formed for a few data at a time, or not at all, as for
    :func:`~tn_extensions.model.per_sample_grad_norms`. As many vectors of a layer are
    processed at a time as the memory budget allows.

    Args:
        model: The model. It must process each datum independently.
        loss: As for :func:`~tn_extensions.model.kfac_factors`.
        data: Batches ``(x, y)``, read once; or a single batch.
        params: Parameters or their names. ``None``: all. Frozen ones are left out.
        fisher_type: ``"type-2"``: exact; takes a backward pass per class (and per loss
            term of a datum, if there are several). ``"mc"``: an unbiased estimate;
            takes a backward pass per Monte-Carlo sample of the targets.
        mc_samples: Number of Monte-Carlo samples.
        seed: Seed of the samples.

    Returns:
        The diagonal by name, shaped like the parameters, of float32 or wider. Its sum
        is the trace of the GGN.

    Raises:
        TypeError: If an argument is of the wrong kind, or the output is not a tensor.
        ValueError: If an argument has no allowed value, a parameter is not the model's
            or is not used, there are no data, rows do not match the data, data depend
            on each other, or outputs are not finite.
        NotImplementedError: If the loss is not supported, or parameters other than
            kernels and biases are in a model that draws random numbers.

    Reference: Dangel, Kunstner and Hennig, "BackPACK: Packing more into backprop",
    ICLR 2020.
    """
    model = unwrapped(model)
    check_choice(_OWNER, "fisher_type", fisher_type, GGN)
    check_samples(_OWNER, fisher_type, mc_samples)
    check_loss(_OWNER, loss)
    parameters = trained_parameters(_OWNER, model, params)
    check_independent(_OWNER, model)
    generator: torch.Generator | None = None
    totals = {
        name: torch.zeros_like(
            p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False
        )
        for name, p in parameters.items()
    }
    waiting: defaultdict[str, list[Pairs]] = defaultdict(list)
    held = total = 0

    def on_pairs(name: str, pairs: Pairs) -> None:
        nonlocal held
        if name in batch.observed:
            waiting[name].append(pairs)
            held += sum(g.numel() * g.element_size() for _, g in pairs)
        if held >= current_budget():
            flush()

    def flush() -> None:
        nonlocal held
        while waiting:
            name, columns = waiting.popitem()
            with exactly(columns[0][0][1].device):
                add(name, diagonal(columns, batch.observed[name]))
        held = 0

    def add(name: str, squares: Tensor) -> None:
        totals[name] += (squares * scale).reshape(totals[name].shape)

    for x, y in batches(_OWNER, data):
        with batch_of(_OWNER, model, parameters, x) as batch:
            terms = LossTerms.of(_OWNER, loss, batch.output, y)
            terms.check_finite()
            batch.sort_rows()
            others = {name: parameters[name] for name in batch.others}
            num_rows, num_data = len(terms.output), batch.num_data
            scale = scale_of_sum(loss, num_rows, mc_samples, num_data)
            total += num_data
            if generator is None:
                generator = torch.Generator(terms.output.device).manual_seed(seed)
            columns = terms.vectors(fisher_type, mc_samples, generator)
            if fisher_type == "type-2" and num_data:
                # each loss term of a datum needs its own columns
                columns = each_term(columns, num_rows // num_data)
            vectors = (
                grad(terms.output, batch.output, own, retain_graph=True)[0]
                for own in columns
            )
            for vector in batch.uses.backward(batch.output, vectors, on_pairs):
                if others:
                    for chunk in sample_gradients(_OWNER, model, others, x, vector):
                        for name, g in chunk.items():
                            add(name, g.to(totals[name].dtype).square_().sum(0))
            flush()
    if loss.reduction == "mean":
        for own in totals.values():
            own /= max(total, 1)
    return totals
