"""Metrics of a step, for logging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a step of the preconditioner.

    Args:
        step: The step, counted from zero.
        is_skipped: Whether no gradient was preconditioned, since some were not finite.
        scale: The factor by which ``kl_clip`` scaled preconditioned gradients, on the
            device. ``None`` if the step was skipped.
        damping: By layer, the damping of the inverses that this process computed. It is
            the option, or more if a factor was nearly singular.
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
        """The scale as a number; reading it waits for the device."""
        return None if self.scale is None else self.scale.item()
