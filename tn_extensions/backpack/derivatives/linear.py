"""Derivatives of maps that are linear in their input."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from backpack.core.derivatives.basederivatives import BaseDerivatives
from torch import Tensor


class AnyDtype(BaseDerivatives):
    """Derivatives that take vectors whose dtype differs from the module's tensors."""


class LinearDerivatives(AnyDtype):
    """Derivatives of a map that is linear and acts on each sample in the same way.

    The Jacobian does not depend on the sample. So BackPACK's two ways to backpropagate
    curvature need only one function: products with the transposed Jacobian.
    """

    @abstractmethod
    def input_jvp(self, module: Any, x_dot: Tensor) -> Tensor:
        """Apply the input Jacobian to a batch of input-shaped vectors.

        Args:
            module: Module with ``input0`` and ``output`` of a forward pass.
            x_dot: Vectors, ``[B, *input0.shape[1:]]`` for any ``B``.

        Returns:
            Products, ``[B, *output.shape[1:]]``.
        """

    @abstractmethod
    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed input Jacobian to a batch of output-shaped vectors.

        Args:
            module: Module with ``input0`` and ``output`` of a forward pass.
            g: Vectors, ``[B, *output.shape[1:]]`` for any ``B``.

        Returns:
            Products, ``[B, *input0.shape[1:]]``.
        """

    def hessian_is_zero(self, module: Any) -> bool:
        """Return true: a linear map has no curvature."""
        return True

    def _jac_mat_prod(self, module: Any, g_inp: Any, g_out: Any, mat: Tensor) -> Tensor:
        """Propagate ``[V, N, ...]`` forward."""
        columns = mat.shape[:2]
        return self.input_jvp(module, mat.flatten(0, 1)).unflatten(0, columns)

    def _jac_t_mat_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        """Backpropagate ``[V, N, ...]``, such as a square root of the GGN."""
        columns = mat.shape[:2]
        return self.input_vjp(module, mat.flatten(0, 1)).unflatten(0, columns)

    def ea_jac_t_mat_jac_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
    ) -> Tensor:
        """Backpropagate a batch-averaged GGN block, ``J^T M J``."""
        shape = module.output.shape[1:]
        half = self.input_vjp(module, mat.unflatten(-1, shape)).flatten(1)
        return self.input_vjp(module, half.T.unflatten(-1, shape)).flatten(1).T


class DenseDerivatives(LinearDerivatives):
    """Derivatives of ``torch.nn.Linear``, on inputs with any number of axes."""

    def input_jvp(self, module: Any, x_dot: Tensor) -> Tensor:
        """Apply the Jacobian."""
        product: Tensor = x_dot @ module.weight.detach().to(x_dot.dtype).T
        return product

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed Jacobian."""
        product: Tensor = g @ module.weight.detach().to(g.dtype)
        return product

    def squared_input_vjp(self, module: Any, h: Tensor) -> Tensor:
        """Apply the transposed Jacobian with squared entries."""
        product: Tensor = h @ module.weight.detach().to(h.dtype).square()
        return product


class SumDerivatives(LinearDerivatives):
    """Derivatives of a sum of branches by each branch."""

    def input_jvp(self, module: Any, x_dot: Tensor) -> Tensor:
        """Apply the Jacobian, the identity."""
        return x_dot

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed Jacobian, the identity."""
        return g


class LinearModuleDerivatives(LinearDerivatives):
    """Derivatives of any linear module, by automatic differentiation.

    For modules with a cheap forward pass, since it is repeated.
    """

    def input_jvp(self, module: Any, x_dot: Tensor) -> Tensor:
        """Run the forward pass: it is linear, hence its own Jacobian."""
        with torch.no_grad():
            product: Tensor = module.forward(x_dot)
        return product

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Differentiate the forward pass, at an arbitrary input."""
        with torch.enable_grad():
            x = g.new_zeros(g.shape[0], *module.input0.shape[1:], requires_grad=True)
            # a call of the module would run BackPACK's hooks
            y = module.forward(x)
        (product,) = torch.autograd.grad(y, x, g)
        return product
