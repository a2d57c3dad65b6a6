"""Vectors in the space of a model's outputs, whose outer products sum to a Fisher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import grad

from tn_extensions.errors import describe
from tn_extensions.layers.host import holds, is_finite

Fisher = Literal["type-2", "mc", "empirical", "forward-only"]
"""Types of Fisher, see :meth:`LossTerms.vectors`."""

OPTIONS = {
    nn.CrossEntropyLoss: ("weight", "ignore_index", "label_smoothing"),
    nn.BCEWithLogitsLoss: ("weight", "pos_weight"),
}
"""Arguments of losses, besides the reduction, that curvlinops does not support."""

LIKELIHOODS = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
"""Losses that are negative log-likelihoods, up to a scale."""


def options(loss: Any) -> dict[str, Any]:
    """Return the values of a loss's :data:`OPTIONS`."""
    return {name: getattr(loss, name) for name in OPTIONS.get(type(loss), ())}


def num_terms(loss: Any, y: Tensor) -> int:
    """Count the loss terms of a batch of targets."""
    if not isinstance(loss, nn.CrossEntropyLoss):
        return prod(y.shape[:-1])
    return y.numel() // y.shape[1] if _are_probabilities(y) else y.numel()


def terms_per_datum(
    owner: str, loss: Any, targets: Iterable[Tensor], num_data: int
) -> int:
    """Count the loss terms of each datum.

    Args:
        owner: Name of the caller, for errors.
        loss: The loss.
        targets: The targets of all batches.
        num_data: Number of data in all batches.

    Returns:
        Number of loss terms per datum.

    Raises:
        ValueError: If the number of loss terms is not a multiple of the number of data.
    """
    terms = sum(num_terms(loss, y) for y in targets)
    each, rest = divmod(terms, num_data)
    if rest:
        rule = f"have the same number of loss terms for each of the {num_data} data"
        remedy = "Unsqueeze outputs and targets [N] of a regression to [N, 1]"
        message = describe(owner, "targets", rule, f"{terms} in all", remedy)
        raise ValueError(message)
    return each


def in_rows(loss: Any, output: Tensor, y: Tensor) -> tuple[Any, Tensor, Tensor]:
    """Rearrange outputs and targets so that each loss term has a row.

    As in curvlinops, the classes of a cross entropy are on the second axis; the ``C``
    outputs in a term of another loss are on the last one.

    Args:
        loss: The loss.
        output: Outputs, ``[N, C, ...]`` or ``[N, ..., C]``. Outputs with fewer than two
            axes have no rows and are left as they are.
        y: Targets, shaped like the outputs; or classes ``[N, ...]`` for a cross
            entropy.

    Returns:
        The loss, whose weights of outputs fit the rows; outputs ``[R, C]``; targets
        ``[R, C]`` or ``[R]``.

    Raises:
        ValueError: If weights do not fit the outputs, or targets are probabilities
            although the loss ignores a class, which torch refuses, too.
    """
    if output.dim() < 2:
        return loss, output, y
    if isinstance(loss, nn.CrossEntropyLoss):
        if _are_probabilities(y):
            if loss.ignore_index >= 0:
                rule, owner = (
                    "be classes if the loss ignores an index",
                    type(loss).__name__,
                )
                raise ValueError(describe(owner, "targets", rule, "probabilities"))
            y = y.movedim(1, -1).flatten(end_dim=-2)
        else:
            y = y.flatten()
        return loss, output.movedim(1, -1).flatten(end_dim=-2), y
    if isinstance(loss, nn.BCEWithLogitsLoss):
        names = OPTIONS[nn.BCEWithLogitsLoss]
        weights = {name: _weight_of_rows(loss, name, output.shape) for name in names}
        loss = type(loss)(reduction=loss.reduction, **weights)
    rows = (
        each.flatten(end_dim=-2) if each.dim() > 1 else each for each in (output, y)
    )
    return loss, *rows


def _are_probabilities(y: Tensor) -> bool:
    """Tell whether targets of a cross entropy are probabilities of classes."""
    return y.is_floating_point() and y.dim() > 1


def _weight_of_rows(loss: Any, name: str, shape: torch.Size) -> Tensor | None:
    weight: Tensor | None = getattr(loss, name)
    if weight is None:
        return None
    try:
        expanded = weight.expand(shape)
    except RuntimeError as error:
        rule, found = f"broadcast to outputs of shape {list(shape)}", list(weight.shape)
        owner = type(loss).__name__
        raise ValueError(describe(owner, name, rule, f"shape {found}")) from error
    # weights along the last axis fit rows as they are
    return expanded.flatten(end_dim=-2) if weight.dim() > 1 else weight


@dataclass(frozen=True)
class LossTerms:
    """The terms of a batch's loss; each term has a row of outputs.

    Args:
        owner: Name of the caller, for errors.
        loss: The loss, whose weights of outputs fit the rows.
        output: Outputs, ``[R, C]``, of float32 or wider.
        y: Targets, ``[R, C]``, or ``[R]`` if they are classes. ``None``: not needed, as
            the loss has no options and vectors do not depend on targets.
    """

    owner: str
    loss: Any
    output: Tensor
    y: Tensor | None = None

    @classmethod
    def of(
        cls, owner: str, loss: Any, output: Any, y: Tensor | None = None
    ) -> LossTerms:
        """Rearrange outputs and targets into rows.

        Args:
            owner: Name of the caller, for errors.
            loss: The loss.
            output: Output of the model, as for :func:`in_rows`.
            y: Targets, if they are known.

        Returns:
            The loss terms.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If outputs, targets and weights of the loss do not fit.
        """
        output = checked_output(owner, output)
        if y is None:
            classes = 1 if isinstance(loss, nn.CrossEntropyLoss) else -1
            if output.dim() > 1:
                output = output.movedim(classes, -1).flatten(end_dim=-2)
        else:
            loss, output, y = in_rows(loss, output, y)
        _check_rows(owner, loss, output, y)
        if y is not None and y.is_floating_point():
            y = y.to(torch.promote_types(y.dtype, torch.float32))
        return cls(owner, loss, output, y)

    def check_finite(self) -> None:
        """Check that all outputs are finite.

        Raises:
            ValueError: If an output is not finite.
        """
        if not is_finite(self.output.detach()):
            argument, found = "the model's output", "inf or nan"
            raise ValueError(describe(self.owner, argument, "be finite", found))

    def vectors(
        self,
        fisher: Fisher,
        mc_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Compute vectors that are backpropagated to compute a Fisher or GGN.

        It is the sum of outer products of the backpropagated vectors. ``"type-2"``:
        columns of a square root of the loss's Hessian, one for each class, for the GGN.
        ``"mc"``: gradients for targets that are sampled from the model's prediction.
        ``"empirical"``: the gradient for the given targets. ``"forward-only"``: no
        vectors. Vectors have the scale of the loss: if it is a mean, they are divided
        by the number of rows, see :func:`scale_of_sum`.

        Args:
            fisher: Type of Fisher.
            mc_samples: Number of Monte-Carlo samples.
            generator: Generator for sampling.

        Yields:
            Vectors, ``[R, C]``.

        Raises:
            ValueError: If targets are sampled and outputs are not finite.
        """
        if fisher == "forward-only":
            return
        if fisher == "empirical":
            assert self.y is not None
            yield gradient(self.loss, self.output, self.y)
            return
        loss = plain(self.loss)
        if fisher == "type-2":
            found = hessian_columns(loss, self.output)
        else:
            self.check_finite()
            found = (
                gradient(loss, self.output, draw(loss, self.output, generator))
                for _ in range(mc_samples)
            )
        weights = None if self.y is None else scale(self.loss, self.output, self.y)
        yield from scaled(found, weights)


def checked_output(owner: str, output: Any) -> Tensor:
    """Convert the output of a model to float32 or wider.

    Autocast leaves outputs in half precision, which is too coarse for curvature.

    Args:
        owner: Name of the caller, for errors.
        output: Output of the model.

    Returns:
        The output.

    Raises:
        TypeError: If it is not a tensor.
    """
    if not isinstance(output, Tensor):
        names = ", ".join(map(str, output)) if isinstance(output, Mapping) else ""
        found = type(output).__name__ + (f" of {names}" if names else "")
        remedy = "Wrap the model in a module that returns what the loss takes"
        rule = "be a tensor"
        raise TypeError(describe(owner, "the model's output", rule, found, remedy))
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _check_rows(owner: str, loss: Any, output: Tensor, y: Tensor | None) -> None:
    if output.ndim != 2 or (y is not None and y.ndim not in {1, 2}):
        axes = f"{output.ndim}" + ("" if y is None else f" and {y.ndim}")
        rule = "have two axes, and targets one or two"
        remedy = "Unsqueeze [N] to [N, 1]"
        raise ValueError(describe(owner, "outputs", rule, f"{axes} axes", remedy))
    if y is None:
        return
    if isinstance(loss, nn.CrossEntropyLoss) and y.is_floating_point():
        rule, expected = "be classes, or probabilities", output.shape
    else:
        rule, expected = "have a row for each row of the outputs", y.shape
    if len(y) != len(output) or y.shape != expected:
        rule = f"{rule} (of shape {list(output.shape)} as rows)"
        found = f"{y.dtype} of shape {list(y.shape)}"
        raise ValueError(describe(owner, "targets", rule, found))


def each_term(vectors: Iterable[Tensor], num_terms: int) -> Iterator[Tensor]:
    """Split vectors so that each has a single loss term of a datum.

    Args:
        vectors: Vectors, ``[R, C]``; the rows of a datum are adjacent.
        num_terms: Number of loss terms of a datum.

    Yields:
        For each vector, ``num_terms`` vectors that sum to it.
    """
    for vector in vectors:
        for term in range(num_terms):
            own = torch.zeros_like(vector)
            own[term::num_terms] = vector[term::num_terms]
            yield own


def scale_of_sum(
    loss: Any, num_rows: int, mc_samples: int = 1, num_data: int | None = None
) -> float:
    """Compute the scale that undoes the loss's scaling of outer products of vectors.

    Multiplied by the scale, the outer products are those of the sum of all loss terms.

    Args:
        loss: The loss. If it is a mean, its vectors are divided by the number of rows.
        num_rows: Number of rows ``R``.
        mc_samples: Number of Monte-Carlo samples, over which the mean is taken.
        num_data: Number of data. If it is given and the loss is a mean, outer products
            are scaled to those of each datum's mean, summed over data.

    Returns:
        The scale.
    """
    total = num_rows * (num_rows if num_data is None else num_data)
    return (total if loss.reduction == "mean" else 1) / mc_samples


def plain(loss: Any) -> Any:
    """Remove the options of a loss.

    The Hessian of the loss is that of the plain loss times the square of :func:`scale`,
    since it depends on targets only through weights of rows or outputs.
    """
    return type(loss)(reduction=loss.reduction)


def scale(loss: Any, output: Tensor, y: Tensor) -> Tensor | None:
    """Compute square roots of weights of rows or outputs, relative to a plain loss.

    Cross entropy: with class weights ``w`` and smoothed targets ``y'``, a row has the
    weight ``sum_c w_c y'_c``; it is zero if the target is ignored. torch's mean divides
    by the sum of the weights of the targets if these are classes, and by the number of
    rows if they are probabilities. Binary cross entropy: an output has the weight ``w
    (1 - y + w' y)``, where ``w'`` is the weight of positives.

    Args:
        loss: The loss.
        output: Outputs, ``[R, C]``.
        y: Targets; for a cross entropy, classes ``[R]`` or probabilities ``[R, C]``.

    Returns:
        The square roots, ``[R, 1]`` or ``[R, C]``. ``None``: all are one.
    """
    if isinstance(loss, nn.BCEWithLogitsLoss):
        found: Tensor | None = loss.weight
        if loss.pos_weight is not None:
            positive = 1 - y + loss.pos_weight * y
            found = positive if found is None else found * positive
        return None if found is None else found.sqrt()
    if not isinstance(loss, nn.CrossEntropyLoss):
        return None
    smoothing = loss.label_smoothing
    if _are_probabilities(y):
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        weight = y.new_ones(y.shape[1]) if loss.weight is None else loss.weight.to(y)
        smoothed = (1 - smoothing) * y + smoothing / y.shape[1]
        return (smoothed @ weight).sqrt().unsqueeze(1)
    kept = y != loss.ignore_index
    if loss.weight is None and holds(kept.all()):
        return None
    weight = output.new_ones(output.shape[1]) if loss.weight is None else loss.weight
    own = weight[y.where(kept, 0).long()] * kept
    rows = (1 - smoothing) * own + smoothing * weight.mean() * kept
    if loss.reduction == "mean":
        # a batch with only ignored rows has a loss of nan, and no curvature
        rows = rows * (len(y) / own.sum()) if holds(kept.any()) else rows
    return rows.sqrt().unsqueeze(1)


def gradient(loss: nn.Module, output: Tensor, y: Tensor) -> Tensor:
    """Compute the gradient of a loss by the outputs, ``[R, C]``.

    If the loss is also a mean over classes (mean squared error, binary cross entropy),
    the gradient is scaled so that outer products have the scale of a mean over rows.
    """
    leaf = output.detach().requires_grad_()
    (vectors,) = grad(loss(leaf, y), leaf)
    over_classes = isinstance(loss, (nn.MSELoss, nn.BCEWithLogitsLoss))
    if over_classes and loss.reduction == "mean":
        return vectors * sqrt(output.shape[1])
    return vectors


def hessian_columns(loss: Any, output: Tensor) -> Iterator[Tensor]:
    """Compute the columns ``[R, C]`` of a square root of a plain loss's Hessian.

    For a cross entropy with probabilities ``p``, column ``c`` is ``sqrt(p_c) (e_c -
    p)``. Other losses have a diagonal Hessian, and column ``c`` is a multiple of
    ``e_c``.
    """
    output = output.detach()
    mean = torch.zeros_like(output)
    if isinstance(loss, nn.CrossEntropyLoss):
        mean = output.softmax(1)
        root = mean.sqrt()
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        root = (output.sigmoid() * output.neg().sigmoid()).sqrt()
    else:
        root = torch.full_like(output, sqrt(2))
    if loss.reduction == "mean":
        over_classes = not isinstance(loss, nn.CrossEntropyLoss)
        root = root / (len(output) * (sqrt(output.shape[1]) if over_classes else 1))
    for c in range(output.shape[1]):
        own = root[:, c]
        column = -own.unsqueeze(1) * mean
        column[:, c] += own
        yield column


def draw(loss: Any, output: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample targets from the model's prediction, with the loss as likelihood.

    Args:
        loss: The loss, one of :data:`LIKELIHOODS`.
        output: Outputs, ``[R, C]``.
        generator: The generator.

    Returns:
        Classes ``[R]`` for a cross entropy, otherwise targets ``[R, C]``.
    """
    output = output.detach()
    if isinstance(loss, nn.CrossEntropyLoss):
        return output.softmax(1).multinomial(1, generator=generator).squeeze(1)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        return output.sigmoid().bernoulli(generator=generator)
    return output + sqrt(0.5) * torch.empty_like(output).normal_(generator=generator)


def scaled(vectors: Iterator[Tensor], scale: Tensor | None) -> Iterator[Tensor]:
    """Multiply vectors with a number for each row or output."""
    for vector in vectors:
        yield vector if scale is None else vector * scale.to(vector.dtype)
