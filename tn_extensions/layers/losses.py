"""Vectors in the space of a model's outputs whose outer products make a Fisher."""

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
"""What the vectors of a loss are made of, see :meth:`LossTerms.vectors`."""

OPTIONS = {
    nn.CrossEntropyLoss: ("weight", "ignore_index", "label_smoothing"),
    nn.BCEWithLogitsLoss: ("weight", "pos_weight"),
}
"""Arguments of losses beside the reduction that curvlinops does not know of."""

LIKELIHOODS = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
"""Losses that are negative logarithms of likelihoods, to some scale."""


def options(loss: Any) -> dict[str, Any]:
    """Values of a loss's :data:`OPTIONS`."""
    return {name: getattr(loss, name) for name in OPTIONS.get(type(loss), ())}


def num_terms(loss: Any, y: Tensor) -> int:
    """Count the loss terms that a batch of targets has."""
    if not isinstance(loss, nn.CrossEntropyLoss):
        return prod(y.shape[:-1])
    return y.numel() // y.shape[1] if _are_probabilities(y) else y.numel()


def terms_per_datum(
    owner: str, loss: Any, targets: Iterable[Tensor], num_data: int
) -> int:
    """Count the loss terms that each datum has.

    Args:
        owner: Whom errors name.
        loss: The loss.
        targets: Those of each batch.
        num_data: Number of data in all batches.

    Raises:
        ValueError: If some data have more than others.
    """
    terms = sum(num_terms(loss, y) for y in targets)
    each, rest = divmod(terms, num_data)
    if rest:
        rule = f"have equally many loss terms for each of {num_data} data"
        remedy = "Unsqueeze outputs and targets [N] of a regression to [N, 1]"
        message = describe(owner, "targets", rule, f"{terms} in all", remedy)
        raise ValueError(message)
    return each


def in_rows(loss: Any, output: Tensor, y: Tensor) -> tuple[Any, Tensor, Tensor]:
    """Rearrange outputs and targets so that each loss term has a row.

    Classes of a cross entropy are on the second axis, the ``C`` outputs that a term of
    another loss takes on the last one, as in curvlinops.

    Args:
        loss: The loss.
        output: Outputs, ``[N, C, ...]`` or ``[N, ..., C]``. Those of fewer than two
            axes have no rows, and are left as they are.
        y: Targets, shaped as the outputs; or classes ``[N, ...]`` of a cross entropy.

    Returns:
        The loss, whose weights of outputs fit the rows; outputs ``[R, C]``; targets
        ``[R, C]`` or ``[R]``.

    Raises:
        ValueError: If weights do not fit the outputs, or probabilities are given where
            a class is ignored, which torch refuses.
    """
    if output.dim() < 2:
        return loss, output, y
    if isinstance(loss, nn.CrossEntropyLoss):
        if _are_probabilities(y):
            if loss.ignore_index >= 0:
                rule, owner = (
                    "be classes where an index is ignored",
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
    # along the last axis, weights fit rows as they fit outputs
    return expanded.flatten(end_dim=-2) if weight.dim() > 1 else weight


@dataclass(frozen=True)
class LossTerms:
    """The terms of a batch's loss, each of which has a row of outputs.

    Args:
        owner: Whom errors name.
        loss: The loss, whose weights of outputs fit the rows.
        output: Outputs, ``[R, C]``, of float32 or wider.
        y: Targets, ``[R, C]``, or ``[R]`` if they are classes. ``None``: the loss has
            no options, and no vectors of the targets are asked for.
    """

    owner: str
    loss: Any
    output: Tensor
    y: Tensor | None = None

    @classmethod
    def of(
        cls, owner: str, loss: Any, output: Any, y: Tensor | None = None
    ) -> LossTerms:
        """Rearrange what a model returns.

        Args:
            owner: Whom errors name.
            loss: The loss.
            output: What the model returns, as :func:`in_rows` takes it.
            y: Its targets, if they are known.

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
        """Refuse outputs that are not finite.

        Raises:
            ValueError: If some are not.
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
        """Make the vectors whose backpropagated outer products make a Fisher or GGN.

        ``"type-2"``: columns of a root of the loss's Hessian, one for each class: their
        outer products make the GGN. ``"mc"``: gradients for targets that are drawn from
        what the model predicts. ``"empirical"``: the gradient for the targets.
        ``"forward-only"``: none. All have the scale of the loss: a mean's are divided
        by the number of rows, see :func:`scale_of_sum`.

        Args:
            fisher: What they are made of.
            mc_samples: Number of draws.
            generator: Of the draws.

        Yields:
            Vectors, ``[R, C]``.

        Raises:
            ValueError: If targets are to be drawn and outputs are not finite.
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
    """Return what a model returns, in float32 or wider.

    Losses of half precision, as autocast leaves outputs, have little curvature.

    Raises:
        TypeError: If it is no tensor.
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
        rule, expected = "have a row for each of the outputs'", y.shape
    if len(y) != len(output) or y.shape != expected:
        rule = f"{rule} (outputs' shape as rows: {list(output.shape)})"
        found = f"{y.dtype} of shape {list(y.shape)}"
        raise ValueError(describe(owner, "targets", rule, found))


def each_term(vectors: Iterable[Tensor], num_terms: int) -> Iterator[Tensor]:
    """Split vectors so that each has a single loss term of a datum.

    Args:
        vectors: Vectors, ``[R, C]``, the rows of a datum next to each other.
        num_terms: Number of loss terms of a datum.

    Yields:
        ``num_terms`` vectors for each of those given, whose sum it is.
    """
    for vector in vectors:
        for term in range(num_terms):
            own = torch.zeros_like(vector)
            own[term::num_terms] = vector[term::num_terms]
            yield own


def scale_of_sum(
    loss: Any, num_rows: int, mc_samples: int = 1, num_data: int | None = None
) -> float:
    """Compute what makes outer products of a loss's vectors those of the terms' sum.

    Args:
        loss: The loss. The vectors of a mean are divided by the number of rows.
        num_rows: Number of rows ``R``.
        mc_samples: Number of draws, of which the mean is taken.
        num_data: Number of data, if a loss that is a mean is to be that of each datum's
            terms, summed over data. ``None``: all terms are summed.
    """
    total = num_rows * (num_rows if num_data is None else num_data)
    return (total if loss.reduction == "mean" else 1) / mc_samples


def plain(loss: Any) -> Any:
    """The loss without options, whose Hessian times :func:`scale` squared is its own.

    Hessians depend on targets by the weights of rows or outputs only.
    """
    return type(loss)(reduction=loss.reduction)


def scale(loss: Any, output: Tensor, y: Tensor) -> Tensor | None:
    """Compute the root of rows' or outputs' weights relative to those of a plain loss.

    Cross entropy: classes ``c`` of weights ``w`` and targets ``y'`` after smoothing
    give a row the weight ``sum_c w_c y'_c``, zero where the target is ignored. torch's
    mean divides by the sum of the targets' own weights if these are classes, and by the
    number of rows if they are probabilities. Binary cross entropy: an output has the
    weight ``w (1 - y + w' y)``, ``w'`` being that of positives.

    Args:
        loss: The loss.
        output: Outputs, ``[R, C]``.
        y: Targets; of a cross entropy, classes ``[R]`` or their probabilities ``[R,
            C]``.

    Returns:
        The roots, ``[R, 1]`` or ``[R, C]``. ``None``: all are one.
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
        # a batch of ignored rows only has a loss of nan; it has no curvature
        rows = rows * (len(y) / own.sum()) if holds(kept.any()) else rows
    return rows.sqrt().unsqueeze(1)


def gradient(loss: nn.Module, output: Tensor, y: Tensor) -> Tensor:
    """Gradient of a loss with respect to the outputs, ``[R, C]``.

    Means over classes, too (mean squared error, binary cross entropy), are scaled so
    that outer products have the scale of the mean over rows.
    """
    leaf = output.detach().requires_grad_()
    (vectors,) = grad(loss(leaf, y), leaf)
    over_classes = isinstance(loss, (nn.MSELoss, nn.BCEWithLogitsLoss))
    if over_classes and loss.reduction == "mean":
        return vectors * sqrt(output.shape[1])
    return vectors


def hessian_columns(loss: Any, output: Tensor) -> Iterator[Tensor]:
    """Columns of a root of a plain loss's Hessian by the outputs, ``[R, C]`` each.

    Cross entropy: column ``c`` is ``sqrt(p_c) (e_c - p)`` of the probabilities ``p``;
    of others, whose Hessian is diagonal, it is a multiple of ``e_c``.
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
    """Targets drawn from what the model predicts, the loss being its likelihood.

    Args:
        loss: The loss, one of :data:`LIKELIHOODS`.
        output: Outputs, ``[R, C]``.
        generator: The generator.

    Returns:
        Classes ``[R]`` of a cross entropy, otherwise targets ``[R, C]``.
    """
    output = output.detach()
    if isinstance(loss, nn.CrossEntropyLoss):
        return output.softmax(1).multinomial(1, generator=generator).squeeze(1)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        return output.sigmoid().bernoulli(generator=generator)
    return output + sqrt(0.5) * torch.empty_like(output).normal_(generator=generator)


def scaled(vectors: Iterator[Tensor], scale: Tensor | None) -> Iterator[Tensor]:
    """Vectors times a number for each row or output."""
    for vector in vectors:
        yield vector if scale is None else vector * scale.to(vector.dtype)
