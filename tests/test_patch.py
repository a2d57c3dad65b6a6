"""Toolkits that use ours after a call, and scripts that never make it."""

from __future__ import annotations

import configparser
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import backpack.extensions
import curvlinops
import laplace
import laplace.curvature
import pytest
import singd.optim.optimizer
from captum._utils import sample_gradient
from kronfluence.module.tracked_module import TrackedModule
from opacus.grad_sample import GradSampleModule
from torch import nn

import tn_extensions
import tn_extensions.backpack
import tn_extensions.curvlinops.laplace
import tn_extensions.kronfluence
import tn_extensions.optim.singd
from tests.messages import assert_in_form
from tn_extensions import patch, unpatch
from tn_extensions.patch import TOOLKITS

ROOT = Path(__file__).parents[1]
MODULE = sys.modules["tn_extensions.patch"]
"""Not the function of this name."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = looked_up()
    yield
    unpatch()
    assert looked_up() == before


def looked_up() -> dict[str, object]:
    """Return what users of each toolkit get."""
    return {
        "backpack": backpack.extensions.KFAC,
        "curvlinops": curvlinops.KFACLinearOperator,
        "opacus": GradSampleModule.GRAD_SAMPLERS[nn.Conv2d],
        "captum": sample_gradient.SUPPORTED_MODULES[nn.Conv2d],
        "kronfluence": TrackedModule.SUPPORTED_MODULES[nn.Conv2d],
        "laplace": laplace.curvature.CurvlinopsGGN,
        "singd": singd.optim.optimizer.SINGD,
    }


def test_all_toolkits_use_ours() -> None:
    stock = looked_up()
    assert patch() == tuple(TOOLKITS)
    ours = looked_up()
    assert all(ours[name] is not stock[name] for name in TOOLKITS)
    assert ours["backpack"] is tn_extensions.backpack.KFAC
    assert backpack.extensions.secondorder.KFAC is tn_extensions.backpack.KFAC
    assert ours["kronfluence"] is tn_extensions.kronfluence.TrackedConvolution
    assert ours["singd"] is tn_extensions.optim.singd.SINGD
    assert laplace.KronLaplace is tn_extensions.curvlinops.laplace.KronLaplace
    assert laplace.baselaplace.CurvlinopsGGN is ours["laplace"]
    # again: nothing changes, and once is enough to restore
    assert patch() == tuple(TOOLKITS)
    assert looked_up() == ours
    unpatch()
    assert looked_up() == stock


def test_only_some() -> None:
    stock = looked_up()
    assert patch(only=["captum"]) == ("captum",)
    assert patch(only=["singd", "captum"]) == ("captum", "singd")
    found = looked_up()
    changed = {name for name in TOOLKITS if found[name] is not stock[name]}
    assert changed == {"captum", "singd"}


def test_bad_input() -> None:
    stock = looked_up()
    with pytest.raises(TypeError) as caught:
        patch(only="backpack")
    assert_in_form(caught.value, "patch", "only")
    with pytest.raises(ValueError, match="'backpac'") as wrong:
        patch(only=["captum", "backpac"])
    assert_in_form(wrong.value, "patch", "only")
    assert looked_up() == stock


def test_releases_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    releases = {"opacus": "9.1", "captum": "0.90"}

    def pretended(name: str) -> str:
        return releases.get(name) or version(name)

    monkeypatch.setattr(MODULE, "version", pretended)
    with pytest.warns(UserWarning, match="release") as warned:
        patched = patch()
    assert patched == tuple(name for name in TOOLKITS if name not in releases)
    assert {str(one.message).split()[1] for one in warned} == {*releases}
    unpatch()
    with pytest.raises(ImportError, match=r"opacus must be of release 1\.6, got 9\.1"):
        patch(only=["opacus", "singd"])
    assert singd.optim.optimizer.SINGD is tn_extensions.optim.singd.SINGD


def test_toolkits_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(MODULE, "version", absent)
    assert patch() == ()
    with pytest.raises(ImportError, match=r"tn-extensions\[kronfluence\]"):
        patch(only=["kronfluence"])


def test_toolkits_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = looked_up()
    # importing it raises an ImportError
    monkeypatch.setitem(sys.modules, "tn_extensions.captum", None)
    with pytest.warns(UserWarning, match="captum must be importable"):
        assert "captum" not in patch()
    unpatch()
    with pytest.raises(ImportError, match="captum must be importable"):
        patch(only=["captum"])
    assert looked_up() == stock


def test_releases_are_those_that_are_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    lines = [config["options"]["install_requires"], *extras.values()]
    required = "\n".join(lines).splitlines()
    for toolkit in TOOLKITS.values():
        ranges = [r for r in required if r.startswith(f"{toolkit.distribution}>=")]
        lowest = ranges[0].partition(">=")[2].split(",")[0]
        assert toolkit.is_known(lowest), ranges


SCRIPT = """
import sys
from backpack import backpack, extend
from backpack.extensions import BatchGrad
import torch
model = extend(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()))
with backpack(BatchGrad()):
    model(torch.ones(2, 1, 3, 3)).sum().backward()
where = BatchGrad.__module__.split(".")[0]
print(sys.argv[1:], where, model[0].weight.grad_batch.shape)
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tn_extensions", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = run("--only", "backpack", str(script), "--flag", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(
        "['--flag', '1'] tn_extensions torch.Size([2, 2, 1, 3, 3])"
    )


def test_script_that_is_not_there(tmp_path: Path) -> None:
    result = run("missing.py", cwd=tmp_path)
    assert result.returncode == 2
    assert "missing.py" in result.stderr
