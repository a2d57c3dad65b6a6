"""kronfluence's factors, gradients and scores of convolutions, without unfolding.

Call :func:`register` before ``prepare_model``, which then tracks every convolution::

    import tn_extensions.kronfluence

    tn_extensions.kronfluence.register()
    model = prepare_model(model, task)

Needs the extra ``kronfluence``; nothing else of this package imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from kronfluence.factor.config import FactorConfig
from kronfluence.module.tracked_module import ModuleMode, TrackedModule
from kronfluence.module.tracker.factor import CovarianceTracker, LambdaTracker
from kronfluence.utils.constants import (
    ACTIVATION_COVARIANCE_MATRIX_NAME,
    ACTIVATION_EIGENVECTORS_NAME,
    GRADIENT_COVARIANCE_MATRIX_NAME,
    GRADIENT_EIGENVECTORS_NAME,
    LAMBDA_MATRIX_NAME,
    NUM_ACTIVATION_COVARIANCE_PROCESSED,
    NUM_GRADIENT_COVARIANCE_PROCESSED,
    NUM_LAMBDA_PROCESSED,
)
from kronfluence.utils.exceptions import FactorsNotFoundError
from opt_einsum import contract
from torch import Tensor, nn

from tn_extensions import functional
from tn_extensions.compiler.budget import current_budget
from tn_extensions.conv import Conv
from tn_extensions.functional.evaluate import result_dtype
from tn_extensions.layers.module import (
    CONVOLUTIONS,
    kernel_matrices,
    transposed_groups,
)
from tn_extensions.registration import Registration

Preconditioned = Tensor | list[Tensor]
"""``[Q, C_out, D]``, or ``[Q, C_out, R]`` and ``[Q, R, D]`` whose product it is."""


def register() -> None:
    """Let kronfluence track convolutions with ours, in models prepared from now on.

    It holds for ``Conv1d`` to ``Conv3d`` and ``ConvTranspose1d`` to ``ConvTranspose3d``
    of exactly these classes. Doing it twice changes nothing.
    """
    _REGISTRATION.put()


def unregister() -> None:
    """Restore what kronfluence had. Without :func:`register`, do nothing."""
    _REGISTRATION.take_back()


class TrackedConvolution(TrackedModule):
    """A convolution of any kind, for influence functions.

    Gradients are matrices ``[C_out, D]`` with ``D = CI * K`` columns, and one more if
    there is a bias. kronfluence has one factor ``A``, ``[D, D]``, and one ``B``,
    ``[C_out, C_out]``, for each layer. With groups, ``A`` is the mean of the groups'
    factors, and ``B`` is block diagonal. Gradients, eigenvalues of EKFAC and scores are
    exact with groups, too.

    Args:
        *args: As :class:`kronfluence.module.tracked_module.TrackedModule`.
        **kwargs: As there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trackers[ModuleMode.COVARIANCE] = _Covariances(self)
        self._trackers[ModuleMode.LAMBDA] = _Moments(self)
        self._output_size: torch.Size | None = None

    def __getattr__(self, name: str) -> Any:
        """Return the convolution's own attribute if this module has none."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original_module"), name)

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the convolution."""
        outputs: Tensor = super().forward(inputs, *args, **kwargs)
        # a transposed convolution may have been called with the size of its output
        self._output_size = outputs.shape[2:]
        return outputs

    # kronfluence asks for matrices to multiply with themselves. Our tracker multiplies
    # the tensors as they are, so that all there is to tell is the number of positions.

    def get_flattened_activation(self, input_activation: Tensor) -> tuple[Tensor, int]:
        """Return the input, and the number of patches in it."""
        assert self._output_size is not None
        return input_activation, len(input_activation) * prod(self._output_size)

    def get_flattened_gradient(self, output_gradient: Tensor) -> tuple[Tensor, int]:
        """Return the gradient, and its number of positions."""
        return output_gradient, output_gradient[:, 0].numel()

    def add_input_factor(self, x: Tensor, factor: Tensor) -> None:
        """Add ``sum_{n, o} U[n, o] U[n, o]^T`` to ``[D, D]``; of groups, the mean."""
        layer, has_bias = self.original_module, self.original_module.bias is not None
        conv = Conv.from_module(layer, x.shape[2:], self._output_size)
        scale = 1 / conv.groups
        if conv.groups == 1 and factor.dtype == result_dtype(x):
            functional.kfac_expand(
                x, conv, bias=has_bias, scale=scale, out=factor[None]
            )
        else:
            factor += functional.kfac_expand(x, conv, bias=has_bias, scale=scale).sum(0)

    def gradient_factor(self, g: Tensor) -> Tensor:
        """Compute ``sum_{n, o} g[n, o] g[n, o]^T``, ``[C_out, C_out]``, by group."""
        groups = self.original_module.groups
        # any convolution with these outputs
        conv = Conv.make(g.shape[1], g.shape[1], 1, g.shape[2:], groups=groups)
        return torch.block_diag(*functional.gradient_factor_expand(g, conv))

    def moments(self, x: Tensor, g: Tensor) -> Tensor:
        """Compute ``sum_n (Q_B^T G_n Q_A)^2``, ``[C_out, D]``, without groups.

        ``G_n`` are the gradients of the samples, ``Q_A`` and ``Q_B`` the eigenvectors
        of the factors.
        """
        QA, QB = (
            self.storage[name].to(device=g.device, dtype=g.dtype)[None]
            for name in (ACTIVATION_EIGENVECTORS_NAME, GRADIENT_EIGENVECTORS_NAME)
        )
        has_bias = self.original_module.bias is not None
        conv = self._conv(x, g)
        return functional.kfac_moments(x, g, QA, QB, conv, bias=has_bias)[0]

    def compute_summed_gradient(
        self, input_activation: Tensor, output_gradient: Tensor
    ) -> Tensor:
        """Compute the sum of the samples' gradients, ``[1, C_out, D]``."""
        conv = self._conv(input_activation, output_gradient)
        kernel = functional.weight_vjp(input_activation, output_gradient, conv)
        bias = functional.bias_vjp(output_gradient, conv)
        return self._matrices(kernel[None], bias[None], output_gradient.dtype)

    def compute_per_sample_gradient(
        self, input_activation: Tensor, output_gradient: Tensor
    ) -> Tensor:
        """Compute the gradient of each sample, ``[N, C_out, D]``."""
        gradients = self._gradients(input_activation, output_gradient)
        if self.per_sample_gradient_process_fnc is None:
            return gradients
        processed: Tensor = self.per_sample_gradient_process_fnc(
            module_name=self.name, gradient=gradients
        )
        return processed

    def compute_pairwise_score(
        self,
        preconditioned_gradient: Preconditioned,
        input_activation: Tensor,
        output_gradient: Tensor,
    ) -> Tensor:
        """Compute products of preconditioned and samples' gradients, ``[Q, N]``."""

        def scores(gradients: Tensor) -> Tensor:
            if isinstance(preconditioned_gradient, list):
                left, right = preconditioned_gradient
                product: Tensor = contract("qik,qko,bio->qb", left, right, gradients)
                return product
            return torch.einsum("qio,bio->qb", preconditioned_gradient, gradients)

        chunks = self._chunks(input_activation, output_gradient)
        return torch.cat([scores(self._gradients(*chunk)) for chunk in chunks], 1)

    def compute_self_measurement_score(
        self,
        preconditioned_gradient: Tensor,
        input_activation: Tensor,
        output_gradient: Tensor,
    ) -> Tensor:
        """Compute the product of each sample's gradient with its own, ``[N]``."""
        chunks = self._chunks(
            input_activation, output_gradient, preconditioned_gradient
        )
        return torch.cat(
            [
                torch.einsum("bio,bio->b", own, self._gradients(x, g))
                for x, g, own in chunks
            ]
        )

    def _conv(self, x: Tensor, g: Tensor) -> Conv:
        return Conv.from_module(self.original_module, x.shape[2:], g.shape[2:])

    def _gradients(self, x: Tensor, g: Tensor) -> Tensor:
        conv = self._conv(x, g)
        kernels = functional.per_sample_grad(x, g, conv)
        biases = functional.bias_per_sample_grad(g, conv)
        return self._matrices(kernels, biases, g.dtype)

    def _matrices(self, kernels: Tensor, biases: Tensor, dtype: torch.dtype) -> Tensor:
        """Join gradients ``[N, *shape]`` as ``[N, C_out, D]``."""
        layer = self.original_module
        transposed = transposed_groups(layer)
        matrices = kernel_matrices(kernels, layer.groups, transposed).flatten(1, 2)
        if layer.bias is not None:
            matrices = torch.cat([matrices, biases[..., None]], -1)
        return matrices.to(dtype)

    def _chunks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Split samples so that each chunk's gradients fit into the memory budget."""
        size = self.original_module.weight.numel() * tensors[1].element_size()
        step = max(1, current_budget() // (2 * max(size, 1)))
        for start in range(0, max(len(tensors[0]), 1), step):
            yield tuple(tensor[start : start + step] for tensor in tensors)


class _Covariances(CovarianceTracker):
    """Adds factors, which the module computes from tensors as they are."""

    def _update_activation_covariance_matrix(
        self, input_activation: Tensor, count: int
    ) -> None:
        storage, name = self.module.storage, ACTIVATION_COVARIANCE_MATRIX_NAME
        if storage[name] is None:
            layer = self.module.original_module
            weight = kernel_matrices(
                layer.weight[None], layer.groups, transposed_groups(layer)
            )
            size = weight.shape[-1] + (layer.bias is not None)
            storage[name] = input_activation.new_zeros(size, size)
        self.module.add_input_factor(input_activation, storage[name])
        _add(self.module, NUM_ACTIVATION_COVARIANCE_PROCESSED, torch.tensor([count]))

    def _update_gradient_covariance_matrix(
        self, output_gradient: Tensor, count: int
    ) -> None:
        factor = self.module.gradient_factor(output_gradient)
        factor = (factor * self.module.gradient_scale**2).to(output_gradient.dtype)
        _add(
            self.module,
            GRADIENT_COVARIANCE_MATRIX_NAME,
            factor.to(output_gradient.dtype),
        )
        _add(self.module, NUM_GRADIENT_COVARIANCE_PROCESSED, torch.tensor([count]))


class _Moments(LambdaTracker):
    """Adds EKFAC's eigenvalues without forming the gradient of each sample.

    kronfluence's own tracker, which forms them, stays in charge where it must: where
    gradients are processed, added up over several uses of the layer, or not rotated;
    and with groups, since an eigenvector may have entries in several of them.
    """

    def register_hooks(self) -> None:
        """Compute moments in each backward pass."""
        module, args = self.module, self.module.factor_args
        config = FactorConfig.CONFIGS[args.strategy]
        if (
            module.original_module.groups > 1
            or module.per_sample_gradient_process_fnc is not None
            or args.has_shared_parameters
            or args.offload_activations_to_cpu
            or not config.requires_eigendecomposition_for_lambda
        ):
            super().register_hooks()
        else:
            hook = module.register_forward_hook(self._observe)
            self.registered_hooks.append(hook)

    def _observe(self, module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        self.cached_activations = inputs[0].detach()
        # the hook stays, so that a second use in the same pass does not go unnoticed
        outputs.register_hook(self._add)

    @torch.no_grad()
    def _add(self, output_gradient: Tensor) -> None:
        x = self.cached_activations
        if x is None:
            self._raise_cache_not_found_exception()
        self.cached_activations = None
        if not self._eigendecomposition_results_exist():
            raise FactorsNotFoundError(
                f"tn_extensions.kronfluence: {self.module.name} must have "
                "eigenvectors, got none. Call perform_eigendecomposition first."
            )
        args = self.module.factor_args
        x, g = (
            each.to(args.per_sample_gradient_dtype).to(args.lambda_dtype)
            for each in (x, output_gradient)
        )
        moments = self.module.moments(x, g * self.module.gradient_scale)
        _add(self.module, LAMBDA_MATRIX_NAME, moments.to(args.lambda_dtype))
        _add(self.module, NUM_LAMBDA_PROCESSED, torch.tensor([len(x)]))


def _add(module: TrackedModule, name: str, value: Tensor) -> None:
    """Add to what a module stores under a name."""
    stored = module.storage[name]
    module.storage[name] = value if stored is None else stored.add_(value)


_REGISTRATION = Registration(
    (
        TrackedModule.SUPPORTED_MODULES,
        dict.fromkeys(CONVOLUTIONS, TrackedConvolution),
    )
)
