"""The steps of a simplification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.text import node_text, output_text, si


@dataclass(frozen=True)
class Step:
    """One application of a rule.

    Args:
        rule: Name of the rule.
        before: The network that the rule was applied to.
        after: The result, which is exactly equal.
        identity: The equation that makes it so.

    >>> from tn_extensions.network import build, simplify
    >>> network = build({"x": ["n", "i"], "y": ["i"]}, "n", {"n": 4, "i": 1})
    >>> print(*simplify(network, trace=True)[1])
    squeeze: x[n, i]; y[i] => x[n, 0]; y[0]
    """

    rule: str
    before: TensorNetwork
    after: TensorNetwork
    identity: str = ""

    @property
    def cost(self) -> tuple[float, float]:
        """Multiply-adds before and after, see :attr:`TensorNetwork.flops`."""
        return self.before.flops, self.after.flops

    @property
    def resized(self) -> dict[str, tuple[int, int]]:
        """Indices whose size changes, with both sizes."""
        old, new = self.before.sizes, self.after.sizes
        return {j: (old[j], new[j]) for j in old if j in new and old[j] != new[j]}

    @property
    def change(self) -> str:
        """The nodes and sizes that differ, before and after, as text."""
        before, after = self.before, self.after
        removed = Counter(before.nodes) - Counter(after.nodes)
        added = Counter(after.nodes) - Counter(before.nodes)
        texts = [
            "; ".join(node_text(node, network.sizes) for node in nodes.elements())
            for network, nodes in ((before, removed), (after, added))
        ]
        parts = [" => ".join(text or "1" for text in texts)] if any(texts) else []
        if before.output != after.output:
            parts.append(f"{output_text(before.output)} => {output_text(after.output)}")
        parts += [f"{j} from {old} to {new}" for j, (old, new) in self.resized.items()]
        return "; ".join(parts)

    def __str__(self) -> str:
        return f"{self.rule}: {self.change}"


class Trace(tuple[Step, ...]):
    """The steps of a simplification, in order; print or draw them.

    Args:
        network: The network that was simplified.
        steps: The steps.
    """

    network: TensorNetwork

    # a higher layer supplies these, see `network.methods`
    draw: ClassVar[Callable[..., Any]]
    to_tikz: ClassVar[Callable[..., str]]

    def __new__(cls, network: TensorNetwork, steps: Iterable[Step] = ()) -> Trace:
        """Make a trace; it keeps the original network, even if there are no steps."""
        trace = super().__new__(cls, steps)
        trace.network = network
        return trace

    def __str__(self) -> str:
        lines = [str(self.network), f"{si(self.network.flops)} multiply-adds"]
        for number, step in enumerate(self, start=1):
            before, after = step.cost
            lines.append(f"{number}. {step.rule}: {step.identity}")
            lines.append(f"   {step.change}")
            lines.append(f"   {si(before)} -> {si(after)} multiply-adds")
        return "\n".join(lines)
