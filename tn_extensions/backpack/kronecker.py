"""KFAC, KFLR and KFRA with BackPACK's names, arguments, savefields and values."""

from __future__ import annotations

from typing import get_args

from backpack.extensions import secondorder
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor
from torch.nn import Module

from tn_extensions.backpack.extension import Extension
from tn_extensions.backpack.kronecker_modules import (
    Approx,
    branches_refused,
    module_extensions,
)
from tn_extensions.errors import describe


class _Kronecker(Extension):
    """The base of the three extensions."""

    approx: Approx

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return our module extensions of layers, BatchNorm, pooling and others."""
        return module_extensions()

    def choose(self, approx: Approx) -> None:
        """Set the approximation."""
        if approx not in get_args(Approx):
            rule = f"be one of {', '.join(map(repr, get_args(Approx)))}"
            name = type(self).__name__
            raise ValueError(describe(name, "approx", rule, repr(approx)))
        self.approx = approx


class KFAC(secondorder.KFAC, _Kronecker):
    """Kronecker factors of the GGN with Monte-Carlo samples, in ``parameter.kfac``.

    A drop-in replacement for BackPACK's class. Values equal BackPACK's where these are
    correct, and they are correct for ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``
    with groups, ``padding='same'``, every ``padding_mode``, ``output_padding`` and
    ``output_size``. The input is never unfolded as a whole.

    A weight has two factors ``[B, A]``, a bias one factor ``[B]``. ``B`` has rows and
    columns for output channels ``co``, ``A`` for ``(ci, k)``, with ``k`` fastest. With
    ``G > 1`` groups, each group has its own factors: ``B`` is ``[G, CO, CO]`` and ``A``
    is ``[G, CI * K, CI * K]`` with ``CO`` and ``CI`` channels per group. For transposed
    convolutions, ``B (x) A`` approximates the GGN of ``weight.transpose(0, 1)``, as in
    BackPACK (within each group, the first two axes of the weight ``[CI, CO, K]`` are
    exchanged). Factors are of float32 or wider.

    The scale and the shift of BatchNorm, ``C`` numbers each, have a single factor
    ``[F]``, ``[C, C]``: their whole block of the GGN, for each ``approx``. With
    normalised inputs ``x``, it is ``F = sum_{v,n} s s^T``, where ``s = sum_o S x`` for
    the scale and ``s = sum_o S`` for the shift.

    Models may have BatchNorm, pooling (average, maximum, adaptive) and sums of
    branches. In train mode, BatchNorm couples the samples. A Monte-Carlo sample is then
    backpropagated for all samples jointly, as in automatic differentiation. This adds
    mixed terms that vanish in expectation, so the factors remain unbiased.

    Args:
        mc_samples: Number of Monte-Carlo samples.
        approx: ``"backpack"`` for BackPACK's scaling, or ``"expand"`` or ``"reduce"``
            as defined by Eschenhagen et al. With ``O`` output positions, patches ``U``,
            and a square root ``S`` of the loss's GGN by the output:
            ``"backpack"``: ``B = sum_{v,n} (sum_o S)(sum_o S)^T``,
            ``A = 1/N sum_{n,o} U U^T``;
            ``"expand"``: ``B = sum_{v,n,o} S S^T``, ``A = 1/(N O) sum_{n,o} U U^T``;
            ``"reduce"``: ``B`` as for ``"backpack"``,
            ``A = 1/(N O^2) sum_n (sum_o U)(sum_o U)^T``.

    Raises:
        ValueError: If ``approx`` is unknown.

    References:
        Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for
        convolution layers", ICML 2016.
        Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural
        network architectures", NeurIPS 2023.
    """

    backpropagates_columns = True

    def __init__(self, mc_samples: int = 1, *, approx: Approx = "backpack") -> None:
        self.choose(approx)
        super().__init__(mc_samples=mc_samples)  # type: ignore[call-arg]


class KFLR(secondorder.KFLR, _Kronecker):
    """Kronecker factors of the exact GGN, in ``parameter.kflr``.

    Like :class:`KFAC`, but with the exact square root of the loss's Hessian instead of
    samples. Below a BatchNorm in train mode, which couples the samples, each sample has
    its own columns. This is exact, but takes ``N`` times the memory and work that it
    takes with fixed statistics.

    Args:
        approx: See :class:`KFAC`.

    Raises:
        ValueError: If ``approx`` is unknown.
    """

    backpropagates_columns = True

    def __init__(self, *, approx: Approx = "backpack") -> None:
        self.choose(approx)
        super().__init__()  # type: ignore[call-arg]


class KFRA(secondorder.KFRA, _Kronecker):
    """Kronecker factors from a batch-averaged GGN, in ``parameter.kfra``.

    Like :class:`KFAC`, but ``sum_{v,n} S S^T`` is replaced by ``M``, the GGN by the
    layer's output, averaged over the batch. A BatchNorm in train mode maps ``M`` to
    ``1/N sum_{n,m} J_nm^T M J_nm``, where ``J_nm`` is the Jacobian of the output of
    sample ``n`` by the input of sample ``m``.

    Args:
        approx: See :class:`KFAC`.

    Raises:
        ValueError: If ``approx`` is unknown.
        NotImplementedError: On backpropagation, if the model has branches.
    """

    def __init__(self, *, approx: Approx = "backpack") -> None:
        self.choose(approx)
        super().__init__()  # type: ignore[call-arg]

    def accumulate_backpropagated_quantities(
        self, existing: Tensor, other: Tensor
    ) -> Tensor:
        """Raise an error: averages of branches cannot be added."""
        raise NotImplementedError(branches_refused(type(self).__name__))
