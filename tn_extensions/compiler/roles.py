"""Convolutions among networks, and the roles of their operands and indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tn_extensions.compiler.native import MOST_DIMS
from tn_extensions.network import Operand, Pattern, TensorNetwork

LARGE_KERNEL = 32
"""Number of kernel entries above which torch's convolutions are slower."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A spatial dimension of a convolution: sizes of image, kernel and output."""

    image: int
    kernel: int
    outputs: int
    stride: int
    dilation: int
    left: int

    @property
    def right(self) -> int:
        """Padding on the right; negative if the last positions are not read."""
        last = self.stride * (self.outputs - 1) + self.dilation * (self.kernel - 1)
        return last - self.left - (self.image - 1)

    @property
    def swapped(self) -> Geometry:
        """The convolution whose weight gradient this is."""
        return Geometry(
            self.image,
            self.outputs,
            self.kernel,
            self.dilation,
            self.stride,
            self.left,
        )

    @property
    def fits(self) -> bool:
        """True if the sizes follow from the same padding on both sides."""
        return self.left >= 0 and 0 <= self.left - self.right < self.stride

    @property
    def nearly_fits(self) -> bool:
        """True if the same padding leads to these sizes, or to one more output."""
        return self.left >= 0 and 0 <= self.left - self.right < 2 * self.stride


@dataclass(frozen=True, slots=True)
class Roles:
    """Roles of the operands and indices of a convolution.

    Args:
        image: The operand with the index that patterns hit. For a transposed
            convolution, where the result has it, the operand with the outputs.
        kernel: The other operand.
        spatial: The spatial indices of image, kernel and result, for each dimension.
        groups: Indices of both operands and the result.
        contracted: Indices of both operands only.
        rows: Indices of the image and the result.
        columns: Indices of the kernel and the result.
        dims: Geometry of each dimension.
        transposed: Whether patterns hit an index of the result.
    """

    image: Operand
    kernel: Operand
    spatial: tuple[tuple[str, str, str], ...]
    groups: tuple[str, ...]
    contracted: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    dims: tuple[Geometry, ...]
    transposed: bool

    @classmethod
    def of(cls, network: TensorNetwork) -> Roles | None:
        """Find the roles in a network; None if it is not a convolution."""
        patterns, sizes = network.patterns, network.sizes
        if len(network.operands) != 2 or network.pairs:
            return None
        if not 1 <= len(patterns) <= MOST_DIMS or 0 in sizes.values():
            return None
        if not all(map(_is_whole, network.operands, [sizes] * 2)):
            return None
        kept = set(network.output_indices)
        transposed = patterns[0].index in kept
        first, second = network.operands
        if transposed:  # either could be the kernel
            first, second = _image_first(first, second, patterns, sizes)
        elif patterns[0].index not in first.indices:
            first, second = second, first
        spatial, dims = [], []
        for pattern in patterns:
            found = _dimension(pattern, first, second, kept, transposed)
            if found is None:
                return None
            spatial.append(found)
            image, kernel, result = found
            hit, outputs = (result, image) if transposed else (image, result)
            dims.append(
                Geometry(
                    sizes[hit],
                    sizes[kernel],
                    sizes[outputs],
                    pattern.position.stride(outputs),
                    pattern.position.stride(kernel),
                    -pattern.position.start,
                )
            )
        in_space = {index for found in spatial for index in found}
        one, two = (
            [index for index in operand.indices if index not in in_space]
            for operand in (first, second)
        )
        alone = ({*one} ^ {*two}) - kept
        if alone:
            return None
        both = [index for index in one if index in two]
        return cls(
            first,
            second,
            tuple(spatial),
            tuple(index for index in both if index in kept),
            tuple(index for index in both if index not in kept),
            tuple(index for index in one if index not in two),
            tuple(index for index in two if index not in one),
            tuple(dims),
            transposed,
        )


def _image_first(
    first: Operand,
    second: Operand,
    patterns: Sequence[Pattern],
    sizes: Mapping[str, int],
) -> tuple[Operand, Operand]:
    """Order the operands of a transposed convolution: the image, then the kernel.

    The kernel is spatially smaller. If both operands are small, it is the one with more
    channels of its own, over which torch's kernels vectorise.
    """
    spatial = {index for pattern in patterns for index in pattern.indices}

    def size(one: Operand, among: set[str]) -> int:
        return prod(sizes[index] for index in one.indices if index in among)

    if max(size(first, spatial), size(second, spatial)) > LARGE_KERNEL:
        swap = size(first, spatial) < size(second, spatial)
    else:
        own = ({*first.indices} ^ {*second.indices}) - spatial
        swap = size(first, own) > size(second, own)
    return (second, first) if swap else (first, second)


def _is_whole(operand: Operand, sizes: Mapping[str, int]) -> bool:
    """Tell whether all axes are read whole, and no index occurs twice."""
    axes = [axis.whole(sizes) for axis in operand.axes]
    indices = [index for axis in axes for index in axis or ()]
    return None not in axes and len(set(indices)) == len(indices)


def _dimension(
    pattern: Pattern, image: Operand, kernel: Operand, kept: set[str], transposed: bool
) -> tuple[str, str, str] | None:
    """Return a pattern's indices of image, kernel and result; None unless one each."""
    if pattern.summed or len(pattern.indices) != 3:
        return None
    found = []
    for carried in (set(image.indices), set(kernel.indices), kept):
        own = [index for index in pattern.indices if index in carried]
        if len(own) != 1:
            return None
        found.append(own[0])
    if len(set(found)) != 3 or (found[2] == pattern.index) != transposed:
        return None
    if not transposed and found[0] != pattern.index:
        return None
    return found[0], found[1], found[2]
