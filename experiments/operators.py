"""Operators of curvlinops on whole networks: build, compare, weigh."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from experiments.backward_passes import Saved, largest_difference, num_bytes
from experiments.measure import peak_memory
from experiments.models import Subject

STOCK = "curvlinops"
OURS = "tn_extensions.curvlinops"
MEMORY_TIMEOUT_SECONDS = 3600.0
"""Stock's eigendecompositions of ResNet-18 take minutes."""

Side = Literal["ours", "stock", "all", "plain"]
"""``"all"``: ours, of all parameters that it supports."""

Batch = tuple[Tensor, Tensor]


KINDS = {
    "expand": ("KFACLinearOperator", "expand"),
    "reduce": ("KFACLinearOperator", "reduce"),
    "ekfac": ("EKFACLinearOperator", "expand"),
}
"""Classes of curvlinops, and of ours, and the approximation."""


class Case(NamedTuple):
    """An operator of a network on a batch.

    Args:
        subject: The network.
        batch_size: Number of samples.
        kind: A key of :data:`KINDS`.
        fisher_type: As curvlinops has it.
        library: The module whose operators are ours.
    """

    subject: Subject
    batch_size: int
    kind: str
    fisher_type: str = "empirical"
    library: str = OURS

    @property
    def title(self) -> str:
        """What is measured, in a line."""
        workload = f"{self.subject.title}, batch {self.batch_size}"
        return f"{self.kind}, {workload}, {self.fisher_type}"

    @property
    def exists(self) -> bool:
        """Whether ours has the operator."""
        name, _ = KINDS[self.kind]
        return hasattr(importlib.import_module(self.library), name)

    @property
    def is_corrected(self) -> bool:
        """Whether it has eigenvalues of its own, for which it decomposes factors."""
        return self.kind == "ekfac"

    def identity(self) -> dict[str, Any]:
        """What is measured, for a record."""
        return {
            "kind": self.kind,
            "network": self.subject.network,
            "pixels": self.subject.pixels,
            "batch_size": self.batch_size,
            "fisher_type": self.fisher_type,
        }

    def take(self, side: Side, name: str) -> Any:
        """A class of stock's or ours."""
        library = STOCK if side == "stock" else self.library
        return getattr(importlib.import_module(library), name)

    def parameters(self, model: nn.Module, side: Side) -> list[nn.Parameter]:
        """What a side is built of: for a fair comparison, of what stock supports."""
        of: Side = "ours" if side == "all" else "stock"
        return supported(model, self.take(of, "KFACLinearOperator"))

    def build(self, side: Side, model: nn.Module, batch: Batch) -> Any:
        """An operator with all that its products need."""
        name, approx = KINDS[self.kind]
        operator = self.take(side, name)(
            model,
            nn.CrossEntropyLoss(),
            self.parameters(model, side),
            [batch],
            fisher_type=self.fisher_type,
            check_deterministic=False,
            kfac_approx=approx,
        )
        operator.compute_kronecker_factors()
        if self.is_corrected:
            operator.compute_eigenvalue_correction()
        return operator

    def run(self, side: Side, model: nn.Module, batch: Batch) -> Any:
        """Build; or else only the gradient."""
        if side != "plain":
            return self.build(side, model, batch)
        images, labels = batch
        loss = nn.functional.cross_entropy(model(images), labels)
        return torch.autograd.grad(loss, self.parameters(model, side))

    def invert(self, side: Side, operator: Any, options: Mapping[str, Any]) -> Any:
        """The damped inverse, which is computed by its first product."""
        return self.take(side, "KFACInverseLinearOperator")(operator, **options)


def supported(model: nn.Module, operator: Any) -> list[nn.Parameter]:
    """Parameters of the layers that a class of operators supports."""
    return [
        parameter
        for module in model.modules()
        # a constant of curvlinops' classes, and so of ours
        if isinstance(module, operator._SUPPORTED_MODULES)
        for parameter in module.parameters(recurse=False)
    ]


def vector_like(parameters: list[nn.Parameter]) -> list[Tensor]:
    """What to multiply operators by, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(p.shape, generator=generator) for p in parameters]


def deviation(ours: list[Tensor], stock: list[Tensor]) -> float:
    """Largest difference of products, relative to each tensor's largest entry."""
    return largest_difference({"": ours}, {"": stock})


def trace_deviation(ours: Any, stock: Any) -> float:
    """Relative difference of the operators' traces.

    Eigenvectors of close eigenvalues are not determined: within rounding, EKFACs may
    differ by as much as their eigenvalues are close, but not so their traces.
    """
    expected = float(stock.trace)
    return abs(float(ours.trace) - expected) / abs(expected)


def kept_bytes(operator: Any) -> int:
    """Bytes of what a built operator keeps, besides the network."""
    state = operator.state_dict()
    del state["model_func_state_dict"]
    return num_bytes(_tensors(state))


def _tensors(state: Mapping[Any, Any]) -> Saved:
    found: Saved = {"": []}
    for value in state.values():
        if isinstance(value, Tensor):
            found[""].append(value)
        elif isinstance(value, Mapping):
            found[""] += _tensors(value)[""]
    return found


def peak_of_build(case: Case, side: Side) -> int:
    """Peak memory of building an operator in a fresh process, its factors included.

    Args:
        case: The operator, the network and the batch.
        side: Whose operator, if any.

    Returns:
        Bytes beyond what is there before the forward pass.

    Raises:
        MemoryNotMeasured: If it could not be measured.
    """
    prepare = partial(_prepare_for_memory, case, side)
    return peak_memory(prepare, timeout=MEMORY_TIMEOUT_SECONDS)


def _prepare_for_memory(
    case: Case, side: Side
) -> tuple[Callable[[], object], Callable[[], Tensor]]:
    model = case.subject.plain()
    batch = case.subject.batch(case.batch_size)

    def warm_up() -> None:
        # libraries load for an operator of a few weights: decompositions of this one's
        # factors would take minutes
        small = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 10))
        case.run(side, small, (torch.ones(2, 3, 4, 4), torch.zeros(2).long()))
        case.run("plain", model, batch)

    def run() -> Tensor:
        case.run(side, model, batch)
        # factors are no tensor; who asks knows their size
        return torch.empty(0)

    return warm_up, run
