"""The inverse of KFAC, damped."""

from __future__ import annotations

from typing import Any, cast

import torch
from curvlinops import inverse as stock
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions.curvlinops.kfac import KFACLinearOperator
from tn_extensions.curvlinops.multiply import diagonal
from tn_extensions.errors import describe


class KFACInverseLinearOperator(stock.KFACInverseLinearOperator):
    """Inverse of our KFAC, in place of :class:`curvlinops.KFACInverseLinearOperator`.

    Each group's factors are damped and inverted on their own. Damping is a number or a
    pair (added to ``A`` and ``B``), heuristic (Martens & Grosse, 2015, section 6.3) or
    exact (added to ``B (x) A``, in its eigenbasis).

    Args:
        A: The operator.
        **options: As :class:`curvlinops.KFACInverseLinearOperator`.

    Raises:
        TypeError: If ``A`` is not an operator of this package.
        torch.linalg.LinAlgError: If a damped factor is singular.
    """

    def __init__(self, A: KFACLinearOperator, *args: Any, **options: Any) -> None:
        if not isinstance(A, KFACLinearOperator):
            owner, rule = type(self).__name__, "be a KFACLinearOperator of this package"
            raise TypeError(describe(owner, "A", rule, type(A).__name__))
        super().__init__(A, *args, **options)

    def _matmat(self, X: list[Tensor]) -> list[Tensor]:
        A = self._A
        if not (A._input_covariances or A._gradient_covariances):
            A.compute_kronecker_factors()
        result: list[Tensor] = A._apply(X, self._compute_or_get_cached_inverse)
        return result

    def _compute_or_get_cached_inverse(self, name: str) -> Any:
        is_new = name not in self._inverse_gradient_covariances
        try:
            right, left, values = super()._compute_or_get_cached_inverse(name)
        except LinAlgError as error:
            raise self._singular(name) from error
        each = values.values() if isinstance(values, dict) else [values]
        if is_new and any(v is not None and not v.isfinite().all() for v in each):
            raise self._singular(name)
        return right, left, values

    def _singular(self, name: str) -> Exception:
        owner, rule = type(self).__name__, "be positive definite"
        factors = f"the damped factors of layer {name!r}"
        remedy = "Increase the damping"
        found = f"singular ones (damping = {self._damping})"
        return LinAlgError(describe(owner, factors, rule, found, remedy))

    # curvlinops' methods for one pair of factors, for one of each group

    def _compute_damping(self, aaT: Tensor | None, ggT: Tensor | None) -> Any:
        grouped = aaT is not None and aaT.dim() == 3
        if not grouped or not self._use_heuristic_damping:
            return super()._compute_damping(aaT, ggT)
        pairs = zip(cast(Tensor, aaT), cast(Tensor, ggT), strict=True)
        damping = super()._compute_damping
        each = [damping(a, b) for a, b in pairs]
        columns = zip(*each, strict=True)
        return tuple(
            cast(Tensor, aaT).new_tensor([float(d) for d in column])
            for column in columns
        )

    def _damped_cholesky(self, M: Tensor, damping: Any) -> Tensor:
        damped = M.clone()
        if isinstance(damping, Tensor) and damping.dim():
            damping = damping.to(M.dtype).unsqueeze(1)
        diagonal(damped).add_(damping)
        return torch.linalg.cholesky(damped)

    def _compute_inv_damped_eigenvalues(
        self, aaT_eigenvalues: Tensor | None, ggT_eigenvalues: Tensor, name: str
    ) -> Any:
        products = {}
        for key, position in self._A._mapping[name].items():
            values = ggT_eigenvalues
            if key == "weight" and aaT_eigenvalues is not None:
                values = values.unsqueeze(-1) * aaT_eigenvalues.unsqueeze(-2)
            products[position] = (values + self._damping).reciprocal()
        if self._A._is_joint(name):
            return products[self._A._mapping[name]["weight"]]
        return products
