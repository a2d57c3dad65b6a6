"""Primitives: ways of contracting a network, one per file."""

from tn_extensions.compiler.candidate import Primitive
from tn_extensions.compiler.primitives.convolution import convolve
from tn_extensions.compiler.primitives.crossed import crossed
from tn_extensions.compiler.primitives.einsum import einsum
from tn_extensions.compiler.primitives.embed import embed
from tn_extensions.compiler.primitives.factored import factored
from tn_extensions.compiler.primitives.fill import fill
from tn_extensions.compiler.primitives.fold import fold, fold_natively
from tn_extensions.compiler.primitives.gather import gather
from tn_extensions.compiler.primitives.gram import gram
from tn_extensions.compiler.primitives.khatri_rao import khatri_rao
from tn_extensions.compiler.primitives.lag import lag
from tn_extensions.compiler.primitives.matmul import matmul
from tn_extensions.compiler.primitives.pairwise import pairwise
from tn_extensions.compiler.primitives.patch_gram import patch_gram
from tn_extensions.compiler.primitives.pixel import pixel
from tn_extensions.compiler.primitives.squared import squared
from tn_extensions.compiler.primitives.unfold import unfold
from tn_extensions.compiler.primitives.window import window

PRIMITIVES: tuple[Primitive, ...] = (
    convolve,
    unfold,
    fold_natively,
    fold,
    window,
    matmul,
    lag,
    gram,
    factored,
    squared,
    crossed,
    khatri_rao,
    patch_gram,
    pixel,
    embed,
    gather,
    fill,
    pairwise,
    einsum,
)
"""All primitives; of equally cheap candidates, the first one is chosen."""

SELECTING: tuple[Primitive, ...] = (gather, fill, einsum)
"""Primitives for sampled positions; the others do not see networks with them."""

__all__ = ["PRIMITIVES", "SELECTING"]
