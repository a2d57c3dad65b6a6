"""Steps of several processes on this machine, timed."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from experiments import storage
from experiments.measure import Call, medians, time_side_by_side
from experiments.optimizer_contenders import Kind, Training
from experiments.optimizer_scaling import fractions

BATCH_SIZE = 16
"""Of each process."""
TIMEOUT = timedelta(seconds=300)
KINDS: tuple[Kind, ...] = ("plain", "factors", "inverses")


class ProcessesRow(NamedTuple):
    """Several processes.

    Args:
        processes: Their number.
        fraction: The share of them that multiplies by a layer's inverse.
    """

    processes: int
    fraction: float

    @property
    def title(self) -> str:
        """What is measured, in a line."""
        return f"scaling, {self.processes} processes, fraction {self.fraction:g}"


def processes_rows(processes: Sequence[int]) -> list[ProcessesRow]:
    """All numbers of processes, and shares that differ."""
    return [ProcessesRow(size, each) for size in processes for each in fractions(size)]


def process_parts(row: ProcessesRow, rounds: int) -> Iterator[dict[str, Any]]:
    """Time a small network's steps; parts of a record."""
    yield {"part": "scaling", **row._asdict(), "batch_size": BATCH_SIZE}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        spawn(_enter, (row, rounds, port, path), nprocs=row.processes)
        yield storage.read_json(path)


def _enter(rank: int, row: ProcessesRow, rounds: int, port: int, path: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group(
        "gloo", rank=rank, world_size=row.processes, timeout=TIMEOUT
    )
    seconds = _time(rank, row, rounds)
    gc.collect()  # models that outlive the processes' group abort at exit, at times
    if rank == 0:
        storage.write_json(path, {"rounds": rounds, "seconds": seconds})
    dist.barrier()
    dist.destroy_process_group()


def _time(rank: int, row: ProcessesRow, rounds: int) -> dict[str, float]:
    """Time steps side by side, medians by name."""
    sgd = Training(_network(), _batch(rank), "sgd")
    ours = Training(_network(), _batch(rank), "ours", grad_worker_fraction=row.fraction)
    calls: dict[str, Call] = {"sgd": partial(sgd.step, "plain")}
    calls |= {kind: partial(ours.step, kind) for kind in KINDS}
    sgd.step("plain")
    ours.start(is_late=False)
    # all processes must repeat calls equally often: once
    wait: dict[str, Call] = dict.fromkeys(calls, dist.barrier)
    times = time_side_by_side(calls, rounds, min_seconds=0.0, setup=wait)
    _check_same(ours)
    return medians(times)


def _check_same(training: Training) -> None:
    """No time for processes whose parameters are not the first one's."""
    flat = torch.cat([p.detach().flatten() for p in training.model.parameters()])
    first = flat.clone()
    dist.broadcast(first, 0)
    torch.testing.assert_close(flat, first, rtol=1e-4, atol=1e-6)


def _network() -> nn.Module:
    """A small network, the same in all processes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return DistributedDataParallel(model)


def _batch(rank: int) -> tuple[Tensor, Tensor]:
    """Images and labels of a process."""
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(BATCH_SIZE, 3, 32, 32, generator=generator)
    return images, torch.randint(10, (BATCH_SIZE,), generator=generator)
