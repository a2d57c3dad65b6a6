"""Slow evaluation of networks and convolutions by their definitions, in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import opt_einsum
from numpy.typing import NDArray

from tn_extensions.conv import Conv, ConvDim
from tn_extensions.network import (
    Affine,
    Operand,
    Pair,
    Pattern,
    Selection,
    TensorNetwork,
)

Array = NDArray[np.float64]
Sizes = Mapping[str, int]


def position(affine: Affine, indices: Sequence[str], sizes: Sizes) -> NDArray[np.int_]:
    """Compute the position as an array over the given indices."""
    grids = np.indices([sizes[index] for index in indices])
    values = dict(zip(indices, grids, strict=True))
    start = np.full([sizes[index] for index in indices], affine.start)
    return sum((stride * values[j] for j, stride in affine.terms), start)


def pattern(node: Pattern, sizes: Sizes) -> Array:
    """Count how often each position is hit, comparing all of them with all."""
    terms = node.position.indices
    summed = {f"summed {m}": size for m, (_, size) in enumerate(node.summed)}
    strides = {f"summed {m}": stride for m, (stride, _) in enumerate(node.summed)}
    where = Affine((*node.position.terms, *strides.items()), node.position.start)
    hit_at = position(where, (*terms, *summed), {**sizes, **summed})
    index = np.arange(sizes[node.index]).reshape(-1, *(1,) * hit_at.ndim)
    hits = (index == hit_at[None]).astype(float)
    return hits.sum(axis=tuple(range(1 + len(terms), hits.ndim)))


def contract(
    arrays: Sequence[tuple[Array, Sequence[str]]], output: Sequence[str]
) -> Array:
    """Einsum with named indices."""
    numbers: dict[str, int] = {}
    terms = []
    for _, indices in arrays:
        labels = (numbers.setdefault(index, len(numbers)) for index in indices)
        terms.append("".join(map(opt_einsum.get_symbol, labels)))
    result = "".join(opt_einsum.get_symbol(numbers[index]) for index in output)
    equation = f"{','.join(terms)}->{result}"
    return np.asarray(opt_einsum.contract(equation, *(array for array, _ in arrays)))


def pair(node: Pair, sizes: Sizes) -> Array:
    """Two patterns, summed over what they share."""
    sizes = {**sizes, node.shared: node.size}
    both = [(pattern(p, sizes), p.indices) for p in (node.first, node.second)]
    return contract(both, node.indices)


def operand(node: Operand, array: Array, sizes: Sizes) -> Array:
    """Gather the entries at the positions of each axis."""
    assert array.shape == node.shape
    where = [position(axis.position, node.indices, sizes) for axis in node.axes]
    return np.asarray(array[tuple(where)])


def nodes(
    network: TensorNetwork, arrays: Mapping[str, Array]
) -> list[tuple[Array, tuple[str, ...]]]:
    """All nodes as dense arrays, with their indices; positions by their index."""
    sizes, result = network.sizes, []
    for node in network.nodes:
        if isinstance(node, Operand):
            dense = operand(node, arrays[node.name], sizes)
        elif isinstance(node, Pattern):
            dense = pattern(node, sizes)
        elif isinstance(node, Selection):
            dense = np.eye(sizes[node.index])[arrays[node.kept].astype(int)]
        else:
            dense = pair(node, sizes)
        result.append((dense, node.indices))
    return result


def evaluate(network: TensorNetwork, arrays: Mapping[str, Array]) -> Array:
    """Any network, on arrays by operand name."""
    result = contract(nodes(network, arrays), network.output_indices)
    return result.reshape(network.shape)


def _source(dim: ConvDim, mode: str, k: int, o: int) -> int | None:
    """Input position that output ``o`` reads through kernel entry ``k``, if any."""
    if dim.transposed:
        i, rest = divmod(o + dim.padding[0] - dim.dilation * k, dim.stride)
        return i if rest == 0 and 0 <= i < dim.input_size else None
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    inside = np.arange(dim.input_size)
    if mode == "zeros":
        padded = np.pad(inside, dim.padding, constant_values=-1)
    else:
        padded = np.pad(inside, dim.padding, mode=names[mode])
    i = padded[dim.stride * o + dim.dilation * k]
    return None if i < 0 else int(i)


def patches(conv: Conv, x: Array) -> Array:
    """Unfolded input straight from the definition, ``[N, G, CI * K, O]``."""
    result = np.zeros((*x.shape[:2], *conv.kernel_size, *conv.output_size))
    for k in np.ndindex(*conv.kernel_size):
        for o in np.ndindex(*conv.output_size):
            found = [
                _source(dim, conv.padding_mode, k_j, o_j)
                for dim, k_j, o_j in zip(conv.dims, k, o, strict=True)
            ]
            if None not in found:
                result[(slice(None), slice(None), *k, *o)] = x[(..., *found)]
    columns = conv.in_channels // conv.groups * int(np.prod(conv.kernel_size))
    num_outputs = int(np.prod(conv.output_size))
    return result.reshape(len(x), conv.groups, columns, num_outputs)


def kernel(conv: Conv, weight: Array) -> Array:
    """Reshape a weight in torch's layout to ``[G, CO, CI * K]``."""
    if conv.transposed:
        split = weight.reshape(conv.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    else:
        split = weight.reshape(conv.groups, -1, *weight.shape[1:])
    return split.reshape(*split.shape[:2], -1)


def convolve(conv: Conv, x: Array, weight: Array) -> Array:
    """Compute the convolution without bias."""
    y = np.einsum("ngap,gca->ngcp", patches(conv, x), kernel(conv, weight))
    return y.reshape(len(x), conv.out_channels, *conv.output_size)


def factor(conv: Conv, x: Array, approx: str, bias: bool = False) -> Array:
    """KFAC-expand or KFAC-reduce input factor with its default scale, ``[G, D, D]``."""
    u = patches(conv, x)
    if bias:
        u = np.concatenate([u, np.ones_like(u[:, :, :1])], axis=2)
    if approx == "reduce":
        u = u.mean(-1, keepdims=True)
    return np.einsum("ngap,ngbp->gab", u, u) / max(len(x), 1)
