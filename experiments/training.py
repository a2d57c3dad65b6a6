"""Trains a small CNN with one of several optimizers, and records how the loss falls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from experiments.images import Images, Split
from tn_extensions.optim import KFAC

MOMENTUM = 0.9
NUM_CLASSES = 10
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
    """An optimizer and its hyper-parameters.

    Args:
        kind: One of :data:`KINDS`.
        lr: Learning rate, of which steps take a part: see :func:`learning_rate`.
        options: Other arguments of the optimizer.
    """

    kind: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, model: nn.Module) -> Optimizer:
        """Make the optimizer."""
        if self.kind == "AdamW":
            return AdamW(model.parameters(), lr=self.lr, **self.options)
        if self.kind == "SGD":
            options = {"momentum": MOMENTUM, **self.options}
            return SGD(model.parameters(), lr=self.lr, **options)
        options = {"momentum": MOMENTUM, **_KFAC[self.kind], **self.options}
        return KFAC(model, lr=self.lr, **options)

    @property
    def text(self) -> str:
        """The hyper-parameters in one line."""
        pairs = {"lr": self.lr, **self.options}
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in pairs.items()
        )


def small_cnn(pixels: int, width: int = 16) -> nn.Sequential:
    """A CNN with a dense, a strided, a grouped and a dilated convolution.

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
    num_features = 4 * width * (pixels // 8) ** 2
    model.add_module("linear", nn.Linear(num_features, NUM_CLASSES))
    return model


@dataclass(frozen=True)
class Setting:
    """What all optimizers share.

    Args:
        data: The images.
        steps: Steps to train for.
        batch_size: Images of a step.
        make_model: Builds the model; called under the seed.
        evaluate_every: Steps between evaluations.
        num_evaluated: Images that are evaluated, the first ones of either split; but of
            all test images at the end.
    """

    data: Images
    steps: int
    batch_size: int
    make_model: Callable[[], nn.Sequential]
    evaluate_every: int
    num_evaluated: int

    def described(self) -> dict[str, Any]:
        """What a result file says of it."""
        parameters = self.make_model().parameters()
        return {
            "dtype": "float32",
            "data": self.data.name,
            "training images": len(self.data.train.labels),
            "test images": len(self.data.test.labels),
            "images of evaluations": self.num_evaluated,
            "parameters": sum(own.numel() for own in parameters),
            "batch size": self.batch_size,
            "steps": self.steps,
            "steps between evaluations": self.evaluate_every,
        }


class Point(NamedTuple):
    """Where a training is.

    Args:
        step: Steps taken.
        seconds: Time that they took, without that of evaluations.
        loss: Training loss; infinite once it has been.
        accuracy: Share of test images that are labelled correctly.
    """

    step: int
    seconds: float
    loss: float
    accuracy: float


class Training:
    """A training whose iterator advances it from evaluation to evaluation.

    Several can take turns, so that what else the machine does slows all of them.
    The seed determines initial weights and batches, whatever the optimizer.

    Args:
        recipe: The optimizer.
        setting: Everything else.
        seed: Of the initial weights and of the batches.

    Attributes:
        model: The model.
        points: Evaluations so far: at the start, every few steps, at the end.
    """

    def __init__(self, recipe: Recipe, setting: Setting, seed: int) -> None:
        self.recipe = recipe
        self.setting = setting
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = setting.make_model()
        self.points: list[Point] = []
        self._optimizer = recipe.build(self.model)
        anneal = partial(learning_rate, steps=setting.steps)
        self._schedule = LambdaLR(self._optimizer, anneal)
        self._loss_function = nn.CrossEntropyLoss()
        self._seconds = 0.0

    def __iter__(self) -> Iterator[Point]:
        """Train; ends early where a loss is not finite."""
        setting, (images, labels) = self.setting, self.setting.data.train
        yield self._evaluated(0)
        batches = shuffled(len(labels), setting.batch_size, self.seed)
        for step in range(1, setting.steps + 1):
            batch = next(batches)
            start = time.perf_counter()
            is_finite = self._step(images[batch], labels[batch])
            self._seconds += time.perf_counter() - start
            is_last = step == setting.steps or not is_finite
            if is_last or step % setting.evaluate_every == 0:
                yield self._evaluated(step)
            if is_last or self.points[-1].loss == math.inf:
                return

    def _step(self, images: Tensor, labels: Tensor) -> bool:
        """Take a step if the loss is finite."""
        self._optimizer.zero_grad()
        loss = self._loss_function(self.model(images), labels)
        if not loss.isfinite():
            return False
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return True

    def _evaluated(self, step: int) -> Point:
        setting = self.setting
        test = setting.data.test
        if step < setting.steps:
            test = test.first(setting.num_evaluated)
        train = setting.data.train.first(setting.num_evaluated)
        loss, _ = evaluate(self.model, train)
        loss = loss if math.isfinite(loss) else math.inf
        _, accuracy = evaluate(self.model, test)
        self.points.append(Point(step, self._seconds, loss, accuracy))
        return self.points[-1]


def learning_rate(step: int, steps: int) -> float:
    """Part of the learning rate at a step: a linear warm-up, then half a cosine."""
    warmed = min(1.0, (step + 1) / max(1, round(WARM_UP * steps)))
    return warmed * (1 + math.cos(math.pi * step / steps)) / 2


def first_at(points: Sequence[Point], loss: float) -> Point | None:
    """The first point whose loss is no larger; ``None`` if there is none."""
    return next((point for point in points if point.loss <= loss), None)


def shuffled(num_data: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Indices of batches, without end; an epoch's last few data are left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_data, generator=generator)
        yield from order[: num_data - num_data % batch_size].split(batch_size)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean loss, and share of images that are labelled correctly."""
    was_training = model.training
    model.eval()
    loss, num_correct = 0.0, 0
    for images, labels in zip(
        *(tensor.split(_EVALUATION_BATCH) for tensor in split), strict=True
    ):
        outputs = model(images)
        loss += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
        num_correct += int((outputs.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(split.labels), num_correct / len(split.labels)
