"""The diagonal of the GGN."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from tn_extensions.compiler.budget import current_budget
from tn_extensions.curvlinops.ggn import GGNOperator
from tn_extensions.layers.computed import parameter_gradients
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.observe import Uses
from tn_extensions.layers.squares import diagonal


class GGNDiagonalLinearOperator(GGNOperator):
    """The diagonal of :class:`curvlinops.GGNLinearOperator`, as an operator.

    For the weight of a layer with patches ``U``, it is ``d = c sum_{v, n} (sum_o S[v,
    n, o] U[n, o])^2``. ``S`` is the square root of the loss's Hessian, backpropagated
    to the layer's output, and ``c`` is that of :class:`KFACLinearOperator`. The
    diagonal is computed at its first use. As many columns are processed at a time as
    the memory budget allows.

    Arguments and errors are those of :class:`GGNOperator`.

    Reference: Dangel, Kunstner and Hennig, "BackPACK: Packing more into backprop",
    ICLR 2020.
    """

    def diagonal(self) -> list[Tensor]:
        """Return the diagonal, shaped like the parameters, of float32 or wider."""
        return self._diagonal

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        pairs = zip(self.diagonal(), M, strict=True)
        return [(d.unsqueeze(-1) * m).to(m.dtype) for d, m in pairs]

    @property
    def trace(self) -> Tensor:
        """Trace."""
        return self._flat().sum()

    @property
    def det(self) -> Tensor:
        """Determinant of the diagonal matrix."""
        return self._flat().prod()

    @property
    def logdet(self) -> Tensor:
        """Logarithm of the determinant."""
        return self._flat().log().sum()

    @property
    def frobenius_norm(self) -> Tensor:
        """Frobenius norm of the diagonal matrix."""
        return torch.linalg.vector_norm(self._flat())

    def _flat(self) -> Tensor:
        return torch.cat([d.flatten() for d in self.diagonal()])

    @cached_property
    def _diagonal(self) -> list[Tensor]:
        passes = self._passes
        mapping = self._mapping
        totals: dict[str, dict[str, Tensor]] = defaultdict(dict)
        waiting: dict[str, list[Pairs]] = defaultdict(list)

        def flush(name: str) -> None:
            columns, total = waiting.pop(name), totals[name]
            scale = passes.scale(len(columns[0][0][1]))
            parameters = self._layers.computed.get(name)
            for key, found in _diagonals(columns, mapping[name], parameters).items():
                found *= scale
                total[key] = total[key].add_(found) if key in total else found

        def on_uses(_: Uses) -> None:
            # these columns belong to the previous batch
            for name in list(waiting):
                flush(name)

        def on_gradients(name: str, pairs: Pairs) -> None:
            waiting[name].append(pairs)
            held = sum(g.numel() * g.element_size() for _, g in pairs)
            if held * len(waiting[name]) * len(mapping) >= current_budget():
                flush(name)

        passes.run("GGN diagonal", on_uses, on_gradients, by_datum=True, by_term=True)
        for name in list(waiting):
            flush(name)
        results = {name: list(own.values()) for name, own in totals.items()}
        passes.check_results("gradients", results, mapping)
        diagonal = [torch.empty(0)] * len(self._params)
        for name, positions in mapping.items():
            for key, position in positions.items():
                shape = self._params[position].shape
                diagonal[position] = totals[name][key].reshape(shape)
        return diagonal


def _diagonals(
    columns: list[Pairs],
    keys: Iterable[str],
    parameters: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Sum the squared gradients of a layer's parameters over columns and samples.

    Args:
        columns: For each column, uses and gradients.
        keys: Names of the layer's parameters.
        parameters: Parameters that kernel and bias are computed from. ``None``: kernel
            and bias are parameters.

    Returns:
        The sums, by name.
    """
    if parameters is None:
        return {key: diagonal(columns, key) for key in keys}
    totals = [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for p in parameters.values()
    ]
    for pairs in columns:
        for gradients in parameter_gradients(pairs, [*parameters.values()]):
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient.to(total.dtype).square_().sum(0)
    return dict(zip(parameters, totals, strict=True))
