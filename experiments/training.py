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

KINDS = ("SGD", "AdamW", "KFAC-expand", "KFAC-reduce", "EKFAC")
MOMENTUM = 0.9
_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Recipe:
    """An optimizer and its hyper-parameters.

    Args:
        kind: One of :data:`KINDS`.
        lr: Learning rate, which is annealed to zero along a cosine.
        options: Other arguments of the optimizer.
    """

    kind: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, model: nn.Module) -> Optimizer:
        """Make the optimizer."""
        if self.kind in ("SGD", "AdamW"):
            make: Callable[..., Optimizer] = {
                "SGD": partial(SGD, momentum=MOMENTUM),
                "AdamW": AdamW,
            }[self.kind]
            return make(model.parameters(), lr=self.lr, **self.options)
        own: dict[str, Any] = {
            "KFAC-expand": {"approx": "expand"},
            "KFAC-reduce": {"approx": "reduce"},
            "EKFAC": {"eigenvalue_correction": True},
        }[self.kind]
        options = {"momentum": MOMENTUM, **own, **self.options}
        return KFAC(model, lr=self.lr, **options)

    @property
    def text(self) -> str:
        """The hyper-parameters in one line."""
        pairs = {"lr": self.lr, **self.options}
        return ", ".join(f"{key}={_short(value)}" for key, value in pairs.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Setting:
    """What all optimizers share.

    Args:
        data: The images.
        steps: Steps to train for.
        batch_size: Images of a step.
        make_model: Builds the model; called under the seed.
        evaluate_every: Steps between evaluations.
        num_evaluated: Training images that the loss is evaluated on, the first ones.
    """

    data: Images
    steps: int
    batch_size: int
    make_model: Callable[[], nn.Module]
    evaluate_every: int
    num_evaluated: int = 2048


class Point(NamedTuple):
    """Where a run is.

    Args:
        step: Steps taken.
        seconds: Time that they took, without that of evaluations.
        loss: Training loss.
        accuracy: Share of test images that are labelled correctly.
    """

    step: int
    seconds: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """How a training went.

    Args:
        recipe: The optimizer.
        seed: Of the initial weights and of the batches.
        points: Before the first step, then after some steps, and after the last.
    """

    recipe: Recipe
    seed: int
    points: tuple[Point, ...]

    @property
    def last(self) -> Point:
        """The end."""
        return self.points[-1]

    def first_at(self, loss: float) -> Point | None:
        """The first point whose loss is no larger; ``None`` if there is none."""
        return next((point for point in self.points if point.loss <= loss), None)


def train(
    recipe: Recipe, setting: Setting, seed: int, models: list[nn.Module] | None = None
) -> Iterator[Point]:
    """Train, and yield between steps.

    Seeds determine initial weights and batches, whatever the optimizer.

    Args:
        recipe: The optimizer.
        setting: Everything else.
        seed: Of the initial weights and of the batches.
        models: Where to leave the model, if wanted.

    Yields:
        Points at the start, at evaluations, and at the end. After a loss that is not
        finite, there is one more point, whose loss is infinite.
    """
    data = setting.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = setting.make_model()
    if models is not None:
        models.append(model)
    optimizer = recipe.build(model)
    annealed = partial(_cosine, steps=setting.steps)
    schedule = LambdaLR(optimizer, annealed)
    loss_function = nn.CrossEntropyLoss()
    shown = Split(*(tensor[: setting.num_evaluated] for tensor in data.train))
    seconds = 0.0

    def point(step: int) -> Point:
        loss, _ = evaluate(model, shown)
        _, accuracy = evaluate(model, data.test)
        return Point(step, seconds, loss if math.isfinite(loss) else math.inf, accuracy)

    yield point(0)
    batches = order_of_batches(len(data.train.labels), setting.batch_size, seed)
    for step in range(1, setting.steps + 1):
        indices = next(batches)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_function(model(data.train.images[indices]), data.train.labels[indices])
        if not loss.isfinite():
            yield Point(step, seconds, math.inf, 0.0)
            return
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - start
        if step % setting.evaluate_every == 0 or step == setting.steps:
            yield point(step)


def _cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def order_of_batches(num_data: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Indices of batches, without end; each epoch is shuffled, and drops the rest."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_data, generator=generator)
        yield from order[: num_data - num_data % batch_size].split(batch_size)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean loss, and share of images that are labelled correctly."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    batches = zip(*(t.split(_EVALUATION_BATCH) for t in split), strict=True)
    for images, labels in batches:
        outputs = model(images)
        loss += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
        correct += int((outputs.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(split.labels), correct / len(split.labels)
