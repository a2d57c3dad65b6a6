"""KFAC, EKFAC and KFOC for curvlinops' next line, whose operators use computers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from curvlinops import ekfac, kfac
from curvlinops._torch_base import PyTorchLinearOperator
from curvlinops.blockdiagonal import BlockDiagonalLinearOperator
from curvlinops.computers._base import _BaseKFACComputer, _EKFACMixin
from curvlinops.kfac_utils import (
    FromCanonicalLinearOperator,
    ToCanonicalLinearOperator,
)
from torch import Tensor

from tn_extensions.curvlinops.factors import check_iteration, needs_data, passes_of
from tn_extensions.curvlinops.groups import Group, GroupFactors, ObservedParameters
from tn_extensions.curvlinops.stored import Factors, kept, padded, stacked
from tn_extensions.curvlinops.text import operator_text, plain, tensor_text
from tn_extensions.errors import check_choice, describe
from tn_extensions.kronecker.cholesky import cholesky
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.factors import completed
from tn_extensions.kronecker.kronecker_product import KroneckerProduct, Method
from tn_extensions.layers import losses
from tn_extensions.layers.module import Groups, kernel_matrices, kernel_of_matrices

BACKEND = "tn"
"""The name of our backend."""


class KFACComputer(_BaseKFACComputer):
    """Compute KFAC's factors without unfolding, for curvlinops' operators or ours.

    Args:
        *args: As for curvlinops' computers. The model is a module, or a function of
            parameters and an input.
        groups: As for :class:`KFACLinearOperator`. ``None``: for curvlinops' operators,
            which average inputs over groups and do not support transposed kernels.
        **kwargs: As for curvlinops' computers.
    """

    _RANK_LIMIT = 0.5

    def __init__(self, *args: Any, groups: Groups | None = None, **kwargs: Any) -> None:
        self._groups = groups
        super().__init__(*args, **kwargs)
        # errors name the operator that the user called
        name = type(self).__name__.replace("Computer", "LinearOperator")
        self.parameters = ObservedParameters(
            name,
            self._params,
            groups or "average",
            self._separate_weight_and_bias,
            takes_transposed=groups is not None,
        )
        model = partial(self._model_func, self.parameters.tensors)
        passes = passes_of(self, name, model, self.parameters)
        approx = plain(self._kfac_approx)
        self.groups = GroupFactors(passes, self.parameters, approx, self._RANK_LIMIT)

    def _get_data_statistics(
        self, num_data: int | None, num_per_example_loss_terms: int | None
    ) -> tuple[int, int]:
        """Count data and loss terms, also with probabilities as targets."""
        name, loss = type(self).__name__, self._loss_func
        if num_data is None:
            batches = self._loop_over_data(desc="data_statistics")
            num_data = sum(self._batch_size_fn(X) for X, _ in batches)
        if num_per_example_loss_terms is None:
            targets = (y for _, y in self._loop_over_data(desc="data_statistics"))
            terms = losses.terms_per_datum(name, loss, targets, num_data)
            num_per_example_loss_terms = terms
        return num_data, num_per_example_loss_terms

    def compute(self) -> Any:
        """Compute the matrices of all blocks.

        Returns:
            Input factors, gradient factors, and groups of parameters by role. For
            EKFAC, eigenvectors instead of factors, and corrected eigenvalues before the
            groups.
        """
        found = self._results()
        if self._groups is None:
            # reading converts to the form that curvlinops' operators expect
            dtype = self.dtype
            found = tuple({key: own[key].to(dtype) for key in own} for own in found)
        return *found, self.parameters.mapping

    def _results(self) -> tuple[Any, ...]:
        return self.groups.factors()


class EKFACComputer(_EKFACMixin, KFACComputer):
    """Compute EKFAC's eigenvectors and eigenvalues."""

    _RANK_LIMIT = 0.7
    """Up to here, singular vectors of the factor are cheaper than eigenvectors."""

    compute = KFACComputer.compute

    def _results(self) -> tuple[Any, ...]:
        return self.groups.corrected()


class KFOCComputer(KFACComputer):
    """Compute the factors of the closest products, see :class:`KFOCLinearOperator`."""

    def __init__(
        self, *args: Any, tolerance: float = 1e-4, max_sweeps: int = 100, **kwargs: Any
    ) -> None:
        self._iteration = tolerance, max_sweeps
        super().__init__(*args, **kwargs)

    def _results(self) -> tuple[Any, ...]:
        return self.groups.nearest(*self._iteration)


class BlockOperator(PyTorchLinearOperator):
    """The block of a group of parameters, as an operator on the flat parameters.

    Args:
        block: Matrix that multiplies ``[G, CO, D, V]``.
        shape: The sizes ``G``, ``CO`` and ``D``.
        like: A parameter, for dtype and device.
    """

    SELF_ADJOINT = True

    def __init__(self, block: Any, shape: tuple[int, int, int], like: Tensor) -> None:
        self.block, self._shape = block, shape
        self._like = like.new_empty(0)
        super().__init__([(prod(shape),)], [(prod(shape),)])

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self._like.dtype

    def __repr__(self) -> str:
        return type(self.block).__name__

    def _matmat(self, X: list[Tensor]) -> list[Tensor]:
        (x,) = X
        # factors are float32 if parameters have half precision
        vectors = x.to(torch.promote_types(x.dtype, torch.float32))
        product = self.block @ vectors.reshape(*self._shape, -1)
        return [product.flatten(0, 2).to(x.dtype)]

    def trace(self) -> Tensor:
        """Compute the trace."""
        return self.block.trace()

    def det(self) -> Tensor:
        """Compute the determinant."""
        return self.block.det()

    def logdet(self) -> Tensor:
        """Compute the logarithm of the determinant."""
        return self.block.logdet()

    def frobenius_norm(self) -> Tensor:
        """Compute the Frobenius norm."""
        return self.block.squared_norm().sqrt()


class EigenOperator(BlockOperator):
    """The eigendecomposed block of a group of parameters."""

    block: EigendecomposedMatrix

    def __repr__(self) -> str:
        return tensor_text(Q_A=self.block.right, Q_B=self.block.left)

    @property
    def eigenvalues(self) -> Tensor:
        """Flat eigenvalues; reading them completes bases that are not full."""
        left, right, values = self.block.left, self.block.right, self.block.values
        if self.block.is_thin:
            left, right = completed(left), None if right is None else completed(right)
            values = padded(values, self._shape[1:], self.block.rest)
            self.block = EigendecomposedMatrix(left, right, values, self.block.rest)
        return values.flatten()

    @eigenvalues.setter
    def eigenvalues(self, value: Tensor) -> None:
        shape = self.block.values.shape
        if value.numel() != shape.numel():
            rule = f"have {shape.numel()} entries"
            found = f"shape {list(value.shape)}"
            raise ValueError(describe(type(self).__name__, "eigenvalues", rule, found))
        self.block = replace(self.block, values=value.reshape(shape))

    def inverse(self, damping: float = 0.0) -> BlockOperator:
        """Invert the block plus ``damping`` times the identity."""
        return EigenOperator(self.block.inverse(damping), self._shape, self._like)


class KroneckerOperator(BlockOperator):
    """The block ``B (x) A`` of a group of parameters, for each group of channels.

    Factors can be read and replaced by index, as in curvlinops'
    ``KroneckerProductLinearOperator``: ``B``, then ``A`` if there is a kernel. They are
    stacked if there are groups of channels.
    """

    @property
    def block(self) -> KroneckerProduct:
        """The product."""
        left, *right = map(stacked, self._held)
        return KroneckerProduct(left, right[0] if right else None)

    @block.setter
    def block(self, block: KroneckerProduct) -> None:
        factors = block.left, block.right
        # matrices that only multiply, such as inverses, cannot be read
        self._held = [own for own in factors if isinstance(own, Tensor)]

    def __repr__(self) -> str:
        left, *right = map(stacked, self._held)
        return tensor_text(A=right[0] if right else None, B=left)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        # keep the tensor that is read: users may change it in place
        self._held[index] = Factors({index: self._held[index]})[index]
        return self._held[index]

    def __setitem__(self, index: int, value: Tensor) -> None:
        expected = self[index].shape
        if value.shape != expected:
            rule, found = f"have shape {list(expected)}", list(value.shape)
            raise ValueError(describe(type(self).__name__, "a factor", rule, found))
        self._held[index] = value

    def inverse(
        self,
        damping: float = 0.0,
        use_heuristic_damping: bool = False,
        min_damping: float = 1e-8,
        use_exact_damping: bool = False,
        retry_double_precision: bool = True,
    ) -> BlockOperator:
        """Invert, with the arguments of curvlinops' ``KFACLinearOperator.inverse``."""
        if use_heuristic_damping and use_exact_damping:
            owner, rule = "KFACLinearOperator.inverse", "be heuristic or exact"
            raise ValueError(describe(owner, "damping", rule, "both"))
        if use_heuristic_damping and len(self) == 1:
            damping = max(damping, min_damping)
        method: Method = "pi" if use_heuristic_damping else "fixed"
        decompose = partial(cholesky, retry_double_precision=retry_double_precision)
        inverse = self.block.inverse(
            damping,
            "exact" if use_exact_damping else method,
            min_damping,
            lambda factor, own: factor.inverse(own, decompose),
        )
        kind = EigenOperator if use_exact_damping else BlockOperator
        return kind(inverse, self._shape, self._like)


class _Layout:
    """Convert transposed kernels to matrices, for curvlinops' converters.

    Args:
        shapes: Shapes of the parameters by name.
        transposed: Number of groups of channels, by the name of a transposed kernel.
        *others: As for curvlinops' class: groups of parameters, device and dtype.
    """

    def __init__(
        self, shapes: dict[str, torch.Size], transposed: dict[str, int], *others: Any
    ) -> None:
        self._layout = shapes, transposed, *others
        found = dict(shapes)
        for name, groups in transposed.items():
            channels, rows, *kernel = shapes[name]
            columns = channels // groups * prod(kernel)
            found[name] = torch.Size([groups * rows, columns])
        super().__init__(found, *others)  # type: ignore[call-arg]


class _ToCanonical(_Layout, ToCanonicalLinearOperator):
    """Convert parameters to the form of curvlinops' blocks."""

    def _compute_shapes(self) -> Any:
        shapes, *_ = self._layout
        return [*shapes.values()], self._compute_canonical_shapes()

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        shapes, transposed, *_ = self._layout
        matrices = []
        for name, vectors in zip(shapes, M, strict=True):
            if name in transposed:
                kernels = vectors.unsqueeze(0)
                ((matrix,),) = kernel_matrices(kernels, 1, transposed[name])
                vectors = matrix.unflatten(1, (-1, vectors.shape[-1]))
            matrices.append(vectors)
        return super()._matmat(matrices)

    def _adjoint(self) -> _FromCanonical:
        return _FromCanonical(*self._layout)


class _FromCanonical(_Layout, FromCanonicalLinearOperator):
    """The adjoint of :class:`_ToCanonical`."""

    def _compute_shapes(self) -> Any:
        shapes, *_ = self._layout
        return self._compute_canonical_shapes(), [*shapes.values()]

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        shapes, transposed, *_ = self._layout
        matrices = zip(shapes.items(), super()._matmat(M), strict=True)
        return [
            kernel_of_matrices(own, (*shape, own.shape[-1]), transposed.get(name))
            for (name, shape), own in matrices
        ]

    def _adjoint(self) -> _ToCanonical:
        return _ToCanonical(*self._layout)


class KFACLinearOperator(kfac.KFACLinearOperator):
    r"""KFAC of the Fisher/GGN, replaces :class:`curvlinops.KFACLinearOperator`.

    The block of a kernel, with or without its bias, is ``B (x) A`` for each group of
    channels. The block of a separate bias is ``B``. Factors are defined as for the
    release line 3.0, see :class:`~tn_extensions.curvlinops.kfac.KFACLinearOperator`.

    In addition to curvlinops, it supports one and three dimensions and transposed
    convolutions; groups, ``padding='same'`` and every ``padding_mode``; parameters that
    are used several times, by one module or by several, and inputs with several rows
    per datum on the first axis (uses and rows share the weight like positions); and
    options of the losses. The model may be a function of its parameters. The package
    observes the calls of ``linear`` and of convolutions in ``torch.nn.functional``.

    Args:
        *args: As for :class:`curvlinops.KFACLinearOperator`.
        groups: ``"separate"``: each group of channels has its own factors, stacked as
            ``[G, ., .]``. ``"average"``: curvlinops' approximation, a single pair of
            factors from inputs averaged over groups.
        backend: ``"tn"``, or one of curvlinops' own backends.
        **kwargs: As for :class:`curvlinops.KFACLinearOperator`.

    Raises:
        ValueError: If an argument has no allowed value, there are no data, a factor is
            not finite, or a kernel with several biases should form a block with one.
        TypeError: If the model does not return a tensor.
        NotImplementedError: If a parameter has a use that is not observed.

    Reference: Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern
    Neural Network Architectures", NeurIPS 2023.
    """

    _BACKENDS = {**kfac.KFACLinearOperator._BACKENDS, BACKEND: KFACComputer}

    def __init__(
        self,
        *args: Any,
        groups: Groups = "separate",
        backend: str = BACKEND,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        check_choice(name, "groups", groups, Groups)
        if backend != BACKEND and groups != "average":
            rule = f"be 'average' with backend {backend!r}"
            raise ValueError(describe(name, "groups", rule, repr(groups)))
        self._options: dict[str, Any] = {"backend": backend, "groups": groups}
        own = partial(self._BACKENDS[BACKEND], groups=groups)
        self._BACKENDS = {**self._BACKENDS, BACKEND: own}
        with needs_data(name):
            super().__init__(*args, backend=backend, **kwargs)

    def _compute_canonical_op(self, computer: Any) -> Any:
        names = ("fisher_type", "mc_samples", "kfac_approx", "separate_weight_and_bias")
        self._options |= {name: plain(getattr(computer, f"_{name}")) for name in names}
        self._options["num_data"] = computer._N_data
        if not isinstance(computer, KFACComputer):
            return super()._compute_canonical_op(computer)
        *found, mapping = computer.compute()
        like = next(iter(computer._params.values()))
        blocks = [self._block(found, tuple(group.values()), like) for group in mapping]
        return BlockDiagonalLinearOperator(blocks), mapping

    def __repr__(self) -> str:
        _, blocks, to_canonical = self
        texts = {
            ", ".join(group.values()): str(block)
            if isinstance(block, BlockOperator)
            else type(block).__name__
            for group, block in zip(to_canonical._param_groups, blocks, strict=True)
        }
        return operator_text(type(self).__name__, self.shape, self._options, texts)

    @staticmethod
    def _block(found: Any, key: Any, like: Tensor) -> BlockOperator:
        inputs, gradients = map(kept, found)
        left, right = gradients[key], inputs.get(key)
        shape = len(left), left.shape[2], 1 if right is None else right.shape[2]
        return KroneckerOperator(KroneckerProduct(left, right), shape, like)

    @staticmethod
    def _build_converters(computer: Any, mapping: list[Group]) -> Any:
        if not isinstance(computer, KFACComputer):
            return kfac.KFACLinearOperator._build_converters(computer, mapping)
        shapes = {name: p.shape for name, p in computer._params.items()}
        others = mapping, computer.device, computer.dtype
        to_canonical = _ToCanonical(shapes, computer.parameters.transposed, *others)
        return to_canonical.adjoint(), to_canonical


class EKFACLinearOperator(KFACLinearOperator, ekfac.EKFACLinearOperator):
    """EKFAC of the Fisher/GGN, replaces :class:`curvlinops.EKFACLinearOperator`.

    A block is ``(Q_B (x) Q_A) diag(l) (Q_B (x) Q_A)^T`` for each group of channels. Its
    matrices are defined as for the release line 3.0, see
    :class:`~tn_extensions.curvlinops.ekfac.EKFACLinearOperator`. Arguments and errors
    are those of :class:`KFACLinearOperator`. Outputs may have more than two axes.

    Reference: George et al., "Fast Approximate Natural Gradient Descent in a
    Kronecker-factored Eigenbasis", NeurIPS 2018.
    """

    _BACKENDS = {**ekfac.EKFACLinearOperator._BACKENDS, BACKEND: EKFACComputer}

    @staticmethod
    def _block(found: Any, key: Any, like: Tensor) -> BlockOperator:
        rights, lefts, values = map(kept, found)
        left, right = lefts[key], rights.get(key)
        columns, rank = (1, 1) if right is None else right.shape[1:]
        own = values[key].reshape(len(left), -1, rank)
        shape = len(left), left.shape[1], columns
        return EigenOperator(EigendecomposedMatrix(left, right, own), shape, like)

    inverse = ekfac.EKFACLinearOperator.inverse


class KFOCLinearOperator(KFACLinearOperator):
    """The Kronecker product that is closest to each block of the Fisher/GGN.

    It is defined as for the release line 3.0, see
    :class:`~tn_extensions.curvlinops.kfoc.KFOCLinearOperator`, also for ``tolerance``
    and ``max_sweeps``. Other arguments and errors are those of
    :class:`curvlinops.KFOCLinearOperator` and :class:`KFACLinearOperator`.

    In addition to curvlinops, it supports several batches, empirical gradients, and all
    that :class:`KFACLinearOperator` supports. Factors are positive semi-definite.

    Reference: Schnaus, Lee and Triebel, "Kronecker-Factored Optimal Curvature",
    Bayesian Deep Learning Workshop, NeurIPS 2021.
    """

    _BACKENDS = {BACKEND: KFOCComputer}

    def __init__(
        self,
        *args: Any,
        tolerance: float = 1e-4,
        max_sweeps: int = 100,
        **options: Any,
    ) -> None:
        check_iteration(type(self).__name__, tolerance, max_sweeps, options)
        iteration: dict[str, Any] = {"tolerance": tolerance, "max_sweeps": max_sweeps}
        self._BACKENDS = {BACKEND: partial(KFOCComputer, **iteration)}
        super().__init__(*args, kfac_approx="expand", groups="separate", **options)


for _stock, _own in (
    (kfac.KFACLinearOperator, KFACComputer),
    (ekfac.EKFACLinearOperator, EKFACComputer),
):
    _stock._BACKENDS.setdefault(BACKEND, _own)
