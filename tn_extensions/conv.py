"""Hyper-parameters of a convolution: any number of dimensions, either direction.

Sizes follow one convention throughout the package: ``I``, ``K``, ``O`` are the sizes of
input, kernel and output along one spatial dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from tn_extensions.conv_dim import ConvDim, broadcast, check_int, parse_padding
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
        padding_mode: What the padding holds. All but ``"zeros"`` are equivalent to
            padding the input explicitly, then convolving without padding.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If no convolution with these hyper-parameters exists.
    """

    in_channels: int
    out_channels: int
    dims: tuple[ConvDim, ...]
    groups: int = 1
    padding_mode: PaddingMode = "zeros"

    def __post_init__(self) -> None:
        if not self.dims:
            rule = "hold at least one dimension"
            raise ValueError(describe("Conv", "dims", rule, self.dims))
        if len({dim.transposed for dim in self.dims}) > 1:
            rule = "agree on being transposed"
            raise ValueError(describe("Conv", "dims", rule, self.dims))
        check_int("Conv", "groups", self.groups, minimum=1)
        for name in ("in_channels", "out_channels"):
            channels = getattr(self, name)
            check_int("Conv", name, channels, minimum=1)
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
            # reflection leaves the border out, wrapping around at most once
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
        """Collect hyper-parameters as ``torch.nn`` takes them; scalars broadcast.

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
            padding_mode: What the padding holds.

        Returns:
            The convolution. If all arguments are scalars, it has one dimension.

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
            name: len(value)
            for name, value in given.items()
            if isinstance(value, Sequence) and not isinstance(value, str)
        }
        num_dims = max(lengths.values(), default=1)
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

        kernel_sizes = broadcast(kernel_size, num_dims)
        strides = broadcast(stride, num_dims)
        dilations = broadcast(dilation, num_dims)
        for name, sizes in (("kernel_size", kernel_sizes), ("dilation", dilations)):
            for size in sizes:
                check_int("Conv.make", name, size, minimum=1)
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

        Args:
            module: A ``torch.nn.Conv{1,2,3}d`` or ``torch.nn.ConvTranspose{1,2,3}d``.
            input_size: Spatial size of its input, ``x.shape[2:]``.
            output_size: For transposed convolutions: the spatial output size that was
                passed to ``forward``. Default: as ``output_padding`` implies.

        Returns:
            The convolution.

        Raises:
            TypeError: If the module is not a convolution.
            ValueError: If the sizes do not fit the module.
        """
        try:
            num_dims = len(module.kernel_size)
            transposed = bool(module.transposed)
            output_padding = module.output_padding if transposed else 0
            hyper_parameters: dict[str, Any] = {
                "in_channels": module.in_channels,
                "out_channels": module.out_channels,
                "kernel_size": tuple(module.kernel_size),
                "stride": tuple(module.stride),
                "padding": module.padding,
                "dilation": tuple(module.dilation),
                "groups": module.groups,
                "transposed": transposed,
                "padding_mode": module.padding_mode,
            }
        except (AttributeError, TypeError):
            raise TypeError(
                describe(
                    "Conv.from_module",
                    "module",
                    "be a torch.nn convolution (Conv1d/2d/3d, ConvTranspose1d/2d/3d)",
                    type(module).__name__,
                )
            ) from None
        if hyper_parameters["in_channels"] == 0:
            raise ValueError(
                describe(
                    "Conv.from_module",
                    "module",
                    "be initialised",
                    type(module).__name__,
                    "Run a forward pass first, so that the lazy module knows its sizes",
                )
            )
        sizes = broadcast(input_size, num_dims)
        if len(sizes) != num_dims:
            raise ValueError(
                describe(
                    "Conv.from_module",
                    "input_size",
                    f"have {num_dims} entries for {type(module).__name__}",
                    sizes,
                    "Pass x.shape[2:]",
                )
            )
        conv = _make(
            **hyper_parameters, input_size=sizes, output_padding=output_padding
        )
        if output_size is None:
            return conv
        return conv._with_output_size(broadcast(output_size, num_dims))

    def _with_output_size(self, output_size: tuple[int, ...]) -> Conv:
        """The convolution whose output padding leads to the given output size."""
        if not self.transposed:
            if output_size == self.output_size:
                return self
            raise ValueError(
                describe(
                    "Conv.from_module",
                    "output_size",
                    f"equal {self.output_size}, for want of transposition",
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

    @property
    def num_dims(self) -> int:
        """Number ``D`` of spatial dimensions."""
        return len(self.dims)

    @property
    def transposed(self) -> bool:
        """Whether the convolution is transposed."""
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
        """Whether the padding holds data, so that the input must be padded first."""
        return self.padding_mode != "zeros" and any(map(any, self.padding))

    @property
    def explicitly_padded(self) -> Conv:
        """The same convolution on an input that carries its padding already."""
        dims = tuple(dim.explicitly_padded for dim in self.dims)
        return replace(self, dims=dims, padding_mode="zeros")


@lru_cache(maxsize=4096)
def _make(**hyper_parameters: Any) -> Conv:
    """Hyper-parameters are checked once: modules are read for every batch."""
    return Conv.make(**hyper_parameters)
