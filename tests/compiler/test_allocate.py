"""Large results are ordinary tensors, wherever their memory comes from."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tn_extensions.compiler import allocate


@pytest.mark.parametrize("size", [0, 3, 2**22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("supported", [True, False])
def test_empty(
    size: int, dtype: torch.dtype, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocate, "_ALWAYS_FRESH", 2**23)
    if not supported:
        monkeypatch.setattr(allocate, "_madvise", lambda: None)
    like = torch.ones(2, dtype=dtype)
    result = allocate.empty((size, 1), like)
    assert result.shape == (size, 1) and result.dtype == dtype
    assert result.is_contiguous() and result.device == like.device
    result.fill_(2.0)
    assert result.sum() == 2 * size


def test_only_large_tensors_on_cpu_ask_for_huge_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    def advise(begin: int, length: int, _: int) -> int:
        asked.append((begin, length))
        return 0

    monkeypatch.setattr(allocate, "_madvise", lambda: advise)
    like = torch.ones(2)
    allocate.empty((1000,), like)
    allocate.empty((2**26,), like.to("meta"))
    assert not asked
    tensor = allocate.empty((2**24,), like)
    ((begin, length),) = asked
    assert begin % 2**21 == length % 2**21 == 0
    assert tensor.data_ptr() <= begin
    assert begin + length <= tensor.data_ptr() + 2**26
    assert length >= 2**26 - 2**22


@pytest.mark.parametrize("has_data", [True, False])
def test_where_tensors_are(has_data: bool) -> None:
    with nullcontext() if has_data else FakeTensorMode():
        x, y = torch.zeros(4), torch.zeros(4)
    assert allocate.memory_of(x) == allocate.memory_of(x[1:]) != allocate.memory_of(y)
    addresses = [allocate.address_of(own) for own in (x, x[1:], y, x.view(2, 2))]
    assert addresses[0] == addresses[3] and len({*addresses}) == 3


@pytest.mark.parametrize("least", [0, 2**30])
def test_copies_are_made_where_strides_demand_it(
    least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocate, "_ALWAYS_FRESH", least)
    x = torch.arange(24.0).view(2, 3, 4)
    assert allocate.contiguous(x) is x
    assert allocate.reshaped(x, (6, 4)).data_ptr() == x.data_ptr()
    turned = x.transpose(0, 2)
    copy = allocate.contiguous(turned)
    assert copy.is_contiguous() and copy.equal(turned)
    assert allocate.reshaped(turned, (12, 2)).equal(turned.reshape(12, 2))
    leaf = x.clone().requires_grad_()
    allocate.reshaped(leaf.transpose(0, 2), (24,)).sum().backward()
    assert leaf.grad is not None and leaf.grad.eq(1).all()


def test_systems_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: None) -> None:
        raise OSError

    find = allocate._madvise.__wrapped__
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find() is None
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert find() is None
