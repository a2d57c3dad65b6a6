"""Sharded parameters (FSDP2): several processes do what one does with all data."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from tests.optim.support import (
    assert_same_state,
    batch,
    identified,
    loss_of,
    network,
    train,
)
from tests.optim.test_distributed import STEPS, launch, own_share, single, whole
from tn_extensions.kronecker.moments import kernel_moments
from tn_extensions.optim import KFAC, KFACPreconditioner, layer
from tn_extensions.optim.state import detach_tensors, to_state

OPTIONS: list[dict[str, Any]] = [
    {},
    {"approx": "reduce", "damping_method": "exact", "inverse_update_steps": 3},
    {"fisher": "type-2", "factor_update_steps": 2},
    {"eigenvalue_correction": True, "inverse_update_steps": 3},
    {"eigenvalue_correction": True, "fisher": "type-2", "approx": "reduce"},
]

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


def sharded(model: nn.Sequential) -> nn.Sequential:
    """Shard some layers on their own, and the last one with the model."""
    fully_shard(model[0])
    fully_shard(model[2])
    return fully_shard(model)


def whole_parameters(model: nn.Module) -> list[Tensor]:
    return [
        own.full_tensor() if isinstance(own, DTensor) else own
        for own in model.parameters()
    ]


def check_same_as_one(choices: list[dict[str, Any]]) -> None:
    for options in choices:
        is_corrected = options.get("eigenvalue_correction", False)
        build = identified if is_corrected else network
        model = build()
        expected = train(model, single(model, options), range(STEPS), data=whole)
        model = sharded(build())
        found = KFACPreconditioner(model, **options)
        train(model, found, range(STEPS), data=own_share)
        assert_close(whole_parameters(model), expected, rtol=1e-10, atol=1e-10)
        # an average is in one place, and so are bases
        owned = [n for n in found._layers if found._processes.inverts(n)]
        layers = found._layers.items()
        assert owned == [name for name, own in layers if own.averages]
        if is_corrected:
            assert owned == [name for name, own in layers if own.bases]


def check_what_counts() -> None:
    """Accumulated gradients count, those set to zero do not; overflow stops all."""
    expected_model = network()
    one = single(expected_model, {})
    expected = train(expected_model, one, range(2), data=whole)
    for set_to_none in (True, False):
        model = sharded(network())
        found = KFACPreconditioner(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for number in range(2):
            optimizer.zero_grad()
            if number:
                loss_of(model, batch(3, 5)).backward()
                optimizer.zero_grad(set_to_none=set_to_none)
            x, y = own_share(number)
            for part in (slice(0, 3), slice(3, 6)):
                if part.start:
                    # a forward pass alone leaves the model's parameters gathered
                    with torch.no_grad():
                        model(x)
                (loss_of(model, (x[part], y[part])) / 2).backward()
            with torch.no_grad():
                model(x)
            found.step()
            # else FSDP2 computes on with what that pass gathered, as without us
            model.reshard()
            optimizer.step()
        assert_close(whole_parameters(model), expected, rtol=1e-10, atol=1e-10)
    state = copy.deepcopy(found.state_dict())
    optimizer.zero_grad()
    loss = loss_of(model, batch())
    (loss * (torch.nan if dist.get_rank() else 1)).backward()
    with pytest.raises(ValueError, match="gradients must be finite"):
        found.step()
    assert_same_state(found.state_dict(), state)


def check_errors() -> None:
    with pytest.raises(ValueError, match="grad_worker_fraction must be 0 or None"):
        KFACPreconditioner(sharded(network()), grad_worker_fraction=1.0)
    mixed = network()
    fully_shard(mixed[2])
    with pytest.raises(NotImplementedError, match=r"0\.weight must be sharded by"):
        KFACPreconditioner(mixed)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("copies", "parts"))
    hybrid = fully_shard(network(), mesh=mesh)
    with pytest.raises(NotImplementedError, match="a mesh of 2 axes"):
        KFACPreconditioner(hybrid)
    groups = [dist.new_group([rank]) for rank in range(2)]
    with pytest.raises(ValueError, match="process_group must be the group of"):
        KFACPreconditioner(sharded(network()), process_group=groups[dist.get_rank()])
    model = network()
    early = KFACPreconditioner(model)
    sharded(model)
    loss_of(model, batch()).backward()
    with pytest.raises(RuntimeError, match="Construct KFACPreconditioner after"):
        early.step()


def each_corrected_or_not(check: Callable[..., None], *args: Any) -> None:
    for is_corrected in (False, True):
        # between two updates of the inverses
        options = {"inverse_update_steps": 3, "eigenvalue_correction": is_corrected}
        check(options, *args)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Size of tensors; what shares memory counts once."""
    return sum(each.nbytes for each in {t.data_ptr(): t for t in tensors}.values())


def held(found: KFACPreconditioner) -> list[Tensor]:
    """Averages, eigenvectors and inverses."""
    tensors: list[Tensor] = []
    for each in found._layers.values():
        bases = dict(enumerate(each.bases or ()))
        own = {**each.averages, "bases": bases, "inverse": to_state(each.inverse)}
        detach_tensors(own, tensors)
    return tensors


def chain() -> nn.Sequential:
    sizes = (18, 24, 20, 24, 18, 24, 20, 24, 3)
    layers = [nn.Linear(*own) for own in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *layers).double()


def check_memory(options: dict[str, Any]) -> None:
    """Check that each of four processes holds a third of one's memory at most."""
    one = single(model := chain(), options)
    train(model, one, range(3), data=whole)
    model = chain()
    for module in model[1:]:
        fully_shard(module)
    kfac = KFAC(fully_shard(model), **options)
    found = kfac.preconditioner
    peak, borrowed = 0, list[weakref.ref[Tensor]]()

    def measured(pairs: Any, left: Tensor, right: Tensor, is_joint: bool) -> Tensor:
        nonlocal peak, borrowed
        # others have been dropped
        assert all(known() is None for known in borrowed)
        own = held(found)
        kept = {each.data_ptr() for each in own}
        both = [each for each in (left, right) if each.data_ptr() not in kept]
        borrowed = list(map(weakref.ref, both))
        peak = max(peak, num_bytes([*own, *both]))
        return kernel_moments(pairs, left, right, is_joint)

    with patch.object(layer, "kernel_moments", measured):
        for number in range(3):
            kfac.zero_grad()
            loss_of(model, own_share(number)).backward()
            kfac.step()
    assert bool(peak) == options.get("eigenvalue_correction", False)
    assert max(peak, num_bytes(held(found))) <= num_bytes(held(one)) / 3
    # what comes back has no other layer, either
    assert len(found.state_dict()["layers"]) == 2


def test_memory() -> None:
    launch(4, each_corrected_or_not, check_memory)


def folder_of(folder: str, options: dict[str, Any]) -> Path:
    return Path(folder) / str(options["eigenvalue_correction"])


def save(options: dict[str, Any], folder: str) -> None:
    """Train a few steps and save all."""
    model = sharded(identified())
    found = KFACPreconditioner(model, **options)
    train(model, found, range(4), data=own_share)
    state = {"model": model.state_dict(), "curvature": found.state_dict()}
    dcp.save(state, checkpoint_id=folder_of(folder, options))


def load(options: dict[str, Any], folder: str, is_sharded: bool) -> None:
    """Go on from there, as one that was not interrupted."""
    saved = folder_of(folder, options)
    model = identified()
    expected = train(model, single(model, options), range(7), data=whole)
    model = sharded(identified()) if is_sharded else identified()
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=saved)
    model.load_state_dict(state["model"])
    found = (
        KFACPreconditioner(model, **options) if is_sharded else single(model, options)
    )
    found.load_checkpoint(saved, "curvature")
    assert found.steps == 4
    train(model, found, range(4, 7), data=own_share if is_sharded else whole)
    assert_close(whole_parameters(model), expected, rtol=1e-10, atol=1e-10)
    other = KFACPreconditioner(nn.Sequential(nn.Linear(3, 3)).double())
    with pytest.raises(ValueError, match="state_dict must have the same layers"):
        other.load_checkpoint(saved, "curvature")
    with pytest.raises(ValueError, match="key must be a key of the checkpoint"):
        other.load_checkpoint(saved, "optimizer")


def test_checkpoints_of_other_numbers_of_processes(tmp_path: Path) -> None:
    launch(4, each_corrected_or_not, save, str(tmp_path))
    launch(2, each_corrected_or_not, load, str(tmp_path), True)
    launch(1, each_corrected_or_not, load, str(tmp_path), False)


def offloaded() -> nn.Sequential:
    policy = CPUOffloadPolicy(pin_memory=False)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return fully_shard(network(), mesh=mesh, offload_policy=policy)


def check_offloaded() -> None:
    # parameters wait where they are computed with
    model = network()
    expected = train(model, single(model, {}), range(3), data=whole)
    model = offloaded()
    train(model, KFACPreconditioner(model), range(3), data=own_share)
    assert_close(whole_parameters(model), expected, rtol=1e-10, atol=1e-10)
    # and where they are not, of which no machine without an accelerator has any
    model = offloaded()
    rule = r"0\.weight must be sharded .* got a parameter on cpu and a mesh on cuda"
    with (
        patch.object(DeviceMesh, "device_type", "cuda"),
        pytest.raises(NotImplementedError, match=rule),
    ):
        KFACPreconditioner(model)


def check_two() -> None:
    check_what_counts()
    check_errors()
    check_offloaded()


def test_what_counts_errors_and_offloaded_parameters() -> None:
    launch(2, check_two)


@pytest.mark.parametrize("size", [2, 4])
def test_same_as_one(size: int) -> None:
    launch(size, check_same_as_one, OPTIONS)
