"""The inverse of KFAC and EKFAC, damped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isfinite
from typing import Any

import torch
from curvlinops import inverse as stock
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions.curvlinops.compute import FactorPasses
from tn_extensions.curvlinops.stored import kept
from tn_extensions.curvlinops.text import operator_text
from tn_extensions.errors import describe
from tn_extensions.kronecker.cholesky import cholesky
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.factors import eigenbasis
from tn_extensions.kronecker.inverse import damped_inverse, split_damping
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.matrices import Matrix
from tn_extensions.kronecker.multiply import Blocks


class KFACInverseLinearOperator(stock.KFACInverseLinearOperator):
    """Inverse of our (E)KFAC, for :class:`curvlinops.KFACInverseLinearOperator`.

    Each group's factors are damped and inverted on their own. Damping is a number or a
    pair (added to ``A`` and ``B``), heuristic (Martens & Grosse, 2015, section 6.3) or
    exact (added to ``B (x) A``, in its eigenbasis; what EKFAC requires). Factors of few
    data are inverted as low-rank factors ``R``, whose Gram matrices are smaller
    (Woodbury)::

        (R^T R + d I)^-1 = (I - R^T (R R^T + d I)^-1 R) / d

    Args:
        A: The operator.
        damping: Non-negative; a number, or a pair of them for ``A`` and ``B``.
        use_heuristic_damping: Whether to split the damping between the factors.
        min_damping: The least damping of each, if so.
        use_exact_damping: Whether to add the damping to the Kronecker product.
        **options: As :class:`curvlinops.KFACInverseLinearOperator`.

    Raises:
        TypeError: If ``A`` is not an operator of this package, or damping no number.
        ValueError: If damping is negative or not finite, or options exclude each other.
        torch.linalg.LinAlgError: If what is damped is singular or has a negative
            eigenvalue (at the first product).
    """

    def __init__(
        self,
        A: FactorPasses,
        damping: float | tuple[float, float] = 0.0,
        use_heuristic_damping: bool = False,
        min_damping: float = 1e-8,
        use_exact_damping: bool = False,
        **options: Any,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(A, FactorPasses):
            rule = "be a KFACLinearOperator of this package"
            raise TypeError(describe(owner, "A", rule, type(A).__name__))
        if not isinstance(damping, tuple):
            damping = _checked(owner, "damping", damping)
        elif len(damping) == 2:
            both = zip(("damping[0]", "damping[1]"), damping, strict=True)
            first, second = (_checked(owner, name, value) for name, value in both)
            damping = first, second
        else:
            rule = "be a number, or a pair of them"
            raise ValueError(describe(owner, "damping", rule, damping))
        super().__init__(
            A,
            damping=damping,
            use_heuristic_damping=use_heuristic_damping,
            min_damping=_checked(owner, "min_damping", min_damping),
            use_exact_damping=use_exact_damping,
            **options,
        )

    def _matmat(self, X: list[Tensor]) -> list[Tensor]:
        self._A._compute_once()
        result: list[Tensor] = self._A._apply(X, self._blocks_of)
        return result

    def _blocks_of(self, name: str) -> Blocks:
        if not self._use_exact_damping:
            right, left = self._inverses(name)
            keys = self._A._keys(name)
            return {
                key: KroneckerProduct(left, None if key == "bias" else right)
                for key in keys
            }
        # always anew: EKFAC's eigenvalues may change, and products take far longer
        rotated = self._A._rotated_of(name) or self._eigenbases(name)
        inverted = {key: block.inverse(self._damping) for key, block in rotated.items()}
        if not all(block.is_definite for block in inverted.values()):
            raise self._singular(name)
        return inverted

    # caches are curvlinops' attributes: inputs' and gradients' matrices or eigenbases

    def _inverses(self, name: str) -> tuple[Matrix | None, Matrix]:
        right, left = self._cached(name)
        if left is None:
            right, left = self._factors(name)
            right, left = (
                None if factor is None else self._inverse(factor, damping, name)
                for factor, damping in zip(
                    (right, left), self._compute_damping(right, left), strict=True
                )
            )
            self._keep(name, right, left)
        return right, left

    def _eigenbases(self, name: str) -> Mapping[str, EigendecomposedMatrix]:
        right, left = self._cached(name)
        if left is None:
            right, left = (
                None if factor is None else _semidefinite(*eigenbasis(factor))
                for factor in self._factors(name)
            )
            self._keep(name, right, left)
        return {
            key: EigendecomposedMatrix.of_eigenbases(
                left, None if key == "bias" else right
            )
            for key in self._A._keys(name)
        }

    def _factors(self, name: str) -> tuple[Tensor | None, Tensor]:
        A = self._A
        right = kept(A._input_covariances).get(name)
        return right, kept(A._gradient_covariances)[name]

    def _cached(self, name: str) -> tuple[Any, Any]:
        right = self._inverse_input_covariances.get(name)
        return right, self._inverse_gradient_covariances.get(name)

    def _keep(self, name: str, right: Any, left: Any) -> None:
        if self._cache:
            self._inverse_input_covariances[name] = right
            self._inverse_gradient_covariances[name] = left

    def _compute_damping(self, aaT: Tensor | None, ggT: Tensor) -> Any:
        """Damping of ``A`` and ``B``, of each group where it is heuristic."""
        if isinstance(self._damping, tuple):
            return self._damping
        if not self._use_heuristic_damping or aaT is None:
            return self._damping, self._damping
        return split_damping(aaT, ggT, self._damping, self._min_damping)

    def _inverse(self, factor: Tensor, damping: Any, name: str) -> Matrix:
        retry = self._retry_double_precision
        decompose = partial(cholesky, retry_double_precision=retry)
        try:
            return damped_inverse(factor, damping, decompose)
        except LinAlgError as error:
            raise self._singular(name) from error

    def _singular(self, name: str) -> Exception:
        owner, rule = type(self).__name__, "be positive definite"
        factors = f"the damped factors of layer {name!r}"
        remedy = "Increase the damping"
        found = f"others (damping = {self._damping})"
        return LinAlgError(describe(owner, factors, rule, found, remedy))

    def __repr__(self) -> str:
        options = {"damping": self._damping}
        if self._use_heuristic_damping:
            options |= {"use_heuristic_damping": True, "min_damping": self._min_damping}
        if self._use_exact_damping:
            options["use_exact_damping"] = True
        text = operator_text(type(self).__name__, self.shape, options, {})
        return f"{text} of\n{self._A}"

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """The state; inverted factors are not part of it, but made anew."""
        keys = ("inverse_input_covariances", "inverse_gradient_covariances")
        return {**super().state_dict(), **{key: {} for key in keys}}


def _checked(owner: str, name: str, value: Any) -> float:
    """Refuse what is no damping."""
    if isinstance(value, (bool, str, complex)) or not hasattr(value, "__float__"):
        rule = "be a number, or a pair of them" if name == "damping" else "be a number"
        raise TypeError(describe(owner, name, rule, f"a {type(value).__name__}"))
    number = float(value)
    if not (isfinite(number) and number >= 0):
        raise ValueError(describe(owner, name, "be finite and non-negative", number))
    return number


def _semidefinite(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, zero where rounding made them negative, and eigenvectors."""
    largest = values.abs().amax(-1, keepdim=True)
    rounding = len(vectors[0]) * torch.finfo(values.dtype).eps * largest
    is_rounding = (values < 0) & (values > -rounding)
    return values.masked_fill(is_rounding, 0), vectors
