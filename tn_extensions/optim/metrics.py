"""What a step did, to be logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepMetrics:
    """What a step of the preconditioner did.

    Args:
        step: The step, counted from zero.
        is_skipped: Whether something was not finite, so that nothing was
            preconditioned.
        scale: What ``kl_clip`` multiplied preconditioned gradients by, on the device.
            ``None``: of a step that was skipped.
        damping: Damping of the inverses that this process has computed, by layer: what
            was asked for, or more where a factor was nearly singular.
        factors_updated: Whether factors were updated.
        inverses_updated: Names of the layers whose inverses were updated.
    """

    step: int
    is_skipped: bool
    scale: Tensor | None
    damping: Mapping[str, float]
    factors_updated: bool
    inverses_updated: tuple[str, ...]

    @property
    def clip_scale(self) -> float | None:
        """The scale as a number, for which the host waits for the device."""
        return None if self.scale is None else self.scale.item()
