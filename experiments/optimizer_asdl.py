"""What ASDL's factors cost in training, beside ours.

ASDL is optional: ``asdfghjkl`` on PyPI, which laplace-torch requires. Both sides take a
forward and a backward pass for the gradients that train, compute in it the factors of
KFAC-expand and of the empirical Fisher, and average them exponentially. Not included:
inverses, preconditioning (damping differs, so results would), and the optimizer's step.

Of what the two compute,

- ``B`` is the same, though ASDL differentiates the sum of losses and ours their mean;
- ASDL's ``A`` lacks the bias, our last row and column;
- ASDL averages from zero: after ``k`` equal passes it has ``1 - decay^k`` times ours;
- ASDL has no padding but zeros, no dilation and no groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

from torch import Tensor, nn

from experiments.measure import medians, time_side_by_side
from experiments.optimizer_contenders import Case, Training
from experiments.optimizer_costs import (
    TOLERANCE,
    Settings,
    deviation,
    range_of_overheads,
)

DECAY = 0.95
"""Weight of the former averages: our default."""
COMPARED_PASSES = 2
"""Equal passes before the comparison; one alone would not be an average."""


class NotInstalled(RuntimeError):
    """ASDL is not there; the message says how to get it."""


class AsdlRow(NamedTuple):
    """ASDL's factors beside ours, in a case of KFAC-expand."""

    case: Case

    @property
    def title(self) -> str:
        """What is measured, in a line."""
        return f"factors of ASDL, {self.case.title}"

    def identity(self) -> dict[str, Any]:
        """What is measured, for a record."""
        includes = "forward, backward, factors, averages"
        return self.case.identity() | {"contender": "asdl", "includes": includes}


def asdl_parts(row: AsdlRow, settings: Settings) -> Iterator[dict[str, Any]]:
    """Time passes with factors; parts of a record."""
    yield row.identity() | {"part": "asdl"}
    case = row.case
    asdl = AsdlTraining(case)
    ours = Training.of(case, "ours")
    ours.start(case.is_late, with_step=False)
    asdl.update_factors()
    for _ in range(1, COMPARED_PASSES):
        ours.update_factors()
        asdl.update_factors()
    error = deviation(_comparable(ours.averages(), asdl), asdl.averages())
    agrees = error <= TOLERANCE
    yield {"error": error, "layers": len(ours.layers), "agrees": agrees}
    if agrees:
        yield _timed(Training.of(case, "sgd"), ours, asdl, settings.rounds)


class AsdlTraining:
    """A model whose factors ASDL averages.

    Args:
        case: The network.

    Raises:
        NotInstalled: If ASDL is not.
    """

    def __init__(self, case: Case) -> None:
        asdl = _imported()
        self._model = case.subject.plain().train()
        images, labels = case.subject.batch(case.batch_size)
        # its class for KFAC has factors of normalisations, too, which ours leaves alone
        shapes = [(kind, asdl.SHAPE_KRON) for kind in (nn.Conv2d, nn.Linear)]
        self._maker = asdl.NaturalGradientMaker(
            self._model,
            asdl.PreconditioningConfig(data_size=case.batch_size, ema_decay=1 - DECAY),
            fisher_type=asdl.FISHER_EMP,
            fisher_shape=shapes,
        )
        output = self._maker.setup_model_call(self._model, images)
        self._maker.setup_loss_call(nn.functional.cross_entropy, output, labels)
        self._num_passes = 0

    def update_factors(self) -> None:
        """As :meth:`Training.update_factors`."""
        self._model.zero_grad()
        with catch_warnings():
            simplefilter("ignore")  # it uses hooks that torch deprecates
            self._maker.update_curvature()
        self._num_passes += 1

    def averages(self) -> dict[str, Tensor]:
        """As :meth:`Training.averages`, of equal passes."""
        scale = 1 / (1 - DECAY**self._num_passes)
        return {
            f"{name}.{what}": factor.unsqueeze(0) * scale
            for name, module in self._model.named_modules()
            if (fisher := getattr(module, "fisher", None)) is not None
            for what, factor in (
                ("inputs", fisher.kron.A),
                ("gradients", fisher.kron.B),
            )
        }


def _imported() -> Any:
    try:
        return import_module("asdl")
    except ModuleNotFoundError as reason:
        if reason.name != "asdl":
            raise
        message = "skipped, as ASDL is missing (pip install asdfghjkl==0.1a4)"
        raise NotInstalled(message) from reason


def _comparable(averages: dict[str, Tensor], asdl: AsdlTraining) -> dict[str, Tensor]:
    """Our averages without the bias, which ASDL leaves out of ``A``."""
    sizes = {name: own.shape[-1] for name, own in asdl.averages().items()}
    return {
        name: own[:, : sizes.get(name), : sizes.get(name)]
        for name, own in averages.items()
    }


def _timed(
    sgd: Training, ours: Training, asdl: AsdlTraining, rounds: int
) -> dict[str, Any]:
    """Times of passes, without factors and with, and what factors add to them."""
    calls = {
        "pass": sgd.backward,
        "ours": ours.update_factors,
        "asdl": asdl.update_factors,
    }
    times = time_side_by_side(calls, rounds)
    seconds = medians(times)
    beyond = {side: seconds[side] - seconds["pass"] for side in ("ours", "asdl")}
    if beyond["ours"] > 0:
        beyond["ratio"] = beyond["asdl"] / beyond["ours"]
    return {
        "rounds": rounds,
        "seconds": seconds,
        "ratio": seconds["asdl"] / seconds["ours"],
        "beyond": beyond,
        "beyond_range": range_of_overheads(times["pass"], times["ours"], times["asdl"]),
    }
