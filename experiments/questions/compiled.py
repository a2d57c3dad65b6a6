"""What does torch.compile make of our operators, and of hooks on a model?

KFAC-expand factors by functions (*eager*), by `torch.ops.tn_extensions` (*operators*),
and *compiled* to one graph; then training passes of a model with and without a
preconditioner's hooks, in steps that update no factors. *graphs* is how many the
compiler made: more than one is a break, and none of a compiled call is that it gave up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from experiments.contenders.quantities import SMALL, normal
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.measure import Call
from experiments.harness.question import Question
from experiments.subjects.layers import Layer, layers_of
from experiments.subjects.networks import Subject
from tn_extensions import functional
from tn_extensions.optim import KFACPreconditioner

Makes = dict[str, Callable[[], Call]]


def cases(options: Options) -> Iterator[Case]:
    """List a tiny layer, all factors of a network, and passes with hooks."""
    network = "2c2d" if options.quick else "resnet18"
    layers = [each for each in layers_of(network) for _ in range(each.occurrences)]
    subject = Subject("3c3d" if options.quick else "resnet18")
    parts: dict[str, Callable[[Options], Makes]] = {
        "kfac_expand of a tiny layer": partial(_factors, [SMALL]),
        f"kfac_expand of {network}": partial(_factors, layers),
        f"passes of {subject.title}": partial(_passes, subject),
    }
    for title, makes in parts.items():
        yield Case({"part": title}, _rows, makes)


def _rows(makes: Callable[[Options], Makes], options: Options) -> Iterator[Row]:
    graphs: dict[str, int] = {}

    def build(name: str, make: Callable[[], Call], small: bool) -> Call:
        call = make()
        counters.clear()
        call()
        graphs[name] = counters["stats"]["unique_graphs"]
        return call

    contest = Contest(
        {name: partial(build, name, make) for name, make in makes(options).items()},
        notes=lambda name: {"graphs": graphs[name]},
        weighed=False,
    )
    yield from contest.rows(options)


def _factors(layers: list[Layer], options: Options) -> Makes:
    """Compute the input factors: by functions, by operators, and compiled."""
    size = 2 if options.quick else 8
    inputs = [normal(layer.input_shape(size), options.device) for layer in layers]
    convs = [layer.conv for layer in layers]

    def eager(inputs: list[Tensor]) -> list[Tensor]:
        pairs = zip(inputs, convs, strict=True)
        return [functional.kfac_expand(x, conv) for x, conv in pairs]

    def operators(inputs: list[Tensor]) -> list[Tensor]:
        operator = torch.ops.tn_extensions.kfac_expand
        pairs = zip(inputs, convs, strict=True)
        return [operator(x, conv.to_ints()) for x, conv in pairs]

    compiled = torch.compile(eager, fullgraph=True, backend=_backend(options))
    calls = {"eager": eager, "operators": operators, "compiled": compiled}
    return {name: partial(partial, call, inputs) for name, call in calls.items()}


def _backend(options: Options) -> str:
    # compiling for a machine takes longer than a quick look
    return "eager" if options.quick else "inductor"


def _passes(subject: Subject, options: Options) -> Makes:
    """Run forward and backward passes, with hooks that want no statistics."""
    size = 2 if options.quick else 8
    images, labels = (each.to(options.device) for each in subject.batch(size))

    def run(model: Callable[[Tensor], Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    def make(hooks: bool, compiles: bool) -> Call:
        model: Any = subject.plain().train().to(options.device)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # averages over all batches break the graph
        if hooks:
            preconditioner = KFACPreconditioner(model, factor_update_steps=10**6)
            run(model)
            preconditioner.step()  # the only one that updates factors
        if compiles:
            model = torch.compile(model, backend=_backend(options))
        return partial(run, model)

    return {
        f"{'compiled' if compiles else 'eager'}{' with hooks' if hooks else ''}": (
            partial(make, hooks, compiles)
        )
        for compiles in (False, True)
        for hooks in (False, True)
    }


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show milliseconds, and ratios to the eager calls."""
    timed = rows[rows["seconds"].notna()].set_index(["part", "contender"])
    seconds = timed["seconds"]
    eager = seconds.xs("eager", level="contender")
    found = {"ms": seconds * 1e3, "times eager": seconds.div(eager, level="part")}
    return {"Times": pd.DataFrame(found | {"graphs": timed["graphs"]})}


QUESTION = Question(__doc__, cases, tables)
