"""Kronecker-factored operators of curvlinops: stock's, ours, and bare gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.harness.case import Build, Call, Unsupported
from experiments.subjects.networks import Subject
from tn_extensions.curvlinops.release import LINE
from tn_extensions.kronecker.factors import trace

STOCK, OURS = "curvlinops", "tn_extensions.curvlinops"

KINDS = {
    "expand": ("KFACLinearOperator", "expand"),
    "reduce": ("KFACLinearOperator", "reduce"),
    "ekfac": ("EKFACLinearOperator", "expand"),
}
"""Classes of operators, stock's and ours, and the approximation."""

BACKENDS = ("hooks", "make_fx", "compiled", "ours")
"""Backends of the next line; ``"compiled"`` compiles what ``"make_fx"`` traces."""


class Setting(NamedTuple):
    """The choices that define an operator.

    Args:
        kind: A key of :data:`KINDS`.
        subject: The network.
        batch_size: Number of samples.
        device: Where to compute.
        fisher_type: As curvlinops has it.
    """

    kind: str
    subject: Subject
    batch_size: int
    device: torch.device
    fisher_type: str = "empirical"

    def make(self, small: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """Make the network and a batch; small ones for a warm-up.

        Decompositions of the network's factors would take stock minutes.
        """
        if small:
            layers = (nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 10))
            model: nn.Module = nn.Sequential(*layers)
            batch = torch.ones(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
        else:
            model = self.subject.plain()
            batch = self.subject.batch(self.batch_size)
        images, labels = (each.to(self.device) for each in batch)
        return model.to(self.device), (images, labels)


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


def factors(setting: Setting, backends: Sequence[str] = BACKENDS) -> dict[str, Build]:
    """List how to compute factors with backends of curvlinops' next line."""
    return {backend: partial(_factors, backend, setting) for backend in backends}


def _factors(backend: str, setting: Setting, small: bool = False) -> Call:
    model, batch = setting.make(small)
    name, approx = KINDS[setting.kind]
    # as our operators call it: factors of few data stay vectors
    options = {"groups": "separate"} if backend == "ours" else {}
    computer = take(OURS, name)._BACKENDS[
        {"ours": "tn", "compiled": "make_fx"}.get(backend, backend)
    ](
        model,
        nn.CrossEntropyLoss(),
        parameters(model, (nn.Conv2d, nn.Linear)),
        [batch],
        fisher_type=setting.fisher_type,
        kfac_approx=approx,
        check_deterministic=False,
        num_data=len(batch[0]),
        num_per_example_loss_terms=1,
        **options,
    )
    if backend != "compiled":
        compute: Callable[[], Any] = computer.compute
        return compute
    if setting.kind == "ekfac":
        raise Unsupported("EKFAC's eigenvalues have no function to compile beforehand")
    traced, mapping = computer._trace_batch_functions()
    compiled = {size: torch.compile(traced[size]) for size in traced}
    return lambda: computer._compute_kronecker_factors((compiled, mapping))


def traces(found: Sequence[Any]) -> Tensor:
    """Compute the traces of all factors; of EKFAC's blocks, by their eigenvalues."""
    left, right, *others, _ = found
    if others:
        return torch.stack([one.sum() for _, one in sorted(others[0].items())])
    values = [one for own in (left, right) for _, one in sorted(own.items())]
    # without groups, factors have no axis for them
    return torch.stack(
        [trace(each.reshape(-1, *each.shape[-2:])).sum() for each in values]
    )
