"""How much faster are kronfluence, captum and unchanged scripts with ours?

kronfluence fits EKFAC's factors, then its eigenvalues, on the ResNet-9 of its examples;
captum computes TracInCP on 3c3d; and small scripts of BackPACK, curvlinops and Opacus
run as they are, by `python` and by `python -m tn_extensions`. Results are compared
first. The time of a script is the one that it prints, of its fastest pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.contenders.quantities import normal
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.measure import Call
from experiments.harness.question import Question
from experiments.harness.ratios import Ratio, side_by_side, times
from experiments.subjects import networks
from experiments.subjects.networks import Subject, resnet9
from tn_extensions import planning

SCRIPT = Path(networks.__file__).with_name("script.py")
SCRIPTS = ("backpack", "curvlinops", "opacus")
WHO = ("stock", "ours")
_CASE = ("toolkit", "part")
_NAME, _FIT = "fitted", {"per_device_batch_size": 32, "overwrite_output_dir": True}


def cases(options: Options) -> Iterator[Case]:
    """List the fitting of factors, influences, and scripts."""
    case = partial(Case, cpu_only=True)
    for phase in ("covariances", "eigenvalues"):
        key = {"toolkit": "kronfluence", "part": f"EKFAC's {phase} on ResNet-9"}
        yield case(key, _rows, partial(build_fit, phase))
    yield case({"toolkit": "captum", "part": "TracInCP"}, _rows, build_tracin)
    for toolkit in SCRIPTS[-1:] if options.quick else SCRIPTS:
        key = {"toolkit": f"{toolkit}_script", "part": "a script, as a process"}
        yield case(key, _rows, partial(Process, [str(SCRIPT), toolkit]))


def _rows(build: Any, options: Options) -> Iterator[Row]:
    size = 4 if options.quick else 64
    calls: dict[str, Call] = {}

    def make(who: str, folder: Path, small: bool) -> Call:
        calls[who] = build(who, size, folder)
        return calls[who]

    def notes(who: str) -> Row:
        """Take the times that a script has printed, rather than its process's."""
        seconds = getattr(calls[who], "seconds", [])
        return {"seconds": median(seconds)} if seconds else {}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # toolkits', that no caller could heed
        contest = Contest(
            {who: partial(make, who, Path(folder)) for who in WHO},
            notes=notes,
            weighed=False,
            timed=not options.quick,
        )
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


def build_fit(phase: str, who: str, size: int, folder: Path) -> Call:
    """Build a fit of kronfluence; its result is what it has stored."""
    images = normal((size, 3, 32, 32), torch.device("cpu"))
    data = TensorDataset(images, torch.arange(size) % 10)
    arguments = import_module("kronfluence.arguments").FactorArguments(
        strategy="ekfac", use_empirical_fisher=True
    )

    def fit(analyzer: Any, what: str) -> None:
        getattr(analyzer, f"fit_{what}")(_NAME, data, factor_args=arguments, **_FIT)

    what = "covariance_matrices" if phase == "covariances" else "lambda_matrices"
    # eigenvalues compare only in the same basis, which the first contender makes
    if phase == "eigenvalues" and not (folder / "basis").exists():
        with _registered("kronfluence", "stock"):
            first = _analyzer(folder)
        fit(first, "covariance_matrices")
        first.perform_eigendecomposition(_NAME, factor_args=arguments)
        (folder / "basis").touch()
    with _registered("kronfluence", who):
        analyzer = _analyzer(folder)

    def call() -> list[Tensor]:
        fit(analyzer, what)
        found: dict[str, dict[str, Tensor]] = getattr(analyzer, f"load_{what}")(_NAME)
        return [
            value
            for name, of_modules in sorted(found.items())
            if not name.startswith(("num_", "count"))
            for _, value in sorted(of_modules.items())
        ]

    return call


def _analyzer(folder: Path) -> Any:
    base: Any = import_module("kronfluence.task").Task

    class Classification(base):
        """Cross-entropy; the labels are the data's, as for the empirical Fisher."""

        def compute_train_loss(
            self, batch: Any, model: nn.Module, sample: bool = False
        ) -> Tensor:
            """Sum the losses of a batch."""
            x, y = batch
            return nn.functional.cross_entropy(model(x), y, reduction="sum")

        compute_measurement = compute_train_loss

    analyzer, task = import_module("kronfluence.analyzer"), Classification()
    return analyzer.Analyzer(
        "analysis",
        analyzer.prepare_model(resnet9(), task),
        task,
        cpu=True,
        output_dir=str(folder),
        disable_tqdm=True,
        disable_model_save=True,
    )


def build_tracin(who: str, size: int, folder: Path) -> Call:
    """Build TracInCP's influences of training images, from one checkpoint."""
    influence = import_module("captum.influence")
    subject = Subject("3c3d")
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


class Process:
    """The run of an unchanged script, which prints numbers and its seconds."""

    def __init__(self, script: list[str], who: str, size: int, folder: Path) -> None:
        patched = ["-m", "tn_extensions"] if who == "ours" else []
        self._command = [sys.executable, *patched, *script, str(size), "5"]
        # the script's own folder comes first, ours after it
        path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        self._environment = os.environ | {"PYTHONPATH": path}
        self.seconds: list[float] = []

    def __call__(self) -> tuple[Tensor, ...]:
        """Run the script; return its numbers."""
        done = subprocess.run(
            self._command,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        printed = json.loads(done.stdout.splitlines()[-1])
        self.seconds.append(printed["seconds"])
        return torch.tensor(printed["numbers"]).unbind()


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show times with and without ours, and how far results differ."""
    found = side_by_side(rows, "error", _CASE, ["ours"])
    found = found.rename(columns={"ours": "relative error of ours"})
    if "seconds" in rows:
        found = found.join(times(rows, _CASE, WHO))
    return {"Times and errors": found}


QUESTION = Question(
    __doc__,
    cases,
    tables,
    claims=(Ratio(_CASE).claim("Stock over ours, the worst", 1),),
)
