"""The damped inverse of KFAC and EKFAC."""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import Any

from curvlinops import inverse as stock
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions.curvlinops.compute import FactorPasses
from tn_extensions.curvlinops.text import operator_text
from tn_extensions.errors import describe
from tn_extensions.kronecker.cholesky import cholesky
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.multiply import Blocks


class KFACInverseLinearOperator(stock.KFACInverseLinearOperator):
    """Inverse of (E)KFAC, replaces :class:`curvlinops.KFACInverseLinearOperator`.

    The factors of each group are damped and inverted separately. A number is added to
    both factors ``A`` and ``B``, a pair of numbers to ``A`` and to ``B``. Heuristic
    damping splits the number between the factors (Martens & Grosse, 2015, section 6.3).
    Exact damping adds it to ``B (x) A``, in its eigenbasis; EKFAC requires exact
    damping. A factor ``R^T R`` of few data, with a low-rank factor ``R``, is inverted
    by the smaller Gram matrix of ``R`` (Woodbury)::

        (R^T R + d I)^-1 = (I - R^T (R R^T + d I)^-1 R) / d

    Args:
        A: The operator to invert.
        damping: A non-negative number, or a pair of them for ``A`` and ``B``.
        use_heuristic_damping: Whether to split the damping between the factors.
        min_damping: Smallest damping of a factor with heuristic damping.
        use_exact_damping: Whether to add the damping to the Kronecker product.
        **options: As for :class:`curvlinops.KFACInverseLinearOperator`.

    Raises:
        TypeError: If ``A`` is not an operator of this package, or damping is not a
            number.
        ValueError: If damping is negative or not finite, or options exclude each other.
        torch.linalg.LinAlgError: At the first product, if a damped matrix is singular
            or has a negative eigenvalue.
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
        # curvlinops clears this attribute when a state is loaded
        cache = self._inverse_gradient_covariances
        if name in cache:
            return cache[name]
        try:
            found = self._inverted(name)
        except LinAlgError as error:
            owner, rule = type(self).__name__, "be positive definite"
            factors, remedy = (
                f"the damped factors of layer {name!r}",
                "Increase the damping",
            )
            given = f"singular or indefinite ones (damping = {self._damping})"
            remedy = "Increase the damping"
            message = describe(owner, factors, rule, given, remedy)
            raise LinAlgError(message) from error
        # EKFAC's eigenvalues may change
        if self._cache and not self._A._corrected_eigenvalues:
            cache[name] = found
        return found

    def _inverted(self, name: str) -> Blocks:
        if self._use_exact_damping:
            blocks = self._A._blocks_of(name)
            inverted = {k: b.eigh().inverse(self._damping) for k, b in blocks.items()}
            if not all(block.is_definite for block in inverted.values()):
                raise LinAlgError("a damped eigenvalue is not positive")
            return inverted
        retry = self._retry_double_precision
        decompose = partial(cholesky, retry_double_precision=retry)
        inverse = self._A._product(name).inverse(
            self._damping,
            "pi" if self._use_heuristic_damping else "fixed",
            self._min_damping,
            lambda factor, damping: factor.inverse(damping, decompose),
        )
        assert isinstance(inverse, KroneckerProduct)
        # a separate bias has the same damped inverse of B as the kernel
        return self._A._by_key(name, inverse)

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
        """Return the state without inverted factors, which are recomputed."""
        keys = ("inverse_input_covariances", "inverse_gradient_covariances")
        return {**super().state_dict(), **{key: {} for key in keys}}


def _checked(owner: str, name: str, value: Any) -> float:
    """Check that a damping is a finite number, and not negative."""
    if isinstance(value, (bool, str, complex)) or not hasattr(value, "__float__"):
        rule = "be a number, or a pair of them" if name == "damping" else "be a number"
        raise TypeError(describe(owner, name, rule, f"a {type(value).__name__}"))
    number = float(value)
    if not (isfinite(number) and number >= 0):
        raise ValueError(describe(owner, name, "be finite and non-negative", number))
    return number
