"""Trainings of small CNNs: how the loss falls, and the choice of hyper-parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from experiments.harness.case import Row
from experiments.subjects.images import Images, Split
from tn_extensions.optim import KFAC

MOMENTUM = 0.9
WARM_UP = 0.1
"""Part of the steps; without it, SGD needs lower learning rates."""
_EVALUATION_BATCH = 128
_KFAC: dict[str, dict[str, Any]] = {
    "KFAC-expand": {"approx": "expand"},
    "KFAC-reduce": {"approx": "reduce"},
    "EKFAC": {"approx": "expand", "eigenvalue_correction": True},
}
KINDS = ("SGD", "AdamW", *_KFAC)
"""Optimizers; SGD and those of KFAC have momentum."""


@dataclass(frozen=True)
class Recipe:
    """An optimizer, one of :data:`KINDS`, and its hyper-parameters."""

    kind: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, model: nn.Module) -> Optimizer:
        """Make the optimizer."""
        if self.kind == "AdamW":
            return AdamW(model.parameters(), lr=self.lr, **self.options)
        if self.kind == "SGD":
            return SGD(model.parameters(), self.lr, MOMENTUM, **self.options)
        options = {"momentum": MOMENTUM, **_KFAC[self.kind], **self.options}
        return KFAC(model, lr=self.lr, **options)

    @property
    def text(self) -> str:
        """The hyper-parameters in one line."""
        pairs = {"lr": self.lr, **self.options}
        return ", ".join(f"{name} {value}" for name, value in pairs.items())


def small_cnn(pixels: int, width: int = 16) -> nn.Sequential:
    """Make a CNN with a dense, a strided, a grouped and a dilated convolution.

    Args:
        pixels: Side of its images, of one channel each.
        width: Channels of the first convolution; those of the last are four times this.
    """
    convolutions = {
        "dense": nn.Conv2d(1, width, 3, padding=1),
        "strided": nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        "grouped": nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=4),
        "dilated": nn.Conv2d(2 * width, 4 * width, 3, padding=2, dilation=2),
    }
    model = nn.Sequential()
    for name, module in convolutions.items():
        model.add_module(name, module)
        model.add_module(f"{name}_relu", nn.ReLU())
    model.add_module("pool", nn.MaxPool2d(4))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(4 * width * (pixels // 8) ** 2, 10))
    return model


@dataclass(frozen=True)
class Setting:
    """Settings that all optimizers share.

    Args:
        data: The images.
        steps: Steps to train for.
        make_model: Builds the model; called under the seed.
        evaluate_every: Steps between evaluations.
        num_evaluated: Images that are evaluated, the first ones of either split; but of
            all test images at the end.
        batch_size: Images of a step.
    """

    data: Images
    steps: int
    make_model: Callable[[], nn.Sequential]
    evaluate_every: int
    num_evaluated: int
    batch_size: int = 64

    def model(self, seed: int) -> nn.Sequential:
        """Build the model from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model()


def train(
    model: nn.Module, recipe: Recipe, setting: Setting, seed: int
) -> Iterator[Row]:
    """Train from evaluation to evaluation; ends early where a loss is not finite.

    Several trainings can take turns, so that what else the machine does slows all.

    Args:
        model: The model.
        recipe: The optimizer.
        setting: Everything else.
        seed: Of the batches, whatever the optimizer.

    Yields:
        Evaluations, at the start, every few steps and at the end: the ``step``;
        ``seconds`` of steps, without evaluations; the training ``loss``, infinite once
        it has been; the test ``accuracy``.
    """
    images, labels = setting.data.train
    optimizer = recipe.build(model)
    schedule = LambdaLR(optimizer, partial(learning_rate, steps=setting.steps))
    about = {"contender": recipe.kind, "options": recipe.text, "seed": seed}
    seconds, loss = 0.0, 0.0
    batches = shuffled(len(labels), setting.batch_size, seed)
    for step in range(setting.steps + 1):
        if step:
            batch = next(batches)
            start = time.perf_counter()
            optimizer.zero_grad()
            own = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            if is_finite := bool(own.isfinite()):
                own.backward()
                optimizer.step()
                schedule.step()
            seconds += time.perf_counter() - start
            is_last = step == setting.steps or not is_finite
            if not is_last and step % setting.evaluate_every:
                continue
        num = setting.num_evaluated
        loss, _ = evaluate(model, setting.data.train.first(num))
        loss = loss if math.isfinite(loss) else math.inf
        test = setting.data.test
        _, accuracy = evaluate(
            model, test if step == setting.steps else test.first(num)
        )
        values = {"step": step, "seconds": seconds, "loss": loss, "accuracy": accuracy}
        yield {**about, **values}
        if loss == math.inf or step and is_last:
            return


def learning_rate(step: int, steps: int) -> float:
    """Compute a step's part of the learning rate: a warm-up, then half a cosine."""
    warmed = min(1.0, (step + 1) / max(1, round(WARM_UP * steps)))
    return warmed * (1 + math.cos(math.pi * step / steps)) / 2


def shuffled(num_data: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield indices of batches, without end; an epoch's last few data are left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_data, generator=generator)
        yield from order[: num_data - num_data % batch_size].split(batch_size)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Compute the mean loss, and the share of images that are labelled correctly."""
    was_training = model.training
    model.eval()
    loss, num_correct = 0.0, 0
    batches = (tensor.split(_EVALUATION_BATCH) for tensor in split)
    for images, labels in zip(*batches, strict=True):
        outputs = model(images)
        loss += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
        num_correct += int((outputs.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(split.labels), num_correct / len(split.labels)


def tuned(
    setting: Setting,
    grids: Iterable[Sequence[Recipe]],
    search_seeds: Sequence[int],
    seeds: Sequence[int],
) -> Iterator[Row]:
    """Choose the recipe of each grid, and train with the chosen ones in turns.

    A recipe is chosen for its final training loss, a mean over seeds. Rows are the ends
    of trials, and all evaluations of runs.
    """
    few = setting.data._replace(test=setting.data.test.first(setting.num_evaluated))
    at_end = replace(setting, data=few, evaluate_every=setting.steps)
    chosen = []
    for grid in grids:
        losses = []
        for recipe in grid:
            ends = [
                list(train(setting.model(seed), recipe, at_end, seed))[-1]
                for seed in search_seeds
            ]
            losses.append(mean(end["loss"] for end in ends))
            yield from ({"phase": "trial", **end} for end in ends)
        chosen.append(grid[losses.index(min(losses))])
    for seed in seeds:
        trainings = [
            train(setting.model(seed), recipe, setting, seed) for recipe in chosen
        ]
        for rows in zip_longest(*trainings):
            yield from ({"phase": "run", **row} for row in rows if row is not None)
