"""Trains a small CNN on digits with DP-SGD: Opacus alone, and with our samplers.

``python -m experiments.privacy --help`` lists the options. For both of Opacus' modes,
prints the privacy budget that is spent, the accuracy, and the time and peak memory of a
step, next to a step without privacy. Writes JSON.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tn_extensions.opacus
from experiments import machine, storage
from experiments.images import Images, digits
from experiments.markdown import number, table
from experiments.measure import (
    MIN_ROUNDS,
    medians,
    number_of_rounds,
    peak_memory,
    preload,
    time_side_by_side,
)
from experiments.models import Subject
from experiments.training import small_cnn

RESULTS = Path(__file__).parent / "results"
MODES = ("hooks", "ghost")
DELTA = 1e-4
NOISE_MULTIPLIER = 1.0
MAX_GRAD_NORM = 1.0


class Contender(NamedTuple):
    """Who computes gradients or norms, in one of Opacus' modes.

    Args:
        mode: Opacus' mode; ``None``: a step without privacy.
        ours: Whether our samplers are registered.
    """

    mode: str | None
    ours: bool = False

    @property
    def title(self) -> str:
        """Its name in tables."""
        if self.mode is None:
            return "no privacy"
        return f"{self.mode}, {'ours' if self.ours else 'Opacus'}"


CONTENDERS = (
    Contender(None),
    *(Contender(mode, ours) for mode in MODES for ours in (False, True)),
)


WORKLOADS = ((Subject("3c3d"), 64), (Subject("allcnnc"), 16))
QUICK_WORKLOADS = ((Subject("3c3d"), 2),)
"""Networks and batch sizes."""


Step = Callable[[], Tensor]


def step(subject: Subject, batch_size: int, contender: Contender) -> Step:
    """Return a step of training on a batch; its value is the loss."""
    x, y = subject.batch(batch_size)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size)
    training = Training(subject.plain().train(), loader, contender)
    return partial(training.step, x, y)


class Training:
    """A network, its optimizer and its loss, private or not.

    Args:
        model: The network.
        loader: The data.
        contender: How it is trained.
    """

    def __init__(
        self, model: nn.Module, loader: Any, contender: Contender, lr: float = 0.5
    ) -> None:
        self.contender = contender
        self.optimizer: Any = torch.optim.SGD(model.parameters(), lr=lr)
        self.model, self.loss, self.loader = model, nn.CrossEntropyLoss(), loader
        self.engine = PrivacyEngine()
        if contender.mode is not None:
            made = self.engine.make_private(
                module=model,
                optimizer=self.optimizer,
                data_loader=loader,
                noise_multiplier=NOISE_MULTIPLIER,
                max_grad_norm=MAX_GRAD_NORM,
                criterion=self.loss,
                grad_sample_mode=contender.mode,
            )
            self.model, self.optimizer, *others = made
            self.loader = others.pop()
            self.loss = others.pop() if others else self.loss

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a step."""
        # the registries are Opacus' own, and global
        if self.contender.ours:
            tn_extensions.opacus.register()
        else:
            tn_extensions.opacus.unregister()
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return torch.as_tensor(loss.item())


def train(data: Images, contender: Contender, epochs: int) -> dict[str, float]:
    """Train on digits; the accuracy on others, and the privacy budget."""
    train, test = data.train, data.test
    loader = DataLoader(TensorDataset(train.images, train.labels), 64, shuffle=True)
    torch.manual_seed(0)
    model = small_cnn(data.pixels)
    training = Training(model, loader, contender)
    for _ in range(epochs):
        for x, y in training.loader:
            training.step(x, y)
    with torch.no_grad():
        right = (model(test.images).argmax(1) == test.labels).float().mean()
    found = {"accuracy": float(right)}
    if contender.mode is not None:
        found["epsilon"] = training.engine.get_epsilon(DELTA)
    return found


def _prepare_for_memory(
    subject: Subject, batch_size: int, contender: Contender
) -> tuple[Step, Step]:
    warnings.filterwarnings("ignore")
    return step(subject, 1, contender), step(subject, batch_size, contender)


def measure(subject: Subject, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Time and peak memory of a step, for each contender."""
    steps = {each.title: step(subject, batch_size, each) for each in CONTENDERS}
    seconds = medians(time_side_by_side(steps, rounds))
    return [
        {
            "network": subject.title,
            "batch_size": batch_size,
            "title": each.title,
            "seconds": seconds[each.title],
            "bytes": peak_memory(
                partial(_prepare_for_memory, subject, batch_size, each)
            ),
        }
        for each in CONTENDERS
    ]


def report(records: Sequence[dict[str, Any]]) -> str:
    """Steps of each network, next to those without privacy."""
    rows = [["network", "step", "ms", "MiB beyond no privacy"]]
    for record in records:
        if record["title"] == CONTENDERS[0].title:
            plain = record["bytes"]
        rows.append(
            [
                f"{record['network']}, batch {record['batch_size']}",
                record["title"],
                number(record["seconds"], 1e3),
                number(record["bytes"] - plain, 2**-20),
            ]
        )
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Train and measure; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.privacy", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--epochs", type=int, default=5)
    add("--rounds", type=number_of_rounds, default=MIN_ROUNDS)
    add("--quick", action="store_true", help="one epoch, and a small batch to measure")
    add("--output", type=Path, default=RESULTS / "privacy-cpu.json")
    args = parser.parse_args(arguments)
    # Opacus warns of each insecure random number generator and each first layer
    warnings.filterwarnings("ignore")
    preload("opacus", "experiments.models")
    workloads = QUICK_WORKLOADS if args.quick else WORKLOADS
    records = [row for each in workloads for row in measure(*each, args.rounds)]
    print(report(records))
    data, trained = digits(), []
    rows = [["digits", "epsilon", "accuracy"]]
    for contender in CONTENDERS:
        found = train(data, contender, 1 if args.quick else args.epochs)
        trained.append({"title": contender.title} | found)
        spent = number(found.get("epsilon"))
        rows.append([contender.title, spent, number(found["accuracy"])])
    print(f"\n{table(rows)}")
    tn_extensions.opacus.unregister()
    content = {"metadata": machine.describe(torch.device("cpu")), "records": records}
    storage.write_json(args.output, content | {"trained": trained})
    return Path(args.output)


if __name__ == "__main__":
    main()
