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
    """What the three extensions share: our modules, and the approximation's name."""

    approx: Approx

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Ours of convolutions, BatchNorm, pooling and others that BackPACK lacks."""
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

    A drop-in for BackPACK's: the same values where that is right, and right for groups,
    ``padding='same'``, every ``padding_mode``, ``output_padding`` and ``output_size``
    of ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``. The input is never unfolded as a
    whole.

    The weight's savefield is ``[B, A]``, the bias's ``[B]``. ``B`` is over output
    channels ``CO``, ``A`` over ``(ci, k)`` with ``k`` fastest. With ``G > 1`` groups
    there is one pair per group: ``B`` is ``[G, CO, CO]``, ``A`` is ``[G, CI * K, CI *
    K]`` with ``CO``, ``CI`` channels per group. For transposed convolutions ``B (x) A``
    approximates the GGN of ``weight.transpose(0, 1)``, as in BackPACK (per group, the
    weight ``[CI, CO, K]`` with its first two axes exchanged).

    BatchNorm's scale and shift, ``C`` numbers each, have one factor ``[F]``, ``[C,
    C]``: their block of the GGN, whatever ``approx`` is. With normalised inputs ``x``,
    ``F = sum_{v,n} s s^T``, ``s = sum_o S x`` of the scale and ``s = sum_o S`` of the
    shift.

    BatchNorm, pooling (average, maximum and their adaptive forms) and sums of branches
    are backpropagated through. In train mode, BatchNorm couples the samples: a
    Monte-Carlo sample is then backpropagated for all of them jointly, as automatic
    differentiation does. The mixed terms this brings in vanish on average, so that
    factors are unbiased.

    Args:
        mc_samples: Number of samples.
        approx: ``"backpack"`` (stock's scaling), or ``"expand"`` and ``"reduce"`` as
            Eschenhagen et al. define them. With ``O`` output positions, patches ``U``,
            and a square root ``S`` of the loss GGN with respect to the output:
            ``"backpack"``: ``B = sum_{v,n} (sum_o S)(sum_o S)^T``,
            ``A = 1/N sum_{n,o} U U^T``;
            ``"expand"``: ``B = sum_{v,n,o} S S^T``, ``A = 1/(N O) sum_{n,o} U U^T``;
            ``"reduce"``: ``B`` as ``"backpack"``,
            ``A = 1/(N O^2) sum_n (sum_o U)(sum_o U)^T``.

    Raises:
        ValueError: If ``approx`` does not exist.

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
    """Kronecker factors of the exact GGN, in ``parameter.kflr``; else as :class:`KFAC`.

    Below a BatchNorm in train mode, which couples the samples, each sample has columns
    of its own: exact, but ``N`` times the memory and work of fixed statistics.

    Args:
        approx: See :class:`KFAC`.

    Raises:
        ValueError: If ``approx`` does not exist.
    """

    backpropagates_columns = True

    def __init__(self, *, approx: Approx = "backpack") -> None:
        self.choose(approx)
        super().__init__()  # type: ignore[call-arg]


class KFRA(secondorder.KFRA, _Kronecker):
    """Kronecker factors from a batch-averaged GGN, in ``parameter.kfra``.

    The average ``M`` over the batch of the GGN with respect to a layer's output takes
    the place of ``sum_{v,n} S S^T``; else as :class:`KFAC`. A BatchNorm in train mode
    turns ``M`` into ``1/N sum_{n,m} J_nm^T M J_nm``, ``J_nm`` the Jacobian of sample
    ``n``'s output with respect to sample ``m``'s input.

    Args:
        approx: See :class:`KFAC`.

    Raises:
        ValueError: If ``approx`` does not exist.
        NotImplementedError: On backpropagation, if the model has branches.
    """

    def __init__(self, *, approx: Approx = "backpack") -> None:
        self.choose(approx)
        super().__init__()  # type: ignore[call-arg]

    def accumulate_backpropagated_quantities(
        self, existing: Tensor, other: Tensor
    ) -> Tensor:
        """Refuse: averages of branches do not add up.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(branches_refused(type(self).__name__))
