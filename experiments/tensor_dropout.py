"""Which axes are worth sampling, and what does training with tensor dropout lose?

``python -m experiments.tensor_dropout --help`` lists the options. Measures errors of
sampled weight gradients of a CNN's layers while it trains, against the share of the
input that is kept; bytes that are saved for a backward pass; and training, each way
with as many trials of its learning rate. Writes JSON and, beside it, a Markdown report
and figures (see ``experiments.tensor_dropout_report``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments import machine, storage, tensor_dropout_report
from experiments.dropout import saved_bytes
from experiments.images import Split
from experiments.sampling_errors import (
    batch_errors,
    named,
    operands_of,
    sampling_errors,
    spread,
)
from experiments.tensor_dropout_report import EXACT
from experiments.training import NUM_CLASSES, Recipe, Setting, Training, shuffled
from experiments.training_comparison import (
    RESULTS,
    best,
    find_images,
    run_side_by_side,
    search,
)
from tn_extensions.dropout import convert
from tn_extensions.sampling import SAMPLERS, Sampler

WIDTH = 8
BATCH_SIZE = 64
SAMPLER: Sampler = "fixed"
"""Of trainings: what it saves is the same at each step."""
LAYERS = ("early", "middle", "late")
TRAINED: dict[tuple[str, ...], tuple[float, ...]] = {
    ("n",): (0.75, 0.5, 0.25),
    ("n", "ci"): (0.75, 0.5, 0.25),
    ("ci",): (0.5,),
    ("i1", "i2"): (0.5,),
}
"""Indices that trainings sample, and shares of the layers' inputs that they keep."""


class MaskedReLU(nn.Module):
    """ReLU that holds a byte for each entry, whether it is positive.

    ``nn.ReLU`` holds its result, which is the next layer's input: nothing would be
    gained by that layer's holding less of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero what is negative."""
        return torch.where(x > 0, x, 0.0)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "masked ReLU": MaskedReLU,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
}
"""The first is that of trainings."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        steps: Of a training.
        evaluations: Of a training.
        stages: Steps after which errors are measured.
        shares: Shares to measure errors at.
        draws: Draws that errors are averaged over.
        learning_rates: To choose from, for each way to train.
        search_seeds: Of the trials: as many as it takes to see that one run of a few
            never starts to learn.
        seeds: Of the final runs.
    """

    steps: int = 150
    evaluations: int = 6
    stages: tuple[int, ...] = (10, 100)
    shares: tuple[float, ...] = (0.1, 0.25, 0.4, 0.5, 0.75, 0.9)
    draws: int = 6
    learning_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.03)
    search_seeds: tuple[int, ...] = (0, 4, 7, 8, 9)
    seeds: tuple[int, ...] = (1, 2, 3, 5, 6)


QUICK = Plan(6, 2, (2,), (0.25, 0.5), 2, (0.05,), (0,), (1,))


def cnn(
    pixels: int,
    width: int = WIDTH,
    activation: type[nn.Module] = MaskedReLU,
    keep: Mapping[str, float] | None = None,
) -> nn.Sequential:
    """A CNN all of whose layers sample, without pooling, which would hold its input.

    Args:
        pixels: Side of its images, of one channel each.
        width: Channels of the first convolution; those of the last are four times this.
        activation: What follows each convolution.
        keep: Shares to keep. Default: torch's own layers.
    """
    convolutions = {
        "stem": nn.Conv2d(1, width, 3, stride=2, padding=1),
        "early": nn.Conv2d(width, 2 * width, 3, padding=1),
        "middle": nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        "late": nn.Conv2d(2 * width, 4 * width, 3, padding=1),
    }
    model = nn.Sequential()
    for name, module in convolutions.items():
        # torch's default is for other activations: some seeds would not start
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        model.add_module(name, module)
        model.add_module(f"{name}_activation", activation())
    model.add_module("flatten", nn.Flatten())
    num_features = 4 * width * (-(-pixels // 4)) ** 2
    model.add_module("linear", nn.Linear(num_features, NUM_CLASSES))
    if not keep:
        return model
    # of its own, lest draws depend on what else draws; from the seed of the weights
    generator = torch.Generator().manual_seed(torch.initial_seed())
    return convert(model, keep, sampler=SAMPLER, generator=generator)


def contenders(
    trained: Mapping[tuple[str, ...], Sequence[float]],
) -> dict[str, dict[str, float]]:
    """Ways to train: shares to keep of each index, by name."""
    return {EXACT: {}} | {
        f"{named(axes)}, {share:g}": spread(axes, share)
        for axes, shares in trained.items()
        for share in shares
    }


def errors(setting: Setting, plan: Plan, lr: float) -> Iterator[dict[str, Any]]:
    """Errors of layers' gradients at stages of one training; records."""
    at_stages = replace(setting, evaluate_every=1, num_evaluated=1)
    training = Training(Recipe("SGD", lr), at_stages, seed=0)
    data = setting.data.train
    chosen = next(shuffled(len(data.labels), setting.batch_size, seed=1))
    batch = Split(data.images[chosen], data.labels[chosen])
    for point in training:
        if point.step not in plan.stages:
            continue
        own = batch_errors(training.model, LAYERS, batch, data)
        found = operands_of(training.model, LAYERS, batch)
        for name in tqdm(LAYERS, desc=f"errors, step {point.step}", unit="layer"):
            where = {"step": point.step, "layer": name}
            yield {**where, "axes": tensor_dropout_report.BATCH, "error": own[name]}
            for record in sampling_errors(
                found[name], plan.shares, SAMPLERS, plan.draws
            ):
                yield {**where, **record}


def memory(
    batch: Tensor, keeps: Mapping[str, Mapping[str, float]]
) -> Iterator[dict[str, Any]]:
    """Bytes saved for a backward pass, by activation and way to train; records."""
    for name, activation in ACTIVATIONS.items():
        for contender, keep in keeps.items():
            model = cnn(batch.shape[-1], activation=activation, keep=keep)
            saved = saved_bytes(model, batch)
            yield {"activation": name, "contender": contender, "bytes": saved}


def trainings(
    setting: Setting, plan: Plan, keeps: Mapping[str, Mapping[str, float]]
) -> dict[str, list[dict[str, Any]]]:
    """Trials and runs of all ways to train; records."""
    recipes = [Recipe("SGD", lr) for lr in plan.learning_rates]
    found: dict[str, list[dict[str, Any]]] = {"search": [], "runs": []}
    for contender, keep in keeps.items():
        own = replace(setting, make_model=partial(cnn, setting.data.pixels, keep=keep))
        trials = list(search(own, {"SGD": recipes}, plan.search_seeds))
        chosen = list(best(trials).values())
        runs = [
            run for seed in plan.seeds for run in run_side_by_side(own, chosen, seed)
        ]
        for kind, records in {"search": trials, "runs": runs}.items():
            found[kind] += [{"contender": contender, **record} for record in records]
    return found


def measure(
    setting: Setting, plan: Plan, keeps: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """All of it; what a result file holds."""
    data, lr = setting.data, plan.learning_rates[len(plan.learning_rates) // 2]
    torch.manual_seed(0)  # of the draws of errors
    return {
        "metadata": machine.describe(torch.device("cpu"))
        | setting.described()
        | {
            "draws of an error": plan.draws,
            "learning rate of the training whose errors are measured": lr,
            "sampler of trainings": SAMPLER,
            "learning rates to choose from": list(plan.learning_rates),
            "seeds of the search": list(plan.search_seeds),
            "seeds": list(plan.seeds),
        },
        "errors": list(errors(setting, plan, lr)),
        # a copy: the whole of a view's storage would count
        "memory": list(memory(data.train.images[: setting.batch_size].clone(), keeps)),
        **trainings(setting, plan, keeps),
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure as the command line says; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tensor_dropout",
        description=(__doc__ or "").splitlines()[0],
    )
    add = parser.add_argument
    add("--images", choices=("digits", "fashion-mnist"), default="digits")
    add("--threads", type=int, help="default: torch's")
    add("--quick", action="store_true", help=f"{QUICK.steps} steps, one way to train")
    add("--output", type=Path, help=f"default: dropout-DATA-cpu.json in {RESULTS}")
    args = parser.parse_args(arguments)
    try:
        data = find_images(None, args.images)
    except FileNotFoundError as reason:
        parser.error(f"--images: {reason}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    plan = QUICK if args.quick else Plan()
    setting = Setting(
        data=data,
        steps=plan.steps,
        batch_size=BATCH_SIZE,
        make_model=partial(cnn, data.pixels),
        evaluate_every=plan.steps // plan.evaluations,
        num_evaluated=1024,
    )
    keeps = contenders({("n",): (0.5,)} if args.quick else TRAINED)
    output: Path = args.output or RESULTS / f"dropout-{data.name}-cpu.json"
    content = measure(setting, plan, keeps)
    storage.write_json(output, content)
    written = tensor_dropout_report.write(output)
    print(tensor_dropout_report.summary(content))
    print("\n".join(map(str, [output, *written])))
    return output


if __name__ == "__main__":
    main()
