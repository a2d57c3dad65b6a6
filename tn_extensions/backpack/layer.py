"""A layer in the backward pass and the quantities of its kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, cast

from torch import Tensor, nn

from tn_extensions import functional
from tn_extensions.backpack.precision import common_dtype
from tn_extensions.backpack.sharing import SHARED
from tn_extensions.conv import Conv
from tn_extensions.layers.module import Use, channels_first, num_groups, out_channels
from tn_extensions.padding import pad

Asked = Sequence[tuple[str, Mapping[str, Any]]]
"""Quantities: names of functions in :mod:`tn_extensions.functional`, with options."""


class Layer:
    """A convolution, or a ``Linear``: a convolution with a kernel of one position.

    The padded input and each quantity are computed once for all extensions. The first
    extension also evaluates the quantities that the others need of the same vectors, so
    that a joint plan can share parts.

    Args:
        module: The module, after a forward pass.
        subsampling: Samples to consider. Default: all.
    """

    def __init__(self, module: Any, subsampling: Sequence[int] | None = None) -> None:
        self._module = module
        self._samples = None if subsampling is None else tuple(subsampling)
        self.is_linear = isinstance(module, nn.Linear)

    @property
    def groups(self) -> int:
        """Number of groups; 1 for a ``Linear``."""
        return num_groups(self._module, "separate")

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return out_channels(self._module)

    @property
    def num_data(self) -> int:
        """Number of samples that are considered."""
        return len(self._module.input0 if self._samples is None else self._samples)

    @property
    def num_positions(self) -> int:
        """Number of output positions."""
        return prod(self._module.output.shape[1:]) // self.out_channels

    def channels_first(self, vectors: Tensor) -> Tensor:
        """View vectors ``[(V,) N, *output.shape[1:]]`` as ``[(V,) N, C_out, ...]``."""
        if not self.is_linear:
            return vectors
        return channels_first(vectors, self._leading(vectors))

    @property
    def weight(self) -> Tensor:
        """The kernel."""
        weight: Tensor = self._module.weight
        return weight

    def bias_gradients(self, vectors: Tensor) -> Tensor:
        """Sum vectors over positions, in float32 or wider: ``[(V,) N, C_out]``."""
        summed = self.channels_first(vectors.detach().to(common_dtype(vectors)))
        positions = tuple(range(self._leading(vectors) + 1, summed.dim()))
        return summed.sum(positions) if positions else summed

    def squared_weight_vjp(self, h: Tensor) -> Tensor:
        """Multiply the kernel's squared Jacobian with ``h``: ``sum_{n, o} h U^2``.

        Args:
            h: In the space of the output, ``[N, *output.shape[1:]]``.

        Returns:
            The product, shaped like the kernel, of float32 or wider.
        """
        x, conv = self._input()
        dtype = common_dtype(x, h)
        h = self.channels_first(h.detach().to(dtype))
        product = functional.weight_vjp(x.detach().to(dtype).square(), h, conv)
        return product.view_as(self.weight)

    def evaluate(
        self, quantities: Asked, vectors: Tensor, others: Asked = ()
    ) -> list[Tensor]:
        """Evaluate quantities of the kernel.

        Args:
            quantities: Names of functions in :mod:`tn_extensions.functional`, with
                options.
            vectors: Vectors in the space of the output, for the samples that are
                considered: ``[(V,) N, *output.shape[1:]]``.
            others: Quantities of the same vectors that later extensions will need. They
                are evaluated now, too.

        Returns:
            The quantities, of float32 or wider.
        """
        keys = {(self._samples, name, *o.items()): (name, o) for name, o in quantities}
        kept = {key: SHARED.find(key, [vectors]) for key in keys}
        if any(one is None for one in kept.values()):
            keys |= {(self._samples, name, *o.items()): (name, o) for name, o in others}
            found = zip(keys, self._compute([*keys.values()], vectors), strict=True)
            computed = {key: SHARED.keep(key, [vectors], one) for key, one in found}
            return [computed[key] for key in kept]
        return [one.clone() for one in kept.values()]  # users may modify a savefield

    def input_factor(self, function: Callable[..., Tensor], **arguments: Any) -> Tensor:
        """Compute a Kronecker factor of the input for each group.

        Args:
            function: Function of :mod:`tn_extensions.functional`.
            **arguments: Its arguments besides ``x`` and ``conv``.

        Returns:
            The factors, ``[G, D, D]``, of float32 or wider.
        """
        key = (self._samples, function.__name__, *arguments.items())
        known: Tensor | None = SHARED.find(key, [])
        if known is None:
            return SHARED.keep(key, [], function(*self._input(), **arguments))
        return known.clone()  # users may modify a savefield

    def output_factor(
        self, function: Callable[..., Tensor], pieces: Iterable[Tensor]
    ) -> Tensor:
        """Compute a Kronecker factor of the output for each group.

        Args:
            function: Function of :mod:`tn_extensions.functional`.
            pieces: Vectors in the space of the output, in at least one piece ``[V, N,
                *output.shape[1:]]``.

        Returns:
            The factors, ``[G, CO, CO]``, of float32 or wider.
        """
        conv, factor = self._use.conv, None
        for vectors in pieces:
            vectors = self.channels_first(vectors.detach())
            factor = function(vectors, conv, out=factor)
        return cast(Tensor, factor)

    def _leading(self, vectors: Tensor) -> int:
        """Count the axes before those of a sample."""
        return int(vectors.dim() + 1 - self._module.output.dim())

    def _compute(self, quantities: Asked, vectors: Tensor) -> list[Tensor]:
        x, conv = self._input()
        dtype = common_dtype(x, vectors)
        g = self.channels_first(vectors.detach().to(dtype))
        return functional.together(*quantities, x=x.to(dtype), g=g, conv=conv)

    def _input(self) -> tuple[Tensor, Conv]:
        """Return the input, padded unless with zeros, and its hyper-parameters."""
        return SHARED.once((self._samples, "input"), [], self._prepare)

    @property
    def _use(self) -> Use:
        """The layer's use of its input."""
        module = self._module
        return Use.of(module, module.input0, module.output, "separate")

    def _prepare(self) -> tuple[Tensor, Conv]:
        use = self._use
        x, conv = use.x, use.conv
        if self._samples is not None:
            x = x[list(self._samples)]
        if conv.pads_explicitly and x.numel():
            return pad(x, conv), conv.explicitly_padded
        return x, conv


def gram_of_gradients(gradients: Tensor, num_axes: int) -> Tensor:
    """Compute inner products of gradients ``[(V,) N, ...]`` over the last axes."""
    rows = gradients.flatten(-num_axes).flatten(0, -2)
    return rows @ rows.T
