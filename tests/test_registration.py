"""Entries of registries: put in, and taken back."""

from __future__ import annotations

from tn_extensions.registration import Registration


def test_put_and_take_back() -> None:
    registry = {"a": 1, "b": 2}
    registration = Registration((registry, {"a": 10, "c": 30}))
    for _ in range(2):
        registration.put()
        assert registry == {"a": 10, "b": 2, "c": 30}
    for _ in range(2):
        registration.take_back()
        assert registry == {"a": 1, "b": 2}
    registration.put()
    assert registry == {"a": 10, "b": 2, "c": 30}


def test_entries_that_somebody_replaced_stay() -> None:
    registry = {"a": 1}
    registration = Registration((registry, {"a": 10, "c": 30}))
    registration.put()
    registry["a"] = 11
    del registry["c"]
    registration.take_back()
    assert registry == {"a": 11}
