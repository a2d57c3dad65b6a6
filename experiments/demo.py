"""Trains a small CNN on digits with KFAC and others, then checks KFAC's factors.

``python -m experiments.demo``. Trains with SGD, AdamW and KFAC from the same weights on
the same batches, and plots how the loss falls. Compares KFAC's factors with those of
stock BackPACK; exits with 1 if one differs from stock's, or from unfolding where stock
does not support the layer.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from backpack import backpack, extend
from backpack.extensions import KFAC as StockKFAC
from backpack.extensions.secondorder.hbp.conv2d import HBPConv2d
from torch import Tensor, nn
from tqdm import tqdm

from experiments.contenders.quantities import Asked, contest
from experiments.harness.case import Options, Row, relative_error
from experiments.harness.measure import preload
from experiments.questions.training import ends, loss_figure
from experiments.subjects.images import digits
from experiments.subjects.layers import Layer
from experiments.subjects.training import Recipe, Setting, small_cnn, train
from tn_extensions import Conv, functional
from tn_extensions.backpack import KFAC

OPTIONS = {"damping": 0.03, "inverse_update_steps": 10, "factor_update_steps": 5}
RECIPES = (
    Recipe("SGD", 0.03),
    Recipe("AdamW", 0.01),
    Recipe("KFAC-expand", 0.03, OPTIONS),
    Recipe("KFAC-reduce", 0.03, OPTIONS),
)
"""The first sets the loss to reach; learning rates are the best of 0.005 to 0.1."""
TOLERANCE = 1e-4
"""Largest relative error of a factor, in the Frobenius norm."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, print; return 1 if some factors differ."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo", description=__doc__.splitlines()[0]
    )
    plot = Path(tempfile.gettempdir()) / "tn_extensions-demo.svg"
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=plot, help="the plot")
    args = parser.parse_args(arguments)

    preload("experiments.contenders.quantities")
    data, size = digits(), args.batch_size
    steps = args.epochs * (len(data.train.labels) // size)
    setting = Setting(data, steps, partial(small_cnn, data.pixels), 5, 256, size)
    print(f"Training a CNN of 4 convolutions on digits: {steps} steps of {size}")
    models, rows = train_all(setting)
    runs = pd.DataFrame(rows)
    table = ends(runs.assign(data=data.name, phase="run"))
    print(f"\n{table.droplevel(['data', 'seed']).to_string(float_format='%.3g')}\n")
    loss_figure(runs).savefig(args.output, bbox_inches="tight")
    print(f"Training loss against steps and time: {args.output}\n")

    # SGD's, as KFAC's has hooks
    compared = compare(models[0], *data.train.first(size))
    print(
        f"KFAC's factors of a batch of {size}, in stock BackPACK and ours, and the "
        "time and memory of the\ninput factor, stock's over ours, on "
        f"{torch.get_num_threads()} threads.\n"
    )
    print(compared.to_string(float_format="%.2g", na_rep=""))
    wrong = compared[~(compared["difference"] <= TOLERANCE)]
    if len(wrong):
        print(f"\nDiffers by more than rounding: {', '.join(wrong.index)}")
    return 1 if len(wrong) else 0


def train_all(
    setting: Setting, recipes: Sequence[Recipe] = RECIPES
) -> tuple[list[nn.Sequential], list[Row]]:
    """Train with each optimizer in turn; return the models and their evaluations."""
    models, rows = [], []
    for recipe in recipes:
        models.append(setting.model(seed=0))
        name = recipe.kind.ljust(12)
        with tqdm(total=setting.steps, desc=name, unit="step") as progress:
            for row in train(models[-1], recipe, setting, seed=0):
                rows.append(row)
                progress.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
                progress.update(row["step"] - progress.n)
    return models, rows


class _StepOverGroups(HBPConv2d):
    """Stock's rule, but a grouped weight gets no factors rather than an error."""

    def weight(self, ext: Any, module: Any, *args: Any) -> list[Tensor] | None:
        """Compute the factors if stock can."""
        return super().weight(ext, module, *args) if module.groups == 1 else None


def compare(model: nn.Sequential, inputs: Tensor, targets: Tensor) -> pd.DataFrame:
    """Compare our KFAC of a model's convolutions, a row each, with stock BackPACK's."""
    extension = StockKFAC()
    extension.set_module_extension(nn.Conv2d, _StepOverGroups(), overwrite=True)
    stock = _factors(model, extension, inputs, targets)
    ours = _factors(model, KFAC(), inputs, targets)
    found, x = {}, inputs
    for name, module in model.named_children():
        if isinstance(module, nn.Conv2d):
            weight = f"{name}.weight"
            row = found[name] = _measured(module, x)
            if weight in stock:
                row["difference"] = relative_error(ours[weight], stock[weight])
                row["compared with"] = "stock"
        x = module(x).detach()
    return pd.DataFrame.from_dict(found, orient="index")


def _factors(
    model: nn.Sequential, extension: Any, x: Tensor, targets: Tensor
) -> dict[str, list[Tensor]]:
    """Run a KFAC extension, with the same Monte-Carlo sample each time."""
    extended, loss_function = (
        extend(copy.deepcopy(model)),
        extend(nn.CrossEntropyLoss()),
    )
    torch.manual_seed(0)
    with warnings.catch_warnings(), backpack(extension):
        # BackPACK's hooks do not need the gradient of the images
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        loss_function(extended(x), targets).backward()
    found = {
        name: getattr(own, "kfac", None) for name, own in extended.named_parameters()
    }
    return {name: list(own) for name, own in found.items() if own is not None}


def _measured(module: nn.Conv2d, x: Tensor) -> dict[str, Any]:
    """Compare a layer's input factor with unfolding; measure time and memory."""
    layer = Layer("", Conv.from_module(module, tuple(x.shape[2:])))
    asked = Asked("kfac_expand", layer, len(x))
    found = contest(asked, x.device, ("stock", "ours")).rows(Options())
    rows = pd.DataFrame(found).set_index("contender")
    ratios = {
        name: rows[column]["stock"] / rows[column]["ours"]
        for name, column in (("time", "seconds"), ("memory", "bytes"))
        if column in rows
    }
    return {
        "layer": layer.name,
        "compared with": "unfolding",
        "difference": rows["error"]["ours"],
        **ratios,
        "plan": functional.plan("kfac_expand", x, layer.conv).summary,
    }


if __name__ == "__main__":
    sys.exit(main())
