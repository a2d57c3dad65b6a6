"""The names that matrices had before, for code that imports them from here."""

from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse as Cholesky
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix as Rotated
from tn_extensions.kronecker.kronecker_product import KroneckerProduct as Kronecker
from tn_extensions.kronecker.kronecker_product import KroneckerProduct as Product
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.kronecker.matrices import Matrix, matrix
from tn_extensions.kronecker.multiply import Block

__all__ = [
    "Block",
    "Cholesky",
    "Kronecker",
    "LowRank",
    "Matrix",
    "Product",
    "Rotated",
    "matrix",
]
