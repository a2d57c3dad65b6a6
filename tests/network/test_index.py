"""Index names."""

from __future__ import annotations

import pytest

from tn_extensions.network.index import is_primed, letters, mirrored, prime


@pytest.mark.parametrize("index", ["n", "g", "ci", "k1", "o12", "v"])
def test_priming_is_undone_by_mirroring(index: str) -> None:
    assert not is_primed(index)
    assert is_primed(prime(index))
    assert mirrored(prime(index)) == index
    assert mirrored(index) == prime(index)


def test_letters_are_distinct_beyond_the_alphabet() -> None:
    names = [f"i{number}" for number in range(500)]
    symbols = letters(names + names)
    assert list(symbols) == names
    assert len(set(symbols.values())) == 500
    assert all(len(symbol) == 1 for symbol in symbols.values())
