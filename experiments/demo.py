"""Trains a small CNN on digits with KFAC and others, then checks KFAC's factors.

``python -m experiments.demo``. Trains with SGD, AdamW and KFAC from the same weights on
the same batches, and plots how the loss falls. Compares KFAC's factors with those of
stock BackPACK; exits with 1 if one differs from stock's, or from a reference where
stock does not support the layer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from experiments import storage
from experiments.comparison import aligned, compare, render
from experiments.images import digits
from experiments.measure import preload
from experiments.training import Recipe, Setting, Training, first_at, small_cnn
from experiments.training_report import loss_chart

KFAC_OPTIONS = {"damping": 0.03, "inverse_update_steps": 10, "factor_update_steps": 5}
RECIPES = (
    Recipe("SGD", 0.03),
    Recipe("AdamW", 0.01),
    Recipe("KFAC-expand", 0.03, KFAC_OPTIONS),
    Recipe("KFAC-reduce", 0.03, KFAC_OPTIONS),
)
"""The first sets the loss that the others are to reach; learning rates are the best of
0.005 to 0.1."""
NUM_EVALUATED = 256
STEPS_PER_EVALUATION = 5
SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, print.

    Args:
        arguments: The command line. Default: the process's.

    Returns:
        0 if all factors agree, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo", description=__doc__.splitlines()[0]
    )
    plot = Path(tempfile.gettempdir()) / "tn_extensions-demo.svg"
    add = parser.add_argument
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=64)
    add("--rounds", type=int, default=7, help="of the timings of factors")
    add("--output", type=Path, default=plot, help=f"the plot (default: {plot})")
    args = parser.parse_args(arguments)

    preload("experiments.contenders")
    data = digits()
    setting = Setting(
        data=data,
        steps=args.epochs * (len(data.train.labels) // args.batch_size),
        batch_size=args.batch_size,
        make_model=partial(small_cnn, data.pixels),
        evaluate_every=STEPS_PER_EVALUATION,
        num_evaluated=NUM_EVALUATED,
    )
    print(
        f"Training a CNN of 4 convolutions on {len(data.train.labels)} digits: "
        f"{setting.steps} steps of batches of {args.batch_size}"
    )
    trainings = train_all(setting)
    print(f"\n{training_table(trainings)}\n")
    for training in trainings:
        print(f"{training.recipe.kind}: {training.recipe.text}")
    title = "A small CNN on digits"
    runs = [(training.recipe.kind, training.points) for training in trainings]
    storage.write_text(args.output, loss_chart(title, runs))
    print(f"\nTraining loss against steps and time: {args.output}\n")

    # SGD's, as KFAC's has hooks
    model = trainings[0].model
    inputs, targets = data.train.first(args.batch_size)
    comparisons = compare(model, inputs, targets, rounds=args.rounds)
    print(
        f"KFAC on a batch of {len(inputs)}, stock BackPACK and ours, one Monte-Carlo "
        f"sample with the same seed, {torch.get_num_threads()} threads.\n"
        "Difference: largest over a layer's factors, relative to the largest entry. "
        "Time, memory: the input\nfactor in float32, stock's over ours.\n"
    )
    print(render(comparisons))
    wrong = [c.layer for c in comparisons if not c.agrees]
    if wrong:
        print(f"\nDiffers by more than rounding: {', '.join(wrong)}")
    return 1 if wrong else 0


def train_all(setting: Setting, recipes: Sequence[Recipe] = RECIPES) -> list[Training]:
    """Train with each optimizer, one after the other, with a progress bar each."""
    trainings = [Training(recipe, setting, SEED) for recipe in recipes]
    width = max(len(recipe.kind) for recipe in recipes)
    for training in trainings:
        name = training.recipe.kind.ljust(width)
        with tqdm(total=setting.steps, desc=name, unit="step") as progress:
            for point in training:
                progress.set_postfix(loss=f"{point.loss:.3f}", refresh=False)
                progress.update(point.step - progress.n)
    return trainings


def training_table(trainings: Sequence[Training]) -> str:
    """How the trainings went, against the first one's."""
    target = trainings[0].points[-1].loss
    name = trainings[0].recipe.kind
    head = ["optimizer", "training loss", "test accuracy", "steps", "seconds"]
    head += ["ms a step", f"steps to {name}'s loss", "seconds to it"]
    rows = []
    for training in trainings:
        last, hit = training.points[-1], first_at(training.points, target)
        rows.append(
            [
                training.recipe.kind,
                f"{last.loss:.4f}",
                f"{last.accuracy:.1%}",
                str(last.step),
                f"{last.seconds:.1f}",
                f"{1e3 * last.seconds / last.step:.0f}",
                "not reached" if hit is None else str(hit.step),
                "" if hit is None else f"{hit.seconds:.1f}",
            ]
        )
    return aligned([head, *rows])


if __name__ == "__main__":
    sys.exit(main())
