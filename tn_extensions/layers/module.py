"""Layers with Kronecker factors, their kernels as matrices, and their uses.

A ``Linear`` is a convolution with a kernel of one position. All factors have a leading
axis of groups: an input factor is ``[G, D, D]`` with ``D = CI * K`` (plus one with a
joint bias), a gradient factor is ``[G, CO, CO]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tn_extensions.conv import Conv, ConvDim

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
SUPPORTED = (nn.Linear, *CONVOLUTIONS)

Groups = Literal["separate", "average"]


def reason_against(
    module: Any, kinds: tuple[type[nn.Module], ...] = SUPPORTED
) -> str | None:
    """Tell why a layer does not compute what torch's layer does with its parameters.

    Args:
        module: A layer.
        kinds: Torch's classes of layers; the layer is an instance of one.

    Returns:
        The reason, as the end of a sentence about the layer: it has its own ``forward``
        (weight standardisation, LoRA in a class), or its kernel or bias is computed
        from other parameters (``parametrize``, ``weight_norm``, ``spectral_norm``,
        ``prune``). ``None``: it computes what torch's layer does.
    """
    base = next(kind for kind in kinds if isinstance(module, kind))
    for method in ("forward", "_conv_forward"):
        own = getattr(type(module), method, None)
        if method in vars(module) or own is not getattr(base, method, None):
            return f"has a {method} of its own"
    computed = [
        key
        for key in ("weight", "bias")
        if is_parametrized(module, key)
        or (getattr(module, key, None) is not None and key not in module._parameters)
    ]
    return f"computes its {' and '.join(computed)}" if computed else None


def parameters_of_layers(
    model: nn.Module, takes_inner: bool
) -> dict[str, dict[str, nn.Parameter]]:
    """Find the parameters of supported layers.

    Args:
        model: The model.
        takes_inner: Whether modules inside a layer that computes its kernel are parts
            of that layer. Modules of ``parametrize`` always are.

    Returns:
        The parameters, by the layer's name and the parameter's name in the layer. A
        layer that computes its kernel also has the parameters of its parts.
    """
    layers = {
        name: reason_against(module)
        for name, module in model.named_modules()
        if isinstance(module, SUPPORTED)
    }

    def owner(path: str) -> str | None:
        steps = path.split(".") if path else []
        around = ["", *(".".join(steps[:n]) for n in range(1, len(steps) + 1))]
        computed = [name for name in around if layers.get(name)]
        for name in computed:
            inner = path[len(name) :].removeprefix(".")
            if takes_inner or inner.startswith("parametrizations"):
                return name
        return path if path in layers else next(reversed(computed), None)

    found: dict[str, dict[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        name = owner(path)
        if name is not None:
            inside = path[len(name) :].removeprefix(".")
            for key, parameter in module.named_parameters(inside, recurse=False):
                found.setdefault(name, {})[key] = parameter
    return found


def transposed_groups(module: Any) -> int | None:
    """Return the groups of a transposed convolution; ``None`` for other layers."""
    return int(module.groups) if isinstance(module, TRANSPOSED) else None


def num_groups(module: Any, groups: Groups) -> int:
    """Count the pairs of factors of a layer."""
    if isinstance(module, nn.Linear) or groups == "average":
        return 1
    return int(module.groups)


def out_channels(module: Any) -> int:
    """Count the output channels of a layer, by its current kernel."""
    shape = module.weight.shape
    if isinstance(module, TRANSPOSED):
        return int(module.groups) * shape[1]
    return shape[0]


def kernel_matrices(
    kernels: Tensor, groups: int, transposed_groups: int | None
) -> Tensor:
    """Convert kernels to matrices.

    Args:
        kernels: Kernels, ``[V, *weight.shape]``.
        groups: Groups of the matrices.
        transposed_groups: Groups of a transposed convolution, whose kernels are
            ``[C_in, CO, *K]``. ``None``: the kernels are ``[C_out, CI, *K]``.

    Returns:
        Matrices, ``[V, G, CO, CI * K]``.
    """
    if transposed_groups is not None:
        kernels = kernels.unflatten(1, (transposed_groups, -1))
        kernels = kernels.transpose(2, 3).flatten(1, 2)
    num_kernels, rows, *columns = kernels.shape
    return kernels.reshape(num_kernels, groups, rows // groups, prod(columns))


def kernel_of_matrices(
    matrices: Tensor, shape: Sequence[int], transposed_groups: int | None
) -> Tensor:
    """Convert matrices ``[G, CO, CI * K, V]`` to kernels ``[*weight.shape, V]``."""
    if transposed_groups is None:
        return matrices.reshape(*shape)
    channels, rows, *rest = shape
    groups = transposed_groups
    kernel = matrices.reshape(groups, rows, channels // groups, *rest)
    return kernel.transpose(1, 2).reshape(*shape)


@dataclass(frozen=True)
class Use:
    """One use of a layer in a forward pass.

    The first axis may have several rows per datum (frames or windows folded into the
    batch, a Siamese network's ``cat``). These are positions that share the weight: the
    convolution gets an additional first dimension with a kernel of size one.

    Args:
        x: Its input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters.
        is_linear: Whether it is a ``Linear``, whose channels come last.
        num_data: Number ``N`` of data.
        rows: Number ``R`` of rows per datum on the first axis.
        is_cat: Whether the rows of a datum are ``N`` apart, as after ``cat``. Otherwise
            they are adjacent, as after ``flatten(0, 1)``.
        names: Names of kernel and bias if calls are observed. ``None``: the tensor is
            not observed.
        computed: Kernel and bias as they were passed: parameters, or tensors that were
            computed from parameters, with their graph.
    """

    x: Tensor
    conv: Conv
    is_linear: bool
    num_data: int
    rows: int = 1
    is_cat: bool = False
    names: tuple[str | None, str | None] = (None, None)
    computed: tuple[Tensor | None, Tensor | None] = (None, None)

    @classmethod
    def of(
        cls,
        module: Any,
        x: Tensor,
        output: Tensor,
        groups: Groups,
        num_data: int | None = None,
    ) -> Use:
        """Describe the use of a layer on an input.

        Args:
            module: The layer.
            x: Its input.
            output: Its output.
            groups: How to treat groups.
            num_data: Number of data, which divides the length of the input. Default:
                the length.

        Returns:
            The use.
        """
        conv = None
        if not isinstance(module, nn.Linear):
            conv = Conv.from_module(module, x.shape[2:], output.shape[2:])
        return cls._of(x, output, conv, groups, num_data)

    @classmethod
    def of_call(
        cls,
        arguments: Mapping[str, Any],
        output: Tensor,
        groups: Groups,
        num_data: int,
        **others: Any,
    ) -> Use:
        """Describe the use of one of torch's functions on an input.

        Args:
            arguments: Arguments of ``linear`` or a convolution, by name. Without
                ``stride``, the function is ``linear``; with ``output_padding``, it is a
                transposed convolution.
            output: Its output.
            groups: As for :meth:`of`.
            num_data: As for :meth:`of`.
            **others: Other fields of the use.

        Returns:
            The use.
        """
        x, conv = arguments["input"], None
        if "stride" in arguments:
            names = ("stride", "padding", "dilation", "groups", "output_padding")
            conv = Conv.make(
                x.shape[1],
                output.shape[1],
                tuple(arguments["weight"].shape[2:]),
                tuple(x.shape[2:]),
                transposed="output_padding" in arguments,
                **{name: arguments[name] for name in names if name in arguments},
            )
        return cls._of(x, output, conv, groups, num_data, **others)

    @classmethod
    def _of(
        cls,
        x: Tensor,
        output: Tensor,
        conv: Conv | None,
        groups: Groups,
        num_data: int | None,
        **others: Any,
    ) -> Use:
        x, num_data = x.detach(), len(x) if num_data is None else num_data
        rows, is_linear = len(x) // max(num_data, 1) or 1, conv is None
        if conv is None:
            positions = rows * prod(x.shape[1:-1])
            conv = Conv.make(x.shape[-1], output.shape[-1], 1, (positions,))
        elif groups == "average" and conv.groups > 1:
            # as in curvlinops: treat the layer as one without groups
            x = x.unflatten(1, (conv.groups, -1)).mean(1)
            conv = replace(conv, in_channels=x.shape[1], groups=1)
        if rows > 1 and not is_linear:
            row = ConvDim(rows, 1, transposed=conv.transposed)
            conv = replace(conv, dims=(row, *conv.dims))
        return cls(x, conv, is_linear, num_data, rows, **others).with_input(x)

    @property
    def num_positions(self) -> int:
        """Number of positions that share the weight."""
        return prod(self.conv.output_size)

    def gradient(self, gradient: Tensor) -> Tensor:
        """View a gradient of the output as ``[N, C_out, P]``."""
        return self._by_datum(gradient.detach()).flatten(2)

    def _by_datum(self, tensor: Tensor) -> Tensor:
        """View rows ``[N * R, ...]`` by datum, with channels on the second axis."""
        if self.rows > 1 and self.is_cat:
            tensor = tensor.unflatten(0, (self.rows, -1)).transpose(0, 1)
        elif self.rows > 1:
            tensor = tensor.unflatten(0, (-1, self.rows))
        if self.is_linear:
            return channels_first(tensor)
        return tensor.transpose(1, 2) if self.rows > 1 else tensor

    def as_cat(self) -> Use:
        """Return the use on the same rows, with the rows of a datum ``N`` apart."""
        x = self.x.transpose(1, 2)
        if self.is_linear:
            x = x.unflatten(1, (self.rows, -1))
        return replace(self, is_cat=True).with_input(x.flatten(0, 1))

    def of_data(self, indices: Tensor) -> Use:
        """Restrict the use to some of the data."""
        return replace(self, x=self.x[indices])

    def without_input(self) -> Use:
        """Drop the input, so that its memory can be freed."""
        return replace(self, x=self.x.new_empty(0))

    def with_input(self, x: Tensor) -> Use:
        """Return the use on another input, with the first axis that the layer sees."""
        return replace(self, x=self._by_datum(x))


def channels_first(x: Tensor, leading: int = 1) -> Tensor:
    """Move channels from the last axis to one after the leading axes.

    Args:
        x: Tensor, ``[..., *, C]``.
        leading: Number of leading axes, ``...``.

    Returns:
        The tensor as ``[..., C, P]``.
    """
    *sizes, channels = x.shape
    positions = prod(sizes[leading:])
    return x.reshape(*sizes[:leading], positions, channels).transpose(-2, -1)


Pairs = list[tuple[Use, Tensor]]
"""A layer's uses and the gradients of their outputs, ``[N, C_out, P]``."""
