"""Module extensions, made to take square roots in pieces and tensors of any dtype."""

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
    """A copy of a module extension that does the same to what ours backpropagate.

    Args:
        extension: Of BackPACK, of ours, or a user's own.
        is_users: Whether it is a user's own.

    Returns:
        One that is given a square root's pieces in turn, and whose module has tensors
        of one dtype where autocast left several.
    """
    twin: Any = copy(extension)
    takes_columns = getattr(extension, "takes_columns", False)
    # nothing else says which of its methods are of parameters
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
    # all of ours and of BackPACK backpropagate the same to the same
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
    """A parameter's quantity; a sum over columns piece by piece."""
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
        if backproped.shares_memory(result):  # which may be overwritten
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
    """What arrives at the module's input; once for all extensions that share it."""
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
    """Apply a module's transposed Jacobian to one piece after the other."""
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
    """The same where the Jacobian is diagonal: in place if nobody else has the pieces.

    That saves the time to get new memory, most of what a product in itself takes.
    """
    in_place = columns.is_alone
    slope: Tensor | None = None
    for piece in columns.take():
        if slope is None:
            cast = Cast(module, piece.dtype)
            slope = derivatives.df(cast, g_inp, g_out, ext.get_subsampling())
            slope = laid_out_like(slope.to(piece.dtype), piece[0])
        # of an expanded tensor, several entries are in one place
        if in_place and 0 not in piece.stride():
            yield piece.mul_(slope)
        else:
            yield piece * slope


def _of_one_dtype(
    extension: ModuleExtension, function: Callable[..., Any]
) -> Callable[..., Any]:
    """The function, given tensors of one dtype where they are of several or half."""
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
