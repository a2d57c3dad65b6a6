"""A CUDA device that is not there: shapes and devices are computed, values are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class _Watch(TorchDispatchMode):
    """Refuse what makes the host wait for the device, or work in its place.

    torch's C++ code is told that tensors are on no device: its autograd engine would
    look for the streams of a device, and there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_hot = False
        self.operators = 0

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
        if self.is_hot and func in _WAITS:
            raise AssertionError(f"{func} makes the host wait for the device")
        result = func(*args, **own)
        if self.is_hot:
            self.operators += 1
            for leaf in tree_leaves((args, own, result)):
                if isinstance(leaf, Tensor) and _is_on_host(leaf):
                    shape = list(leaf.shape)
                    raise AssertionError(f"{func} meets {shape} on the {leaf.device}")
        return result


def _is_on_host(tensor: Tensor) -> bool:
    """Tell whether a tensor is on the host, and more than a number."""
    return tensor.device.type == "cpu" and tensor.numel() > 1


class FakeCuda:
    """What runs on the device.

    >>> with fake_cuda() as cuda:
    ...     x = cuda.tensor(2, 3)
    ...     with cuda.hot():
    ...         _ = x @ x.T
    """

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    @contextmanager
    def hot(self) -> Iterator[None]:
        """Allow nothing on the host, and nothing that it waits for."""
        before, self._watch.operators, self._watch.is_hot = self._watch.is_hot, 0, True
        try:
            yield
        finally:
            self._watch.is_hot = before
        assert self._watch.operators, "nothing ran on the device"

    @staticmethod
    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor on the device."""
        return torch.empty(shape, dtype=dtype, device=CUDA)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Let tensors be made and computed with on a CUDA device without data."""
    with FakeTensorMode(allow_non_fake_inputs=False), _Watch() as watch:
        yield FakeCuda(watch)
