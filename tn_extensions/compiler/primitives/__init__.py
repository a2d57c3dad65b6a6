"""Ways of contracting a network, one a file."""

from tn_extensions.compiler.primitives.base import Composite, Primitive
from tn_extensions.compiler.primitives.convolution import convolve
from tn_extensions.compiler.primitives.correlate import correlate
from tn_extensions.compiler.primitives.crossed import crossed
from tn_extensions.compiler.primitives.depthwise import depthwise
from tn_extensions.compiler.primitives.einsum import einsum
from tn_extensions.compiler.primitives.embed import embed
from tn_extensions.compiler.primitives.gram import gram
from tn_extensions.compiler.primitives.khatri_rao import khatri_rao
from tn_extensions.compiler.primitives.lag import lag
from tn_extensions.compiler.primitives.matmul import matmul
from tn_extensions.compiler.primitives.patch_gram import patch_gram
from tn_extensions.compiler.primitives.pixel import pixel
from tn_extensions.compiler.primitives.rows import rows
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
"""Ways of evaluating a simplified network, its patterns joined or not."""

COMPOSITES: tuple[Composite, ...] = (gram, pixel, embed)
"""The same, of parts that are planned in turn."""

NATIVE: tuple[Primitive, ...] = (convolve,)
"""Ways of evaluating a network as it was defined: as torch knows it."""

HALVES: tuple[Composite, ...] = (squares, rows, crossed, khatri_rao, patch_gram)
"""The same, of mirrored networks whose halves may be what torch knows."""

__all__ = ["COMPOSITES", "HALVES", "NATIVE", "PRIMITIVES"]
