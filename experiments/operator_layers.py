"""Where building an operator spends its time: the input factor of each layer.

A layer is measured alone, as the model ``Sequential(layer, pool, Flatten())`` on the
input that it has in the network. With ``fisher_type="forward-only"``, building KFAC is
a forward pass and the input factor; the time of a plain forward pass, measured in the
same rounds, is taken off. Layers of the same sizes are measured once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.measure import Call, time_side_by_side
from experiments.operator_costs import TOLERANCE
from experiments.operators import Case, Side, deviation, vector_like


class LayerRow(NamedTuple):
    """The layers of a network.

    Args:
        case: The operator and the network.
    """

    case: Case

    @property
    def title(self) -> str:
        """What is measured, in a line."""
        return f"layers of {self.case.title.rpartition(', ')[0]}"

    @property
    def exists(self) -> bool:
        """Whether ours has the operator, and its factors are made of inputs alone."""
        return not self.case.is_corrected and self.case.exists


class Layer(NamedTuple):
    """Layers of the same sizes.

    Args:
        name: Of the first one.
        module: The first one.
        x: Its input.
        num: How many there are.
    """

    name: str
    module: nn.Module
    x: Tensor
    num: int


def layers(case: Case) -> list[Layer]:
    """The layers of a network that ours supports."""
    model = case.subject.plain()
    kinds = case.take("ours", "KFACLinearOperator")._SUPPORTED_MODULES
    found: dict[str, tuple[str, nn.Module, Tensor]] = {}
    counts: Counter[str] = Counter()

    def record(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        (x,) = inputs
        # what is printed of a layer are its hyper-parameters
        key = f"{module} {list(x.shape)}"
        counts[key] += 1
        # an activation that works in place may come before the next layer
        found.setdefault(key, (name, module, x.detach().clone()))

    handles = [
        module.register_forward_pre_hook(partial(record, name=name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    images, _ = case.subject.batch(case.batch_size)
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return [Layer(*one, counts[key]) for key, one in found.items()]


def layer_parts(row: LayerRow, rounds: int) -> Iterator[Any]:
    """Time and compare the input factors of each layer; parts of a record."""
    case = row.case
    yield case.identity() | {"part": "layers"}
    records: list[dict[str, Any]] = []
    for layer in layers(case):
        records.append(_measure(case, layer, rounds))
        yield {"layers": records}


def _measure(case: Case, layer: Layer, rounds: int) -> dict[str, Any]:
    if isinstance(layer.module, nn.Linear):
        model = nn.Sequential(layer.module)
    else:
        pool = nn.AdaptiveAvgPool2d(1)
        model = nn.Sequential(layer.module, pool, nn.Flatten())
    batch = layer.x, torch.zeros(len(layer.x), dtype=torch.long)
    alone = case._replace(fisher_type="forward-only")
    sides: list[Side] = ["ours", "stock"]
    stock = case.take("stock", "KFACLinearOperator")
    if not isinstance(layer.module, stock._SUPPORTED_MODULES):
        sides = ["all"]
    built: dict[Side, Any] = {}

    def build(side: Side) -> None:
        built[side] = alone.build(side, model, batch)

    calls: dict[str, Call] = {side: partial(build, side) for side in sides}
    calls["forward"] = partial(model, layer.x)
    times = time_side_by_side(calls, rounds)
    record: dict[str, Any] = {
        "layer": layer.name,
        "module": repr(layer.module),
        "input": list(layer.x.shape),
        "count": layer.num,
        "forward_seconds": median(times["forward"]),
    }
    if "stock" in sides:
        vector = vector_like(case.parameters(model, "ours"))
        record["error"] = deviation(*(built[side] @ vector for side in sides))
        record["agrees"] = record["error"] <= TOLERANCE
    factors: dict[str, float | None] = {"ours": None, "stock": None}
    if record.get("agrees", True):
        for side in sides:
            both = zip(times[side], times["forward"], strict=True)
            whose = "stock" if side == "stock" else "ours"
            factors[whose] = median(whole - forward for whole, forward in both)
    return record | {"factor_seconds": factors}
