"""Hyper-parameters of a convolution: any number of dimensions, either direction.

Sizes follow one convention throughout the package: ``I``, ``K``, ``O`` are the sizes of
input, kernel and output along one spatial dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import index
from typing import Any, ClassVar, Literal, get_args

from tn_extensions.conv_dim import (
    ConvDim,
    as_int,
    broadcast,
    is_scalar,
    parse_padding,
    set_int,
)
from tn_extensions.errors import describe

__all__ = ["PADDING_MODES", "Conv", "ConvDim", "PaddingMode"]

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)


@dataclass(frozen=True, slots=True)
class Conv:
    """Hyper-parameters of a (transposed) convolution on inputs of one spatial size.

    Build one with :meth:`make` or :meth:`from_module`.

    Args:
        in_channels: Total number ``C_in = G * CI`` of input channels.
        out_channels: Total number ``C_out = G * CO`` of output channels.
        dims: The spatial dimensions, outermost first.
        groups: Number ``G`` of channel groups.
        padding_mode: Values at the padded positions, as in torch. All modes but
            ``"zeros"`` amount to padding the input explicitly, then convolving without
            padding.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If no convolution with these hyper-parameters exists.
    """

    in_channels: int
    out_channels: int
    dims: tuple[ConvDim, ...]
    groups: int = 1
    padding_mode: PaddingMode = "zeros"

    # assigned by the layer that has tensors, see `network.methods`
    index_pattern: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        if not self.dims:
            rule = "have at least one entry"
            raise ValueError(describe("Conv", "dims", rule, self.dims))
        if len({dim.transposed for dim in self.dims}) > 1:
            rule = "be all transposed, or none of them"
            raise ValueError(describe("Conv", "dims", rule, self.dims))
        set_int(self, "groups", minimum=1)
        for name in ("in_channels", "out_channels"):
            set_int(self, name, minimum=1)
            channels = getattr(self, name)
            if channels % self.groups:
                rule = f"be divisible by groups = {self.groups}"
                raise ValueError(describe("Conv", name, rule, channels))
        if self.padding_mode not in PADDING_MODES:
            rule = f"be one of {', '.join(map(repr, PADDING_MODES))}"
            mode = repr(self.padding_mode)
            raise ValueError(describe("Conv", "padding_mode", rule, mode))
        if self.padding_mode != "zeros":
            self._check_padding_mode()

    def _check_padding_mode(self) -> None:
        if self.transposed:
            rule = "be 'zeros' for a transposed convolution"
            mode = repr(self.padding_mode)
            raise ValueError(describe("Conv", "padding_mode", rule, mode))
        for dim in self.dims:
            # reflection leaves out the border; circular padding wraps around once
            limit = {
                "reflect": dim.input_size - 1,
                "circular": dim.input_size,
                "replicate": max(dim.padding),
            }[self.padding_mode]
            if max(dim.padding) > limit:
                raise ValueError(
                    describe(
                        "Conv",
                        "padding",
                        f"be at most {limit} with padding_mode = "
                        f"{self.padding_mode!r} on input_size = {dim.input_size}",
                        dim.padding,
                    )
                )

    @classmethod
    def make(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        input_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int | tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        transposed: bool = False,
        output_padding: int | Sequence[int] = 0,
        padding_mode: PaddingMode = "zeros",
    ) -> Conv:
        """Create a convolution from hyper-parameters in the form of ``torch.nn``.

        A number stands for all dimensions.

        Args:
            in_channels: Total number of input channels.
            out_channels: Total number of output channels.
            kernel_size: Kernel size per dimension.
            input_size: Spatial size of the module's input per dimension.
            stride: Stride per dimension.
            padding: Padding per dimension (a number, or a pair for left and right),
                ``"same"`` or ``"valid"``.
            dilation: Dilation per dimension.
            groups: Number of channel groups.
            transposed: Whether the convolution is transposed.
            output_padding: Output padding per dimension (transposed only).
            padding_mode: Values at the padded positions, as in torch.

        Returns:
            The convolution. If all arguments are numbers, it has one dimension.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If no convolution with these hyper-parameters exists.

        >>> conv = Conv.make(3, 8, 4, (32, 16), padding="same")
        >>> conv.padding, conv.output_size
        (((1, 2), (1, 2)), (32, 16))
        """
        given: dict[str, Any] = {
            "kernel_size": kernel_size,
            "input_size": input_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "output_padding": output_padding,
        }
        lengths = {
            name: len(value) for name, value in given.items() if not is_scalar(value)
        }
        num_dims = max(lengths.values()) if lengths else 1
        for name, length in lengths.items():
            if length != num_dims:
                raise ValueError(
                    describe(
                        "Conv.make",
                        name,
                        f"have one entry for each of the {num_dims} dimensions",
                        tuple(given[name]),
                    )
                )

        kernel_sizes, dilations = (
            tuple(
                as_int("Conv.make", name, size, minimum=1)
                for size in broadcast(given[name], num_dims)
            )
            for name in ("kernel_size", "dilation")
        )
        strides = broadcast(stride, num_dims)
        paddings = parse_padding(
            padding, kernel_sizes, strides, dilations, transposed, num_dims
        )
        dims = tuple(
            ConvDim(i, k, s, d, p, transposed, op)
            for i, k, s, d, p, op in zip(
                broadcast(input_size, num_dims),
                kernel_sizes,
                strides,
                dilations,
                paddings,
                broadcast(output_padding, num_dims),
                strict=True,
            )
        )
        return cls(in_channels, out_channels, dims, groups, padding_mode)

    @classmethod
    def from_module(
        cls,
        module: Any,
        input_size: int | Sequence[int],
        output_size: int | Sequence[int] | None = None,
    ) -> Conv:
        """Read the hyper-parameters of a ``torch.nn`` convolution.

        The result describes what the module's ``forward`` computes, even if attributes
        were changed after its construction: channels and kernel size are read from the
        shape of ``weight``, and an attribute may be one number for all dimensions.

        Args:
            module: A ``torch.nn.Conv{1,2,3}d`` or ``torch.nn.ConvTranspose{1,2,3}d``.
            input_size: Spatial size of its input, ``x.shape[2:]``.
            output_size: For transposed convolutions: the spatial output size that was
                passed to ``forward``. Default: the size that ``output_padding``
                implies.

        Returns:
            The convolution.

        Raises:
            TypeError: If the module is not a convolution.
            ValueError: If the sizes do not fit the module.
        """
        try:
            return _of_module(module, input_size, output_size)
        except AttributeError:
            raise TypeError(
                describe(
                    _FROM_MODULE,
                    "module",
                    "be a torch.nn convolution (Conv1d/2d/3d, ConvTranspose1d/2d/3d)",
                    type(module).__name__,
                )
            ) from None

    def _with_output_size(self, output_size: tuple[int, ...]) -> Conv:
        """Choose the output padding that leads to the given output size."""
        if not self.transposed:
            if output_size == self.output_size:
                return self
            raise ValueError(
                describe(
                    "Conv.from_module",
                    "output_size",
                    f"equal {self.output_size} (the module is not transposed)",
                    output_size,
                )
            )
        smallest = tuple(dim.output_size - dim.output_padding for dim in self.dims)
        fits = len(output_size) == len(self.dims) and all(
            0 <= wanted - least < max(dim.stride, dim.dilation)
            for wanted, least, dim in zip(output_size, smallest, self.dims, strict=True)
        )
        if not fits:
            largest = tuple(
                least + max(dim.stride, dim.dilation) - 1
                for least, dim in zip(smallest, self.dims, strict=True)
            )
            raise ValueError(
                describe(
                    "Conv.from_module",
                    "output_size",
                    f"lie between {smallest} and {largest}",
                    output_size,
                )
            )
        dims = tuple(
            replace(dim, output_padding=wanted - least)
            for dim, wanted, least in zip(self.dims, output_size, smallest, strict=True)
        )
        return replace(self, dims=dims)

    @classmethod
    def from_ints(cls, numbers: Sequence[int]) -> Conv:
        """Create a convolution from the integers of :meth:`to_ints`.

        Args:
            numbers: The integers.

        Returns:
            The convolution.

        Raises:
            TypeError: If an entry is not an integer.
            ValueError: If no convolution with these hyper-parameters exists.
        """
        return _of_ints(tuple(numbers))

    def to_ints(self) -> list[int]:
        """List the hyper-parameters as integers, for ``torch.ops.tn_extensions``.

        Returns:
            Input channels, output channels, groups, index of the mode in
            ``PADDING_MODES``, and 1 if the convolution is transposed, else 0; then, for
            each dimension, input size, kernel size, stride, dilation, padding on the
            left and right, output padding.

        >>> Conv.make(4, 6, 3, 8, padding=1).to_ints()
        [4, 6, 1, 0, 0, 8, 3, 1, 1, 1, 1, 0]
        """
        mode = PADDING_MODES.index(self.padding_mode)
        numbers = [self.in_channels, self.out_channels, self.groups, mode]
        numbers.append(int(self.transposed))
        for dim in self.dims:
            numbers += (dim.input_size, dim.kernel_size, dim.stride, dim.dilation)
            numbers += (*dim.padding, dim.output_padding)
        return numbers

    @property
    def num_dims(self) -> int:
        """Number ``D`` of spatial dimensions."""
        return len(self.dims)

    @property
    def transposed(self) -> bool:
        """Tell whether the convolution is transposed."""
        return self.dims[0].transposed

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Kernel size per dimension."""
        return tuple(dim.kernel_size for dim in self.dims)

    @property
    def input_size(self) -> tuple[int, ...]:
        """Spatial input size per dimension."""
        return tuple(dim.input_size for dim in self.dims)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial output size per dimension."""
        return tuple(dim.output_size for dim in self.dims)

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride per dimension."""
        return tuple(dim.stride for dim in self.dims)

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation per dimension."""
        return tuple(dim.dilation for dim in self.dims)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Padding ``(left, right)`` per dimension."""
        return tuple(dim.padding for dim in self.dims)

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Output padding per dimension."""
        return tuple(dim.output_padding for dim in self.dims)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the kernel as ``torch.nn`` stores it."""
        if self.transposed:
            channels = (self.in_channels, self.out_channels // self.groups)
        else:
            channels = (self.out_channels, self.in_channels // self.groups)
        return (*channels, *self.kernel_size)

    @property
    def pads_explicitly(self) -> bool:
        """Tell whether the input must be padded first, as its padding is not zeros."""
        return self.padding_mode != "zeros" and any(map(any, self.padding))

    @property
    def explicitly_padded(self) -> Conv:
        """This convolution on an input that is padded already."""
        dims = tuple(dim.explicitly_padded for dim in self.dims)
        return replace(self, dims=dims, padding_mode="zeros")


_OF_ALL, _OF_EACH = 5, 7
"""Number of integers for the whole convolution, and for each dimension."""


@lru_cache(maxsize=4096)
def _of_ints(numbers: tuple[int, ...]) -> Conv:
    """Create a convolution from integers, once: each batch passes the same ones."""
    name = "Conv.from_ints"
    num_dims, rest = divmod(len(numbers) - _OF_ALL, _OF_EACH)
    if rest or num_dims < 1:
        rule = f"have {_OF_ALL} entries and {_OF_EACH} for each dimension"
        remedy = "Pass conv.to_ints()"
        raise ValueError(describe(name, "numbers", rule, list(numbers), remedy))
    inputs, outputs, groups, mode, transposed, *sizes = numbers
    for entry, value, end in (
        ("mode", mode, len(PADDING_MODES)),
        ("transposed", transposed, 2),
    ):
        if value not in range(end):
            raise ValueError(describe(name, entry, f"be in range({end})", value))
    each = (sizes[start : start + _OF_EACH] for start in range(0, len(sizes), _OF_EACH))
    dims = tuple(
        ConvDim(i, k, s, d, (left, right), bool(transposed), output_padding)
        for i, k, s, d, left, right, output_padding in each
    )
    return Conv(inputs, outputs, dims, groups, PADDING_MODES[mode])


_FROM_MODULE = "Conv.from_module"


def _of_module(module: Any, input_size: Any, output_size: Any) -> Conv:
    """Read the attributes that ``forward`` uses.

    If one is missing, the module is no convolution: raise ``AttributeError``.
    """
    mode, transposed = module.padding_mode, bool(module.transposed)
    # with another mode, forward pads by this attribute, outermost dimension last
    padding = (
        module.padding if mode == "zeros" else module._reversed_padding_repeated_twice
    )
    return _of_attributes(
        type(module).__name__,
        _hashable("module.weight.shape", _kernel_shape(module, transposed)),
        _hashable("input_size", input_size),
        _hashable("module.stride", module.stride),
        _hashable("module.padding", padding),
        _hashable("module.dilation", module.dilation),
        _hashable("module.groups", module.groups),
        transposed,
        _hashable("module.output_padding", module.output_padding) if transposed else 0,
        mode,
        None if output_size is None else _hashable("output_size", output_size),
    )


def _kernel_shape(module: Any, transposed: bool) -> tuple[int, ...]:
    """Find the shape of the kernel without evaluating a parametrization."""
    for held in (module._parameters, vars(module), module._buffers):
        weight = held.get("weight")
        if weight is not None:
            break
    try:
        shape: tuple[int, ...] = () if weight is None else weight.shape
    except RuntimeError:
        rule, kind = "be initialised", type(module).__name__
        remedy = "Run a forward pass first, so that the lazy module knows its sizes"
        message = describe(_FROM_MODULE, "module", rule, kind, remedy)
        raise ValueError(message) from None
    if len(shape) > 2:
        return shape
    # parametrized, or a flat shard of the kernel in a sharded model
    channels = module.out_channels, module.in_channels
    first, second = reversed(channels) if transposed else channels
    return (first, second // module.groups, *module.kernel_size)


def _hashable(name: str, value: Any) -> Any:
    """Convert an attribute (an array, a list, any number) to a hashable value."""
    if type(value) in (int, str):
        return value
    if type(value) is not tuple and is_scalar(value):
        return as_int(_FROM_MODULE, name, value, minimum=0)
    return tuple(map(_as_key, value))


def _as_key(value: Any) -> Any:
    """Convert integers; symbols that a compiler traces with are no keys."""
    if isinstance(value, (tuple, str)):
        return value
    try:
        return index(value)
    except TypeError:  # an error will name it
        return value


@lru_cache(maxsize=4096)
def _of_attributes(
    kind: str,
    kernel_shape: tuple[int, ...],
    input_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    transposed: bool,
    output_padding: Any,
    padding_mode: Any,
    output_size: Any,
) -> Conv:
    """Check attributes and create the convolution, once: each batch passes them."""
    first, second, *kernel_size = kernel_shape
    num_dims = len(kernel_size)
    sizes = broadcast(input_size, num_dims)
    if len(sizes) != num_dims:
        rule, remedy = f"have {num_dims} entries for {kind}", "Pass x.shape[2:]"
        raise ValueError(describe(_FROM_MODULE, "input_size", rule, sizes, remedy))
    if padding_mode != "zeros":
        flat = _entries("padding", padding, 2 * num_dims)
        padding = tuple(zip(flat[-2::-2], flat[::-2], strict=True))
    elif not isinstance(padding, str):
        padding = _entries("padding", padding, num_dims)
    strides = _entries("stride", stride, num_dims)
    dilations = _entries("dilation", dilation, num_dims)
    if transposed and output_size is not None:
        # start from the largest: with the module's own, the output may be negative
        output_padding = tuple(
            max(pair) - 1 for pair in zip(strides, dilations, strict=True)
        )
    conv = Conv.make(
        first if transposed else second * groups,
        second * groups if transposed else first,
        kernel_size,
        sizes,
        strides,
        padding,
        dilations,
        groups,
        transposed,
        _entries("output_padding", output_padding, num_dims),
        padding_mode,
    )
    if output_size is None:
        return conv
    return conv._with_output_size(broadcast(output_size, num_dims))


def _entries(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """Expand an attribute to all dimensions; as in torch, one entry stands for all."""
    entries = broadcast(value, count)
    if len(entries) == 1:
        entries *= count
    if len(entries) != count:
        rule = f"have {count} entries or one"
        raise ValueError(describe(_FROM_MODULE, f"module.{name}", rule, entries))
    return entries
