"""Kronecker-factored curvature that is optimal in the Frobenius norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tn_extensions.curvlinops.compute import Key
from tn_extensions.curvlinops.factors import check_iteration
from tn_extensions.curvlinops.kfac import KFACLinearOperator
from tn_extensions.errors import describe


class KFOCLinearOperator(KFACLinearOperator):
    r"""The Kronecker product that is closest to each block of the Fisher/GGN.

    ``B (x) A`` minimizes ``||c sum_n vec(G_n) vec(G_n)^T - B (x) A||_F`` for each group
    of channels, with the gradients ``G_n``, ``[CO, D]``, of the data. It is found by
    power iteration on the rearranged block, which alternates between sums of ``G_n^T B
    G_n`` and of ``G_n A G_n^T``. Each sum takes a pass over the data that forms the
    gradients of only some data at a time. Layers, losses and scale ``c`` are those of
    :class:`KFACLinearOperator`.

    Args:
        model_func: The network.
        loss_func: ``MSELoss``, ``CrossEntropyLoss`` or ``BCEWithLogitsLoss``.
        params: Parameters of the network.
        data: Batches ``(X, y)``.
        tolerance: The iteration stops once a factor of unit norm changes by at most
            this.
        max_sweeps: Largest number of passes over the data. If they do not suffice, it
            warns.
        separate_weight_and_bias: Must be False if a layer has both: its weight and bias
            form one block.
        kfac_approx: Must be ``"expand"``.
        **options: As for :class:`KFACLinearOperator`, except ``groups``.

    Raises:
        ValueError: As for :class:`KFACLinearOperator`; or if there is no curvature to
            approximate (``fisher_type="forward-only"``).
        NotImplementedError: As for :class:`KFACLinearOperator`; or if a weight and its
            bias should form separate blocks.

    Reference: Schnaus, Lee and Triebel, "Kronecker-Factored Optimal Curvature",
    Bayesian Deep Learning Workshop, NeurIPS 2021.
    """

    def __init__(
        self,
        model_func: nn.Module,
        loss_func: Any,
        params: list[nn.Parameter],
        data: Any,
        *,
        tolerance: float = 1e-4,
        max_sweeps: int = 100,
        separate_weight_and_bias: bool = False,
        kfac_approx: str = "expand",
        **options: Any,
    ) -> None:
        check_iteration(type(self).__name__, tolerance, max_sweeps, options)
        self._iteration = tolerance, max_sweeps
        if kfac_approx != "expand":
            rule, owner = "be 'expand'", type(self).__name__
            raise ValueError(describe(owner, "kfac_approx", rule, repr(kfac_approx)))
        mapping = self.compute_parameter_mapping(params, model_func)
        both = [name for name, own in mapping.items() if len(own) == 2]
        if separate_weight_and_bias and both:
            rule = "be False if a layer has both"
            owner, found = type(self).__name__, f"True for {', '.join(both)}"
            argument = "separate_weight_and_bias"
            raise NotImplementedError(describe(owner, argument, rule, found))
        super().__init__(
            model_func,
            loss_func,
            params,
            data,
            separate_weight_and_bias=separate_weight_and_bias,
            kfac_approx=kfac_approx,
            groups="separate",
            **options,
        )

    def _compute_factors(self) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
        return self._block_factors().nearest(*self._iteration)
