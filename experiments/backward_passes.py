"""Backward passes under ``with backpack(extension)``: run, compare, time, weigh."""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from backpack import backpack, extend
from backpack.extensions.backprop_extension import BackpropExtension
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor, nn

from experiments.measure import peak_memory
from experiments.models import REPLACEABLE, Subject

STOCK = "backpack.extensions"
OURS = "tn_extensions.backpack"

Side = Literal["ours", "stock", "plain"]
Saved = dict[str, list[Tensor]]
"""What an extension has saved for each parameter, by the parameter's name."""


class Row(NamedTuple):
    """An extension on a network.

    Args:
        subject: The network.
        extension: Name of the extension.
        library: The module whose extension is ours.
    """

    subject: Subject
    extension: str
    library: str = OURS

    @property
    def title(self) -> str:
        """What is measured, in a line."""
        return f"{self.extension}, {self.subject.title}"

    @property
    def exists(self) -> bool:
        """Whether ours has the extension."""
        return hasattr(importlib.import_module(self.library), self.extension)

    def make_extension(self, side: Side) -> BackpropExtension | None:
        """Our extension or stock's; None for a plain backward pass."""
        if side == "plain":
            return None
        library = importlib.import_module(STOCK if side == "stock" else self.library)
        return getattr(library, self.extension)()

    def replaced(self) -> list[type[nn.Module]]:
        """Kinds of modules that stock cannot backpropagate through.

        First-order extensions step over modules that they do not know.
        """
        extension = self.make_extension("stock")
        if extension is None or not extension.expects_backpropagation_quantities():
            return []
        candidates = REPLACEABLE.get(self.subject.network, ())
        return [kind for kind in candidates if kind not in _by_kind(extension)]


class Pass:
    """A backward pass, each time after a forward pass.

    Args:
        model: An extended network.
        images: Its input.
        labels: Targets of the cross entropy.
        extension: What to compute beside the gradient, kept in ``extensions``.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        extension: BackpropExtension | None,
    ) -> None:
        self._model = model
        self._loss_function = extend(nn.CrossEntropyLoss())
        self._batch = images, labels
        self.extensions = () if extension is None else (extension,)
        self._loss: Tensor | None = None

    def forward(self) -> None:
        """Forget former results and prepare the next backward pass."""
        self.forget()
        images, labels = self._batch
        self._loss = self._loss_function(self._model(images), labels)
        # Monte-Carlo samples are drawn by the backward pass
        torch.manual_seed(0)

    def backward(self) -> None:
        """Run the backward pass."""
        assert self._loss is not None
        with warnings.catch_warnings(), backpack(*self.extensions):
            # BackPACK's hooks do not need the gradient of the images
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            # ours says so for each BatchNorm without factors
            warnings.filterwarnings("ignore", category=UserWarning, message=".*skipped")
            self._loss.backward()

    def saved(self) -> Saved:
        """What the extension has saved, for the parameters that have it."""
        found: Saved = {}
        for name, parameter in self._model.named_parameters():
            for extension in self.extensions:
                value = getattr(parameter, extension.savefield, None)
                if value is not None:
                    found[name] = [value] if isinstance(value, Tensor) else list(value)
        return found

    def forget(self) -> None:
        """Drop gradients and what the extension has saved."""
        self._loss = None
        for parameter in self._model.parameters():
            parameter.grad = None
            for extension in self.extensions:
                vars(parameter).pop(extension.savefield, None)


class ExtractionTimer:
    """Adds up the seconds that an extension spends on parameters.

    The rest of its time goes to backpropagation. An extension may learn of further
    modules while it runs: make the timer after a first pass.

    Args:
        extension: Its modules' methods for parameters are replaced by timed ones.
    """

    def __init__(self, extension: BackpropExtension) -> None:
        self.seconds = 0.0
        self._running = False
        for one in set(_by_kind(extension).values()):
            for name in vars(one)["_ModuleExtension__params"]:
                setattr(one, name, self._timed(getattr(one, name)))

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            if self._running:
                # a method that uses another one pays for it already
                return method(*arguments, **keywords)
            self._running = True
            start = time.perf_counter()
            try:
                return method(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - start
                self._running = False

        return run


def _by_kind(extension: BackpropExtension) -> dict[type[nn.Module], ModuleExtension]:
    return vars(extension)["_BackpropExtension__module_extensions"]


def largest_difference(ours: Saved, stock: Saved) -> float:
    """Largest difference of an entry, relative to its tensor's largest entry.

    Returns:
        The difference; infinite if the parameters, the number of tensors or their
        shapes differ, or where an entry is not a number.
    """
    if list(ours) != list(stock):
        return math.inf
    largest = 0.0
    for name, theirs in stock.items():
        if [a.shape for a in ours[name]] != [b.shape for b in theirs]:
            return math.inf
        for a, b in zip(ours[name], theirs, strict=True):
            scale = max(float(b.abs().max()), torch.finfo(b.dtype).tiny)
            difference = float((a - b).abs().max()) / scale
            if math.isnan(difference):
                return math.inf
            largest = max(largest, difference)
    return largest


def num_bytes(saved: Saved) -> int:
    """Bytes of all tensors; memory that several of them share counts once."""
    held: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for tensors in saved.values():
        for tensor in tensors:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            size = tensor.numel() * tensor.element_size()
            held[storage.data_ptr()] = held.get(storage.data_ptr(), 0) + size
    # what a small view keeps alive of a large storage is overhead, not result
    return sum(min(size, sizes[key]) for key, size in held.items())


def peak_of_backward(
    row: Row, side: Side, batch_size: int, steady: bool = False
) -> int:
    """Peak memory of a backward pass in a fresh process, its results included.

    Args:
        row: The extension and the network.
        side: Whose extension, if any.
        batch_size: Number of samples.
        steady: Whether to warm up on the whole batch rather than on one sample. What a
            first pass leaves for others of the same shape, such as plans and oneDNN's
            primitives, does not count then.

    Returns:
        Bytes beyond what is there after the forward pass.

    Raises:
        MemoryNotMeasured: If it could not be measured.
    """
    warm_up_size = batch_size if steady else 1
    prepare = partial(_prepare_for_memory, row, side, batch_size, warm_up_size)
    return peak_memory(prepare)


def _prepare_for_memory(
    row: Row, side: Side, batch_size: int, warm_up_size: int
) -> tuple[Callable[[], object], Callable[[], Tensor]]:
    model = row.subject.build(row.replaced())
    extension = row.make_extension(side)
    measured = Pass(model, *row.subject.batch(batch_size), extension)
    first = Pass(model, *row.subject.batch(warm_up_size), extension)

    def warm_up() -> None:
        first.forward()
        first.backward()
        # last, since BackPACK keeps inputs and outputs of one forward pass only
        measured.forward()

    def run() -> Tensor:
        measured.backward()
        # results are no tensor; who asks knows their size
        return torch.empty(0)

    return warm_up, run


def affordable_batch_size(
    peak: Callable[[int], int], wanted: int, limit: float
) -> tuple[int, int]:
    """Halve a batch size until a backward pass fits into memory.

    Peaks are affine in the batch size: a backward pass holds quantities of parameters
    and quantities of samples.

    Args:
        peak: Peak memory in bytes by batch size; it is asked for one and two samples.
        wanted: The batch size to begin with.
        limit: Bytes.

    Returns:
        The batch size, at least one, and its estimated peak.
    """
    one, two = (peak(batch_size) for batch_size in (1, 2))

    def estimate(batch_size: int) -> int:
        return one + max(two - one, 0) * (batch_size - 1)

    batch_size = wanted
    while batch_size > 1 and estimate(batch_size) > limit:
        batch_size //= 2
    return batch_size, estimate(batch_size)


def names(kinds: Collection[type[nn.Module]]) -> list[str]:
    """Names of kinds of modules."""
    return [kind.__name__ for kind in kinds]
