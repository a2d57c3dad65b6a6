"""Steps of training: SGD's, KFAC's and SINGD's, with stock factors and with ours.

Stock KFAC is our preconditioner with the factors that curvlinops' functions compute:
patches and matrix products, into matrices however few the data are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

import torch
from curvlinops.kfac_utils import extract_averaged_patches, extract_patches
from torch import Tensor, nn

from experiments.harness.case import Unsupported, relative_error
from experiments.harness.measure import Build
from experiments.subjects.networks import Subject, small_batch
from tn_extensions.kronecker.square import mirrored
from tn_extensions.layers.module import Pairs, Use
from tn_extensions.optim import KFACPreconditioner, statistics
from tn_extensions.optim import layer as layer_module
from tn_extensions.optim.layer import Layer

Method = Literal[
    "KFAC-expand", "KFAC-reduce", "SINGD-expand", "SINGD-reduce", "factors-expand"
]
"""Uses of curvature. With ``factors``, a pass averages them and no step is taken."""
Update = Literal["nothing", "factors", "everything"]
"""Parts of the curvature that a step renews."""

LR, MOMENTUM, DAMPING = 1e-3, 0.9, 1e-3
DECAY = 0.95
"""Weight of the former averages of factors."""
NEVER = 2**40
"""More steps than are taken."""


class Results(NamedTuple):
    """Results of one step, on which contenders have to agree.

    Args:
        curvature: What is computed without an inverse: of each layer, the factors.
        gradients: Of each layer, the gradient that inverses have multiplied.
    """

    curvature: list[list[Tensor]]
    gradients: list[Tensor]


def compare(found: Results, exact: Results) -> float:
    """Compute the error of factors; that of gradients is allowed what inverses allow.

    An error ``E`` of ``A`` changes ``(A + a I)^-1 v`` by at most the share ``|E| / a``
    of its norm. That of ``B`` comes in addition, and so does what rounding does to the
    decompositions of both. Clipping scales all layers alike, by as much again.

    Raises:
        ArithmeticError: If gradients differ by more.
    """
    allowed = 0.0
    for factors in zip(found.curvature, exact.curvature, strict=True):
        if exact.gradients:
            allowed = max(allowed, 2 * _amplified(*factors))
    if exact.gradients:
        error = relative_error(found.gradients, exact.gradients)
        if not error <= allowed:
            text = f"preconditioned gradients' relative error {error:.1e}"
            raise ArithmeticError(f"{text}, at most {allowed:.1e}")
    return relative_error(found.curvature, exact.curvature)


def _amplified(found: list[Tensor], exact: list[Tensor]) -> float:
    """Divide the errors of a layer's factors by their parts of the damping."""
    traces = [each.diagonal(dim1=-2, dim2=-1).mean(-1) for each in exact]
    # a = pi sqrt(damping), b = sqrt(damping) / pi: see KroneckerProduct.inverse
    pi = (traces[0] / traces[1]).sqrt()
    bound = 0.0
    for ours, theirs, part in zip(found, exact, (pi, 1 / pi), strict=True):
        rounding = torch.finfo(torch.float32).eps * len(theirs[0]) ** 0.5
        error = (ours - theirs).norm() + rounding * theirs.norm()
        bound += float(error / (DAMPING**0.5 * part.min()))
    return bound


def contenders(method: Method, *arguments: Any) -> dict[str, Build]:
    """List SGD, stock and ours, ready to be built; arguments as of :func:`build`."""
    stock = "ASDL" if method.startswith("factors") else "stock"
    names = ("SGD", stock, "ours")
    return {name: partial(build, name, method, *arguments) for name in names}


def build(
    name: str,
    method: Method,
    subject: Subject,
    batch_size: int,
    update: Update,
    device: torch.device,
    small: bool = False,
) -> Training:
    """Build a training on one batch."""
    if small:
        model, (images, labels) = small_batch()
    else:
        model, (images, labels) = subject.plain(), subject.batch(batch_size)
    data = model.to(device), (images.to(device), labels.to(device))
    kind, _, approx = method.partition("-")
    if kind == "factors":
        passes = {"SGD": Passes, "ASDL": AsdlFactors, "ours": Factors}
        return passes[name](*data)
    if name == "SGD":
        return Training(*data)
    if kind == "KFAC":
        return KFACTraining(*data, update, name == "stock", approx=approx)
    return SINGDTraining(*data, update, name == "stock", approx)


class Training:
    """A model in training on one batch of images and labels; each call is a step."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        self.model, self._batch = model.train(), batch
        self._optimizer: Any = torch.optim.SGD(model.parameters(), LR, MOMENTUM)

    def __call__(self) -> Training:
        """Take a step; return what has the results."""
        self.backward()
        self._optimizer.step()
        return self

    def backward(self) -> None:
        """Run a forward and a backward pass."""
        images, labels = self._batch
        self.model.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()

    def results(self) -> Results:
        """Return what contenders have to agree on."""
        return Results([], [])


class FirstSteps:
    """The first two steps of a training: what stays, such as momentum, is theirs."""

    def __init__(self, make: Build, small: bool = False) -> None:
        self._make = partial(make, small=small)

    def before(self) -> None:
        """Forget the former training, and begin another."""
        self._training: Any = None
        self._training = self._make()

    def __call__(self) -> None:
        """Take two steps."""
        self._training()
        self._training()


class Passes(Training):
    """Forward and backward passes without steps."""

    def __call__(self) -> Training:
        """Run a pass."""
        self.backward()
        return self


class KFACTraining(Training):
    """SGD with KFAC's preconditioner, whose factors are curvlinops' or ours.

    Averages are matrices from the first step on, as they become when more data than
    half their size went in. Ours would begin with low-rank factors.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: tuple[Tensor, Tensor],
        update: Update = "everything",
        is_stock: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, batch)
        self._is_stock = is_stock
        with catch_warnings():
            simplefilter("ignore")  # normalisation keeps its gradient
            self.preconditioner: Any = KFACPreconditioner(
                model,
                lr=LR,
                damping=DAMPING,
                ema_decay=DECAY,
                factor_update_steps=NEVER if update == "nothing" else 1,
                inverse_update_steps=1 if update == "everything" else NEVER,
                **options,
            )

    @property
    def layers(self) -> dict[str, Layer]:
        """The preconditioned layers by name."""
        layers: dict[str, Layer] = self.preconditioner._layers
        return layers

    def __call__(self) -> Training:
        """Precondition the gradients, and take a step."""
        is_first = not any(layer.has_averages for layer in self.layers.values())
        first = _no_low_rank() if is_first else nullcontext()
        with _stock_factors() if self._is_stock else first:
            self.backward()
            self.precondition()
        return self

    def precondition(self) -> None:
        """Precondition the gradients, and take a step."""
        self.preconditioner.step()
        self._optimizer.step()

    def results(self) -> Results:
        """Return factors, and preconditioned gradients."""
        gradients = [
            torch.cat([each.flatten() for each in layer.gradients.values()])
            for layer in self.layers.values()
        ]
        return Results(self.averages(), gradients)

    def averages(self) -> list[list[Tensor]]:
        """Return the averaged factors of each layer."""
        return [
            [mirrored(own) for own in layer.averages.values()]
            for layer in self.layers.values()
        ]


class SINGDTraining(Training):
    """SINGD with dense structures; parameters of normalisation stay."""

    def __init__(
        self,
        model: nn.Module,
        batch: tuple[Tensor, Tensor],
        update: Update,
        is_stock: bool,
        approx: str,
    ) -> None:
        super().__init__(model, batch)
        module = "singd.optim.optimizer" if is_stock else "tn_extensions.optim"
        self._optimizer = import_module(module).SINGD(
            model,
            lr=LR,
            momentum=MOMENTUM,
            T=NEVER if update == "nothing" else 1,
            kfac_approx=approx,
            warn_unsupported=False,
        )

    def results(self) -> Results:
        """Return the momenta of parameters, and those of the preconditioner.

        SINGD inverts nothing.
        """
        own, state = self._optimizer, self._optimizer.state.values()
        matrices = [*own.m_Ks.values(), *own.m_Cs.values()]
        momenta = [each["momentum_buffer"] for each in state]
        # damping is on the diagonal, and would hide what curvature there is
        dense_ones = [matrix.to_dense().clone() for matrix in matrices]
        return Results([momenta, [each.fill_diagonal_(0) for each in dense_ones]], [])


# -- factors alone


class Factors(KFACTraining):
    """Passes that average our factors of KFAC-expand."""

    def precondition(self) -> None:
        """Average a pass's factors, no more."""
        with torch.no_grad():
            for layer in self.layers.values():
                layer.resolve(self.preconditioner.steps)
            self.preconditioner._update_factors(self.layers)

    def results(self) -> Results:
        """Return the averages without the bias, which ASDL leaves out of ``A``."""
        averages = self.averages()
        for own, layer in zip(averages, self.layers.values(), strict=True):
            if layer.is_joint:
                own[0] = own[0][:, :-1, :-1]
        return Results(averages, [])


class AsdlFactors(Training):
    """Passes that average ASDL's factors; ``asdfghjkl`` on PyPI.

    They equal ours but for the bias, and for averages that begin with zero. ASDL knows
    no dilation, no groups, and no padding but zeros.
    """

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        super().__init__(model, batch)
        try:
            asdl = import_module("asdl")
        except ModuleNotFoundError:
            raise Unsupported("not installed (pip install asdfghjkl==0.1a4)") from None
        images, labels = batch
        # its class for KFAC has factors of normalisations, too
        shapes = [(kind, asdl.SHAPE_KRON) for kind in (nn.Conv2d, nn.Linear)]
        self._maker = asdl.NaturalGradientMaker(
            self.model,
            asdl.PreconditioningConfig(data_size=len(images), ema_decay=1 - DECAY),
            fisher_type=asdl.FISHER_EMP,
            fisher_shape=shapes,
        )
        output = self._maker.setup_model_call(self.model, images)
        self._maker.setup_loss_call(nn.functional.cross_entropy, output, labels)

    def __call__(self) -> Training:
        """Run a pass, and average its factors."""
        self.model.zero_grad()
        with catch_warnings():
            simplefilter("ignore")  # it uses hooks that torch deprecates
            self._maker.update_curvature()
        return self

    def results(self) -> Results:
        """Return the averages after one pass, scaled as if that were whole."""
        fishers = (getattr(each, "fisher", None) for each in self.model.modules())
        krons = [fisher.kron for fisher in fishers if fisher is not None]
        scale = 1 / (1 - DECAY)
        return Results(
            [[scale * own for own in (kron.A, kron.B)] for kron in krons], []
        )


# -- the factors of curvlinops


@contextmanager
def _no_low_rank() -> Iterator[None]:
    """Let averages be matrices."""
    with (
        patch.object(layer_module, "RANK_LIMIT", 0.0),
        patch.object(statistics, "RANK_LIMIT", 0.0),
    ):
        yield


@contextmanager
def _stock_factors() -> Iterator[None]:
    """Let preconditioners compute factors as curvlinops does."""
    with (
        _no_low_rank(),
        patch.object(layer_module, "add_input_factor", add_input_factor),
        patch.object(layer_module, "add_gradient_factor", add_gradient_factor),
    ):
        yield


def add_input_factor(
    uses: Sequence[Use],
    approx: str,
    factor: Tensor | None,
    scale: float,
    bias: bool,
    rank_limit: float,
) -> Tensor:
    """Stand in for :func:`tn_extensions.kronecker.factors.add_input_factor`."""
    (use,) = uses
    x = use.x.transpose(1, 2) if use.is_linear else _patches(use, approx)
    if approx == "expand":
        scale /= x.shape[1]
        x = x.flatten(0, 1)
    else:
        x = x.mean(1)
    if bias:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    return _add(x, factor, scale)


def add_gradient_factor(
    pairs: Pairs, approx: str, factor: Tensor | None, scale: float, rank_limit: float
) -> Tensor:
    """Stand in for :func:`tn_extensions.kronecker.factors.add_gradient_factor`."""
    ((_, gradient),) = pairs
    is_expand = approx == "expand"
    g = gradient.transpose(1, 2).flatten(0, 1) if is_expand else gradient.sum(2)
    return _add(g, factor, scale)


def _add(rows: Tensor, factor: Tensor | None, scale: float) -> Tensor:
    covariance = (rows.T @ rows).mul_(scale).unsqueeze(0)
    return covariance if factor is None else factor.add_(covariance)


def _patches(use: Use, approx: str) -> Tensor:
    """Extract patches ``[N, P, D]``; of KFAC-reduce, their means ``[N, 1, D]``."""
    conv = use.conv
    padding = tuple(left for left, _ in conv.padding)
    sizes = (conv.kernel_size, conv.stride, padding, conv.dilation, conv.groups)
    if approx == "expand":
        return extract_patches(use.x, *sizes)
    return extract_averaged_patches(use.x, *sizes).unsqueeze(1)
