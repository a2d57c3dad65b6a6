"""Kronecker-factored operators of curvlinops: stock's, ours, and bare gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.harness.case import Unsupported
from experiments.harness.measure import Build, Call
from experiments.subjects.networks import Subject, small_batch
from tn_extensions.curvlinops.release import LINE

STOCK, OURS = "curvlinops", "tn_extensions.curvlinops"

KINDS = {
    "expand": ("KFACLinearOperator", "expand"),
    "reduce": ("KFACLinearOperator", "reduce"),
    "ekfac": ("EKFACLinearOperator", "expand"),
}
"""Classes of operators, stock's and ours, and the approximation."""


class Setting(NamedTuple):
    """The choices that define an operator; ``kind`` is a key of :data:`KINDS`."""

    kind: str
    subject: Subject
    batch_size: int
    device: torch.device
    fisher_type: str = "empirical"

    def make(self, small: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """Make the network and a batch; small ones for a warm-up."""
        if small:
            model, (images, labels) = small_batch()
        else:
            model = self.subject.plain()
            images, labels = self.subject.batch(self.batch_size)
        return model.to(self.device), (images.to(self.device), labels.to(self.device))


def require(line: str) -> None:
    """Raise an error if another line of curvlinops' releases is installed."""
    if line != LINE:
        raise Unsupported(f"needs curvlinops' line {line!r}, {LINE!r} is installed")


def take(library: str, name: str) -> Any:
    """Take a class of a library."""
    return getattr(import_module(library), name)


def parameters(model: nn.Module, kinds: Any) -> dict[str, nn.Parameter]:
    """List the parameters of some kinds of layers."""
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    wanted = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    return {n: p for n, p in model.named_parameters() if id(p) in wanted}


def contenders(setting: Setting) -> dict[str, Build]:
    """List how to build an operator, of all layers that stock supports."""
    return {
        "stock": partial(_build, STOCK, STOCK, setting),
        "ours": partial(_build, OURS, STOCK, setting),
    }


def baselines(setting: Setting) -> dict[str, Build]:
    """List a bare gradient, and our operator of all layers, if there are more."""
    found: dict[str, Build] = {"gradient": partial(gradient, setting)}
    model = setting.subject.plain()
    if len(supported(model, OURS)) > len(supported(model)):
        found["ours, all layers"] = partial(_build, OURS, OURS, setting)
    return found


def supported(model: nn.Module, library: str = STOCK) -> list[nn.Parameter]:
    """List the parameters of the layers that a library's operators support."""
    kinds = take(library, "KFACLinearOperator")._SUPPORTED_MODULES
    return [*parameters(model, kinds).values()]


def _build(library: str, whose: str, setting: Setting, small: bool = False) -> Call:
    model, batch = setting.make(small)
    name, approx = KINDS[setting.kind]

    def call() -> Any:
        operator = take(library, name)(
            model,
            nn.CrossEntropyLoss(),
            supported(model, whose),
            [batch],
            fisher_type=setting.fisher_type,
            check_deterministic=False,
            kfac_approx=approx,
        )
        operator.compute_kronecker_factors()
        if setting.kind == "ekfac":
            operator.compute_eigenvalue_correction()
        return operator

    return call


def gradient(setting: Setting, small: bool = False) -> Call:
    """Build the forward and backward pass alone."""
    model, (images, labels) = setting.make(small)
    wanted = [*parameters(model, (nn.Conv2d, nn.Linear)).values()]

    def call() -> Sequence[Tensor]:
        loss = nn.functional.cross_entropy(model(images), labels)
        return torch.autograd.grad(loss, wanted)

    return call
