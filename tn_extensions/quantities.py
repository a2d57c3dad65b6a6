"""Each quantity of a convolution, defined once as a tensor network.

Indices: ``n`` batch, ``g`` groups, ``ci``/``co`` input/output channels per group; along
dimension j ``i{j}``, ``k{j}``, ``o{j}`` of input, kernel and output. A transposed
convolution has the same patterns with the roles of ``i`` and ``o`` exchanged, so its
input has indices ``o`` and its output indices ``i``. Operands are ``x``, ``weight``,
the gradient of the output ``g`` (which also stands for ``S``), the diagonal of a
Hessian by the output ``h``, and the bases ``QA`` and ``QB`` that gradients are rotated
into, with columns ``a`` and ``b``.

No network has a joint bias, which appends a one to each patch. Its rows and columns
are networks of their own: see :func:`patch_total` for factors and :func:`rotated_grad`
for moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from tn_extensions.conv import Conv
from tn_extensions.conv_dim import as_int
from tn_extensions.errors import describe
from tn_extensions.network import Affine, Axis, Operand, Pattern, TensorNetwork
from tn_extensions.network.index import prime

Quantity = Literal[
    "conv",
    "unfold_input",
    "unfold_weight",
    "fold_output",
    "weight_vjp",
    "input_vjp",
    "weight_jvp",
    "input_jvp",
    "per_sample_grad",
    "per_sample_grad_norm",
    "ggn_diagonal",
    "ggn_gram",
    "ggn_matvec",
    "diagonal_backward",
    "bias_vjp",
    "bias_per_sample_grad",
    "bias_per_sample_grad_norm",
    "bias_ggn_diagonal",
    "bias_ggn_gram",
    "patch_sum",
    "patch_total",
    "kfac_expand",
    "kfac_reduce",
    "gradient_factor_expand",
    "gradient_factor_reduce",
    "rotated_grad",
    "kfac_moments",
]
"""Names of the quantities."""


class _Indices:
    """Names and sizes of the indices of a convolution's networks."""

    def __init__(self, conv: Conv, batch_size: int) -> None:
        if not isinstance(conv, Conv):
            remedy = "Create one with Conv.make or Conv.from_module"
            kind = type(conv).__name__
            raise TypeError(describe("quantities", "conv", "be a Conv", kind, remedy))
        batch_size = as_int("quantities", "batch_size", batch_size, minimum=0)
        if conv.pads_explicitly:
            raise ValueError(
                describe(
                    "quantities",
                    "conv.padding_mode",
                    "be 'zeros' unless conv.padding is 0",
                    repr(conv.padding_mode),
                    "Pad x and use conv.explicitly_padded",
                )
            )
        dims = range(1, conv.num_dims + 1)
        self.conv = conv
        self.kernel = tuple(f"k{j}" for j in dims)
        ends = (tuple(f"i{j}" for j in dims), tuple(f"o{j}" for j in dims))
        self.input, self.output = reversed(ends) if conv.transposed else ends
        self.sizes = {
            "n": batch_size,
            "g": conv.groups,
            "ci": conv.in_channels // conv.groups,
            "co": conv.out_channels // conv.groups,
            **dict(zip(self.kernel, conv.kernel_size, strict=True)),
            **dict(zip(self.input, conv.input_size, strict=True)),
            **dict(zip(self.output, conv.output_size, strict=True)),
        }

    def axis(self, *indices: str) -> Axis:
        """Create the axis that the given indices share."""
        split = [(index, self.sizes[index]) for index in indices]
        extent = 1
        for _, size in split:
            extent *= size
        return Axis.of(extent, *split)

    @property
    def x(self) -> Operand:
        """The input ``[N, C_in, I1, ...]``."""
        spatial = (self.axis(index) for index in self.input)
        return Operand("x", (self.axis("n"), self.axis("g", "ci"), *spatial))

    @property
    def weight(self) -> Operand:
        """The kernel, as torch stores it."""
        first, second = ("ci", "co") if self.conv.transposed else ("co", "ci")
        spatial = (self.axis(index) for index in self.kernel)
        return Operand("weight", (self.axis("g", first), self.axis(second), *spatial))

    @property
    def g(self) -> Operand:
        """The output's gradient ``[N, C_out, O1, ...]``."""
        spatial = (self.axis(index) for index in self.output)
        return Operand("g", (self.axis("n"), self.axis("g", "co"), *spatial))

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """A pattern ``i = s o + d k - l`` per dimension.

        For transposed convolutions, ``i`` is an index of the output, ``o`` of the
        input.
        """
        names = (
            (self.output, self.input)
            if self.conv.transposed
            else (
                self.input,
                self.output,
            )
        )
        return tuple(
            Pattern(i, Affine(((o, dim.stride), (k, dim.dilation)), -dim.padding[0]))
            for i, o, k, dim in zip(*names, self.kernel, self.conv.dims, strict=True)
        )

    def patches(self, output: Iterable[Iterable[str]]) -> TensorNetwork:
        """Define the unfolded input ``U`` with these axes; other indices are summed."""
        return TensorNetwork((self.x, *self.patterns), output, self.sizes)

    def basis(self, name: str, rows: Sequence[str], column: str) -> Operand:
        """Create a basis ``[G, D, r]``; indices ``rows`` share the axis ``D``."""
        return Operand(name, (self.axis("g"), self.axis(*rows), self.axis(column)))


def conv(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the convolution ``Y = sum U W``, ``[N, C_out, O1, ...]``."""
    names = _Indices(conv, batch_size)
    axes = (("n",), ("g", "co"), *((index,) for index in names.output))
    return TensorNetwork((names.x, names.weight, *names.patterns), axes, names.sizes)


def unfold_input(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the unfolded input ``U``, ``[N, C_in * K, O]``, in torch's order."""
    names = _Indices(conv, batch_size)
    return names.patches([("n",), ("g", "ci", *names.kernel), names.output])


def unfold_weight(conv: Conv, batch_size: int = 1) -> TensorNetwork:
    """Define the Toeplitz matrix of the kernel, ``[C_out * O, C_in * I]``.

    It is the Jacobian of the convolution by its input, for one sample.
    """
    jacobian = _convolve(conv, 1).jacobian("x")
    # [N, C_out, O..., N', C_in, I...], with one sample
    output, operand = jacobian.output[1:], jacobian.output[conv.num_dims + 3 :]
    output = output[: conv.num_dims + 1]
    merged = (tuple(j for axis in axes for j in axis) for axes in (output, operand))
    one_sample = (p for p in jacobian.patterns if p.index == prime("n"))
    return jacobian.replace(one_sample, output=merged)


def fold_output(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the adjoint of :func:`unfold_input`, ``[N, C_in, I1, ...]``.

    It adds entries of patches ``u``, ``[N, C_in * K, O]``, to the input positions that
    they come from.
    """
    return unfold_input(conv, batch_size).vjp("x", "u")


def weight_vjp(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the gradient by the kernel, from ``g``; shaped like the kernel."""
    return _convolve(conv, batch_size).vjp("weight", "g")


def input_vjp(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the gradient by the input, from ``g``; shaped like the input."""
    return _convolve(conv, batch_size).vjp("x", "g")


def weight_jvp(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the output's derivative along ``weight_dot``; shaped like the output."""
    return _convolve(conv, batch_size).jvp("weight", "weight_dot")


def input_jvp(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the output's derivative along ``x_dot``; shaped like the output."""
    return _convolve(conv, batch_size).jvp("x", "x_dot")


def bias_vjp(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the gradient by a bias, from ``g``, ``[C_out]``."""
    names = _Indices(conv, batch_size)
    return TensorNetwork([names.g], [("g", "co")], names.sizes)


def per_sample_grad(
    conv: Conv, batch_size: int, num_vectors: int | None = None
) -> TensorNetwork:
    """Define the gradient by the kernel for each sample.

    Args:
        conv: Hyper-parameters.
        batch_size: Number of samples.
        num_vectors: Number ``V`` of gradients ``g`` per sample, ``[V, N, C_out, ...]``.
            Default: one, without an axis.

    Returns:
        The network, ``[(V,) N, *weight.shape]``.
    """
    return _per_sample(weight_vjp(conv, batch_size), num_vectors)


def bias_per_sample_grad(
    conv: Conv, batch_size: int, num_vectors: int | None = None
) -> TensorNetwork:
    """Define the gradient by a bias for each sample, ``[(V,) N, C_out]``."""
    return _per_sample(bias_vjp(conv, batch_size), num_vectors)


def per_sample_grad_norm(
    conv: Conv, batch_size: int, num_vectors: int | None = None
) -> TensorNetwork:
    """Define the squared norm of each per-sample gradient, ``[(V,) N]``."""
    return _norm(per_sample_grad(conv, batch_size, num_vectors))


def bias_per_sample_grad_norm(
    conv: Conv, batch_size: int, num_vectors: int | None = None
) -> TensorNetwork:
    """Define the squared norm of each per-sample gradient of a bias, ``[(V,) N]``."""
    return _norm(bias_per_sample_grad(conv, batch_size, num_vectors))


def ggn_diagonal(
    conv: Conv, batch_size: int, num_vectors: int, per_sample: bool = False
) -> TensorNetwork:
    """Define the diagonal of the GGN, ``sum_{v,n} (sum_o S U)^2``, without scaling.

    Args:
        conv: Hyper-parameters.
        batch_size: Number of samples.
        num_vectors: Number ``V`` of columns of ``S``, which is the operand ``g``.
        per_sample: Whether to keep the samples instead of summing over them.

    Returns:
        The network, ``[(N,) *weight.shape]``.
    """
    gradient = per_sample_grad(conv, batch_size)
    return _diagonal(_with_vectors(gradient, num_vectors), per_sample)


def bias_ggn_diagonal(
    conv: Conv, batch_size: int, num_vectors: int, per_sample: bool = False
) -> TensorNetwork:
    """Define the diagonal for a bias, ``sum_{v,n} (sum_o S)^2``, ``[(N,) C_out]``."""
    gradient = bias_per_sample_grad(conv, batch_size)
    return _diagonal(_with_vectors(gradient, num_vectors), per_sample)


def ggn_gram(conv: Conv, batch_size: int, num_vectors: int) -> TensorNetwork:
    """Define the inner products of all per-sample gradients, ``[V * N, V * N]``."""
    return _gram(_with_vectors(per_sample_grad(conv, batch_size), num_vectors))


def bias_ggn_gram(conv: Conv, batch_size: int, num_vectors: int) -> TensorNetwork:
    """Define the inner products of a bias' per-sample gradients, ``[V * N, V * N]``."""
    return _gram(_with_vectors(bias_per_sample_grad(conv, batch_size), num_vectors))


def ggn_matvec(
    conv: Conv, batch_size: int, num_vectors: int, num_products: int | None = None
) -> TensorNetwork:
    """Define the product of the GGN with a kernel.

    It is ``sum_{v,n} J_vn <J_vn, weight_dot>`` with the per-sample gradients ``J_vn =
    sum_o S U``.

    Args:
        conv: Hyper-parameters.
        batch_size: Number of samples.
        num_vectors: Number ``V`` of columns of ``S``, which is the operand ``g``.
        num_products: Number ``B`` of kernels ``weight_dot`` to multiply with. Default:
            one, without an axis.

    Returns:
        The network, ``[(B,) *weight.shape]``, like ``weight_dot``.
    """
    half = _with_vectors(per_sample_grad(conv, batch_size), num_vectors)
    kernel = _Indices(conv, batch_size).weight.rename(prime)
    product = half.times_copy({"v", "n"}, half.output[2:]).replace(
        added=[replace(kernel, name="weight_dot")]
    )
    if num_products is None:
        return product
    number = as_int("quantities", "num_products", num_products, minimum=0)
    return product.vmap("weight_dot", "b", number)


def diagonal_backward(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the Hessian diagonal by the input, ``sum_y (dy / dx)^2 h``.

    The operand ``h`` is the Hessian diagonal by the output. The result is shaped like
    the input. At most one kernel entry connects an input position to an output
    position, so it suffices to square the kernel.
    """
    pulled = _convolve(conv, batch_size).vjp("x", "h")
    return pulled.replace(added=[_Indices(conv, batch_size).weight])


def _per_sample(gradient: TensorNetwork, num_vectors: int | None) -> TensorNetwork:
    """Keep the samples of a gradient, and its vectors if there are any."""
    kept = gradient.replace(output=(("n",), *gradient.output))
    return kept if num_vectors is None else _with_vectors(kept, num_vectors)


def _with_vectors(gradient: TensorNetwork, num_vectors: int) -> TensorNetwork:
    number = as_int("quantities", "num_vectors", num_vectors, minimum=0)
    return gradient.vmap("g", "v", number)


def _norm(half: TensorNetwork) -> TensorNetwork:
    kept = [axis for axis in half.output if axis in (("v",), ("n",))]
    return half.times_copy(half.output_indices, kept)


def _diagonal(half: TensorNetwork, per_sample: bool) -> TensorNetwork:
    return half.times_copy(half.output_indices, half.output[1 if per_sample else 2 :])


def _gram(half: TensorNetwork) -> TensorNetwork:
    shared = set(half.output_indices) - {"v", "n"}
    return half.times_copy(shared, (("v", "n"), (prime("v"), prime("n"))))


def patch_sum(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the sum of patches over output positions, ``sum_o U: [N, G, CI * K]``."""
    names = _Indices(conv, batch_size)
    return names.patches([("n",), ("g",), ("ci", *names.kernel)])


def patch_total(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the sum of patches over samples and output positions, ``[G, CI * K]``.

    With a joint bias, it is the last row and column of :func:`kfac_expand`, whose last
    entry is ``N O``. In :func:`kfac_reduce`, both have an additional factor ``O``.
    """
    names = _Indices(conv, batch_size)
    return names.patches([("g",), ("ci", *names.kernel)])


def kfac_expand(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the KFAC-expand factor ``sum_n sum_o U U^T``, unscaled, ``[G, D, D]``."""
    names = _Indices(conv, batch_size)
    return _factor(patch_total(conv, batch_size), {"n", "g", *names.output})


def kfac_reduce(conv: Conv, batch_size: int) -> TensorNetwork:
    """Define the KFAC-reduce factor ``sum_n (sum_o U)(sum_o U)^T``, unscaled."""
    return _factor(patch_total(conv, batch_size), {"n", "g"})


def gradient_factor_expand(
    conv: Conv, batch_size: int, num_vectors: int | None = None
) -> TensorNetwork:
    """Define the KFAC-expand factor of output gradients, ``sum_{(v,) n, o} g g^T``.

    Args:
        conv: Hyper-parameters.
        batch_size: Number of samples.
        num_vectors: As for :func:`per_sample_grad`.

    Returns:
        The network, ``[G, CO, CO]``.
    """
    names = _Indices(conv, batch_size)
    return _gradient_factor(names, num_vectors, {"n", "g", *names.output})


def gradient_factor_reduce(
    conv: Conv, batch_size: int, num_vectors: int | None = None
) -> TensorNetwork:
    """Define the KFAC-reduce factor of output gradients, of sums ``sum_o g``."""
    return _gradient_factor(_Indices(conv, batch_size), num_vectors, {"n", "g"})


def _gradient_factor(
    names: _Indices, num_vectors: int | None, shared: set[str]
) -> TensorNetwork:
    half = TensorNetwork([names.g], [("g",), ("co",)], names.sizes)
    if num_vectors is None:
        return _factor(half, shared)
    return _factor(_with_vectors(half, num_vectors), {"v", *shared})


def _factor(half: TensorNetwork, shared: set[str]) -> TensorNetwork:
    """Multiply a half with its copy; keep groups and both copies of the columns."""
    *_, group, columns = half.output
    return half.times_copy(shared, (group, columns, map(prime, columns)))


def rotated_grad(
    conv: Conv, batch_size: int, rank_a: int | None = None, rank_b: int | None = None
) -> TensorNetwork:
    """Define per-sample gradients in a Kronecker basis, ``QB^T (sum_o g U^T) QA``.

    A joint bias adds ``QB^T (sum_o g) q^T``, where ``q`` is an additional, last row of
    ``QA``.

    Args:
        conv: Hyper-parameters.
        batch_size: Number of samples.
        rank_a: Number of columns of ``QA``, ``[G, CI * K, rank_a]``. Default: a full
            basis.
        rank_b: Number of columns of ``QB``, ``[G, CO, rank_b]``. Default: a full basis.

    Returns:
        The network, ``[N, G, rank_b, rank_a]``.
    """
    names = _Indices(conv, batch_size)
    rows = {"a": ("ci", *names.kernel), "b": ("co",)}
    for column, rank in (("a", rank_a), ("b", rank_b)):
        full = names.axis(*rows[column]).extent
        names.sizes[column] = as_int(
            "quantities", f"rank_{column}", full if rank is None else rank, minimum=0
        )
    bases = (names.basis(f"Q{c.upper()}", rows[c], c) for c in rows)
    return TensorNetwork(
        (names.x, names.g, *bases, *names.patterns),
        [("n",), ("g",), ("b",), ("a",)],
        names.sizes,
    )


def kfac_moments(
    conv: Conv, batch_size: int, rank_a: int | None = None, rank_b: int | None = None
) -> TensorNetwork:
    """Define EKFAC's corrected eigenvalues, ``sum_n (QB^T (sum_o g U^T) QA)^2``.

    These are the squares of :func:`rotated_grad`, summed over samples, in one network.

    Args:
        conv: Hyper-parameters.
        batch_size: Number of samples.
        rank_a: As for :func:`rotated_grad`.
        rank_b: As for :func:`rotated_grad`.

    Returns:
        The network, ``[G, rank_b, rank_a]``.
    """
    half = rotated_grad(conv, batch_size, rank_a, rank_b)
    return half.times_copy(half.output_indices, half.output[1:])


_convolve = conv
"""Alias of the quantity, for functions with an argument ``conv``."""
