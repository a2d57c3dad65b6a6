"""BackPACK's products with curvature matrices, by our derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backpack import backpack, extend
from backpack import extensions as stock
from backpack.extensions.curvmatprod.ggnmp.conv2d import GGNMPConv2d
from backpack.extensions.curvmatprod.ggnmp.ggnmpbase import GGNMPBase
from backpack.extensions.curvmatprod.hmp.conv2d import HMPConv2d
from backpack.extensions.curvmatprod.hmp.hmpbase import HMPBase
from backpack.extensions.curvmatprod.pchmp.conv2d import PCHMPConv2d
from backpack.extensions.curvmatprod.pchmp.pchmpbase import PCHMPBase
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, jvp, vjp
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.strategies import noise_tensor
from tn_extensions import memory_budget
from tn_extensions.backpack.derivatives import (
    BatchNormDerivatives,
    ConvDerivatives,
    LinearModuleDerivatives,
    MaxPoolDerivatives,
)

OF_PARAMETERS = {"GGNMP": GGNMPConv2d, "HMP": HMPConv2d, "PCHMP": PCHMPConv2d}
OTHERS = {"GGNMP": GGNMPBase, "HMP": HMPBase, "PCHMP": PCHMPBase}


def extension_of(name: str, model: nn.Sequential) -> Any:
    """BackPACK's extension, with our derivatives of convolutions, norms and pools."""
    result = getattr(stock, name)()
    for module in model:
        kind = type(module)
        module_extension: Any
        if isinstance(module, nn.modules.conv._ConvNd):
            module_extension = OF_PARAMETERS[name]()
            module_extension.derivatives = ConvDerivatives()
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module_extension = OF_PARAMETERS[name]()
            module_extension.derivatives = BatchNormDerivatives()
        elif "MaxPool" in kind.__name__:
            module_extension = OTHERS[name](MaxPoolDerivatives())
        elif "Pool" in kind.__name__:
            module_extension = OTHERS[name](LinearModuleDerivatives())
        else:
            continue
        result.set_module_extension(kind, module_extension, overwrite=True)
    return result


def chain(num_dims: int, act: nn.Module) -> tuple[nn.Sequential, Tensor]:
    """All of ours, with hyper-parameters that stock refuses or gets wrong."""
    i = num_dims - 1
    x = images(3, 2, *(6, 5, 4)[:num_dims])
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[i](4)
    model = classifier(
        (nn.Conv1d, nn.Conv2d, nn.Conv3d)[i](
            2, 4, 2, groups=2, padding="same", padding_mode="circular"
        ),
        norm,
        act,
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[i](2, 2, ceil_mode=True),
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[i](
            4, 2, 2, stride=2, output_padding=1
        ),
        (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[i](
            2, padding=1, count_include_pad=False
        ),
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[i](3),
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[i](2),
        x=x,
    )
    with torch.no_grad():
        norm.running_mean.copy_(noise_tensor((4,)))
        norm.running_var.copy_(0.5 + noise_tensor((4,)).abs())
        norm.weight.copy_(noise_tensor((4,)))
    return model, x


def reference(model: nn.Module, x: Tensor, name: str, gauss_newton: bool) -> Tensor:
    """Compute a parameter's block of the GGN or of the Hessian."""
    value = dict(model.named_parameters())[name].detach()

    def output(flat: Tensor) -> Tensor:
        changed = {name: flat.view_as(value)}
        buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
        result: Tensor = functional_call(model, (changed, buffers), (x,))
        return result

    def loss(z: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, targets(len(x)))

    flat = value.flatten()
    if not gauss_newton:
        return hessian(lambda p: loss(output(p)))(flat)
    j = jacrev(output)(flat)
    curvature = hessian(loss)(output(flat))
    return torch.einsum("nci,ncmd,mdj->ij", j, curvature, j)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("GGNMP", False),
        ("GGNMP", True),
        ("HMP", False),
        ("HMP", True),
        ("PCHMP", False),
    ],
)
def test_products(name: str, training: bool, num_dims: int) -> None:
    # PCHMP clips residuals, of which piecewise linear modules have none
    act = nn.ReLU() if name == "PCHMP" else nn.Sigmoid()
    model, x = chain(num_dims, act)
    model.train(training)
    wanted = {
        key: reference(model, x, key, gauss_newton=name != "HMP")
        for key, _ in model.named_parameters()
    }
    extension = extension_of(name, model)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    with backpack(extension):
        criterion(model(x), targets(len(x))).backward()
    for key, parameter in model.named_parameters():
        tangents = noise_tensor((2, *parameter.shape))
        product = getattr(parameter, extension.savefield)(tangents)
        expected = tangents.flatten(1) @ wanted[key]
        assert_close(
            product.flatten(1),
            expected,
            rtol=1e-8,
            atol=1e-11,
            msg=f"{key} ".__add__,
        )


LAYERS = {
    "groups": nn.Conv2d(4, 6, (2, 3), groups=2, padding=1, padding_mode="circular"),
    "depthwise": nn.Conv1d(3, 6, 3, stride=2, groups=3),
    "transposed": nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, output_padding=1),
}


@pytest.mark.parametrize("budget", [2**28, 1000])
@pytest.mark.parametrize("case", LAYERS)
def test_products_with_several_vectors(case: str, budget: int) -> None:
    """Each vector's as automatic differentiation has it, at once or in pieces."""
    layer: Any = LAYERS[case].double()
    x = noise_tensor((3, layer.in_channels, *[5] * (layer.weight.dim() - 2)))
    layer.input0, layer.output = x, layer(x)
    weight = layer.weight.detach()

    def output(weight: Tensor) -> Tensor:
        result: Tensor = functional_call(layer, {"weight": weight}, (x,))
        return result

    kernels = noise_tensor((4, *weight.shape))
    vectors = noise_tensor((4, *layer.output.shape))
    derivatives = ConvDerivatives()
    with memory_budget(budget):
        forward = derivatives._weight_jac_mat_prod(layer, (), (), kernels)
        back = derivatives._weight_jac_t_mat_prod(layer, (), (), vectors)
    pull = vjp(output, weight)[1]
    changes = [jvp(output, (weight,), (kernel,))[1] for kernel in kernels]
    assert_close(forward, torch.stack(changes))
    assert_close(back, torch.stack([pull(vector)[0] for vector in vectors]))


def test_positive_curvature_refuses_statistics_of_the_batch() -> None:
    model, x = chain(2, nn.ReLU())
    extension = extension_of("PCHMP", model.train())
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    with backpack(extension), pytest.raises(ValueError, match="linear or element-wise"):
        criterion(model(x), targets(len(x))).backward()
