"""The Gram matrix of the GGN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from tn_extensions import functional
from tn_extensions.compiler.allocate import address_of
from tn_extensions.compiler.budget import current_budget
from tn_extensions.curvlinops.ggn import GGNOperator
from tn_extensions.layers.attributes import attributes_kept
from tn_extensions.layers.computed import parameter_gradients
from tn_extensions.layers.gradients import of_one_dtype, per_sample_gradients
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.observe import Uses


class GGNGramLinearOperator(GGNOperator):
    """The Gram matrix ``J J^T`` of the GGN ``J^T J``, ``[V N, V N]``, as an operator.

    Both matrices have the same nonzero eigenvalues. Row ``(v, n)`` of ``J``, with ``n``
    fastest, is the gradient by all parameters of ``<S_vn, f_n>``: ``f_n`` are the
    model's outputs for datum ``n``, and ``S_vn`` is column ``v`` of a square root of
    the loss's Hessian. ``V`` is the number of classes (times loss terms per datum), or
    of Monte-Carlo samples. For a square loss, the Gram matrix is the empirical neural
    tangent kernel up to scaling.

    A product takes a backward pass and a forward-mode derivative per vector, without
    forming the matrix. After :meth:`dense`, products use the matrix.

    Arguments and errors are those of :class:`GGNOperator`. The data must have the same
    order in each pass.

    Reference: Dangel, Tatzel and Hennig, "ViViT: Curvature access through the
    generalized Gauss-Newton's low-rank structure", TMLR 2022.
    """

    FIXED_DATA_ORDER = True
    _gram: Tensor | None = None

    def _get_in_shape(self) -> list[tuple[int, ...]]:
        return [(self._num_vectors * self._N_data,)]

    _get_out_shape = _get_in_shape

    @cached_property
    def _num_vectors(self) -> int:
        passes = self._passes
        if passes.fisher == "mc":
            return passes.mc_samples
        X, y = next(iter(self._loop_over_data()))
        with torch.no_grad():
            terms = passes.terms(self._model_func(X), y)
        return terms.output.shape[1] * passes.terms_per_datum

    # -- products

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        (matrix,) = M
        if self._gram is not None:
            product = _product(self._gram, matrix.to(self._gram.dtype))
            return [product.to(matrix.dtype)]
        return [self._forward(self._backward(matrix))]

    def _batches(self) -> Iterator[tuple[Any, Tensor, slice, Tensor, Tensor]]:
        """Yield each batch's ``X`` and ``y``, its data, outputs and scaled vectors."""
        passes = self._passes
        generator, start = passes.generator(), 0
        for X, y in self._loop_over_data(desc="GGN Gram matrix"):
            terms = passes.terms(self._model_func(X), y)
            size = self._batch_size_fn(X)
            vectors = torch.stack([*passes.vectors(terms, generator, by_term=True)])
            vectors *= sqrt(passes.scale(size))
            yield X, y, slice(start, start + size), terms.output, vectors
            start += size

    def _backward(self, matrix: Tensor) -> list[list[Tensor]]:
        """Compute ``J^T v`` for each column ``v``, shaped like the parameters."""
        columns = [v.reshape(self._num_vectors, -1) for v in matrix.unbind(1)]
        totals = [[torch.zeros_like(p) for p in self._params] for _ in columns]
        for _, _, data, rows, vectors in self._batches():
            terms = len(rows) // (data.stop - data.start)
            for coefficients, total in zip(columns, totals, strict=True):
                own = coefficients[:, data].repeat_interleave(terms, 1).unsqueeze(2)
                parts = torch.autograd.grad(
                    rows,
                    self._params,
                    (own * vectors).sum(0),
                    retain_graph=total is not totals[-1],
                    allow_unused=True,
                    materialize_grads=True,
                )
                for accumulated, part in zip(total, parts, strict=True):
                    accumulated += part
        return totals

    def _forward(self, columns: list[list[Tensor]]) -> Tensor:
        """Compute ``J w`` for each ``w``, as columns."""
        named = {address_of(p): name for name, p in self._model_func.named_parameters()}
        names = [named[address_of(parameter)] for parameter in self._params]
        primals = tuple(parameter.detach() for parameter in self._params)
        computing = [self._layers.modules[name] for name in self._layers.computed]
        found = []
        for X, y, data, rows, vectors in self._batches():

            def rows_of(*params: Tensor, X: Any = X, y: Tensor = y) -> Tensor:
                own = dict(zip(names, params, strict=True))
                output = functional_call(self._model_func, own, (X,))
                return self._passes.terms(output, y).output

            try:
                with attributes_kept(computing):
                    changes = [jvp(rows_of, primals, tuple(w))[1] for w in columns]
            except RuntimeError:
                # weight_norm and users' functions may lack forward-mode derivatives
                changes = _twice_backward(rows, self._params, columns)
            by_column = torch.stack(changes).permute(1, 2, 0)
            products = _product(vectors.transpose(0, 1), by_column).transpose(0, 1)
            size = data.stop - data.start
            found.append(products.unflatten(1, (size, -1)).sum(2))
        return torch.cat(found, 1).flatten(0, 1)

    # -- the matrix

    def dense(self) -> Tensor:
        """Compute the matrix ``[V N, V N]``, and use it for products from now on."""
        if self._gram is None:
            self._gram = self._compute()
        return self._gram

    def _compute(self) -> Tensor:
        """Sum the layers' matrices; each sweep processes what fits the budget."""
        passes = self._passes
        remaining = list(self._mapping)
        size, _ = self.shape
        like = self._params[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        total = torch.zeros(size, size, dtype=dtype, device=like.device)
        while remaining:
            chosen = self._sweep(remaining)
            for name, batches in chosen.items():
                grams = []
                if all(batches):
                    parameters = self._layers.computed.get(name)
                    grams = _grams(batches, self._mapping[name], parameters)
                passes.check_results("gradients", {name: grams}, [name])
                for gram in grams:
                    total += gram
            remaining = [name for name in remaining if name not in chosen]
        return total

    def _sweep(self, names: list[str]) -> dict[str, list[list[Pairs]]]:
        """Collect the pairs of all passes for some layers, in a list per batch."""
        passes = self._passes
        chosen: dict[str, list[list[Pairs]]] = {}

        def on_uses(uses: Uses) -> None:
            held = 0.0
            for name in [] if chosen else names:
                for use in uses.get(name, []):
                    entries = use.conv.out_channels * use.num_positions
                    each = entries * use.x.element_size()
                    held += each * self._N_data * self._num_vectors
                if not chosen or held <= current_budget():
                    chosen[name] = []
            for batches in chosen.values():
                batches.append([])

        def on_gradients(name: str, pairs: Pairs) -> None:
            if name in chosen:
                scale = sqrt(passes.scale(len(pairs[0][1])))
                scaled = [(use, _at_least_single(g) * scale) for use, g in pairs]
                chosen[name][-1].append(scaled)

        desc = "GGN Gram matrix"
        passes.run(desc, on_uses, on_gradients, by_datum=True, by_term=True)
        return chosen


def _twice_backward(
    rows: Tensor, params: Sequence[Tensor], columns: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Differentiate rows along directions without forward-mode derivatives."""
    directions = torch.zeros_like(rows, requires_grad=True)
    settings: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    linear = torch.autograd.grad(
        rows, params, directions, create_graph=True, **settings
    )
    return [
        torch.autograd.grad(linear, directions, list(w), retain_graph=True, **settings)[
            0
        ]
        for w in columns
    ]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply in the precision of the factors, even under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _at_least_single(g: Tensor) -> Tensor:
    return g.to(torch.promote_types(g.dtype, torch.float32))


def _grams(
    batches: list[list[Pairs]],
    keys: Iterable[str],
    parameters: Mapping[str, Tensor] | None,
) -> list[Tensor]:
    """Compute inner products of gradients of a layer's parameters, over all batches.

    Args:
        batches: For each batch and column, uses and gradients.
        keys: Names of the layer's parameters.
        parameters: Parameters that kernel and bias are computed from. ``None``: kernel
            and bias are parameters.

    Returns:
        Matrices ``[V N, V N]``, to be added.
    """
    if parameters is None:
        return [_gram(batches, key) for key in keys]
    of_batches = []
    for batch in batches:
        columns = []
        for pairs in batch:
            chunks = parameter_gradients(pairs, [*parameters.values()])
            parts = [torch.cat([g.flatten(1) for g in own], 1) for own in chunks]
            columns.append(_at_least_single(torch.cat(parts)))
        of_batches.append(torch.stack(columns))
    rows = torch.cat(of_batches, 1).flatten(0, 1)
    return [_product(rows, rows.T)]


def _gram(batches: list[list[Pairs]], key: str) -> Tensor:
    """Compute inner products of gradients of one parameter, over all batches."""
    columns = [pairs for batch in batches for pairs in batch]
    convs = {use.conv for pairs in columns for use, _ in pairs}
    if len(convs) > 1 or any(len(pairs) > 1 for pairs in columns):
        gradients = [
            torch.stack([per_sample_gradients(pairs, key) for pairs in batch])
            for batch in batches
        ]
        rows = torch.cat(gradients, 1).flatten(0, 1).flatten(1)
        return _product(rows, rows.T)
    (conv,) = convs
    S = torch.cat([torch.stack([g for ((_, g),) in batch]) for batch in batches], 1)
    S = S.unflatten(3, conv.output_size)
    if key == "bias":
        return functional.bias_ggn_gram(S, conv)
    x = torch.cat([batch[0][0][0].x for batch in batches])
    x, S = of_one_dtype(x, S)
    return functional.ggn_gram(x, S, conv)
