"""What a simplification did; it draws itself, by what is above, when it is asked to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tn_extensions.network.network import TensorNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Step:
    """One application of a rule.

    Args:
        rule: Name of the rule.
        before: The network that it was applied to.
        after: An exact equal.
        identity: Why it is one.
    """

    rule: str
    before: TensorNetwork
    after: TensorNetwork
    identity: str = ""

    @property
    def cost(self) -> tuple[float, float]:
        """Multiply-adds before and after, see :attr:`TensorNetwork.flops`."""
        return self.before.flops, self.after.flops

    def __str__(self) -> str:
        return f"{self.rule}: {self.before.equation()} => {self.after.equation()}"


class Trace(tuple[Step, ...]):
    """The steps of a simplification, in order; print or draw them.

    Args:
        network: What was simplified.
        steps: The applications of rules.
    """

    network: TensorNetwork

    def __new__(cls, network: TensorNetwork, steps: Iterable[Step] = ()) -> Trace:
        """The steps, which know what they started from, also if there are none."""
        trace = super().__new__(cls, steps)
        trace.network = network
        return trace

    def draw(self, columns: int = 3, scale: float = 1.0) -> Figure:
        """A strip of pictures, first to last; in notebooks, a trace shows it by itself.

        Args:
            columns: Pictures side by side.
            scale: Enlarges the picture.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from tn_extensions.diagram.figure import figure
        from tn_extensions.diagram.trace import strip_of

        return figure(strip_of(self, columns), scale)

    def to_tikz(self, columns: int = 3, standalone: bool = True) -> str:
        """LaTeX source of the strip.

        Args:
            columns: Pictures side by side.
            standalone: As for :meth:`TensorNetwork.to_tikz`.
        """
        from tn_extensions.diagram.tikz import tikz
        from tn_extensions.diagram.trace import strip_of

        return tikz(strip_of(self, columns), standalone)

    def _repr_svg_(self) -> str | None:
        from tn_extensions.diagram.figure import render
        from tn_extensions.diagram.trace import strip_of

        try:
            return render(strip_of(self), "svg").decode()
        except ImportError:
            return None

    def __str__(self) -> str:
        lines = [f"{self.network.equation()}: {self.network.flops:.3g} multiply-adds"]
        for step in self:
            before, after = step.cost
            lines.append(f"  {step.rule}: {step.identity}")
            equation = step.after.equation()
            lines.append(f"    {before:.3g} -> {after:.3g} multiply-adds, {equation}")
        return "\n".join(lines)
