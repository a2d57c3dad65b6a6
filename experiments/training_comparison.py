"""Steps and time that KFAC takes to the training loss of tuned SGD.

``python -m experiments.training_comparison --help`` lists the options. Each optimizer
gets the same number of runs to find its hyper-parameters, those of the least final
training loss (a mean over two seeds). The best are run again from other seeds, and take
turns so that their times compare. Writes JSON and, beside it, a Markdown report and a
figure (see ``experiments.training_report``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from experiments import machine, storage, training_report
from experiments.images import DEBIAN_FASHION, Images, digits, fashion_mnist
from experiments.training import (
    KINDS,
    MOMENTUM,
    WARM_UP,
    Recipe,
    Setting,
    Training,
    small_cnn,
)

RESULTS = Path(__file__).parent / "results"
NUM_TRAIN = 12000
"""Training images: so many that tuned SGD is still learning when time is up."""
WIDTH = 8
BATCH_SIZE = 64
STEPS = 240
NUM_EVALUATIONS = 24
QUICK_STEPS, QUICK_EVALUATIONS = 20, 4
NUM_EVALUATED = 2048
SEARCH_SEEDS = (0, 4, 6, 7)
"""Four: of two, hyper-parameters of KFAC-reduce were chosen that worked by luck."""
SEEDS = (1, 2, 3)
"""Of the final runs."""
SCHEDULE: dict[str, Any] = {
    "inverse_update_steps": 10,
    "factor_update_steps": 5,
    # an average over the last 25 steps
    "ema_decay": 0.8,
}
"""Of all kinds of KFAC."""
LEARNING_RATES = {
    "SGD": (0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3),
    "AdamW": (0.002, 0.004, 0.008, 0.012, 0.016, 0.024, 0.032, 0.048),
}
KFAC_TRIALS = tuple(product((0.03, 0.1), (0.01, 0.03, 0.1, 0.3)))
"""Learning rates and damping."""


def grid(kind: str) -> list[Recipe]:
    """Hyper-parameters to try, as many for each kind of optimizer."""
    if kind in LEARNING_RATES:
        return [Recipe(kind, lr) for lr in LEARNING_RATES[kind]]
    return [
        Recipe(kind, lr, {"damping": damping, **SCHEDULE})
        for lr, damping in KFAC_TRIALS
    ]


def find_images(folder: Path | None, name: str | None = None) -> Images:
    """Fashion-MNIST where it is found, else digits.

    Args:
        folder: Where to look first.
        name: What must be found. Default: either.

    Raises:
        FileNotFoundError: If the folder, or no place, has what must be found.
    """
    if name != "digits":
        found = fashion_mnist([folder or DEBIAN_FASHION, DEBIAN_FASHION])
        if found is not None:
            return found._replace(train=found.train.first(NUM_TRAIN))
        if folder is not None or name is not None:
            raise FileNotFoundError(f"no Fashion-MNIST in {folder or DEBIAN_FASHION}")
    return digits()


def search(
    setting: Setting,
    grids: Mapping[str, Sequence[Recipe]],
    seeds: Sequence[int] = SEARCH_SEEDS,
) -> Iterator[Any]:
    """Run all recipes on few test images; records with what each ended with."""
    data = setting.data._replace(test=setting.data.test.first(setting.num_evaluated))
    at_end = replace(setting, data=data, evaluate_every=setting.steps)
    recipes = [recipe for own in grids.values() for recipe in own]
    for recipe in tqdm(recipes, desc="search", unit="run"):
        lasts = [list(Training(recipe, at_end, seed))[-1] for seed in seeds]
        yield {**_described(recipe), "lasts": [last._asdict() for last in lasts]}


def best(trials: Sequence[Mapping[str, Any]]) -> dict[str, Recipe]:
    """The recipe of each kind whose training loss is least at the end."""
    found: dict[str, tuple[float, Recipe]] = {}
    for trial in trials:
        kind = trial["kind"]
        loss = mean(last["loss"] for last in trial["lasts"])
        if kind not in found or loss < found[kind][0]:
            found[kind] = loss, Recipe(kind, trial["lr"], trial["options"])
    return {kind: recipe for kind, (_, recipe) in found.items()}


def run_side_by_side(
    setting: Setting, recipes: Sequence[Recipe], seed: int
) -> list[dict[str, Any]]:
    """Train with all recipes in turns, from the same weights on the same batches."""
    trainings = [Training(recipe, setting, seed) for recipe in recipes]
    with tqdm(total=setting.steps, desc=f"seed {seed}", unit="step") as progress:
        for points in zip_longest(*trainings):
            reached = max(point.step for point in points if point is not None)
            progress.update(reached - progress.n)
    return [
        {
            **_described(training.recipe),
            "seed": seed,
            "points": [point._asdict() for point in training.points],
        }
        for training in trainings
    ]


def _described(recipe: Recipe) -> dict[str, Any]:
    return {**asdict(recipe), "text": recipe.text}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Compare as the command line says; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.training_comparison",
        description=__doc__.splitlines()[0],
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        help="folder of Fashion-MNIST: torchvision's root, or that of the IDX files "
        f"(default: {DEBIAN_FASHION}, else scikit-learn's digits)",
    )
    add("--images", choices=("fashion-mnist", "digits"), help="default: see --data")
    add("--steps", type=int, default=STEPS, help=f"of a run (default: {STEPS})")
    add("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the final runs")
    add("--threads", type=int, help="default: torch's")
    add(
        "--quick",
        action="store_true",
        help=f"{QUICK_STEPS} steps, two trials a kind, one seed",
    )
    add("--output", type=Path, help=f"default: training-DATA-cpu.json in {RESULTS}")
    args = parser.parse_args(arguments)
    try:
        data = find_images(args.data, args.images)
    except FileNotFoundError as reason:
        parser.error(f"--data: {reason}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    steps, evaluations, seeds = args.steps, NUM_EVALUATIONS, args.seeds
    if args.quick:
        steps, evaluations, seeds = QUICK_STEPS, QUICK_EVALUATIONS, seeds[:1]
    setting = Setting(
        data=data,
        steps=steps,
        batch_size=BATCH_SIZE,
        make_model=partial(small_cnn, data.pixels, WIDTH),
        evaluate_every=max(1, steps // evaluations),
        num_evaluated=NUM_EVALUATED,
    )
    grids = {kind: grid(kind) for kind in KINDS}
    if args.quick:
        grids = {kind: [own[1], own[-2]] for kind, own in grids.items()}
    output = args.output or RESULTS / f"training-{data.name}-cpu.json"
    content = compare(setting, grids, seeds)
    storage.write_json(output, content)
    written = training_report.write(output)
    print(training_report.summary(content))
    print("\n".join(map(str, [output, *written])))
    return Path(output)


def compare(
    setting: Setting,
    grids: Mapping[str, Sequence[Recipe]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Search, then run the best from all seeds; what a result file holds."""
    content: dict[str, Any] = {
        "metadata": machine.describe(torch.device("cpu"))
        | setting.described()
        | {
            "momentum of SGD and KFAC": MOMENTUM,
            "learning rates": f"warm-up in {WARM_UP:.0%} of the steps, then a cosine",
            "seeds of the search": list(SEARCH_SEEDS),
            "seeds": list(seeds),
        },
    }
    content["search"] = list(search(setting, grids))
    recipes = list(best(content["search"]).values())
    content["runs"] = [
        run for seed in seeds for run in run_side_by_side(setting, recipes, seed)
    ]
    return content


if __name__ == "__main__":
    main()
