"""What do a step and a model cost that keep samples private?

DP-SGD by Opacus alone and with our samplers, in its modes: *hooks* keeps the gradient
of each sample, *ghost* needs their norms, and takes a second backward pass. Each
private step is first compared, without noise, with the sum of clipped gradients, one
sample at a time. The trainings choose a learning rate of five on a fifth of the
training images, then train with it on all of them for 8 epochs; epsilon is at delta =
0.0001, and leaves out what the choice of the learning rate has spent.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.harness.case import Case, Contest, Options, Row, relative_error
from experiments.harness.measure import Call
from experiments.harness.question import Question
from experiments.harness.ratios import Ratio, side_by_side
from experiments.subjects.images import Split, digits
from experiments.subjects.networks import Subject
from experiments.subjects.training import evaluate

PLAIN = "no privacy"
CONTENDERS = (
    PLAIN,
    *(f"{mode}, {who}" for mode in ("hooks", "ghost") for who in ("Opacus", "ours")),
)
DELTA = 1e-4
NOISE, LARGEST_NORM = 1.0, 1.0
LEARNING_RATES = (0.05, 0.1, 0.2, 0.5, 1.0)
SEEDS, EPOCHS = 3, 8


class Training:
    """A network and its optimizer, private or not: one of :data:`CONTENDERS`."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        data: Split,
        batch_size: int,
        lr: float,
        noise: float = NOISE,
    ) -> None:
        self.is_ours = name.endswith("ours")
        self.optimizer: Any = torch.optim.SGD(model.parameters(), lr=lr)
        self.model, self.loss = model, nn.CrossEntropyLoss()
        self.loader: Any = DataLoader(TensorDataset(*data), batch_size, shuffle=True)
        warnings.filterwarnings("ignore", module="opacus")
        warnings.filterwarnings("ignore", "Full backward hook", UserWarning)
        self.engine = import_module("opacus").PrivacyEngine()
        if name != PLAIN:
            self.model, self.optimizer, *others = self.engine.make_private(
                module=model,
                optimizer=self.optimizer,
                data_loader=self.loader,
                noise_multiplier=noise,
                max_grad_norm=LARGEST_NORM,
                criterion=self.loss,
                grad_sample_mode=name.partition(",")[0],
            )
            self.loader = others.pop()
            self.loss = others.pop() if others else self.loss

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a step, return the loss."""
        plug = import_module("tn_extensions.opacus")
        # the registries are Opacus' own, and global
        (plug.register if self.is_ours else plug.unregister)()
        try:
            self.optimizer.zero_grad()
            loss = self.loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
        finally:
            plug.unregister()
        return torch.as_tensor(loss.item())


def cases(options: Options) -> Iterator[Case]:
    """List steps of two networks, and trainings on digits."""
    steps = ((Subject("3c3d"), 64), (Subject("allcnnc"), 16))
    for subject, size in ((Subject("3c3d"), 2),) if options.quick else steps:
        key = {"part": "step", "network": subject.title, "batch_size": size}
        yield Case(key, _steps, subject, size)
    for name in CONTENDERS:
        key = {"part": "training", "network": "digits", "contender": name}
        yield Case(key, _train, name)


def _steps(subject: Subject, batch_size: int, options: Options) -> Iterator[Row]:
    arguments = (subject, batch_size, options.device)
    contest = Contest(
        {name: partial(build_step, name, *arguments) for name in CONTENDERS},
        weighed=not options.quick,
    )
    yield from contest.rows(options)


def build_step(
    name: str,
    subject: Subject,
    batch_size: int,
    device: torch.device,
    small: bool = False,
) -> Call:
    """Build a step on a batch; private ones must sum clipped gradients."""
    size = 1 if small else batch_size
    data = Split(*(each.to(device) for each in subject.batch(size)))

    def training(noise: float) -> Training:
        model = subject.plain().train().to(device)
        return Training(name, model, data, size, 1e-3, noise)

    if name != PLAIN and not small:
        checked = training(noise=0.0)
        exact = clipped(subject.plain().train().to(device), *data)
        checked.step(*data)
        found = [p.grad for p in checked.model.parameters() if p.grad is not None]
        error = relative_error(found, exact)
        if not error <= 1e-3:
            raise ArithmeticError(f"gradients' relative error {error:.1e}")
    return partial(training(NOISE).step, *data)


def clipped(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Average the samples' gradients, none longer than the largest norm."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for n in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        own = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([each.norm() for each in own]).norm()
        factor = (LARGEST_NORM / norm).clamp(max=1) / len(x)
        for each, gradient in zip(total, own, strict=True):
            each += factor * gradient
    return total


def _train(name: str, options: Options) -> Iterator[Row]:
    """Choose a learning rate on some of the training images; then train on all."""
    data, device = digits(), options.device
    train = data.train.first(256 if options.quick else 2000)
    kept = len(train.images) * 4 // 5
    parts = train.first(kept), Split(train.images[kept:], train.labels[kept:])
    epochs, rates = (1, (0.5,)) if options.quick else (EPOCHS, LEARNING_RATES)

    def accuracy(lr: float) -> float:
        return float(_trained(name, *parts, lr, epochs, device, 100)["accuracy"])

    lr = max(rates, key=accuracy)
    for seed in range(1 if options.quick else SEEDS):
        row = _trained(name, train, data.test, lr, epochs, device, seed)
        yield {"lr": lr, "seed": seed, **row}


def _trained(
    name: str,
    train: Split,
    test: Split,
    lr: float,
    epochs: int,
    device: torch.device,
    seed: int,
) -> Row:
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    ).to(device)
    training = Training(name, model, train, 64, lr)
    for _ in range(epochs):
        for x, y in training.loader:
            training.step(x.to(device), y.to(device))
    _, accuracy = evaluate(model, Split(*(each.to(device) for each in test)))
    epsilon = {} if name == PLAIN else {"epsilon": training.engine.get_epsilon(DELTA)}
    return {"accuracy": accuracy, **epsilon}


_CASE = ("network", "batch_size")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show steps beside those without privacy, and what was trained."""
    found = {}
    steps = rows[(rows["part"] == "step") & rows["seconds"].notna()]
    for title, column, unit in (
        ("Milliseconds of a step", "seconds", 1e3),
        ("Peak memory of a step, MiB", "bytes", 2**-20),
    ):
        if column in steps and steps[column].notna().any():
            found[title] = side_by_side(steps, column, _CASE, CONTENDERS) * unit
    trained = rows[rows["part"] == "training"].groupby("contender", sort=False)
    found["Trained on digits"] = trained.agg(
        lr=("lr", "first"),
        epsilon=("epsilon", "first"),
        accuracy=("accuracy", "mean"),
        deviation=("accuracy", "std"),
    )
    return found


QUESTION = Question(
    __doc__,
    cases,
    tables,
    claims=tuple(
        Ratio(_CASE, f"{mode}, Opacus", f"{mode}, ours").claim(
            f"{mode}: time of Opacus over ours, the worst network", 1
        )
        for mode in ("hooks", "ghost")
    ),
)
