"""A layer's curvature in training: statistics of a step, averages and inverses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.factors import (
    add_gradient_factor,
    add_input_factor,
    averaged,
    is_low_rank,
    rescale,
    trace,
)
from tn_extensions.kronecker.kronecker_product import Damping, KroneckerProduct
from tn_extensions.kronecker.matrices import Matrix, Structured
from tn_extensions.kronecker.moments import bias_moments, kernel_moments
from tn_extensions.kronecker.multiply import multiply
from tn_extensions.kronecker.square import decompose, symmetrize
from tn_extensions.layers.module import (
    SUPPORTED,
    Pairs,
    Use,
    num_groups,
    out_channels,
    reason_against,
)
from tn_extensions.optim.options import LayerOptions, number_at
from tn_extensions.optim.state import from_state
from tn_extensions.optim.statistics import RANK_LIMIT, Gathered, Statistics
from tn_extensions.optim.trained import Trained
from tn_extensions.optim.triangles import Triangle
from tn_extensions.sampling.samplers import draw, share_of_samples

IN_PLACE = 1024
"""Columns from which on a decomposition is stored below the average's diagonal.

This saves memory. At this size, solving with triangles takes a tenth to a fifth longer
than multiplying by an inverse. Smaller matrices would lose more time and save little.
"""
ATTEMPTS = 8
"""Number of attempts to invert; each multiplies the damping by ten."""
LOG = getLogger("tn_extensions.optim")
Bases = tuple[Tensor, Tensor | None]
"""Eigenvectors ``Q_B`` and ``Q_A``; the latter is ``None`` if there is only a bias."""


@dataclass
class Layer:
    """A layer and its curvature.

    Args:
        name: Its name in the model.
        module: The layer.
        keys: The trained parameters: ``"weight"``, ``"bias"`` or both, which then share
            a block.
        options: Its options.
        owner: Name of the caller, for errors.
    """

    name: str
    module: Any
    keys: tuple[str, ...]
    options: LayerOptions
    owner: str

    kinds: ClassVar[tuple[type[nn.Module], ...]] = SUPPORTED
    """Classes of layers."""

    def __post_init__(self) -> None:
        self.trained = Trained(self.module, self.keys)
        """Its parameters and their gradients."""
        self.averages: Statistics = {}
        """Moving averages of the statistics."""
        self.bases: Bases | None = None
        """Eigenvectors, if eigenvalues are corrected and this process has averages."""
        self.borrow: Callable[[], Bases] | None = None
        """Function that fetches the eigenvectors from the process that has them."""
        self.inverse: KroneckerProduct | EigendecomposedMatrix | None = None
        self.is_inverted = False
        """True once some process has tried to invert it."""
        self.has_averages = False
        """True if it has averages, in this process or in another."""
        self.gathered = Gathered()
        """The statistics since the last step."""
        self.period = 0
        """Number of times that the statistics were dropped."""
        self._damping = self._decay = 0.0
        self.damping_used: float | None = None
        """Damping of the last inverse that this process computed."""

    @property
    def is_joint(self) -> bool:
        """Tell whether weight and bias share a block."""
        return len(self.keys) == 2

    @property
    def has_input_factor(self) -> bool:
        """Tell whether it has an input factor."""
        return "weight" in self.keys

    @property
    def needs_inputs(self) -> bool:
        """Tell whether statistics of gradients need the inputs, too."""
        return self.bases is not None or self.borrow is not None

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return out_channels(self.module)

    @property
    def factor_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shapes ``[G, ., .]`` of the factors, ``"inputs"`` and ``"gradients"``."""
        groups = num_groups(self.module, "separate")
        rows = self.out_channels // groups
        found = {"gradients": (groups, rows, rows)}
        if self.has_input_factor:
            columns = self.module.weight.numel() // groups // rows + self.is_joint
            found = {"inputs": (groups, columns, columns), **found}
        return found

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Its trained parameters that still are parameters."""
        return self.trained.parameters

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The existing gradients of its parameters; sharded like the parameters."""
        return self.trained.gradients

    @property
    def is_sharded(self) -> bool:
        """Tell whether parameters are sharded between passes."""
        return self.trained.is_sharded

    @property
    def is_intact(self) -> bool:
        """Tell whether the layer still multiplies by its own parameters."""
        is_whole = len(self.parameters) == len(self.keys)
        return is_whole and reason_against(self.module, self.kinds) is None

    @property
    def least_axes(self) -> int:
        """The smallest number of axes of a batch of inputs."""
        is_linear = isinstance(self.module, nn.Linear)
        return 2 if is_linear else int(self.module.weight.dim())

    def use(self, x: Tensor, output: Tensor, num_data: int | None) -> Use:
        """Describe how the layer used an input."""
        return Use.of(self.module, x, output, "separate", num_data)

    def reason_against(self, x: Tensor, num_data: int | None) -> str | None:
        """Tell why an input has no statistics.

        Args:
            x: The input.
            num_data: Number of data. ``None``: the number of rows of the input.

        Returns:
            The reason. ``None``: the input has statistics.
        """
        if x.dim() < self.least_axes:
            return f"was called on {list(x.shape)}, which is not a batch"
        if not x.numel() or num_data == 0:
            return "was called on an empty batch"
        if num_data is not None and len(x) % num_data:
            return (
                f"was called on {len(x)} rows, which is not a multiple of the "
                f"{num_data} data that the model was called on"
            )
        return None

    def __str__(self) -> str:
        kind = next(own.__name__ for own in self.kinds if isinstance(self.module, own))
        letters = {"inputs": "A", "gradients": "B"}
        factors = [f"{letters[w]} {[*own]}" for w, own in self.factor_shapes.items()]
        return f"{self.name or 'model'}: {kind}, {', '.join(factors)}"

    # -- a step's statistics

    def add_inputs(
        self,
        uses: list[Use],
        into: Gathered,
        generator: torch.Generator,
        is_counted: bool = True,
    ) -> None:
        """Add the uses on some data to the sum of the input factors.

        Args:
            uses: The uses.
            into: The statistics that hold the sum.
            generator: Generator that samples data, if not all are kept.
            is_counted: Whether to add to the number of data.
        """
        num_data = uses[0].num_data
        into.num_data += num_data if is_counted else 0
        if self.has_input_factor:
            kept, scale = self._draw(num_data, generator)
            if kept is not None:
                uses = [use.of_data(kept) for use in uses]
            approx, known = self.options.approx, into.sums.get("inputs")
            into.sums["inputs"] = add_input_factor(
                uses, approx, known, scale, self.is_joint, RANK_LIMIT
            )

    def add_gradients(
        self, pairs: Pairs, scale: float, into: Gathered, generator: torch.Generator
    ) -> None:
        """Add gradients of the uses on some data to the sum of gradient factors."""
        bases = self.borrow() if self.borrow else self.bases
        kept, factor = self._draw(len(pairs[0][1]), generator)
        scale *= factor
        if kept is not None:
            pairs = [
                # moments need the inputs, too
                (use if bases is None else use.of_data(kept), own[kept])
                for use, own in pairs
            ]
        approx, known = self.options.approx, into.sums.get("gradients")
        into.sums["gradients"] = add_gradient_factor(
            pairs, approx, known, scale, RANK_LIMIT
        )
        if bases is None:
            return
        left, right = bases
        if right is None:
            moments = bias_moments(pairs, left)
        else:
            moments = kernel_moments(pairs, left, right, self.is_joint)
        moments.mul_(scale)
        known = into.sums.get("moments")
        into.sums["moments"] = moments if known is None else known.add_(moments)

    def _draw(
        self, num_data: int, generator: torch.Generator
    ) -> tuple[Tensor | None, float]:
        """Sample the data to keep (``None``: all), and return their scale."""
        share = share_of_samples(self.owner, self.options.keep)
        if share == 1:
            return None, 1.0
        found = draw(num_data, share, "fixed", generator)
        return found.indices.to(self.module.weight.device), found.scale

    def drop_what_was_discarded(self) -> None:
        """Drop statistics whose gradients were removed or set to zero.

        Call it before a pass adds to the gradients.
        """
        if self.gathered.num_data and self.trained.are_discarded():
            self.forget()

    def forget(self) -> None:
        """Drop the step's statistics."""
        self.gathered = Gathered()
        self.period += 1

    def take(self, scale: float, power: int, per_row: bool) -> Statistics:
        """Scale the step's statistics, return and drop them.

        Args:
            scale: Scale of the sum of gradient factors.
            power: Power of the number of data, or rows, that is a factor of the scale.
            per_row: Whether to use the number of rows.

        Returns:
            The statistics; empty if there are none.
        """
        gathered = self.gathered
        found, count = gathered.sums, gathered.num_data
        self.forget()
        if "gradients" not in found or not count:
            return {}
        scale *= (gathered.num_rows if per_row else count) ** power
        for what, own in found.items():
            if what == "moments":
                own.mul_(scale)
            else:
                rescale(own, 1 / count if what == "inputs" else scale)
        return found

    # -- averages and inverses

    def resolve(self, step: int) -> None:
        """Evaluate the options at a step, before anything is changed."""
        options = self.options
        self._damping = number_at(self.owner, "damping", options.damping, step)
        self._decay = number_at(self.owner, "ema_decay", options.ema_decay, step)

    def average(self, new: Statistics) -> None:
        """Average a step's statistics with former ones, and correct the inverse.

        Statistics are empty if another process holds the averages.
        """
        self.has_averages, decay = True, self._decay
        for what, own in new.items():
            known = self.averages.get(what)
            if what == "moments" and known is not None:
                known.mul_(decay).add_(own, alpha=1 - decay)
            else:
                self.averages[what] = averaged(known, own, decay, RANK_LIMIT)
        self.correct()

    def invert(self) -> None:
        """Invert the averages.

        Increase the damping if they are nearly singular. If this does not help, the
        former inverse stays, unless the attempts have overwritten it.
        """
        damping = self._damping
        for attempt in range(ATTEMPTS):
            if attempt:
                damping = 10 * max(damping, self._least_damping())
            try:
                inverse = self._inverted(damping)
            except LinAlgError:
                continue
            if inverse.is_finite:
                self.inverse = inverse
                self.damping_used = damping
                if attempt:
                    message = "Layer %s: damping %g instead of %g"
                    LOG.warning(message, self.name, damping, self._damping)
                return
        if isinstance(self.inverse, KroneckerProduct) and self.inverse.is_in_place:
            self.inverse = None
        kept = "no preconditioning" if self.inverse is None else "the former inverse"
        LOG.warning("Layer %s: not invertible, using %s", self.name, kept)

    def _least_damping(self) -> float:
        """Estimate the rounding error of the factors' mean eigenvalues."""
        factors = [self.averages.get(what) for what in ("inputs", "gradients")]
        means = [float(trace(f).max()) / f.shape[-1] for f in factors if f is not None]
        product = self.options.damping_method != "fixed"
        epsilon = torch.finfo(self.averages["gradients"].dtype).eps
        return epsilon * (prod(means) if product else max(means))

    @property
    def decomposition(self) -> KroneckerProduct | EigendecomposedMatrix | None:
        """The inverse, or the eigendecomposition that a corrected one is made from."""
        if not self.options.eigenvalue_correction:
            return self.inverse
        return self.bases and EigendecomposedMatrix(
            *self.bases, self.averages["moments"]
        )

    def receive(self, decomposition: Any) -> None:
        """Take another process's decomposition."""
        if not self.options.eigenvalue_correction:
            self.inverse = self._placed(decomposition)
        elif decomposition is not None:
            self.bases = decomposition.left, decomposition.right
            self.averages["moments"] = decomposition.values
            self.correct()

    def correct(self) -> None:
        """Update the inverse from corrected eigenvalues, if there are eigenvectors."""
        if self.bases is not None:
            self.inverse = self._corrected(self._damping)

    def _inverted(self, damping: float) -> KroneckerProduct | EigendecomposedMatrix:
        right, left = self.averages.get("inputs"), self.averages["gradients"]
        method = self.options.damping_method
        is_corrected = self.options.eigenvalue_correction
        if is_corrected or method == "exact":
            left, right = _whole(left), None if right is None else _whole(right)
        product = KroneckerProduct(left, right)
        if not is_corrected:
            return product.inverse(damping, method, invert=_damped_inverse)
        # complete: later gradients may have components outside of the factors' range
        rotated = product.eigh(complete=True)
        if not rotated.is_finite:
            raise LinAlgError("eigenvalues overflow")
        self.bases = rotated.left, rotated.right
        self.averages["moments"] = rotated.values.clamp(min=0)
        return self._corrected(damping)

    def _corrected(self, damping: float) -> EigendecomposedMatrix:
        assert self.bases is not None
        return EigendecomposedMatrix(*self.bases, self.averages["moments"]).inverse(
            damping
        )

    # -- state

    def state(self, inverse: Any) -> dict[str, Any]:
        """Return its state, which contains the given state of an inverse.

        Only the upper triangles of averages that are matrices have a meaning.
        """
        # checkpoints save the entries of lists separately, but not those of tuples
        bases = list(self.bases) if self.is_sharded and self.bases else self.bases
        averages = dict(self.averages)
        return {"averages": averages, "bases": bases, "inverse": inverse}

    def accepts(self, state: Mapping[str, Any]) -> bool:
        """Tell whether a state fits this layer."""
        sizes = {what: own.shape[-1] for what, own in state["averages"].items()}
        expected = {what: own[-1] for what, own in self.factor_shapes.items()}
        if not sizes:
            return state["inverse"] is None
        sizes.pop("moments", None)
        has_bases = state["bases"] is not None
        is_corrected = self.options.eigenvalue_correction
        return sizes == expected and (is_corrected or not has_bases)

    def load(self, state: Mapping[str, Any]) -> None:
        """Load a state that fits this layer."""
        like = self.module.weight
        self.forget()

        def copied(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: copied(own) for name, own in value.items()}
            if isinstance(value, Tensor):
                return value.detach().to(like.device, copy=True)
            return value

        self.averages = copied(state["averages"])
        self.has_averages = bool(self.averages)
        left_and_right = state["bases"]
        self.bases = left_and_right and tuple(map(copied, left_and_right))
        self.inverse = self._placed(from_state(copied(state["inverse"])))
        self.is_inverted = self.inverse is not None

    def _placed(self, inverse: Any) -> KroneckerProduct | EigendecomposedMatrix | None:
        """Move packed triangles of an inverse below the diagonals of the averages."""
        if not isinstance(inverse, KroneckerProduct):
            return inverse

        def placed(part: Any, what: str) -> Any:
            is_apart = isinstance(part, Triangle)
            return part.below(self.averages[what]) if is_apart else part

        left, right = inverse.left, inverse.right
        return KroneckerProduct(placed(left, "gradients"), placed(right, "inputs"))

    # -- gradients

    def preconditioned(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply gradients of the parameters by the inverse.

        Args:
            whole: The gradients, not sharded.

        Returns:
            The products, shaped like the parameters.
        """
        # treat a missing gradient as zero
        like = next(iter(whole.values()))
        gradients = {
            key: whole[key] if key in whole else like.new_zeros(own.shape)
            for key, own in self.parameters.items()
        }
        if self.inverse is None:
            return gradients
        return self._multiplied(self.inverse, gradients)

    def _multiplied(
        self, inverse: Any, gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Multiply gradients by an inverse."""
        vectors = {key: own.unsqueeze(-1) for key, own in gradients.items()}
        blocks = {"joint" if self.is_joint else self.keys[0]: inverse}
        found = multiply(self.module, "separate", blocks, vectors)
        return {key: own.squeeze(-1) for key, own in found.items()}


def _whole(factor: Tensor) -> Tensor:
    """Return a low-rank factor as it is, or a matrix with both triangles."""
    return factor if is_low_rank(factor) else symmetrize(factor)


def _damped_inverse(factor: Structured, damping: Damping) -> Matrix:
    """Invert an average; store a large matrix's decomposition below its diagonal."""
    if isinstance(factor, DenseMatrix):
        if factor.entries.shape[-1] >= IN_PLACE:
            pivots = decompose(factor.entries, damping)
            return CholeskyInverse(factor.entries, pivots)
        symmetrize(factor.entries)
    return factor.inverse(damping)
