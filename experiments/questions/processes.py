"""What do several processes take for a preconditioned step?

Here, processes of one thread each share the cores of this machine, and each has a batch
of its own: with more processes than cores, they wait for each other. `fraction` is
`grad_worker_fraction`, the share of processes that multiply by a layer's inverse. On
paper, MB are what the busiest process receives for an update of the factors, for one of
the inverses, and in each step, at 10 GB/s; it inverts at 1000 billion multiply-adds a
second. Factors are renewed every 10 steps, inverses every 100; `a step` averages over
these.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib import import_module
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from warnings import catch_warnings, simplefilter

import pandas as pd
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from experiments.contenders.optimizers import KFACTraining, Training, Update
from experiments.harness.case import Case, Options, Row
from experiments.harness.measure import Prepared, time_side_by_side
from experiments.harness.question import Question
from tn_extensions.optim.distributed import _assignment, _cost
from tn_extensions.optim.find import find_layers
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.options import LayerOptions

UPDATES: tuple[Update, ...] = ("nothing", "factors", "everything")


def cases(options: Options) -> Iterator[Case]:
    """List numbers of processes, and networks on paper."""
    for size in (1, 2) if options.quick else (1, 2, 4):
        for fraction in fractions(size):
            key = {"part": "here", "processes": size, "fraction": fraction}
            yield Case(key, _measured, size, fraction, cpu_only=True)
    for network in ("resnet18",) if options.quick else ("resnet18", "resnet50"):
        yield Case({"part": "on paper", "network": network}, _paper, network)


def fractions(size: int) -> list[float]:
    """List shares of processes that differ in how many they are."""
    known = {max(1, int(size * each)): each for each in (1.0, 0.5, 0.0)}
    return [1.0] if size == 1 else sorted(known.values())


# -- here


def _measured(size: int, fraction: float, options: Options) -> Iterator[Row]:
    """Time a small network's steps in processes of one thread each."""
    answers = get_context("spawn").SimpleQueue()
    with TemporaryDirectory() as folder:
        arguments = (size, fraction, options.rounds, folder, answers)
        spawn(_enter, arguments, nprocs=size)
    for name, seconds in answers.get().items():
        yield {"contender": name, "seconds": median(seconds)}


def _enter(
    rank: int, size: int, fraction: float, rounds: int, folder: str, answers: Any
) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", address, timedelta(minutes=5), rank=rank, world_size=size
    )
    times = _time(rank, fraction, rounds)
    gc.collect()  # models that outlive the processes' group abort at exit, at times
    if rank == 0:
        answers.put(times)
    dist.barrier()
    dist.destroy_process_group()


def _time(rank: int, fraction: float, rounds: int) -> dict[str, list[float]]:
    torch.manual_seed(rank)
    batch = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    trainings = {"SGD": Training(_network(), batch)}
    for update in UPDATES:
        trainings[update] = KFACTraining(
            _network(), batch, update, grad_worker_fraction=fraction
        )
    # all processes must repeat calls equally often: once
    calls = {name: Prepared(dist.barrier, own) for name, own in trainings.items()}
    times = time_side_by_side(calls, rounds, min_seconds=0.0)
    for training in trainings.values():
        for parameter in training.model.parameters():
            first = parameter.detach().clone()
            dist.broadcast(first, 0)
            torch.testing.assert_close(parameter, first, rtol=1e-4, atol=1e-6)
    return times


def _network() -> nn.Module:
    """Make a small network, the same in all processes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DistributedDataParallel(
            nn.Sequential(
                *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
                *(nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU()),
                *(nn.Conv2d(32, 64, 3, 2, padding=1), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
            )
        )


# -- on paper


def _paper(network: str, options: Options) -> Iterator[Row]:
    layers = layers_of(network)
    for size in (4**i for i in range(6)):
        for fraction in fractions(size):
            yield costs(layers, size, fraction)


def layers_of(network: str) -> list[Layer]:
    """List the preconditioned layers of a network of torchvision, without values."""
    options = LayerOptions("expand", 1e-3, "pi", 0.95, False)
    with torch.device("meta"), catch_warnings():
        simplefilter("ignore")  # normalisation keeps its gradient
        model = import_module("torchvision.models").get_model(network)
        return list(find_layers("processes", model, options, (), {}).values())


def costs(layers: Sequence[Layer], size: int, fraction: float) -> Row:
    """Compute what the busiest of ``P`` processes receives and inverts.

    ``W = max(1, fraction P)`` processes multiply by each layer's inverse, and form one
    of ``P / W`` columns. Factors have ``D`` columns in float32. All triangles go round
    a ring; the busiest process receives the inverses of its column's layers that others
    invert, and the gradients of the layers of other columns; it inverts its layers with
    ``sum D^3`` multiply-adds. The average of gradients comes in addition. Messages take
    no time of their own.
    """
    columns = size // max(1, round(size * fraction))
    inverses, gradients, inversions = [0] * size, [0] * size, [0] * size
    triangles = 0
    owners = _assignment([_cost(layer) for layer in layers], size)
    for layer, owner in zip(layers, owners, strict=True):
        sizes = [(groups, d) for groups, d, _ in layer.factor_shapes.values()]
        triangles += sum(groups * 2 * d * (d + 1) for groups, d in sizes)
        inversions[owner] += sum(groups * d**3 for groups, d in sizes)
        for rank in range(size):
            if rank % columns != owner % columns:
                parameters = layer.parameters.values()
                gradients[rank] += sum(4 * own.numel() for own in parameters)
            elif rank != owner:
                inverses[rank] += sum(groups * 4 * d**2 for groups, d in sizes)
    row = {
        "MB factors": 2 * (size - 1) / size * triangles / 1e6,
        "MB inverses": max(inverses) / 1e6,
        "MB gradients": max(gradients) / 1e6,
        "inversion ms": max(inversions) / 1e9,
    }
    a_step = row["MB factors"] / 10 + row["MB inverses"] / 100 + row["MB gradients"]
    return {
        "processes": size,
        "fraction": fraction,
        **row,
        "communication ms a step": a_step / 10,
        "inversion ms a step": row["inversion ms"] / 100,
    }


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate milliseconds of steps here, and each network on paper."""
    found, index = {}, ["processes", "fraction"]
    here = rows[rows["part"] == "here"]
    if len(here):
        table = 1e3 * here.pivot_table("seconds", index, "contender", sort=False)
        found["Milliseconds of a step, by what it renews"] = table
    for network, own in rows[rows["part"] == "on paper"].groupby("network"):
        table = own.astype({"processes": int}).set_index(index)
        found[f"On paper: {network}"] = table.filter(regex="^MB | ms")
    return found


QUESTION = Question(__doc__, cases, tables)
