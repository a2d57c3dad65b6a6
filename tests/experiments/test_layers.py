"""The layer tables are the networks' layers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from experiments.layers import LAYERS, Layer, select, smallest_of_each_family


def _key(module: Any, input_size: tuple[int, ...]) -> tuple[object, ...]:
    return (
        type(module).__name__,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        input_size,
    )


def _table(network: str) -> Counter[tuple[object, ...]]:
    table: Counter[tuple[object, ...]] = Counter()
    for layer in LAYERS:
        if layer.network == network:
            table[_key(layer.make_module(device="meta"), layer.input_size)] += (
                layer.count
            )
    return table


@pytest.mark.parametrize(
    ("network", "torchvision_name", "depthwise_only"),
    [
        ("resnet18", "resnet18", False),
        ("mobilenetv2", "mobilenet_v2", True),
        ("convnextbase", "convnext_base", False),
    ],
)
def test_tables_are_torchvisions_models(
    network: str, torchvision_name: str, depthwise_only: bool
) -> None:
    models = pytest.importorskip("torchvision.models")
    seen: Counter[tuple[object, ...]] = Counter()

    def count(module: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        if module.groups > 1 or not depthwise_only:
            seen[_key(module, tuple(inputs[0].shape[2:]))] += 1

    with torch.device("meta"), torch.no_grad():
        model = getattr(models, torchvision_name)().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(count)
        model(torch.zeros(1, 3, 224, 224))
    assert _table(network) == seen


def test_all_cnn_c_is_a_chain_of_layers() -> None:
    layers = [layer for layer in LAYERS if layer.network == "allcnnc"]
    convs = [layer.conv for layer in layers]
    assert convs[0].in_channels == 3
    assert convs[0].input_size == (32, 32)
    # two strided layers, the unpadded one, then the classifier
    assert [c.output_size[0] for c in convs] == [32, 32, 16, 16, 16, 8, 6, 6, 6]
    assert convs[-1].out_channels == 100
    for before, after in zip(convs, convs[1:], strict=False):
        assert before.out_channels == after.in_channels
        assert before.output_size == after.input_size


def test_names_are_unique() -> None:
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layer_has_the_traits_of_its_family(layer: Layer) -> None:
    conv = layer.conv
    assert layer.input_shape(2) == (2, conv.in_channels, *layer.input_size)
    depthwise = conv.groups == conv.in_channels > 1
    assert depthwise == (layer.family == "depthwise")
    assert conv.transposed == (layer.family == "transposed")
    assert (max(conv.dilation) > 1) == (layer.family == "dilated")
    if layer.family in ("3x3 stride 1", "3x3 stride 2"):
        assert conv.kernel_size == (3, 3)
        assert conv.stride == (int(layer.family[-1]),) * 2


def test_select_filters_by_name() -> None:
    assert select(None) == LAYERS
    assert {layer.network for layer in select(["resnet18"])} == {"resnet18"}
    with pytest.raises(ValueError, match="no layer's name contains"):
        select(["no such layer"])


def test_quick_choice_has_every_family_once() -> None:
    families = [layer.family for layer in smallest_of_each_family()]
    assert sorted(families) == sorted({layer.family for layer in LAYERS})
