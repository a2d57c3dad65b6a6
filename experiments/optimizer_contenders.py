"""Training steps: SGD's, those with our preconditioner, and with the usual factors.

The contender is our preconditioner, too, but for what its factors are computed with:
curvlinops' patches and matrix products, into matrices however few the data are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

import torch
from curvlinops.kfac_utils import extract_averaged_patches, extract_patches
from torch import Tensor, nn

from experiments.models import Subject
from tn_extensions.kronecker.factors import dense, is_low_rank
from tn_extensions.kronecker.square import mirrored
from tn_extensions.layers.module import Pairs, Use
from tn_extensions.optim import KFACPreconditioner, statistics
from tn_extensions.optim import layer as layer_module
from tn_extensions.optim.layer import Layer

LR = 1e-3
MOMENTUM = 0.9
NEVER = 2**40
"""More steps than are taken."""

Side = Literal["sgd", "ours", "stock"]
Kind = Literal["plain", "factors", "inverses"]
"""What a step updates: nothing, factors, or inverses as well."""

STOCK_NAMES = {"expand": "unfold", "reduce": "averaged patches"}
"""How the contender's input factors are computed, by approximation."""


class Case(NamedTuple):
    """A network that is trained.

    Args:
        subject: The network.
        batch_size: Number of samples.
        approx: As the preconditioner has it.
        is_late: Whether averages are matrices as they become in the long run, when more
            data than half their size went in. At first, ours are roots.
    """

    subject: Subject
    batch_size: int
    approx: str
    is_late: bool = True

    @property
    def title(self) -> str:
        """What is measured, in a line."""
        when = "in the long run" if self.is_late else "first steps"
        return f"{self.approx}, {self.subject.title}, batch {self.batch_size}, {when}"

    def identity(self) -> dict[str, Any]:
        """What is measured, for a record."""
        return {
            "approx": self.approx,
            "is_late": self.is_late,
            "contender": STOCK_NAMES[self.approx],
            "network": self.subject.network,
            "pixels": self.subject.pixels,
            "batch_size": self.batch_size,
        }


class Training:
    """A model in training; each has its own, the same at first.

    Args:
        model: The model.
        batch: What it is trained on.
        side: Whose factors it is trained with, if any.
        **options: Of the preconditioner.
    """

    def __init__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], side: Side, **options: Any
    ) -> None:
        self.model = model.train()
        self._batch = batch
        self._side = side
        self._kind: Kind = "inverses"
        self._optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        self.preconditioner: Any = None
        if side != "sgd":
            with catch_warnings():
                simplefilter("ignore")  # normalisation keeps its gradient
                self.preconditioner = KFACPreconditioner(
                    model,
                    lr=LR,
                    factor_update_steps=lambda _: self._every("factors", "inverses"),
                    inverse_update_steps=lambda _: self._every("inverses"),
                    **options,
                )

    @classmethod
    def of(cls, case: Case, side: Side) -> Training:
        """A side of a case."""
        model = case.subject.plain()
        batch = case.subject.batch(case.batch_size)
        return cls(model, batch, side, approx=case.approx)

    @property
    def layers(self) -> dict[str, Layer]:
        """The preconditioned layers by name."""
        layers: dict[str, Layer] = self.preconditioner._layers
        return layers

    def step(self, kind: Kind) -> None:
        """A step of training; the first one updates everything, whatever is asked."""
        self._kind = kind
        with _usual_factors() if self._side == "stock" else nullcontext():
            self.backward()
            if self.preconditioner is not None:
                self.preconditioner.step()
            self._optimizer.step()

    def backward(self) -> None:
        """A forward and a backward pass."""
        images, labels = self._batch
        self._optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()

    def update_factors(self) -> None:
        """A pass and the averages of its factors, but no step: parameters stay."""
        self._kind = "factors"
        self.backward()
        with torch.no_grad():
            for layer in self.layers.values():
                layer.resolve(self.preconditioner.steps)
            self.preconditioner._update_factors(self.layers)

    def start(self, is_late: bool, with_step: bool = True) -> None:
        """The first step, or only its factors; see :class:`Case`."""
        limit = 0.0 if is_late else statistics.RANK_LIMIT
        with (
            patch.object(layer_module, "RANK_LIMIT", limit),
            patch.object(statistics, "RANK_LIMIT", limit),
        ):
            if with_step:
                self.step("inverses")
            else:
                self.update_factors()

    def invert(self) -> None:
        """Update all inverses, as a step does where they are due."""
        layers = self.layers
        self.preconditioner._processes.update_inverses(list(layers.values()))

    def _every(self, *kinds: Kind) -> int:
        return 1 if self._kind in kinds else NEVER

    # -- what came out

    def averages(self) -> dict[str, Tensor]:
        """The averaged factors as matrices, by layer and kind."""
        return {
            f"{name}.{what}": dense(own) if is_low_rank(own) else mirrored(own)
            for name, layer in self.layers.items()
            for what, own in layer.averages.items()
        }

    def gradients(self) -> dict[str, Tensor]:
        """The last step's gradients, preconditioned where they are."""
        return {
            name: own.grad.clone()
            for name, own in self.model.named_parameters()
            if own.grad is not None
        }

    def averages_bytes(self) -> int:
        """Bytes of the averages, as they are held."""
        layers = self.layers.values()
        return sum(own.nbytes for each in layers for own in each.averages.values())

    def inverses_bytes(self) -> int:
        """Bytes of the inverses, as they are held, but for what averages share."""
        layers = self.layers.values()
        shared = {t.data_ptr() for each in layers for t in each.averages.values()}
        own = (tensor for each in layers for tensor in _tensors(each.inverse))
        return sum(each.nbytes for each in own if each.data_ptr() not in shared)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an inverse and its parts."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


# -- the usual factors


@contextmanager
def _usual_factors() -> Iterator[None]:
    """Let preconditioners compute factors as curvlinops does."""
    with (
        patch.object(layer_module, "add_input_factor", add_input_factor),
        patch.object(layer_module, "add_gradient_factor", add_gradient_factor),
        patch.object(layer_module, "RANK_LIMIT", 0.0),
        patch.object(statistics, "RANK_LIMIT", 0.0),
    ):
        yield


def add_input_factor(
    uses: Sequence[Use],
    approx: str,
    factor: Tensor | None,
    scale: float,
    bias: bool,
    rank_limit: float,
) -> Tensor:
    """As :func:`tn_extensions.kronecker.factors.add_input_factor`, by patches.

    Raises:
        NotImplementedError: Of layers that curvlinops does not support.
    """
    (use,) = uses
    x = _patches(use, approx)
    if approx == "expand":
        scale /= x.shape[1]
        x = x.flatten(0, 1)
    else:
        x = x.mean(1)
    if bias:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    covariance = (x.T @ x).mul_(scale).unsqueeze(0)
    return covariance if factor is None else factor.add_(covariance)


def add_gradient_factor(
    pairs: Pairs, approx: str, factor: Tensor | None, scale: float, rank_limit: float
) -> Tensor:
    """As :func:`tn_extensions.kronecker.factors.add_gradient_factor`, by a product."""
    ((_, gradient),) = pairs
    if approx == "expand":
        g = gradient.transpose(1, 2).flatten(0, 1)
    else:
        g = gradient.sum(2)
    covariance = (g.T @ g).mul_(scale).unsqueeze(0)
    return covariance if factor is None else factor.add_(covariance)


def _patches(use: Use, approx: str) -> Tensor:
    """Patches ``[N, P, D]``; of KFAC-reduce, their means ``[N, 1, D]``."""
    conv, x = use.conv, use.x
    if use.is_linear:
        return x.transpose(1, 2)
    paddings = [dim.padding for dim in conv.dims]
    is_plain = conv.groups == 1 and conv.padding_mode == "zeros"
    is_even = all(left == right for left, right in paddings)
    if not (is_plain and is_even and len(conv.dims) == 2) or conv.transposed:
        raise NotImplementedError(f"the usual factors are not those of {conv}")
    sizes = (
        tuple(dim.kernel_size for dim in conv.dims),
        tuple(dim.stride for dim in conv.dims),
        tuple(left for left, _ in paddings),
        tuple(dim.dilation for dim in conv.dims),
    )
    if approx == "expand":
        return extract_patches(x, *sizes, groups=1)
    return extract_averaged_patches(x, *sizes, groups=1).unsqueeze(1)
