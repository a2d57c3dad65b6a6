"""What many processes send and invert, on paper: nothing is measured.

Of a network's layers, with factors of ``D`` columns in float32, ``P`` processes, of
which ``W = max(1, fraction P)`` multiply by each layer's inverse and form one of ``P /
W`` columns (see ``tn_extensions.optim.distributed``), the busiest process

- sends and receives, for an update of the factors, the triangles of all of them in a
  ring: ``2 (P - 1) / P * sum 4 D (D + 1) / 2`` bytes;
- receives, for an update of the inverses, those of its column's layers that others
  invert: ``sum 4 D^2`` bytes (none if ``W = 1``);
- receives, in each step, the preconditioned gradients of all layers of other columns:
  4 bytes a parameter (none if ``W = P``);
- inverts its layers: ``sum D^3`` multiply-adds, a third for Cholesky's decomposition,
  two thirds for the inverse. Layers are assigned as the package assigns them.

SGD's average of gradients comes in addition. Factors are taken as matrices, as they are
in the long run; messages take no time of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from tn_extensions.optim.distributed import _assignment, _cost
from tn_extensions.optim.find import find_layers
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.options import LayerOptions

PROCESSES = tuple(2**i for i in range(11))
FRACTIONS = (0.0, 0.5, 1.0)
_BYTES = 4


class Rates(NamedTuple):
    """What a process can do.

    Args:
        gigabytes: It receives so many in a second.
        gigaflops: It inverts with so many billion multiply-adds in a second.
        factor_steps: Steps between updates of factors.
        inverse_steps: Steps between updates of inverses.
    """

    gigabytes: float = 10.0
    gigaflops: float = 1000.0
    factor_steps: int = 10
    inverse_steps: int = 100


class PaperRow(NamedTuple):
    """A network of torchvision on many processes."""

    network: str
    rates: Rates

    @property
    def title(self) -> str:
        """What is computed, in a line."""
        return f"scaling on paper, {self.network}"


class Sizes(NamedTuple):
    """Sizes of a layer's factors, their number, and that of its parameters."""

    columns: tuple[int, ...]
    groups: int
    parameters: int

    @classmethod
    def of(cls, layer: Layer) -> Sizes:
        """Those of a layer."""
        weight = layer.module.weight
        groups = getattr(layer.module, "groups", 1)
        out = layer.out_channels // groups
        inputs = weight.numel() // groups // out + layer.is_joint
        number = sum(p.numel() for p in layer.parameters.values())
        return cls((inputs, out), groups, number)

    @property
    def triangle_bytes(self) -> int:
        """Bytes of the factors' triangles."""
        return sum(_BYTES * self.groups * d * (d + 1) // 2 for d in self.columns)

    @property
    def inverse_bytes(self) -> int:
        """Bytes of the inverses."""
        return sum(_BYTES * self.groups * d**2 for d in self.columns)

    @property
    def inversion(self) -> int:
        """Multiply-adds of inverting the factors."""
        return sum(self.groups * d**3 for d in self.columns)


def paper_parts(row: PaperRow) -> Iterator[dict[str, Any]]:
    """Compute a network's table; parts of a record."""
    layers = layers_of(row.network)
    yield {
        "part": "paper",
        "rates": row.rates._asdict(),
        "rows": [
            costs(layers, size, fraction, row.rates)
            for size in PROCESSES
            for fraction in fractions(size)
        ],
    }


def fractions(size: int) -> list[float]:
    """Shares of processes that differ in how many they are."""
    if size == 1:
        return [1.0]
    known = {max(1, int(size * each)): each for each in reversed(FRACTIONS)}
    return [each for each in FRACTIONS if each in known.values()]


def layers_of(network: str) -> list[Layer]:
    """The preconditioned layers of a network of torchvision, without values."""
    with torch.device("meta"):
        model: nn.Module = getattr(import_module("torchvision.models"), network)()
    options = LayerOptions("expand", 1e-3, "pi", 0.95, False)
    with catch_warnings():
        simplefilter("ignore")  # normalisation keeps its gradient
        return list(find_layers("paper", model, options, (), {}).values())


def costs(
    layers: Sequence[Layer], size: int, fraction: float, rates: Rates
) -> dict[str, float]:
    """What the busiest of some processes sends, receives and inverts."""
    workers = max(1, round(size * fraction))
    columns = size // workers
    sizes = [Sizes.of(layer) for layer in layers]
    owners = _assignment([_cost(layer) for layer in layers], size)
    inverses, gradients, inversions = [0] * size, [0] * size, [0] * size
    for own, owner in zip(sizes, owners, strict=True):
        inversions[owner] += own.inversion
        for rank in range(size):
            if rank % columns != owner % columns:
                gradients[rank] += _BYTES * own.parameters
            elif rank != owner:
                inverses[rank] += own.inverse_bytes
    factors = 2 * (size - 1) / size * sum(own.triangle_bytes for own in sizes)
    seconds = max(inversions) / rates.gigaflops / 1e9
    num_bytes = factors / rates.factor_steps + max(inverses) / rates.inverse_steps
    return {
        "processes": size,
        "fraction": fraction,
        "factor_bytes": factors,
        "inverse_bytes": max(inverses),
        "gradient_bytes": max(gradients),
        "inversion_seconds": seconds,
        "communication_seconds_a_step": (num_bytes + max(gradients))
        / (rates.gigabytes * 1e9),
        "inversion_seconds_a_step": seconds / rates.inverse_steps,
    }
