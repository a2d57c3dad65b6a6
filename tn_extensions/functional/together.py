"""Evaluate several quantities of a layer jointly, with common parts only once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from tn_extensions import quantities as networks_of
from tn_extensions.compiler.joint import JointPlan, joint_plan
from tn_extensions.compiler.tracing import is_recorded
from tn_extensions.conv import Conv
from tn_extensions.errors import describe
from tn_extensions.functional import bias, factors, gradients, linear
from tn_extensions.functional.checks import (
    check_conv,
    check_input,
    check_like,
    check_vectors,
)
from tn_extensions.functional.evaluate import (
    network,
    observed,
    prepare,
    result_dtype,
)
from tn_extensions.network import Affine, Operand, TensorNetwork
from tn_extensions.network.index import prime
from tn_extensions.network.nodes import Node
from tn_extensions.quantities import Quantity

Asked = str | tuple[str, Mapping[str, Any]]
"""Name of a quantity, or a pair of the name and options of its function."""

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        gradients.per_sample_grad,
        gradients.per_sample_grad_norm,
        gradients.ggn_diagonal,
        gradients.ggn_gram,
        linear.weight_vjp,
        bias.bias_vjp,
        bias.bias_per_sample_grad,
        bias.bias_per_sample_grad_norm,
        bias.bias_ggn_diagonal,
        bias.bias_ggn_gram,
        factors.kfac_expand,
        factors.kfac_reduce,
        factors.gradient_factor_expand,
        factors.gradient_factor_reduce,
    )
}
_FACTORS = tuple(name for name in _FUNCTIONS if hasattr(factors, name))


def together(
    *quantities: Asked,
    conv: Conv,
    x: Tensor | None = None,
    g: Tensor | None = None,
    S: Tensor | None = None,
) -> list[Tensor]:
    """Evaluate several quantities of a layer jointly.

    Networks may have a common part: norms, diagonals and Gram matrices are all computed
    from per-sample gradients. Such a part is evaluated once if this is faster by the
    planner's estimate or measurement, and in chunks if it exceeds the memory budget.
    The input is padded once. Kronecker factors are evaluated separately. If a compiler
    records the call, all quantities are evaluated separately, each by its operator. Not
    differentiable: all tensors are detached.

    Args:
        *quantities: Names of functions in :mod:`tn_extensions.functional`, or pairs of
            a name and options, such as ``("ggn_diagonal", {"per_sample": True})``.
        conv: Hyper-parameters.
        x: Input, ``[N, C_in, I1, ...]``, if a quantity needs it.
        g: Gradients with respect to the output, ``[(V,) N, C_out, O1, ...]``, if a
            quantity needs them.
        S: Square root of the loss's Hessian, ``[V, N, C_out, O1, ...]``, if a quantity
            needs it. Default: ``g``; ``ggn_diagonal`` is then the sum of squared
            gradients.

    Returns:
        The results of the functions, in the order of the quantities.

    Raises:
        TypeError: If an argument is of the wrong kind or missing, or an option is
            unknown.
        ValueError: If a quantity is unknown, or shapes, dtypes or devices do not fit.

    >>> x, g, conv = torch.ones(2, 1, 3), torch.ones(2, 1, 2), Conv.make(1, 1, 2, 3)
    >>> asked = "per_sample_grad", "per_sample_grad_norm"
    >>> gradients, norms = together(*asked, x=x, g=g, conv=conv)
    >>> norms
    tensor([8., 8.])
    """
    asked = _asked("together", quantities, conv, {"x": x, "g": g, "S": S})
    if is_recorded():
        return [
            _by_itself(name, options, conv, {"x": x, "g": g, "S": S})
            for name, options in asked
        ]
    with torch.no_grad():
        given = conv
        operands, conv = _prepared(asked, conv, {"x": x, "g": g, "S": S})
        joint = {
            number: _network(name, options, operands, conv)
            for number, (name, options) in enumerate(asked)
            if name not in _FACTORS
        }
        title = " + ".join(dict.fromkeys(asked[number][0] for number in joint))
        found = _run(list(dict.fromkeys(joint.values())), operands, title, given)
        results = []
        for number, (name, options) in enumerate(asked):
            if number in joint:
                result = found[joint[number]]
                # results must not share memory
                is_again = joint[number] in [joint.get(k) for k in range(number)]
                results.append(result.clone() if is_again else result)
            else:
                own = {k: operands[k] for k in _operands(name) if k in operands}
                results.append(_FUNCTIONS[name](**own, conv=conv, **options))
    return results


def plan_together(
    *quantities: Asked,
    conv: Conv,
    x: Tensor | None = None,
    g: Tensor | None = None,
    S: Tensor | None = None,
) -> JointPlan:
    """Plan the joint evaluation of several quantities; print the plan to read it.

    Args:
        *quantities: As for :func:`together`, except Kronecker factors, which are
            planned separately.
        conv: As for :func:`together`.
        x: As for :func:`together`; only its shape, dtype and device matter.
        g: As for :func:`together`.
        S: As for :func:`together`.

    Returns:
        The plan.

    Raises:
        TypeError: As for :func:`together`.
        ValueError: As for :func:`together`, or if a quantity is a Kronecker factor.
    """
    asked = _asked("plan_together", quantities, conv, {"x": x, "g": g, "S": S})
    for name, _ in asked:
        if name in _FACTORS:
            rule = f"not be a factor ({', '.join(map(repr, _FACTORS))})"
            remedy = "Plan it with functional.plan"
            raise ValueError(
                describe("plan_together", "quantities", rule, repr(name), remedy)
            )
    operands, conv = _prepared(asked, conv, {"x": x, "g": g, "S": S})
    found = [_network(name, options, operands, conv) for name, options in asked]
    return _joint_plan(list(dict.fromkeys(found)), operands)


def _by_itself(
    name: str, options: Mapping[str, Any], conv: Conv, given: Mapping[str, Any]
) -> Tensor:
    """Evaluate a quantity by its function, with only those tensors that it takes."""
    own = {key: given[key] for key in _operands(name)}
    if "S" in own and own["S"] is None:
        g = given["g"]
        own["S"] = g if g.dim() == conv.num_dims + 3 else g[None]
    own = {key: tensor.detach() for key, tensor in own.items()}
    return _FUNCTIONS[name](**own, conv=conv, **options)


def _joint_plan(
    networks: list[TensorNetwork], operands: Mapping[str, Tensor]
) -> JointPlan:
    like = next(iter(operands.values()))
    return joint_plan(networks, like.dtype, like.device.type)


def _run(
    networks: list[TensorNetwork],
    operands: Mapping[str, Tensor],
    title: str,
    conv: Conv,
) -> dict[TensorNetwork, Tensor]:
    like = next(iter(operands.values()), None)
    if like is None or not networks:
        return {}
    if any(0 in one.sizes.values() for one in networks):  # no data, or no output
        return {one: like.new_zeros(one.shape) for one in networks}
    autocast = torch.autocast(like.device.type, enabled=False)
    with observed(title, conv, like), autocast:
        found = _joint_plan(networks, operands).run(operands)
    return {
        one: result.contiguous() for one, result in zip(networks, found, strict=True)
    }


def _prepared(
    asked: Sequence[tuple[str, Any]], conv: Conv, given: Mapping[str, Tensor | None]
) -> tuple[dict[str, Tensor], Conv]:
    """Convert the needed tensors to the result's dtype, and pad unless with zeros."""
    needed = {"g", *(operand for name, _ in asked for operand in _operands(name))}
    operands = {
        key: tensor.detach()
        for key, tensor in given.items()
        if tensor is not None and key in needed
    }
    if given["S"] is given["g"]:
        operands.pop("S", None)
    for name, tensor in operands.items():
        is_input = name == "x"
        wide = tensor.to(result_dtype(tensor))
        operands[name] = prepare(tensor, conv) if is_input else wide
    pads = conv.pads_explicitly and "x" in operands and operands["x"].numel()
    return operands, conv.explicitly_padded if pads else conv


def _network(
    name: str, options: Mapping[str, Any], operands: Mapping[str, Tensor], conv: Conv
) -> TensorNetwork:
    """Define the network of a quantity for the operands that are given."""
    takes_root = "S" in _operands(name)
    vectors = operands["S" if takes_root and "S" in operands else "g"]
    has_axis = vectors.dim() == conv.num_dims + 3
    arguments = dict(options)
    if "num_vectors" in _parameters(getattr(networks_of, name)):
        number = len(vectors) if has_axis else 1 if takes_root else None
        arguments["num_vectors"] = number
    batch_size = vectors.shape[-conv.num_dims - 2]
    found = network(cast(Quantity, name), conv, batch_size, **arguments)
    if takes_root and "S" in operands:
        return _of_roots(found)
    return found if has_axis or not takes_root else _of_one_vector(found)


@lru_cache(maxsize=512)
def _of_roots(defined: TensorNetwork) -> TensorNetwork:
    """Call the vectors ``S`` in a network."""
    return _map(defined, lambda node: replace(node, name="S"))


@lru_cache(maxsize=512)
def _of_one_vector(defined: TensorNetwork) -> TensorNetwork:
    """Remove the axis of vectors from a network's gradients."""
    single = {"v", prime("v")}

    def of_gradients(node: Operand) -> Operand:
        for index in single & {*node.indices}:
            node = node.substitute(index, Affine(()))
        return replace(node, axes=node.axes[1:])

    output = (tuple(j for j in axis if j not in single) for axis in defined.output)
    return _map(defined, of_gradients).replace(output=output)


def _map(defined: TensorNetwork, change: Callable[[Operand], Operand]) -> TensorNetwork:
    """Change the operands that are vectors, which networks call ``g``."""

    def changed(node: Node) -> Node:
        is_vectors = isinstance(node, Operand) and node.name == "g"
        return change(cast(Operand, node)) if is_vectors else node

    output = defined.output
    return TensorNetwork.unchecked(map(changed, defined.nodes), output, defined.sizes)


# -- arguments


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _operands(name: str) -> list[str]:
    return [one for one in ("x", "g", "S") if one in _parameters(_FUNCTIONS[name])]


def _asked(
    owner: str,
    asked: tuple[Asked, ...],
    conv: Conv,
    given: Mapping[str, Tensor | None],
) -> list[tuple[str, dict[str, Any]]]:
    """Check quantities and tensors; return names with options."""
    found = []
    for one in asked:
        name, options = one if isinstance(one, tuple) and len(one) == 2 else (one, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            rule = "be names, or pairs of a name and options"
            raise TypeError(describe(owner, "quantities", rule, repr(one)))
        if name not in _FUNCTIONS:
            rule = f"be among {', '.join(map(repr, _FUNCTIONS))}"
            raise ValueError(describe(owner, "quantities", rule, repr(name)))
        found.append((name, dict(options)))
        _check_options(owner, name, options)
        _check_operands(owner, name, conv, given)
    return found


def _check_options(owner: str, name: str, options: Mapping[str, Any]) -> None:
    """Check that options belong to a quantity."""
    parameters = _parameters(_FUNCTIONS[name])
    known = [p for p in parameters if p not in ("x", "g", "S", "conv", "out")]
    for option, value in options.items():
        if option not in known:
            rule = f"be left out: {name!r} takes {known or 'no options'}"
            raise TypeError(describe(owner, option, rule, repr(value)))


def _check_operands(
    owner: str, name: str, conv: Conv, given: Mapping[str, Tensor | None]
) -> None:
    """Check that no tensor is missing, and that all fit."""
    takes = _operands(name)
    x = given["x"] if "x" in takes else None
    argument = "S" if "S" in takes and given["S"] is not None else "g"
    vectors = given[argument]
    if "x" in takes:
        if x is None:
            rule = f"be given for {name!r}"
            raise TypeError(describe(owner, "x", rule, None))
        check_input(owner, x, conv)
    if takes != ["x"]:
        if vectors is None:
            rule = f"be given for {name!r}"
            raise TypeError(describe(owner, argument, rule, None))
        leading = (1,) if name.endswith("_vjp") else (2,) if argument == "S" else (1, 2)
        number = None if x is None else len(x)
        check_conv(owner, conv)
        check_vectors(owner, vectors, conv, argument, leading, number)
        if x is not None:
            check_like(owner, argument, vectors, x.dtype, x)
