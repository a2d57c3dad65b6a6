"""Several processes do what one does with all of their data."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from tests.optim.support import (
    batch,
    decomposed_in_place,
    identified,
    matrix_of,
    network,
    train,
)
from tn_extensions.optim import KFACPreconditioner
from tn_extensions.optim.distributed import _assignment

STEPS = 20
OPTIONS: list[dict[str, Any]] = [
    {},
    {"approx": "reduce", "damping_method": "exact", "grad_worker_fraction": 0},
    {"fisher": "type-2", "inverse_update_steps": 3, "grad_worker_fraction": 0},
    {"eigenvalue_correction": True, "inverse_update_steps": 3},
    {
        "eigenvalue_correction": True,
        "factor_update_steps": 2,
        "grad_worker_fraction": 0,
    },
]
HALF = [{**OPTIONS[i], "grad_worker_fraction": 0.5} for i in (1, 3)]
SIZE = 12
"""Data of a step, of all processes."""

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


def launch(size: int, function: Callable[..., None], *args: Any) -> None:
    """Run a function in processes of one group; errors of any are raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = size, port, function, args
    mp.start_processes(_enter, arguments, size, start_method="forkserver")


def _enter(rank: int, size: int, port: int, function: Any, args: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group(
        "gloo", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    with decomposed_in_place():
        function(*args)
    # a model that outlives its processes' group may abort
    gc.collect()
    dist.destroy_process_group()


def whole(number: int) -> tuple[Tensor, Tensor]:
    return batch(SIZE, number % 8)


def own_share(number: int) -> tuple[Tensor, Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    x, y = whole(number)
    part = slice(rank, None, size)
    return x[part], y[part]


def single(model: nn.Module, options: dict[str, Any]) -> KFACPreconditioner:
    """Make the preconditioner of a single process."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    options = {**options, "grad_worker_fraction": 1}
    return KFACPreconditioner(model, **options, process_group=groups[dist.get_rank()])


def check_same_as_one(choices: list[dict[str, Any]], folder: str) -> None:
    for options in choices:
        is_corrected = options.get("eigenvalue_correction", False)
        build = identified if is_corrected else network
        model = build()
        one = single(model, options)
        expected = train(model, one, range(STEPS), data=whole)
        model = build()
        distributed = DistributedDataParallel(model)
        found = KFACPreconditioner(distributed, **options)
        train(distributed, found, range(STEPS), data=own_share)
        assert_close(list(model.parameters()), expected, rtol=1e-12, atol=1e-12)
        # the state is that of one process, and of each of these
        state = found.state_dict()
        path = Path(folder) / "state.pt"
        if dist.get_rank() == 0:
            torch.save([state, model.state_dict()], path)
        dist.barrier()
        for name, own in one.state_dict()["layers"].items():
            for what, average in own["averages"].items():
                other = state["layers"][name]["averages"][what]
                factors = map(matrix_of, (average, other))
                assert_close(*factors, rtol=1e-9, atol=1e-9)
            assert state["layers"][name]["inverse"] is not None
        # both ways: from several processes into one, and from that into several
        state, weights = torch.load(path, weights_only=True)
        further = range(STEPS, STEPS + 4)
        resumed = build()
        resumed.load_state_dict(weights)
        one = single(resumed, options)
        one.load_state_dict(state)
        expected = train(resumed, one, further, data=whole)
        resumed = build()
        resumed.load_state_dict(weights)
        distributed = DistributedDataParallel(resumed)
        several = KFACPreconditioner(distributed, **options)
        several.load_state_dict(state)
        actual = train(distributed, several, further, data=own_share)
        assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        dist.barrier()


@pytest.mark.parametrize(("size", "choices"), [(2, OPTIONS), (3, OPTIONS), (4, HALF)])
def test_same_as_one(size: int, choices: list[dict[str, Any]], tmp_path: Path) -> None:
    launch(size, check_same_as_one, choices, str(tmp_path))


def check_errors() -> None:
    model = network()
    if dist.get_rank() == 1:
        model[5] = nn.Linear(384, 4).double()
    with pytest.raises(ValueError, match=r"must be the same in all .* process \d: 5"):
        KFACPreconditioner(model)
    with pytest.raises(ValueError, match="grad_worker_fraction must"):
        KFACPreconditioner(network(), grad_worker_fraction=0.7)
    # of unlike numbers of data, too, all get the same
    model = network()
    distributed = DistributedDataParallel(model)
    found = KFACPreconditioner(distributed)
    count = 2 + dist.get_rank()
    train(distributed, found, range(2), data=lambda number: batch(count, number))
    weights = [torch.empty_like(model[0].weight) for _ in range(2)]
    dist.all_gather(weights, model[0].weight.detach())
    assert torch.equal(*weights)
    # overflow in one process stops all
    distributed.zero_grad()
    x, y = batch()
    loss = nn.functional.cross_entropy(distributed(x), y)
    (loss * (torch.nan if dist.get_rank() else 1)).backward()
    with pytest.raises(ValueError, match="gradients must be finite"):
        found.step()
    train(distributed, found, [2], data=own_share)


def test_errors() -> None:
    launch(2, check_errors)


def die(folder: str) -> None:
    model = network()
    distributed = DistributedDataParallel(model)
    found = KFACPreconditioner(distributed)
    train(distributed, found, [0], data=own_share)
    if dist.get_rank() == 1:
        os._exit(7)
    start = time.monotonic()
    try:
        nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
        found.step()
    except Exception as error:
        message = f"{time.monotonic() - start:.0f} {error}"
        (Path(folder) / "message").write_text(message)
        raise


def test_a_dead_process_does_not_make_others_hang(tmp_path: Path) -> None:
    with pytest.raises(mp.ProcessExitedException):
        launch(2, die, str(tmp_path))


def test_assignment() -> None:
    """The most expensive layers first, to the least busy process."""
    assert _assignment([1.0, 9.0, 5.0, 4.0], 2) == [0, 0, 1, 1]
    assert _assignment([1.0, 2.0], 1) == [0, 0]
