"""Cases of the support table: models with one layer under test each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.backpack.run import classifier, images
from tests.backpack.test_factors import Upsample
from tests.backpack.test_models import with_statistics
from tests.strategies import MODULES

SIZES = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}
SMALL = {1: (4,), 2: (3, 2), 3: (2, 3, 2)}
"""For transposed convolutions, whose outputs are larger."""


class Case(NamedTuple):
    """A model and its input.

    Args:
        model: Ends in a classifier.
        x: A batch.
        twin: A chain that computes the same, for references that need one.
        use_converter: Whether BackPACK is to convert the model, as branches need it.
        autocast: Whether the forward pass runs under autocast to bfloat16.
    """

    model: nn.Module
    x: Tensor
    twin: nn.Module | None = None
    use_converter: bool = False
    autocast: bool = False


Change = Callable[[Case], Case]
Variants = dict[str, Callable[[], Case]]
"""By the number of dimensions, ``"1d"`` and so on; or one without a name."""


def unchanged(case: Case) -> Case:
    """Return the case itself."""
    return case


def channels_last(case: Case) -> Case:
    """Change the memory format of the batch."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return case._replace(x=case.x.to(memory_format=formats[case.x.dim()]))


def one_sample(case: Case) -> Case:
    """Keep only the first sample."""
    return case._replace(x=case.x[:1])


def frozen(case: Case) -> Case:
    """Freeze the kernel of the layer under test."""
    layer: Any = case.model.get_submodule("1")
    layer.weight.requires_grad_(False)
    return case


def subclassed(case: Case) -> Case:
    """Give the layer under test a user's subclass with the same forward pass."""
    layer = case.model.get_submodule("1")
    layer.__class__ = type("Own", (type(layer),), {})
    return case


def autocast(case: Case) -> Case:
    """Use a model in float32 under autocast."""
    return case._replace(model=case.model.float(), x=case.x.float(), autocast=True)


def sized(by_position: bool, case: Case) -> Case:
    """Pass the output size to forward instead of the output padding."""
    twin: Any = case.model
    model: Any = Upsample(*copy.deepcopy(twin))
    size = twin[:2](case.x).shape[2:]
    model[1].output_padding = (0,) * len(size)
    model.size, model.by_position = list(size), by_position
    return case._replace(model=model, twin=twin)


def evaluating(case: Case) -> Case:
    """Add BatchNorm with fixed statistics."""
    return case._replace(model=with_statistics(case.model).eval())


def training(case: Case) -> Case:
    """Add BatchNorm with the batch's statistics."""
    return case._replace(model=with_statistics(case.model).train())


class Branched(nn.Sequential):
    """Adds the second module's output to its input."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, *others = self
        x = first(x)
        x = second(x) + x
        for module in others:
            x = module(x)
        return x


def branched(case: Case) -> Case:
    """Make the layer under test one of two branches; the other is the identity."""
    modules: Any = case.model
    return case._replace(model=Branched(*modules), use_converter=True)


class Row(NamedTuple):
    """A line of the table.

    Args:
        options: Hyper-parameters of the layer under test, and ``sizes`` of its input;
            tuples are cut to the number of dimensions.
        change: What is changed about the case.
        num_dims: The numbers of dimensions that ``torch.nn`` can express it in.
        family: The layer's class, without the number of dimensions.
    """

    options: dict[str, Any]
    change: Change = unchanged
    num_dims: tuple[int, ...] = (1, 2, 3)
    family: str = ""


DEPTHWISE = {"out_channels": 4, "groups": 2}
GROUPS = {"in_channels": 4, "out_channels": 4, "groups": 2}
OF_BOTH = {
    "plain": Row({}),
    "stride": Row({"stride": 2}),
    "dilation": Row({"dilation": 2}),
    "zero padding": Row({"padding": 1}),
    "groups": Row(GROUPS),
    "depthwise": Row(DEPTHWISE),
    "unequal per dimension": Row(
        {
            "kernel_size": (3, 1, 2),
            "stride": (1, 2, 1),
            "padding": (1, 0, 1),
            "dilation": (1, 1, 2),
        },
        num_dims=(2, 3),
    ),
    "without bias": Row({"bias": False}),
    "frozen weight": Row({}, frozen),
    "subclass, same forward": Row({}, subclassed),
    "channels-last input": Row({}, channels_last, (2, 3)),
    "batch of one": Row({}, one_sample),
    "bfloat16 autocast": Row({}, autocast),
}
CONVOLUTION = OF_BOTH | {
    "`padding='valid'`": Row({"padding": "valid"}),
    "`padding='same'`, even sides": Row({"padding": "same", "kernel_size": 3}),
    "`padding='same'`, uneven sides": Row({"padding": "same"}),
    **{
        f"`padding_mode='{mode}'`": Row({"padding": 1, "padding_mode": mode})
        for mode in ("reflect", "replicate", "circular")
    },
}
# padded so that the kernel reaches what the output padding adds
PADDED = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
TRANSPOSED = OF_BOTH | {
    "`output_padding`": Row(PADDED),
    "`output_size` by keyword": Row(PADDED, partial(sized, False)),
    "`output_size` by position": Row(PADDED, partial(sized, True)),
}

POOL = {"kernel_size": 2}
WIDE = {"kernel_size": 3, "stride": 2, "padding": 1}
BATCH_NORM = {"num_features": 2}
POOLING = {
    "MaxPool": Row(POOL, family="MaxPool"),
    "MaxPool, stride and padding": Row(WIDE, family="MaxPool"),
    "MaxPool, dilation": Row({**POOL, "dilation": 2}, family="MaxPool"),
    "MaxPool, `ceil_mode`": Row({**POOL, "ceil_mode": True}, family="MaxPool"),
    "AvgPool": Row(POOL, family="AvgPool"),
    "AvgPool, stride and padding": Row(WIDE, family="AvgPool"),
    "AvgPool, padding, `count_include_pad=False`": Row(
        {**WIDE, "count_include_pad": False}, family="AvgPool"
    ),
    "AvgPool, `ceil_mode`": Row({**POOL, "ceil_mode": True}, family="AvgPool"),
    "AvgPool, `divisor_override`": Row(
        {**POOL, "divisor_override": 3}, num_dims=(2, 3), family="AvgPool"
    ),
    "AdaptiveAvgPool, even": Row(
        {"output_size": 2, "sizes": (6, 4, 2)}, family="AdaptiveAvgPool"
    ),
    "AdaptiveAvgPool, uneven": Row({"output_size": 2}, family="AdaptiveAvgPool"),
    "AdaptiveMaxPool": Row({"output_size": 2}, family="AdaptiveMaxPool"),
}
OTHERS = {
    "BatchNorm, eval mode": Row(BATCH_NORM, evaluating, family="BatchNorm"),
    "BatchNorm, train mode": Row(BATCH_NORM, training, family="BatchNorm"),
    "branches, with the converter": Row(
        {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1},
        branched,
        family="Conv",
    ),
}
ACTIVATIONS = ("Identity", "LeakyReLU", "ELU", "SELU", "LogSigmoid")


def cut(options: dict[str, Any], num_dims: int) -> dict[str, Any]:
    """Tuples for so many dimensions."""
    return {
        key: value[:num_dims] if isinstance(value, tuple) else value
        for key, value in options.items()
    }


def model_with(layer: nn.Module, channels: int, x: Tensor) -> nn.Module:
    """Make a model that backpropagates through a layer to a convolution."""
    first = MODULES[False][x.dim() - 3](x.shape[1], channels, 1)
    return classifier(first, layer, nn.Sigmoid(), x=x)


def of_convolution(row: Row, transposed: bool, num_dims: int) -> Case:
    """Make a case with a convolution under test."""
    torch.manual_seed(0)
    options = {"in_channels": 2, "out_channels": 3, "kernel_size": 2}
    options |= cut(row.options, num_dims)
    layer = MODULES[transposed][num_dims - 1](**options)
    x = images(2, 2, *(SMALL if transposed else SIZES)[num_dims])
    return row.change(Case(model_with(layer, options["in_channels"], x), x))


def of_other(row: Row, num_dims: int) -> Case:
    """Make a case with another layer under test, whose class name has a dimension."""
    torch.manual_seed(0)
    options = cut(row.options, num_dims)
    x = images(3, 2, *options.pop("sizes", SIZES[num_dims]))
    layer = getattr(nn, f"{row.family}{num_dims}d")(**options)
    return row.change(Case(model_with(layer, 2, x), x))


def of_activation(name: str) -> Case:
    """Make a case with an elementwise layer under test."""
    torch.manual_seed(0)
    x = images(2, 2, *SIZES[2])
    return Case(model_with(getattr(nn, name)(), 2, x), x)


def of_sequence() -> Case:
    """Linear layers that act on the last of several axes."""
    torch.manual_seed(0)
    body = nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)
    x = images(2, 3, 4)
    return Case(classifier(*body, x=x), x)


def tables() -> dict[str, dict[str, Variants]]:
    """By table and line: the cases, which are made when they are called."""
    result: dict[str, dict[str, Variants]] = {
        title: {
            name: {
                f"{n}d": partial(of_convolution, row, transposed, n)
                for n in row.num_dims
            }
            for name, row in rows.items()
        }
        for title, rows, transposed in (
            ("Convolutions", CONVOLUTION, False),
            ("Transposed convolutions", TRANSPOSED, True),
        )
    }
    for title, rows in (("Pooling", POOLING), ("Other layers", OTHERS)):
        result[title] = {
            name: {f"{n}d": partial(of_other, row, n) for n in row.num_dims}
            for name, row in rows.items()
        }
    result["Other layers"] |= {
        **{name: {"": partial(of_activation, name)} for name in ACTIVATIONS},
        "Linear, on sequences": {"": of_sequence},
    }
    return result
