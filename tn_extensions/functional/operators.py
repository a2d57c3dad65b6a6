"""Register each function as ``torch.ops.tn_extensions.<name>``, for compilers.

An operator has the arguments of its function, except ``out``; the convolution is passed
as the integers of :meth:`Conv.to_ints`. Everything else is derived from the function:
the schema from its signature, the result's shape from its network, and gradients by
differentiating the function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tn_extensions.compiler.allocate import memory_of
from tn_extensions.compiler.tracing import holds_data, is_recorded, is_traced
from tn_extensions.conv import Conv
from tn_extensions.functional.checks import check_like, check_shaped
from tn_extensions.functional.evaluate import only_shapes

P = ParamSpec("P")

_LIBRARY = torch.library.Library("tn_extensions", "DEF")
_KINDS = {
    Tensor: "Tensor",
    Conv: "int[]",
    bool: "bool",
    int: "int",
    float | None: "float?",
}
"""Types of parameters, and their names in a schema."""


def operator(
    *, differentiable: bool
) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Register a function as an operator, which is called if calls are recorded.

    Args:
        differentiable: Whether the result is differentiable. If not, the function
            detaches it.

    Returns:
        A decorator for functions of tensors, a ``conv`` and numbers.
    """

    def decorate(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        own = _Operator(function, differentiable)
        name = function.__name__

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            if not is_recorded():
                return function(*args, **kwargs)
            out: Any = kwargs.pop("out", None)
            encode = partial(_encoded, detached=out is not None)
            result: Tensor = own.overload(
                *map(encode, args),
                **{key: encode(value) for key, value in kwargs.items()},
            )
            if out is None:
                return result
            check_shaped(name, "out", out, tuple(result.shape))
            check_like(name, "out", out, result.dtype, result)
            out.detach().add_(result)
            return out

        return call

    return decorate


def _encoded(value: Any, detached: bool) -> Any:
    if detached and isinstance(value, Tensor):
        return value.detach()
    return value.to_ints() if isinstance(value, Conv) else value


class _Operator:
    """The operator of a function and, if it is differentiable, one for its gradients.

    Args:
        function: The function.
        differentiable: Whether it is differentiable.

    Attributes:
        overload: The operator.
        backward: The operator that computes gradients by those tensors that are
            ``wanted``.
    """

    def __init__(self, function: Callable[..., Tensor], differentiable: bool) -> None:
        signature = inspect.signature(function, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.name != "out"]
        schema = ", ".join(_in_schema(parameter) for parameter in parameters)
        name = function.__name__
        self._function = function
        self._names = [parameter.name for parameter in parameters]
        self.tensors = [at for at, p in enumerate(parameters) if p.annotation is Tensor]
        fake = only_shapes(self._compute)
        self.overload = _define(f"{name}({schema}) -> Tensor", self._compute, fake)
        if not differentiable:
            _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
            return
        _LIBRARY.impl(name, torch.compiler.disable(self._differentiable), "Autograd")
        schema = f"{name}_backward(Tensor grad, bool[] wanted, {schema}) -> Tensor[]"
        self.backward = _define(schema, self._gradients, self._empty_gradients)

    def _call(self, *args: Any) -> Tensor:
        """Call the function with the operator's arguments, which may lack defaults."""
        given = dict(zip(self._names, args, strict=False))
        given["conv"] = Conv.from_ints(given["conv"])
        return self._function(**given)

    def _compute(self, *args: Any) -> Tensor:
        """Compute a result that is contiguous and not a view of an argument."""
        result = self._call(*args).contiguous()
        tensors = [args[at] for at in self.tensors]
        if is_traced(tensors):  # a view may have no storage to compare
            return result.clone()
        memory = memory_of(result)
        shared = any(memory_of(tensor) == memory for tensor in tensors)
        return result.clone() if shared else result

    def _differentiable(self, *args: Any) -> Tensor:
        """Run the function for autograd, or record only the operator for a compiler."""
        if holds_data(args[self.tensors[0]]) and not is_recorded():
            return self._compute(*args)
        result: Tensor = _Recorded.apply(self, *args)
        return result

    def _gradients(self, grad: Tensor, wanted: list[bool], *args: Any) -> list[Tensor]:
        """Differentiate the function at these arguments."""
        chosen = self._chosen(wanted)

        def function(*tensors: Tensor) -> Tensor:
            given = dict(enumerate(args)) | dict(zip(chosen, tensors, strict=True))
            return self._call(*given.values())

        vjp: Any = torch.func.vjp(function, *(args[at] for at in chosen))[1]
        return [gradient.contiguous() for gradient in vjp(grad)]

    def _empty_gradients(
        self, grad: Tensor, wanted: list[bool], *args: Any
    ) -> list[Tensor]:
        return [args[at].new_empty(args[at].shape) for at in self._chosen(wanted)]

    def _chosen(self, wanted: list[bool]) -> list[int]:
        return [at for at, one in zip(self.tensors, wanted, strict=True) if one]


def _in_schema(parameter: inspect.Parameter) -> str:
    text = f"{_KINDS[parameter.annotation]} {parameter.name}"
    if parameter.default is parameter.empty:
        return text
    return f"{text}={parameter.default}"


def _define(schema: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator by functions for tensors with and without data."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    # after a graph break in the caller, a compiler must not trace into the operator
    kernel = torch.compiler.disable(compute)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    overload = getattr(torch.ops.tn_extensions, name).default
    path = f"tn_extensions::{name}"
    torch.library.register_fake(path, fake, lib=_LIBRARY)
    torch.library.register_vmap(path, _vmap(overload), lib=_LIBRARY)
    return overload


def _vmap(overload: Any) -> Callable[..., tuple[Any, Any]]:
    """Create a rule that calls an operator for each entry of a batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        columns = [
            value.unbind(axis) if isinstance(axis, int) else (value,) * info.batch_size
            for value, axis in zip(args, in_dims, strict=True)
        ]
        each = zip(*columns, strict=True)
        results = [overload(*given) for given in each]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(values) for values in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


class _Recorded(torch.autograd.Function):
    """An operator with its gradients, recorded by a compiler."""

    @staticmethod
    def forward(ctx: Any, own: _Operator, *args: Any) -> Tensor:
        ctx.own = own
        ctx.save_for_backward(*(value for value in args if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else value for value in args]
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = own.overload(*args)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, (_, *needed) = iter(ctx.saved_tensors), ctx.needs_input_grad
        own, args = ctx.own, list(ctx.others)
        for at in own.tensors:
            args[at] = next(tensors)
        wanted = [needed[at] for at in own.tensors]
        gradients = iter(own.backward(grad, wanted, *args))
        return (None, *(next(gradients) if need else None for need in needed))
