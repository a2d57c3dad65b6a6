"""What a network tells about itself: its picture, its cost, its value.

This is the one place in the symbolic core that looks upwards in the package, and only
when it is called: all else draws and computes nothing, and needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from tn_extensions.functional.explain import Explanation
    from tn_extensions.network.network import TensorNetwork


class Face:
    """Methods of :class:`~tn_extensions.TensorNetwork` that others carry out."""

    @property
    def _network(self) -> TensorNetwork:
        return cast("TensorNetwork", self)

    def draw(
        self,
        shade: Mapping[str, Iterable[str]] | None = None,
        scale: float = 1.0,
    ) -> Figure:
        """Picture of the network: boxes are operands, hexagons patterns, lines indices.

        What leaves the network is an index of the result; a dot joins the carriers of
        an index that more than two share; a circled 1 is a sum over an index that only
        one carries. Spatial dimensions are rows, primed copies mirror the first half. A
        network shows this picture by itself in notebooks.

        Args:
            shade: Parts to shade: a label for each, and the names of its nodes, as
                ``tn_extensions.diagram.names(network)`` has them. Default: the halves
                of a network that has two; pass ``{}`` for none.
            scale: Enlarges the picture.

        Returns:
            A matplotlib figure; save it with ``figure.savefig("name.svg")``.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the network has more than 200 nodes, or none of a given name.
        """
        from tn_extensions.diagram.figure import figure
        from tn_extensions.diagram.layout import layout

        return figure(layout(self._network, shade), scale)

    def to_tikz(
        self,
        shade: Mapping[str, Iterable[str]] | None = None,
        standalone: bool = True,
    ) -> str:
        """LaTeX source of the picture that :meth:`draw` shows.

        Args:
            shade: As for :meth:`draw`.
            standalone: Whether to make it a document; else it is a ``tikzpicture``
                only, and ``tn_extensions.diagram.tikz.STYLES`` belongs into the
                preamble.

        Raises:
            ValueError: If the network has more than 200 nodes, or none of a given name.
        """
        from tn_extensions.diagram.layout import layout
        from tn_extensions.diagram.tikz import tikz

        return tikz(layout(self._network, shade), standalone)

    def _repr_svg_(self) -> str | None:
        """The picture in notebooks, where matplotlib is installed."""
        content = self._rendered("svg")
        return None if content is None else content.decode()

    def _repr_png_(self) -> bytes | None:
        """The same, for notebooks that show no SVG."""
        return self._rendered("png")

    def _rendered(self, kind: str) -> bytes | None:
        network = self._network
        from tn_extensions.diagram.figure import render
        from tn_extensions.diagram.layout import LIMIT, layout

        if len(network.nodes) > LIMIT:
            return None
        try:
            return render(layout(network), kind)
        except ImportError:
            return None

    def explain(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        **sizes: int,
    ) -> Explanation:
        """What evaluating the network will take, before it is done; print it.

        Args:
            dtype: Type in which to compute. Default: float32.
            device: Device, of which the type matters, e.g. ``"cpu"`` or ``"cuda"``.
            **sizes: Sizes of indices, to ask for others than the network's: ``n=128``.

        Returns:
            The plan, its cost, what was rejected at which cost, and the function of
            :mod:`tn_extensions.functional` that computes the same, if there is one.

        Raises:
            TypeError: If ``dtype`` is no floating point type, or a size no integer.
            ValueError: If there is no such device, or the network has no such index or
                reads a part of it only.
        """
        from tn_extensions.functional.explain import explain

        network = self._network.resize(sizes) if sizes else self._network
        return explain(network, dtype, device)

    def evaluate(self, **tensors: torch.Tensor) -> torch.Tensor:
        """The network's value, by the plan that :meth:`explain` shows.

        Args:
            **tensors: A tensor for each operand, by its name. Half-precision tensors
                are computed in float32.

        Returns:
            Result of :attr:`shape`, unscaled.

        Raises:
            TypeError: If operands are missing or unknown, or one is no floating point
                tensor.
            ValueError: If a tensor has another shape, dtype or device.
        """
        from tn_extensions.functional.contract import contract

        return contract(self._network, tensors)
