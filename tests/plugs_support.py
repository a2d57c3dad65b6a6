"""The support table: run our plugs and their toolkits, and compare with autograd.

``python -m tests.plugs_support`` writes ``docs/plugs_support.md``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from captum._utils.sample_gradient import SampleGradientWrapper
from kronfluence.module.tracked_module import TrackedModule
from kronfluence.module.utils import wrap_tracked_modules
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

import tn_extensions.captum
import tn_extensions.kronfluence
import tn_extensions.opacus
from tests.backpack import support_cases, support_page
from tests.backpack.run import targets
from tests.backpack.support import TOLERANCE, Saved, classify
from tests.backpack.support_cases import Case, Variants
from tests.backpack.support_page import Outcome, Outcomes, Place
from tests.test_kronfluence import Classification

PAGE = Path(__file__).parents[1] / "docs" / "plugs_support.md"
TABLES = ("Convolutions", "Transposed convolutions")
LEFT_OUT = ("frozen weight", "bfloat16 autocast")
"""Rows of BackPACK's table that are not about hyper-parameters or inputs."""


def opacus_gradients(case: Case, loss: Callable[[Tensor], Tensor]) -> Saved:
    """Run ``grad_sample_mode="hooks"``."""
    wrapped = GradSampleModule(case.model)
    loss(wrapped(case.x)).backward()
    return {name: p.grad_sample for name, p in case.model.named_parameters()}


def opacus_norms(case: Case, loss: Callable[[Tensor], Tensor]) -> Saved:
    """Run ``grad_sample_mode="ghost"``."""
    wrapped = GradSampleModuleFastGradientClipping(case.model)
    loss(wrapped(case.x)).backward()
    return {name: p._norm_sample for name, p in case.model.named_parameters()}


def captum_gradients(case: Case, loss: Callable[[Tensor], Tensor]) -> Saved:
    """Run ``sample_wise_grads_per_batch=True``."""
    wrapper: Any = SampleGradientWrapper(case.model)
    wrapper.add_hooks()
    # captum hooks inputs, which must require a gradient
    output = case.model(case.x.clone().requires_grad_())
    wrapper.compute_param_sample_gradients(loss(output), "mean")
    return {name: p.sample_grad for name, p in case.model.named_parameters()}


def kronfluence_gradients(case: Case, loss: Callable[[Tensor], Tensor]) -> Saved:
    """Run what scores are made of, as scores do."""

    class Tracked(Classification):
        def get_influence_tracked_modules(self) -> list[str]:
            names = (name for name, _ in case.model.named_parameters())
            return list(dict.fromkeys(name.rpartition(".")[0] for name in names))

    case = case._replace(model=copy.deepcopy(case.model))
    model, saved = wrap_tracked_modules(case.model, Tracked()), {}

    def hook(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        def save(g: Tensor) -> None:
            g = g * len(case.x)  # the loss is a mean
            found = module.compute_per_sample_gradient(inputs[0].detach(), g)
            layer = module.original_module
            bias = layer.bias is not None
            weight, column = found.tensor_split([found.shape[2] - bias], 2)
            saved[f"{name}.weight"] = as_weight(layer, weight)
            if bias:
                saved[f"{name}.bias"] = column.squeeze(2)

        output.register_hook(save)

    for name, module in model.named_modules():
        if isinstance(module, TrackedModule):
            module.register_forward_hook(partial(hook, name))
    loss(model(case.x)).backward()
    return saved


def as_weight(layer: Any, matrices: Tensor) -> Tensor:
    """Lay matrices ``[N, C_out, CI * K]`` out as the layer's weight."""
    if getattr(layer, "transposed", False):
        of_groups = matrices.unflatten(1, (layer.groups, -1))
        channels = layer.in_channels // layer.groups
        matrices = of_groups.unflatten(3, (channels, -1)).transpose(2, 3)
    return matrices.reshape(-1, *layer.weight.shape)


COLUMNS: dict[str, tuple[Any, Callable[..., Saved]]] = {
    "Opacus, gradients": (tn_extensions.opacus, opacus_gradients),
    "Opacus, norms": (tn_extensions.opacus, opacus_norms),
    "captum, gradients": (tn_extensions.captum, captum_gradients),
    "kronfluence, gradients": (tn_extensions.kronfluence, kronfluence_gradients),
}
"""Our plug and what runs the toolkit, on a model of its own."""


def expected(case: Case, name: str) -> Saved:
    """Gradients of each sample's loss, one backward pass a sample; or their norms."""
    model = case.model if case.twin is None else case.twin
    names, y = dict(model.named_parameters()), targets(len(case.x))
    each = [
        torch.autograd.grad(
            nn.functional.cross_entropy(model(case.x[n : n + 1]), y[n : n + 1]),
            list(names.values()),
        )
        for n in range(len(case.x))
    ]
    columns = map(torch.stack, zip(*each, strict=True))
    gradients = dict(zip(names, columns, strict=True))
    if not name.endswith("norms"):
        return gradients
    return {key: g.flatten(1).norm(dim=1) for key, g in gradients.items()}


def compare(make_case: Callable[[], Case], name: str) -> tuple[Outcome, Outcome]:
    """Outcomes with our plug, and of the toolkit alone."""
    plug, run = COLUMNS[name]
    wanted = cache(lambda: expected(make_case(), name))

    def saved() -> Saved:
        case = make_case()
        y = targets(len(case.x))
        found = run(case, lambda output: nn.functional.cross_entropy(output, y))
        return {key: value.detach() for key, value in found.items()}

    plug.register()
    try:
        own = classify(saved, wanted)
    finally:
        plug.unregister()
    return own, classify(saved, wanted)


def tables() -> dict[str, dict[str, Variants]]:
    """By table and line: the cases."""
    return {
        title: {row: v for row, v in rows.items() if row not in LEFT_OUT}
        for title, rows in support_cases.tables().items()
        if title in TABLES
    }


def survey(
    chosen: Mapping[str, Mapping[str, Variants]], names: Sequence[str] = (*COLUMNS,)
) -> Outcomes:
    """Run toolkits on cases."""
    return {
        Place(table, row, name, variant): compare(make_case, name)
        for table, rows in chosen.items()
        for row, variants in rows.items()
        for variant, make_case in variants.items()
        for name in names
    }


INTRODUCTION = """# Opacus, captum, kronfluence: what is supported

[Plugs](plugs.md) (ours), and Opacus {opacus}, captum {captum} and kronfluence
{kronfluence} alone (stock), with torch {torch}. Made by

```bash
python -m tests.plugs_support
```

which runs both and compares gradients of each sample, or their norms, with a backward
pass for each sample. Cells and models are those of [BackPACK's tables](support.md).
*Correct* means that the gradients of all parameters are there and differ from the
reference by at most {tolerance} of the largest entry.

Opacus' columns are `grad_sample_mode="hooks"` and `"ghost"`, captum's
`sample_wise_grads_per_batch=True`, kronfluence's the gradients that its scores are made
of. Subclasses stay with the toolkit.
"""


def introduction(**versions: str) -> str:
    """Write the introduction of the page."""
    tolerance = f"{TOLERANCE:g}".replace("e-0", "e-")
    return INTRODUCTION.format(tolerance=tolerance, **versions)


def render(outcomes: Outcomes) -> str:
    """Write the page."""
    found = support_page.cells(outcomes)
    names = ("opacus", "captum", "kronfluence", "torch")
    versions = {name: version(name).split("+")[0] for name in names}
    lines = introduction(**versions).splitlines()
    for title in TABLES:
        lines += ["", f"## {title}", "", *support_page.table_of(found, title)]
    lines += ["", "## What ours does not support", "", *support_page.reasons(outcomes)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.plugs_support", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=PAGE)
    output = parser.parse_args().output
    output.write_text(render(survey(tables())), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
