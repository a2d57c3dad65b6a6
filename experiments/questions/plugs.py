"""How much faster are kronfluence, captum and unchanged scripts with ours?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.contenders.convolutions import normal
from experiments.harness.case import Call, Case, Contest, Options, Row, Unsupported
from experiments.harness.question import Claim, Question
from experiments.harness.ratios import least_ratio, side_by_side, times
from experiments.subjects import networks
from tn_extensions import planning

SCRIPTS = Path(networks.__file__).parent / "scripts"
WHO = ("stock", "ours")
_ROOT = Path(__file__).parents[2]
_NAME, _FIT = "fitted", {"per_device_batch_size": 32, "overwrite_output_dir": True}
_COUNTS = ("num_", "count")


def cases(options: Options) -> Iterator[Case]:
    """List the fitting of factors, influences, and scripts."""
    for phase in ("covariances", "eigenvalues"):
        key = {"toolkit": "kronfluence", "part": f"EKFAC's {phase} on ResNet-9"}
        yield Case(key, partial(_rows, partial(build_fit, phase)))
    key = {"toolkit": "captum", "part": "TracInCP"}
    yield Case(key, partial(_rows, build_tracin))
    scripts = sorted(SCRIPTS.glob("*.py"))
    for script in scripts[-1:] if options.quick else scripts:
        key = {"toolkit": script.stem, "part": "a script, as a process"}
        seconds: dict[str, list[float]] = {who: [] for who in WHO}
        build = partial(build_process, script, seconds)
        yield Case(key, partial(_rows, build, seconds=seconds))


def _rows(
    build: Any, options: Options, seconds: dict[str, list[float]] | None = None
) -> Iterator[Row]:
    if options.device.type != "cpu":
        raise Unsupported("these run on the CPU")
    size = 4 if options.quick else 64
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # toolkits', that no caller could heed
        builds = {who: partial(build, who, size, Path(folder)) for who in WHO}

        def notes(who: str) -> Row:
            """Take the time that a script has printed, rather than its process's."""
            return {"seconds": median(seconds[who])} if seconds else {}

        timed = not options.quick
        contest = Contest(builds, notes=notes, weighed=False, timed=timed)
        with planning("estimate" if options.quick else "measure"):
            yield from contest.rows(options)


@contextmanager
def _registered(plug: str, who: str) -> Iterator[None]:
    module = import_module(f"tn_extensions.{plug}")
    if who == "ours":
        module.register()
    try:
        yield
    finally:
        module.unregister()


def build_fit(
    phase: str, who: str, size: int, folder: Path, small: bool = False
) -> Call:
    """Build a fit of kronfluence; its result is what it has stored."""
    images = normal((size, 3, 32, 32), torch.device("cpu"))
    data = TensorDataset(images, torch.arange(size) % 10)
    if phase == "covariances":
        fit, load = "fit_covariance_matrices", "load_covariance_matrices"
    else:
        fit, load = "fit_lambda_matrices", "load_lambda_matrices"
        # eigenvalues compare only in the same basis, which the first contender makes
        if not (folder / "basis").exists():
            with _registered("kronfluence", "stock"):
                first = _analyzer(folder)
            first.fit_covariance_matrices(_NAME, data, factor_args=_args(), **_FIT)
            first.perform_eigendecomposition(_NAME, factor_args=_args())
            (folder / "basis").touch()
    with _registered("kronfluence", who):
        analyzer = _analyzer(folder)

    def call() -> list[Tensor]:
        getattr(analyzer, fit)(_NAME, data, factor_args=_args(), **_FIT)
        found: dict[str, dict[str, Tensor]] = getattr(analyzer, load)(_NAME)
        return [
            value
            for name, of_modules in sorted(found.items())
            if not name.startswith(_COUNTS)
            for _, value in sorted(of_modules.items())
        ]

    return call


def _args() -> Any:
    arguments = import_module("kronfluence.arguments").FactorArguments
    return arguments(strategy="ekfac", use_empirical_fisher=True)


def _analyzer(folder: Path) -> Any:
    analyzer = import_module("kronfluence.analyzer")
    task = _task()
    model = analyzer.prepare_model(resnet9(), task)
    return analyzer.Analyzer(
        "analysis",
        model,
        task,
        cpu=True,
        output_dir=str(folder),
        disable_tqdm=True,
        disable_model_save=True,
    )


@lru_cache
def _task() -> Any:
    base: Any = import_module("kronfluence.task").Task

    class Classification(base):
        """Cross-entropy; the labels are the data's, as for the empirical Fisher."""

        def compute_train_loss(
            self, batch: Any, model: nn.Module, sample: bool = False
        ) -> Tensor:
            """Sum the losses of a batch."""
            x, y = batch
            return nn.functional.cross_entropy(model(x), y, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            """Take the loss."""
            return self.compute_train_loss(batch, model)

    return Classification()


class _Residual(nn.Sequential):
    """Add what its modules compute to the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        result: Tensor = x + super().forward(x)
        return result


def resnet9() -> nn.Module:
    """Build the ResNet-9 of kronfluence's examples, in evaluation mode."""

    def block(i: int, o: int, k: int = 3, s: int = 1, p: int = 1) -> nn.Module:
        conv = nn.Conv2d(i, o, k, s, p, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            block(3, 64),
            block(64, 128, 5, 2, 2),
            _Residual(block(128, 128), block(128, 128)),
            block(128, 256),
            nn.MaxPool2d(2),
            _Residual(block(256, 256), block(256, 256)),
            block(256, 128, p=0),
            nn.AdaptiveMaxPool2d((1, 1)),
            nn.Flatten(),
            nn.Linear(128, 10, bias=False),
        ).eval()


def build_tracin(who: str, size: int, folder: Path, small: bool = False) -> Call:
    """Build TracInCP's influences of training images, from one checkpoint."""
    influence = import_module("captum.influence")
    subject = networks.Subject("3c3d")
    model, (x, y) = subject.plain(), subject.batch(size)
    torch.save(model.state_dict(), folder / "checkpoint")
    tracin = influence.TracInCP(
        model,
        TensorDataset(x, y),
        [str(folder / "checkpoint")],
        checkpoints_load_func=lambda model, path: 1.0,
        loss_fn=nn.CrossEntropyLoss(),
        batch_size=min(size, 32),
        sample_wise_grads_per_batch=True,
    )

    def call() -> Tensor:
        with _registered("captum", who):
            found: Tensor = tracin.influence((x[:4], y[:4]))
        return found

    return call


def build_process(
    script: Path,
    seconds: dict[str, list[float]],
    who: str,
    size: int,
    folder: Path,
    small: bool,
) -> Call:
    """Build the run of an unchanged script, which prints numbers and its seconds."""
    patched = ["-m", "tn_extensions"] if who == "ours" else []
    command = [sys.executable, *patched, str(script), str(size), "5"]
    # the script's own folder comes first, ours after it
    path = os.pathsep.join([str(_ROOT), *sys.path])

    def call() -> tuple[Tensor, ...]:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        printed = json.loads(done.stdout.splitlines()[-1])
        seconds[who].append(printed["seconds"])
        return torch.tensor(printed["numbers"]).unbind()

    return call


_INDEX = ("toolkit", "part")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show times with and without ours, and how far results differ."""
    found = side_by_side(rows, "error", _INDEX, ["ours"])
    found = found.rename(columns={"ours": "relative error of ours"})
    if "seconds" in rows:
        found = found.join(times(rows, _INDEX, WHO))
    return {"Times and errors": found}


QUESTION = Question(
    title="How much faster are kronfluence, captum and unchanged scripts with ours?",
    reading=(
        "kronfluence fits EKFAC's factors, then its eigenvalues, on the ResNet-9 of "
        "its examples; captum computes TracInCP on 3c3d; and small scripts of "
        "BackPACK, curvlinops and Opacus run as they are, by `python` and by `python "
        "-m tn_extensions`. Results are compared first. The time of a script is the "
        "one that it prints, of its fastest pass."
    ),
    cases=cases,
    tables=tables,
    claims=(Claim("Stock over ours, the worst", least_ratio(_INDEX), "at least", 1),),
)
