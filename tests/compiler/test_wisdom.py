"""Wisdom: measured once, remembered in a file, and taken before estimates."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.testing import assert_close

from tests.compiler.candidates import layer
from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import noise_tensor
from tn_extensions import functional, memory_budget, planning, quantities, wisdom
from tn_extensions.compiler import Plan, plan, register
from tn_extensions.compiler import wisdom as module
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.plan import forget_plans
from tn_extensions.network import TensorNetwork

NETWORK = quantities.kfac_expand(layer(), 2)
X = noise_tensor((2, 2, 6, 6))
EXPECTED = torch.from_numpy(dense.factor(layer(), X.numpy(), "expand"))


def measured() -> Plan:
    with planning("measure"):
        chosen = plan(NETWORK, torch.float64)
        assert_close(chosen.run({"x": X}, 1 / 2), EXPECTED)
    return chosen


def forget_process() -> None:
    """Start as a new process would."""
    module._store_of.cache_clear()
    forget_plans()


def files(cache: Path) -> list[Path]:
    return [*(cache / "wisdom").glob("*.json")]


def test_measured_once_then_remembered(cache: Path) -> None:
    assert not plan(NETWORK, torch.float64).measured
    chosen = measured()
    assert len(chosen.measured) >= 2
    assert chosen.candidate.label == min(
        chosen.measured, key=chosen.measured.__getitem__
    )
    again = measured()
    assert again is chosen
    forget_process()
    # measurements go before estimates
    remembered = plan(NETWORK, torch.float64)
    assert remembered.measured == chosen.measured
    assert remembered.candidate.label == chosen.candidate.label
    assert_close(remembered.run({"x": X}, 1 / 2), EXPECTED)


def test_a_plan_in_use_stays(cache: Path) -> None:
    used = plan(NETWORK, torch.float64)
    used.run({"x": X})
    before = used.candidate
    measured()
    assert plan(NETWORK, torch.float64) is used and used.candidate is before


def test_the_file_is_readable(cache: Path) -> None:
    chosen = measured()
    (path,) = files(cache)
    content = json.loads(path.read_text())
    assert content["format"] == module.FORMAT
    assert content["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(content["torch"])
    (entry,) = content["plans"].values()
    assert entry["seconds"] == dict(chosen.measured)
    assert entry["itemsize"] == 8
    text = wisdom.show()
    assert str(path) in text and chosen.candidate.label in text


def test_number_of_threads_has_its_own_file(cache: Path) -> None:
    measured()
    torch.set_num_threads(2)
    try:
        assert not plan(NETWORK, torch.float64).measured
        measured()
    finally:
        torch.set_num_threads(1)
    assert len(files(cache)) == 2


def test_nothing_is_measured_if_torch_is_deterministic(cache: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert not measured().measured
    finally:
        torch.use_deterministic_algorithms(False)
    assert not files(cache)


def test_nothing_is_measured_where_autograd_watches(cache: Path) -> None:
    x = X.clone().requires_grad_()
    with planning("measure"):
        functional.kfac_expand(x, layer()).sum().backward()
    assert x.grad is not None and not files(cache)


def test_a_target_is_written_once(cache: Path) -> None:
    out = EXPECTED.clone()
    with planning("measure"):
        functional.kfac_expand(X, layer(), out=out)
    assert_close(out, 2 * EXPECTED)


def test_candidates_over_the_budget_are_not_run(cache: Path) -> None:
    limit = 6000

    @register
    def greedy(network: TensorNetwork, target: Target) -> list[Candidate]:
        def run(tensors: Tensors, into: Accumulator) -> None:
            raise AssertionError("over the budget")

        return [Candidate("greedy", (Operation("all", cost=Cost()),), limit, run)]

    with memory_budget(8 * limit - 1):
        assert "greedy" not in "".join(measured().measured)


def test_a_candidate_that_raises_is_dropped(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @register
    def broken(network: TensorNetwork, target: Target) -> list[Candidate]:
        def run(tensors: Tensors, into: Accumulator) -> None:
            raise RuntimeError("no such kernel")

        return [Candidate("broken", (Operation("all", cost=Cost()),), 0, run)]

    with caplog.at_level(logging.WARNING, "tn_extensions"):
        chosen = measured()
    assert chosen.estimated.name == "broken" != chosen.candidate.name
    assert "no such kernel" in caplog.text


def test_candidates_that_are_gone_are_ignored(cache: Path) -> None:
    chosen = measured()
    (path,) = files(cache)
    content = json.loads(path.read_text())
    (entry,) = content["plans"].values()
    entry["seconds"] = {"of an older release": 0.0, **entry["seconds"]}
    path.write_text(json.dumps(content))
    forget_process()
    assert plan(NETWORK, torch.float64).candidate.label == chosen.candidate.label


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        json.dumps({"format": module.FORMAT}),
        json.dumps({"format": module.FORMAT + 1, "plans": {}}),
        json.dumps(
            {
                "format": module.FORMAT,
                "device": "",
                "torch": "",
                "threads": 1,
                "plans": {"key": {"seconds": {"some": "fast"}}},
            }
        ),
    ],
)
def test_broken_and_foreign_files(cache: Path, content: str) -> None:
    measured()
    (path,) = files(cache)
    path.write_text(content)
    forget_process()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = measured()
        assert plan(quantities.kfac_reduce(layer(), 2)).candidate
    assert [str(path) in str(one.message) for one in caught] == [True]
    assert chosen.measured and path.read_text() == content
    with pytest.raises(ValueError) as refused:
        wisdom.load(path)
    assert_in_form(refused.value, "load", "paths")


def test_a_folder_that_cannot_be_written(cache: Path) -> None:
    (cache / "wisdom").write_text("a file in its place")
    forget_process()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert measured().measured
    assert len(caught) == 1 and str(cache) in str(caught[0].message)
    forget_plans()
    assert plan(NETWORK, torch.float64).measured  # in this process, it is known


def test_a_file_that_somebody_writes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    store = module._store("cpu")
    store.path.parent.mkdir(parents=True)
    with FileLock(f"{store.path}.lock"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=measured)
        thread.start()
        thread.join()
    assert len(caught) == 1 and str(store.path) in str(caught[0].message)


WRITER = """
import sys
from tn_extensions.compiler import wisdom
for number in range(20):
    entry = {"network": "", "itemsize": 4, "budget": 1, "seconds": {"some": 1.0}}
    wisdom.record(f"{sys.argv[1]}{number}", entry, "cpu")
"""


def test_processes_that_write_at_once_lose_nothing(cache: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    (path,) = files(cache)
    plans = json.loads(path.read_text())["plans"]
    assert set(plans) == {f"{name}{number}" for name in "ab" for number in range(20)}


def test_saved_loaded_and_forgotten(cache: Path, tmp_path: Path) -> None:
    chosen = measured()
    shipped = tmp_path / "cluster.json"
    wisdom.save(shipped)
    wisdom.forget()
    forget_process()
    assert not files(cache) and not plan(NETWORK, torch.float64).measured
    assert wisdom.load(shipped) == 1
    forget_plans()
    assert plan(NETWORK, torch.float64).measured == chosen.measured
    assert files(cache)


def test_loading_merges(cache: Path, tmp_path: Path) -> None:
    def entry(seconds: float) -> dict[str, Any]:
        return {"network": "", "itemsize": 4, "budget": 1, "seconds": {"a": seconds}}

    paths = []
    for number, names in enumerate(("ab", "bc")):
        for name in names:
            wisdom.record(name, entry(number + 1.0), "cpu")
        paths.append(tmp_path / f"{number}.json")
        wisdom.save(paths[-1])
        wisdom.forget()
    assert wisdom.load(*paths) == 4
    found = {name: module.find(name, "cpu") for name in "abc"}
    assert found == {"a": {"a": 1.0}, "b": {"a": 2.0}, "c": {"a": 2.0}}


def test_threads_measure_once(cache: Path) -> None:
    chosen: list[Plan] = []
    threads = [
        threading.Thread(target=lambda: chosen.append(measured())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in chosen}) == 1
    results: list[Tensor] = [one.run({"x": X}, 1 / 2) for one in chosen]
    for result in results:
        assert_close(result, EXPECTED)


def test_the_folder_is_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TN_EXTENSIONS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module._folder() == tmp_path / "tn_extensions/wisdom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module._folder() == tmp_path / ".cache/tn_extensions/wisdom"


def test_what_fails_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    module._write(path, {"old": 1})
    with pytest.raises(TypeError):
        module._write(path, {"new": object()})
    assert [*tmp_path.iterdir()] == [path]
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_processor_has_a_name_elsewhere_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert module._processor() == "arm64"
