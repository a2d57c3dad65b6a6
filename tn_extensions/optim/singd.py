"""SINGD with our factors, without unfolding. Needs the extra ``singd``."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
import torch.distributed as dist
from singd.optim import optimizer as stock
from singd.optim.utils import process_grad_output
from singd.structures.base import StructuredMatrix
from torch import Tensor

from tn_extensions.kronecker.factors import add_input_factor, is_low_rank
from tn_extensions.layers.module import Use
from tn_extensions.optim.statistics import RANK_LIMIT


class SINGD(stock.SINGD):
    """Structured inverse-free natural gradient descent, replaces :class:`singd.SINGD`.

    The statistics of a layer's inputs are ``K^T A K``, with the input factor ``A`` of
    KFAC-expand or KFAC-reduce as in :class:`KFACPreconditioner`. Inputs are averaged
    over groups, as in singd. Values are correct for every ``padding_mode`` and uneven
    ``padding="same"``, which stock singd treats as other padding or refuses. Where
    singd's values are correct, ours equal them up to rounding.

    Args:
        *args: As for :class:`singd.SINGD`.
        **kwargs: As for :class:`singd.SINGD`.

    Reference: Lin et al., "Structured Inverse-Free Natural Gradient", ICML 2024.
    """

    def _register_tensor_hook_on_output_to_accumulate_H_terms(
        self, module: Any, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        every = self._get_param_group_entry(module, "T")
        if torch.is_grad_enabled() and self.steps % every == 0:
            use = Use.of(module, inputs[0], output, "average")
            output.register_hook(lambda g: self._add_H_terms(module, use, g))

    @torch.no_grad()
    def _add_H_terms(self, module: Any, use: Use, gradient: Tensor) -> None:
        average, approx = (
            self._get_param_group_entry(module, name)
            for name in ("loss_average", "kfac_approx")
        )
        (dtype_K, dtype_C), _ = self._get_preconditioner_dtypes_and_device(module)
        name = self.module_names[module]
        # as in singd, which here undoes the scale of the former step
        scale = 1 / sqrt(self._get_grad_scale(self.steps - 1))
        g = process_grad_output(gradient.to(dtype_C), module, average, approx) * scale
        terms = {"H_Ks": self._H_K(module, use), "H_Cs": self.Cs[name].from_inner(g.T)}
        for attribute, term in terms.items():
            if dist.is_initialized():
                is_mean = average is not None
                term.all_reduce(op=dist.ReduceOp.AVG if is_mean else dist.ReduceOp.SUM)
            known = getattr(self, attribute)
            known[name] = known[name].add_(term) if name in known else term

    def _H_K(self, module: Any, use: Use) -> Any:
        approx = self._get_param_group_entry(module, "kfac_approx")
        (dtype, _), _ = self._get_preconditioner_dtypes_and_device(module)
        has_bias = module.bias is not None
        (A,) = add_input_factor(
            [use], approx, None, 1 / len(use.x), has_bias, RANK_LIMIT
        ).to(dtype)
        K = self.Ks[self.module_names[module]]
        # few vectors are cheaper than their matrix
        return K.from_inner(A.T) if is_low_rank(A) else _from_inner2(K, A)


def _from_inner2(K: Any, A: Tensor) -> Any:
    """Compute the structured part of ``K^T A K`` for a symmetric ``A``.

    Most structures inherit ``from_inner2`` from their base class, which makes ``K``
    dense and warns. But they implement products with their transpose.
    """
    if type(K).from_inner2 is StructuredMatrix.from_inner2:
        return K.from_dense(K.rmatmat(K.rmatmat(A).T))
    return K.from_inner2(A)
