"""Operators of curvlinops, with the same signatures, for every convolution.

Use them in place of curvlinops' own::

    from tn_extensions.curvlinops import KFACLinearOperator
"""

from tn_extensions.curvlinops import release  # noqa: F401 (checks the version first)
from tn_extensions.curvlinops.ekfac import EKFACLinearOperator
from tn_extensions.curvlinops.ggn_diagonal import GGNDiagonalLinearOperator
from tn_extensions.curvlinops.ggn_gram import GGNGramLinearOperator
from tn_extensions.curvlinops.inverse import KFACInverseLinearOperator
from tn_extensions.curvlinops.kfac import KFACLinearOperator

__all__ = [
    "EKFACLinearOperator",
    "GGNDiagonalLinearOperator",
    "GGNGramLinearOperator",
    "KFACInverseLinearOperator",
    "KFACLinearOperator",
]
