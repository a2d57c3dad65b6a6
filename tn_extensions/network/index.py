"""Index names: priming, and rendering to einsum letters.

An index is a string such as ``"n"``, ``"ci"`` or ``"k1"``. The second copy of an index
carries the suffix ``p``: ``"k1p"``.
"""

from __future__ import annotations

from collections.abc import Iterable

from opt_einsum import get_symbol

_PRIME = "p"


def prime(index: str) -> str:
    """Return the name of the second copy of an index.

    >>> prime("k1")
    'k1p'
    """
    return index + _PRIME


def mirrored(index: str) -> str:
    """Return the name of the other copy of an index.

    >>> mirrored("k1p"), mirrored("k1")
    ('k1', 'k1p')
    """
    return index[: -len(_PRIME)] if is_primed(index) else prime(index)


def is_primed(index: str) -> bool:
    """Tell whether a name is the name of a second copy."""
    return index.endswith(_PRIME)


def letters(indices: Iterable[str]) -> dict[str, str]:
    """Assign an einsum symbol to each index, in order, without a limit of 52.

    >>> letters(["n", "ci", "n"])
    {'n': 'a', 'ci': 'b'}
    """
    distinct = dict.fromkeys(indices)
    return {index: get_symbol(number) for number, index in enumerate(distinct)}
