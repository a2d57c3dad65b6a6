"""Ways of contracting a network, one a file."""

from tn_extensions.compiler.primitives.base import Primitive
from tn_extensions.compiler.primitives.convolution import convolve
from tn_extensions.compiler.primitives.correlate import correlate
from tn_extensions.compiler.primitives.crossed import crossed
from tn_extensions.compiler.primitives.depthwise import depthwise
from tn_extensions.compiler.primitives.einsum import einsum
from tn_extensions.compiler.primitives.gram import gram, gram_of_rows
from tn_extensions.compiler.primitives.khatri_rao import khatri_rao
from tn_extensions.compiler.primitives.lag import lag
from tn_extensions.compiler.primitives.matmul import matmul
from tn_extensions.compiler.primitives.patch_gram import patch_gram
from tn_extensions.compiler.primitives.pixel import pixel
from tn_extensions.compiler.primitives.squares import squares
from tn_extensions.compiler.primitives.unfold import unfold
from tn_extensions.compiler.primitives.window import window

PRIMITIVES: tuple[Primitive, ...] = (
    unfold,
    window,
    lag,
    correlate,
    depthwise,
    matmul,
    einsum,
)
"""Primitives that need nothing of the planner.

:func:`gram`, :func:`gram_of_rows` and :func:`squares` plan their halves, too.
:func:`convolve` sees networks before they are simplified: as torch knows them.
"""

__all__ = ["PRIMITIVES", "convolve", "gram", "gram_of_rows", "squares"]
