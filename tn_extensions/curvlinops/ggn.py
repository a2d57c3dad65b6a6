"""What the operators of the GGN's diagonal and Gram matrix share."""

from __future__ import annotations

from typing import Any, Literal, get_args

from curvlinops._torch_base import CurvatureLinearOperator
from torch import nn

from tn_extensions.curvlinops.kfac import KFACLinearOperator
from tn_extensions.errors import describe

Mode = Literal["exact", "mc"]


class _Passes(KFACLinearOperator):
    """KFAC makes the same passes."""

    _COMPUTED_KERNELS = True


class GGNOperator(CurvatureLinearOperator):
    """A matrix made of the backward passes that make a GGN.

    Args:
        model_func: The network.
        loss_func: ``MSELoss``, ``CrossEntropyLoss`` or ``BCEWithLogitsLoss``.
        params: Parameters of layers that :class:`KFACLinearOperator` supports, and of
            those that compute their kernel or bias (``weight_norm``, a ``forward`` of
            their own): gradients are backpropagated through the computation.
        data: Batches ``(X, y)``.
        progressbar: Whether to show the progress over batches.
        check_deterministic: Whether to check that products are reproducible.
        num_data: Number of data. ``None``: found by a pass over the data.
        batch_size_fn: Batch size of an ``X`` that is no tensor.
        mode: ``"exact"``: a pass for each class (and loss term of a datum, if there are
            several). ``"mc"``: for each of ``mc_samples`` draws of targets.
        seed: Of the draws.
        mc_samples: Number of draws.

    Raises:
        ValueError: If an argument is not among its choices, a parameter is not the
            model's, there are no data, a result is not finite, or a layer was not used.
        TypeError: If the model does not return a tensor.
        NotImplementedError: If a parameter belongs to another kind of layer, or is used
            in other ways than in kernels and biases.
    """

    SELF_ADJOINT = True

    def __init__(
        self,
        model_func: nn.Module,
        loss_func: Any,
        params: list[nn.Parameter],
        data: Any,
        progressbar: bool = False,
        check_deterministic: bool = True,
        num_data: int | None = None,
        batch_size_fn: Any = None,
        mode: Mode = "exact",
        seed: int = 2147483647,
        mc_samples: int = 1,
    ) -> None:
        name = type(self).__name__
        if mode not in get_args(Mode):
            choices = " or ".join(map(repr, get_args(Mode)))
            raise ValueError(describe(name, "mode", f"be {choices}", repr(mode)))
        if mc_samples < 1 or (mode == "exact" and mc_samples != 1):
            rule = "be 1 where exact, and positive"
            raise ValueError(describe(name, "mc_samples", rule, mc_samples))
        # errors are to name this class
        passes = type(name, (_Passes,), {})
        shared = {
            "progressbar": progressbar,
            "num_data": num_data,
            "batch_size_fn": batch_size_fn,
        }
        self._passes = passes(
            model_func,
            loss_func,
            params,
            data,
            check_deterministic=False,
            fisher_type={"exact": "type-2", "mc": "mc"}[mode],
            mc_samples=mc_samples,
            seed=seed,
            **shared,
        )
        shared["num_data"] = self._passes._N_data
        super().__init__(
            model_func,
            loss_func,
            params,
            data,
            check_deterministic=check_deterministic,
            **shared,
        )

    def _check_deterministic(self) -> None:
        self._passes._check_model()
        super()._check_deterministic()
