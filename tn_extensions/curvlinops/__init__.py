"""Operators with curvlinops' names and signatures, for every convolution.

Import them instead of curvlinops' own::

    from tn_extensions.curvlinops import KFACLinearOperator
"""

from typing import TYPE_CHECKING, Any

from tn_extensions.curvlinops.release import INSTALLED, LINE, refusal

if TYPE_CHECKING or LINE == "3.0":
    from tn_extensions.curvlinops.ekfac import EKFACLinearOperator
    from tn_extensions.curvlinops.ggn_diagonal import GGNDiagonalLinearOperator
    from tn_extensions.curvlinops.ggn_gram import GGNGramLinearOperator
    from tn_extensions.curvlinops.inverse import KFACInverseLinearOperator
    from tn_extensions.curvlinops.kfac import KFACLinearOperator
    from tn_extensions.curvlinops.kfoc import KFOCLinearOperator

    __all__ = [
        "EKFACLinearOperator",
        "GGNDiagonalLinearOperator",
        "GGNGramLinearOperator",
        "KFACInverseLinearOperator",
        "KFACLinearOperator",
        "KFOCLinearOperator",
    ]
else:
    try:
        from tn_extensions.curvlinops.next_line import (
            EKFACLinearOperator,
            KFACLinearOperator,
            KFOCLinearOperator,
        )
    except ImportError as error:
        # this release differs from the one that the adapter was written for
        raise refusal(INSTALLED) from error

    __all__ = ["EKFACLinearOperator", "KFACLinearOperator", "KFOCLinearOperator"]

_REMEDIES = {
    "KFACInverseLinearOperator": "Call the operator's inverse(damping=...)",
    "GGNDiagonalLinearOperator": "Use curvlinops.GGNDiagonalLinearOperator",
    "GGNGramLinearOperator": "Install 'curvlinops-for-pytorch==3.0.1'",
}
"""Alternatives to operators that exist only for curvlinops' line 3.0."""


def __getattr__(name: str) -> Any:
    if name in _REMEDIES and LINE != "3.0":
        raise ImportError(
            f"tn_extensions.curvlinops: {name} must be used with curvlinops' line 3.0, "
            f"got the one after it. {_REMEDIES[name]}."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
