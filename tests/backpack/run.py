"""Run an extension on a small model, and the reference for the same model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from backpack import backpack, extend
from backpack import extensions as stock
from backpack.core.derivatives.crossentropyloss import CrossEntropyLossDerivatives
from torch import Tensor, nn
from torch.testing import assert_close

from tests.reference import curvature
from tests.strategies import noise_tensor
from tn_extensions import backpack as ours

NAMES = ("KFAC", "KFLR", "KFRA")
APPROX = ("backpack", "expand", "reduce")
BATCH_NORM = nn.modules.batchnorm._BatchNorm
CLASSES = 3
MC_SAMPLES = 2

Factors = dict[str, list[Tensor]]


def extension(module: Any, name: str, **options: Any) -> Any:
    """Stock's extension or ours."""
    if name == "KFAC":
        options["mc_samples"] = MC_SAMPLES
    return getattr(module, name)(**options)


def classifier(*modules: nn.Module, x: Tensor) -> nn.Sequential:
    """Modules with a linear classifier on top, in float64."""
    body = nn.Sequential(*modules, nn.Flatten()).double()
    training = body.training
    with torch.no_grad():
        # running statistics stay as they are
        features = body.eval()(x).shape[1]
    body.train(training)
    return nn.Sequential(*body, nn.Linear(features, CLASSES).double())


def targets(batch_size: int) -> Tensor:
    """Return some labels."""
    return torch.arange(batch_size) % CLASSES


def run(
    model: nn.Module,
    extension: Any,
    x: Tensor,
    y: Tensor | None = None,
    loss: nn.Module | None = None,
    hook: Callable[[nn.Module], None] | None = None,
    use_converter: bool = False,
) -> Factors:
    """Return each parameter's savefield by name, where it has one."""
    y = targets(len(x)) if y is None else y
    criterion = extend(nn.CrossEntropyLoss() if loss is None else loss)
    model = extend(model, use_converter=use_converter)
    with warnings.catch_warnings():
        # the hooks need no gradient of the input
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        warnings.filterwarnings("ignore", "The Kronecker factors stored in the weight")
        torch.manual_seed(1)
        with backpack(extension, extension_hook=hook):
            criterion(model(x), y).backward()
    found = {
        name: getattr(parameter, extension.savefield, None)
        for name, parameter in model.named_parameters()
    }
    return {name: factors for name, factors in found.items() if factors is not None}


def run_copy(model: nn.Module, extension: Any, x: Tensor, **options: Any) -> Factors:
    """Do as :func:`run`, without a trace on the model."""
    return run(copy.deepcopy(model), extension, x, **options)


def assert_same(actual: Factors, wanted: Factors) -> None:
    """Check that names, shapes and values are equal."""
    assert actual.keys() == wanted.keys()
    for name, factors in wanted.items():
        assert_close(actual[name], factors, rtol=1e-10, atol=1e-10, msg=name.__add__)


def assert_as_stock(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    loss: nn.Module | None = None,
) -> None:
    """Check that our default equals stock's extension."""
    wanted = run_copy(model, extension(stock, name), x, y=y, loss=loss)
    assert wanted
    assert_same(run_copy(model, extension(ours, name), x, y=y, loss=loss), wanted)


def mc_hessian(logits: Tensor) -> Tensor:
    """Return KFAC's estimate of the loss Hessian, ``sum_v s s^T``, ``[N, C, N, C]``."""
    criterion: Any = nn.CrossEntropyLoss()
    criterion.input0 = logits
    torch.manual_seed(1)
    derivatives = CrossEntropyLossDerivatives()
    root = derivatives._sqrt_hessian_sampled(criterion, None, None, MC_SAMPLES)
    return torch.einsum("vnc,vmd->ncmd", root, root)


def layer_input(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """Return the input of a layer of the model."""
    found = []
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model(x)
    handle.remove()
    return found[0]


def tail(model: nn.Module, layer: nn.Module, x: Tensor) -> curvature.Function:
    """Return the function from a layer's output to the model's."""

    def replaced(y: Tensor) -> Tensor:
        # which the next module may change in place
        handle = layer.register_forward_hook(lambda *_: y.clone())
        logits = model(x)
        handle.remove()
        return logits

    return replaced


def reference_blocks(
    name: str, model: nn.Module, layer: nn.Module, x: Tensor
) -> Tensor:
    """Compute the GGN by a layer's output, as ``name`` defines it, ``[N, D, D]``.

    A block for each sample; of KFRA, for each the average over all, divided by ``N``.
    """
    logits = model(x)
    y = layer(layer_input(model, layer, x))
    if name == "KFAC":
        hessian = mc_hessian(logits)
    else:
        criterion, labels = nn.CrossEntropyLoss(), targets(len(x))
        hessian = curvature.loss_hessian(lambda z: criterion(z, labels), logits)
    if name != "KFRA":
        return curvature.ggn_blocks(tail(model, layer, x), y, hessian)
    # of a chain of modules
    modules = list(model.children())
    rest = modules[modules.index(layer) + 1 :]
    block = curvature.averaged_block(rest, y, torch.einsum("ncnd->cd", hessian))
    return block.expand(len(y), -1, -1) / len(y)


def reference(
    name: str, model: nn.Module, layer: nn.Module, x: Tensor, approx: str = "backpack"
) -> dict[str, list[Tensor]]:
    """Compute the savefields of a layer's parameters, as ``name`` defines them."""
    blocks = reference_blocks(name, model, layer, x)
    z = layer_input(model, layer, x)
    if isinstance(layer, BATCH_NORM):
        scale, shift = curvature.scale_and_shift_blocks(layer, z, blocks)
        return {"weight": [scale], "bias": [shift]}
    factors = curvature.expected(layer, z, blocks.sum(0), approx)
    return {"weight": factors, "bias": factors[:1]}


def assert_as_reference(
    name: str,
    model: nn.Module,
    x: Tensor,
    approx: str = "backpack",
    use_converter: bool = False,
) -> None:
    """Check that the factors of all layers equal those from Jacobians."""
    own = extension(ours, name, approx=approx)
    actual = run_copy(model, own, x, use_converter=use_converter)
    # BatchNorm's running statistics change
    model = copy.deepcopy(model).requires_grad_(False)
    layers = {key: layer for key, layer in model.named_modules() if is_layer(layer)}
    assert layers
    for key, layer in layers.items():
        wanted = reference(name, model, layer, x, approx)
        at = f"{key} {layer} {approx} "
        close: Any = {"rtol": 1e-9, "atol": 1e-12, "msg": at.__add__}
        for parameter, _ in layer.named_parameters():
            found = actual[f"{key}.{parameter}"]
            assert_close(found, wanted[parameter], **close)


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module is a ``Linear``, a convolution or an affine BatchNorm."""
    if isinstance(module, BATCH_NORM):
        return module.affine
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear)


def images(*shape: int) -> Tensor:
    """Return a batch."""
    return noise_tensor(shape)
