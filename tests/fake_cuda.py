"""A CUDA device that is not there: shapes and devices are computed, values are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tn_extensions.compiler.constant import Constant

CUDA, META = torch.device("cuda", 0), torch.device("meta")
_aten = torch.ops.aten
_WAITS = (
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.equal.default,
    _aten.masked_select.default,
    _aten.is_nonzero.default,
)
"""Operators whose result the host waits for."""

T = TypeVar("T")


class _Watch(TorchDispatchMode):
    """Refuses what makes the host wait for the device, or work in its place.

    torch's C++ code is told that tensors are on no device: its autograd engine would
    look for the streams of a device, and there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_hot = False
        self.operators: list[Any] = []
        self.constants: list[Constant] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator."""
        if func is torch.ops.prim.device.default:
            device = args[0].device
            return META if device == CUDA else device
        own = dict(kwargs or {})
        if own.get("device") == META:  # of C++ code that asked for a tensor's device
            own["device"] = CUDA
        if own.get("generator") is not None:
            own["generator"] = None
        if self.is_hot and func in _WAITS:
            raise AssertionError(f"{func} makes the host wait for the device")
        result = func(*args, **own)
        if self.is_hot:
            self.operators.append(func)
            _check_places(func, [args, own], result)
        return result

    @contextmanager
    def heated(self, is_hot: bool) -> Iterator[None]:
        """Refuse, or let pass."""
        before, self.is_hot = self.is_hot, is_hot
        try:
            yield
        finally:
            self.is_hot = before


class _Generator(torch.Generator):
    """A generator of the device, of which there is none."""

    device = CUDA

    def __new__(cls, device: Any = None) -> _Generator:
        """Make one of the host."""
        return super().__new__(cls)


def _check_places(func: Any, given: list[Any], result: Any) -> None:
    """Allow numbers on the host, which the device may read, but not the reverse."""
    of_given, of_result = map(_places, (given, result))
    if "cuda" in of_given and "cpu" in of_result:
        raise AssertionError(f"{func} makes the host wait for the device")
    for sizes in (of_given, of_result):
        if sizes.get("cpu", 0) > 1:
            raise AssertionError(f"{func} works on the host, on {sizes['cpu']} numbers")


def _places(tree: Any) -> dict[str, int]:
    """Largest number of entries of tensors, by the type of their device."""
    found: dict[str, int] = {}
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            kind = leaf.device.type
            found[kind] = max(found.get(kind, 0), leaf.numel())
    return found


class FakeCuda:
    """The device."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call a function.

        Nothing but single numbers may be on the host, and nothing may make it wait.
        Only constants come from there, the first time.
        """
        watch = self._watch
        for is_first in (True, False):
            watch.operators.clear()
            watch.constants.clear()
            with watch.heated(True):
                result = call(*arguments)
            assert watch.operators, "nothing ran on the device"
            if not watch.constants:
                break
            assert is_first, "a constant is made each time"
        for leaf in tree_leaves(result):
            assert not isinstance(leaf, Tensor) or leaf.device == CUDA
        return result

    @staticmethod
    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Make a tensor on the device."""
        return torch.empty(shape, dtype=dtype, device=CUDA)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Let tensors be made, and computed with, on a CUDA device without data."""
    with (
        FakeTensorMode(allow_non_fake_inputs=False),
        _Watch() as watch,
        pytest.MonkeyPatch.context() as patch,
    ):
        known: WeakSet[Constant] = WeakSet()
        make = Constant.like

        def like(constant: Constant, *arguments: Any) -> Tensor:
            # those that hold data are made once: see test_constant.py
            if constant not in known:
                known.add(constant)
                watch.constants.append(constant)
            with watch.heated(False):
                return make(constant, *arguments)

        patch.setattr(Constant, "like", like)
        patch.setattr(torch, "Generator", _Generator)
        yield FakeCuda(watch)
