"""Select parameters of a model, and check the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tn_extensions.errors import describe

Params = Iterable[str | Tensor] | None
"""Parameters or their names. ``None``: all that are trained."""


def trained_parameters(
    owner: str, model: nn.Module, params: Params
) -> dict[str, Tensor]:
    """Find the names of parameters, and leave out frozen ones.

    Args:
        owner: Name of the caller, for errors.
        model: The model.
        params: The parameters.

    Returns:
        The parameters by name.

    Raises:
        TypeError: If ``model`` is not a module, or ``params`` is a single name or
            tensor.
        ValueError: If a parameter is not the model's or has no shape yet, or if none
            requires a gradient.
        NotImplementedError: If a parameter is complex.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(describe(owner, "model", "be a torch.nn.Module", kind))
    chosen: dict[str, Tensor] = dict(model.named_parameters())
    if params is not None:
        chosen = _chosen(owner, model, params)
    found = {name: p for name, p in chosen.items() if p.requires_grad}
    for name, parameter in found.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            remedy = "Pass a batch through the model first"
            raise ValueError(describe(owner, name, "have a shape", "none", remedy))
        if parameter.is_complex():
            remedy, found_type = "Leave it out of params", parameter.dtype
            raise NotImplementedError(
                describe(owner, name, "be real", found_type, remedy)
            )
    if not found:
        argument = "model" if params is None else "params"
        rule = "have at least one parameter that requires a gradient"
        raise ValueError(describe(owner, argument, rule, "none"))
    return found


def _chosen(owner: str, model: nn.Module, params: Any) -> dict[str, Tensor]:
    if isinstance(params, (str, Tensor)):
        rule, kind = "be an iterable of parameters or names", type(params).__name__
        raise TypeError(describe(owner, "params", rule, f"a single {kind}"))
    # a shared parameter has several names: use the first one
    all_named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, parameter in all_named.items():
        first.setdefault(id(parameter), name)
    found: dict[str, Tensor] = {}
    for position, each in enumerate(params):
        own = all_named.get(each) if isinstance(each, str) else each
        if own is None or id(own) not in first:
            rule = "be a parameter of the model, or its name"
            text = repr(each) if isinstance(each, str) else type(each).__name__
            raise ValueError(describe(owner, f"params[{position}]", rule, text))
        found[first[id(own)]] = own
    return found


def check_independent(owner: str, model: nn.Module) -> None:
    """Check that data do not depend on each other in a model.

    Args:
        owner: Name of the caller, for errors.
        model: The model.

    Raises:
        ValueError: If a batch normalisation uses the statistics of the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (
            module.training or module.running_mean is None
        ):
            argument, rule = f"layer {name!r}", "process each datum independently"
            found = f"a {type(module).__name__} with statistics of the batch"
            remedy = "Call model.eval()"
            raise ValueError(describe(owner, argument, rule, found, remedy))
