"""Networks as einsum expressions that other libraries can evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tn_extensions.errors import describe
from tn_extensions.network.index import letters
from tn_extensions.network.methods import method_of
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Affine, Axis, Operand, Pattern, Selection, Sizes

_NAME = "TensorNetwork.export"


class Given(NamedTuple):
    """A placeholder for an operand: ``tensor[slices].reshape(shape)``.

    Args:
        name: Name of the tensor.
        shape: Shape of the operand in the equation, an axis for each of its indices.
        slices: The slice to read along each axis of the tensor. Without simplification
            it reads all of the axis.
    """

    name: str
    shape: tuple[int, ...]
    slices: tuple[slice, ...]

    def read(self, tensor: Any) -> Any:
        """Slice and reshape a tensor or array of any library."""
        return tensor[self.slices].reshape(self.shape)


class Exported(NamedTuple):
    """An einsum expression, ``einsum(equation, *operands).reshape(shape)``.

    Args:
        equation: The equation, with a single letter for each index.
        operands: Arrays, and :class:`Given` for those that are missing, in the order of
            the equation.
        shape: Shape of the result, in which an axis may hold several indices.
    """

    equation: str
    operands: list[Any]
    shape: tuple[int, ...]


@method_of(TensorNetwork)
def export(
    network: TensorNetwork, dtype: DTypeLike = np.float64, /, **tensors: Any
) -> Exported:
    """Write a network as an einsum expression in NumPy's syntax.

    ``numpy.einsum``, ``torch.einsum``, ``jax.numpy.einsum``, ``opt_einsum.contract``
    and ``cotengra.einsum`` evaluate it. Index patterns become arrays of zeros and ones,
    or of counts where terms have been summed. If a ``padding_mode`` is not ``"zeros"``,
    the network takes the padded input: pad ``x`` first.

    Args:
        network: The network.
        dtype: Data type of the patterns.
        **tensors: Tensors or arrays of any library, by the names of operands. They are
            sliced and reshaped. Sampled positions go by the name of the index that runs
            through them. An operand that is left out becomes a :class:`Given`; for
            positions that are left out, supply the matrix ``[kept, index]`` which is
            one where ``index = positions[kept]``.

    Returns:
        Equation, operands and shape of the result, which is not scaled. The first 52
        indices are letters, the others symbols of opt_einsum.

    Raises:
        TypeError: If the network has no operand of a given name.
        ValueError: If a tensor has the wrong shape, or the network has no nodes.

    >>> from tn_extensions.network import build
    >>> hit = Pattern.of("i", {"k": 1, "o": 1})
    >>> sizes = {"n": 2, "g": 3, "c": 4, "i": 9, "k": 3, "o": 7}
    >>> network = build({"x": ["n", ("g", "c"), "i"], "w": [("g", "c"), "k"]},
    ...     ["n", ("g", "o")], sizes, [hit])
    >>> equation, operands, shape = network.export(x=np.ones((2, 12, 9)))
    >>> equation, operands[0].shape, shape
    ('abc,dabe,ecf->daf', (3, 4, 3), (2, 21))
    """
    if not network.nodes:
        raise ValueError(describe(_NAME, "network", "have nodes", "none"))
    _check_given(network, tensors)
    sizes = dict(network.sizes)
    terms: list[tuple[str, ...]] = []
    operands: list[Any] = []

    def add(indices: tuple[str, ...], operand: Any) -> None:
        terms.append(indices)
        operands.append(operand)

    for number, node in enumerate(network.nodes):
        if isinstance(node, Operand):
            indices, slices, patterns = _split(node, number, sizes)
            shape = tuple(sizes[index] for index in indices)
            given = Given(node.name, shape, slices)
            bound = node.name in tensors
            add(indices, given.read(tensors[node.name]) if bound else given)
            for pattern in patterns:
                add(pattern.indices, pattern.dense(sizes).astype(dtype))
        elif isinstance(node, Selection):
            add(node.indices, _chosen(node, sizes, tensors.get(node.kept), dtype))
        else:
            add(node.indices, node.dense(sizes).astype(dtype))
    symbol = letters(index for term in terms for index in term)
    inputs = ",".join("".join(symbol[index] for index in term) for term in terms)
    output = "".join(symbol[index] for index in network.output_indices)
    return Exported(f"{inputs}->{output}", operands, network.shape)


def _check_given(network: TensorNetwork, tensors: Mapping[str, Any]) -> None:
    shapes = {operand.name: operand.shape for operand in network.operands}
    for selection in network.selections:
        shapes[selection.kept] = (network.sizes[selection.kept],)
    for name, tensor in tensors.items():
        if name not in shapes:
            rule = f"be among {sorted(shapes)}"
            raise TypeError(describe(_NAME, "operands", rule, repr(name)))
        if tuple(tensor.shape) != shapes[name]:
            rule, got = f"equal {list(shapes[name])}", list(tensor.shape)
            raise ValueError(describe(_NAME, f"{name}.shape", rule, got))


def _split(
    operand: Operand, number: int, sizes: dict[str, int]
) -> tuple[tuple[str, ...], tuple[slice, ...], list[Pattern]]:
    """Return an operand's indices, slices of its axes, and patterns for other axes.

    If no slice of an axis splits into its indices, the axis gets an index of its own
    and a pattern that ties it to the others. Its size is added to ``sizes``.
    """
    indices: list[str] = []
    slices: list[slice] = []
    patterns: list[Pattern] = []
    for axis in operand.axes:
        found = _slice(axis, sizes)
        if found is None:
            own = f"axis {len(slices)} of node {number}"
            sizes[own] = axis.extent
            patterns.append(Pattern(own, axis.position))
            found = (own,), slice(None)
        indices += found[0]
        slices.append(found[1])
    return tuple(indices), tuple(slices), patterns


def _slice(axis: Axis, sizes: Sizes) -> tuple[tuple[str, ...], slice] | None:
    """Return a slice of an axis and the indices it splits into; None without one."""
    whole = axis.whole(sizes)
    if whole is not None:
        return whole, slice(None)
    position = axis.position
    single = [index for index in position.indices if sizes[index] == 1]
    others = [(index, s) for index, s in position.terms if sizes[index] != 1]
    step = min((stride for _, stride in others), default=1)
    if step < 1 or any(stride % step for _, stride in others):
        return None
    extent = prod(sizes[index] for index, _ in others)
    part = Affine(tuple((index, stride // step) for index, stride in others))
    split = Axis(part, extent).whole(sizes)
    if split is None:
        return None
    stop = position.start + step * (extent - 1) + 1
    return (*split, *single), slice(position.start, max(stop, 0), step)


def _chosen(
    node: Selection, sizes: Sizes, positions: Any, dtype: DTypeLike
) -> Given | NDArray[Any]:
    """Return the matrix of sampled positions."""
    shape = sizes[node.kept], sizes[node.index]
    if positions is None:
        return Given(node.kept, shape, (slice(None), slice(None)))
    return np.eye(shape[1], dtype=dtype)[np.asarray(positions)]
