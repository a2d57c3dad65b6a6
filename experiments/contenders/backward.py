"""Backward passes under ``with backpack(extension)``: stock's, ours, plain ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from backpack import backpack, extend, extensions
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor, nn

from experiments.harness.case import Build
from experiments.subjects.networks import REPLACEABLE, Subject

_LIBRARIES = {"stock": "backpack.extensions", "ours": "tn_extensions.backpack"}


def contenders(
    extension: str, subject: Subject, batch_size: int, device: torch.device
) -> dict[str, Build]:
    """List an extension's backward passes, ready to be built; plain ones are last."""
    found: dict[str, Build] = {}
    for name, library in (*_LIBRARIES.items(), ("plain", None)):
        found[name] = partial(Pass, library, extension, subject, batch_size, device)
    return found


class Pass:
    """A backward pass, each time after a forward pass.

    Args:
        library: Module that has the extension. None: a plain backward pass.
        extension: Name of what to compute beside the gradient.
        subject: The network.
        batch_size: Number of samples.
        device: Where to compute.
        small: Whether to take one sample only.
    """

    def __init__(
        self,
        library: str | None,
        extension: str,
        subject: Subject,
        batch_size: int,
        device: torch.device,
        small: bool = False,
    ) -> None:
        self._extensions = (
            [] if library is None else [getattr(import_module(library), extension)()]
        )
        self.model = subject.build(replaced(extension, subject)).to(device)
        self._loss_function = extend(nn.CrossEntropyLoss())
        images, labels = subject.batch(1 if small else batch_size)
        self._images, self._labels = images.to(device), labels.to(device)
        self._loss: Tensor | None = None

    def before(self) -> None:
        """Forget former results, and run the forward pass."""
        for parameter in self.model.parameters():
            parameter.grad = None
            for extension in self._extensions:
                vars(parameter).pop(extension.savefield, None)
        self._loss = self._loss_function(self.model(self._images), self._labels)
        # Monte-Carlo samples are drawn by the backward pass
        torch.manual_seed(0)

    def __call__(self) -> dict[str, Any]:
        """Run the backward pass; return what is saved, by the parameter's name."""
        assert self._loss is not None
        with warnings.catch_warnings(), backpack(*self._extensions):
            # BackPACK's hooks do not need the gradient of the images
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            # ours says so for each BatchNorm without factors
            warnings.filterwarnings("ignore", category=UserWarning, message=".*skipped")
            self._loss.backward()
        return {
            name: getattr(parameter, extension.savefield)
            for name, parameter in self.model.named_parameters()
            for extension in self._extensions
            if hasattr(parameter, extension.savefield)
        }


def replaced(extension: str, subject: Subject) -> list[type[nn.Module]]:
    """List the kinds of modules that stock cannot backpropagate through.

    First-order extensions step over modules that they do not know.
    """
    stock = getattr(extensions, extension)()
    if not stock.expects_backpropagation_quantities():
        return []
    known: Mapping[type[nn.Module], ModuleExtension] = vars(stock)[
        "_BackpropExtension__module_extensions"
    ]
    candidates = REPLACEABLE.get(subject.network, ())
    return [kind for kind in candidates if kind not in known]
