"""Adapt module extensions to square roots in pieces and to tensors of any dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

from backpack.core.derivatives.elementwise import ElementwiseDerivatives
from backpack.extensions.module_extension import ModuleExtension
from backpack.utils.module_classification import is_loss
from torch import Tensor

from tn_extensions.backpack.columns import Columns
from tn_extensions.backpack.derivatives import AnyDtype
from tn_extensions.backpack.layout import laid_out_like
from tn_extensions.backpack.precision import Cast, common_dtype
from tn_extensions.backpack.sharing import SHARED
from tn_extensions.backpack.signed_roots import SignedRoots


def adapted(extension: ModuleExtension, is_users: bool = False) -> ModuleExtension:
    """Copy a module extension, and adapt the copy to what our extensions backpropagate.

    Args:
        extension: A module extension: BackPACK's, ours, or a user's.
        is_users: Whether it is a user's.

    Returns:
        The copy. It receives the pieces of a square root one after another, and tensors
        of a single dtype where autocast left several.
    """
    twin: Any = copy(extension)
    takes_columns = getattr(extension, "takes_columns", False)
    # BackPACK keeps the names of parameters only here
    for name in twin._ModuleExtension__params:
        function = _of_one_dtype(extension, getattr(extension, name))
        setattr(twin, name, partial(_parameter, name, function, takes_columns))
    function = _of_one_dtype(extension, extension.backpropagate)
    derivatives = getattr(extension, "derivatives", None)
    if isinstance(derivatives, ElementwiseDerivatives):
        steps = partial(_multiplied, derivatives)
    else:
        steps = partial(_mapped, function)
    couples = getattr(extension, "couples", None)
    # all extensions but a user's turn equal inputs into equal results
    origin = extension if is_users else None
    twin.backpropagate = partial(_backpropagate, function, steps, origin, couples)
    return twin


def _parameter(
    name: str,
    function: Callable[..., Any],
    takes_columns: bool,
    ext: Any,
    module: Any,
    g_inp: Any,
    g_out: Any,
    backproped: Any,
) -> Any:
    """Compute a parameter's quantity; sums over columns are computed by pieces."""
    arguments = (ext, module, g_inp, g_out)
    if takes_columns or not isinstance(backproped, Columns):
        result = function(*arguments, backproped)
    elif ext.additive and all(other.additive for other in ext.companions()):
        pieces = backproped.copy().take()
        result = function(*arguments, next(pieces))
        for piece in pieces:
            result = result + function(*arguments, piece)
    else:
        result = function(*arguments, backproped.merged())
        if backproped.shares_memory(result):  # the piece may be overwritten later
            result = result.clone()
    if ext.in_parameter_dtype:
        result = result.to(getattr(module, name).dtype)
    if isinstance(result, list):
        return [value.contiguous() for value in result]
    return result.contiguous() if isinstance(result, Tensor) else result


def _backpropagate(
    function: Callable[..., Any],
    steps: Callable[..., Iterator[Tensor]],
    origin: ModuleExtension | None,
    couples: Callable[..., bool] | None,
    ext: Any,
    module: Any,
    g_inp: Any,
    g_out: Any,
    backproped: Any,
) -> Any:
    """Backpropagate to the module's input, once for all extensions that share it."""
    if isinstance(backproped, Columns):
        if couples is not None and couples(ext, module):
            backproped = backproped.per_sample()
        step = partial(steps, ext, module, g_inp, g_out)
        subsampling = ext.get_subsampling()
        samples = None if subsampling is None else tuple(subsampling)
        compute = partial(backproped.through, step)
        return SHARED.once((samples, origin), backproped.pieces, compute)
    arguments = (ext, module, g_inp, g_out, backproped)
    if ext.backpropagates_columns and is_loss(module):
        return ext.start(module, partial(function, *arguments))
    result = function(*arguments)
    if isinstance(result, dict):
        return SignedRoots.after(backproped, result)
    return result


def _mapped(
    function: Callable[..., Any],
    ext: Any,
    module: Any,
    g_inp: Any,
    g_out: Any,
    columns: Columns,
) -> Iterator[Tensor]:
    """Apply a module's transposed Jacobian to one piece after another."""
    growth = module.input0.numel() / max(module.output.numel(), 1)
    for piece in columns.take(growth):
        yield function(ext, module, g_inp, g_out, piece)


def _multiplied(
    derivatives: ElementwiseDerivatives,
    ext: Any,
    module: Any,
    g_inp: Any,
    g_out: Any,
    columns: Columns,
) -> Iterator[Tensor]:
    """Apply a diagonal transposed Jacobian, in place if nothing else uses the pieces.

    This avoids allocating memory, which takes most of the time of such a product.
    """
    in_place = columns.is_alone
    slope: Tensor | None = None
    for piece in columns.take():
        if slope is None:
            cast = Cast(module, piece.dtype)
            slope = derivatives.df(cast, g_inp, g_out, ext.get_subsampling())
            slope = laid_out_like(slope.to(piece.dtype), piece[0])
        # entries of an expanded tensor share memory
        if in_place and 0 not in piece.stride():
            yield piece.mul_(slope)
        else:
            yield piece * slope


def _of_one_dtype(
    extension: ModuleExtension, function: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap a function: cast its tensors to one dtype, at least float32."""
    if isinstance(getattr(extension, "derivatives", None), AnyDtype):
        return function

    def cast(ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any) -> Any:
        given = [backproped] if isinstance(backproped, Tensor) else list(g_out)
        given += [module.input0, *module.parameters(recurse=False)]
        tensors = [t for t in given if isinstance(t, Tensor) and t.is_floating_point()]
        dtype = common_dtype(*tensors)
        if any(t.dtype != dtype for t in tensors):
            module = Cast(module, dtype)
            g_inp, g_out = ([_to(g, dtype) for g in grads] for grads in (g_inp, g_out))
            backproped = _to(backproped, dtype)
        return function(ext, module, g_inp, g_out, backproped)

    return cast


def _to(value: Any, dtype: Any) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) else value
