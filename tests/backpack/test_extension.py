"""Our extensions accept or refuse: with one line of message, and nothing saved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backpack import backpack, extend
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack import run
from tests.backpack.run import classifier, images, targets
from tests.backpack.suite import FIRST_ORDER, SUITE, assert_equal, names_with
from tests.messages import assert_in_form
from tn_extensions import backpack as ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`"),
    pytest.mark.filterwarnings("ignore:The Kronecker factors"),
]

EVERY: dict[str, Callable[[Any], Any]] = SUITE | {
    name: lambda module, name=name: run.extension(module, name) for name in run.NAMES
}
SECOND_ORDER = [name for name in EVERY if name not in FIRST_ORDER]


class Twice(nn.Module):
    """A network that uses one convolution twice, between others."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv1d(1, 2, 2), nn.Conv1d(2, 2, 3, padding=1)
        self.between, self.last = between, nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.between(self.twice(self.first(x))))
        return self.last(x.mean(2))


def backward(
    model: nn.Module, *extensions: Any, x: Tensor, **options: Any
) -> nn.Module:
    """Run a backward pass; BackPACK only knows the model's parts."""
    for part in model.children():
        extend(part)
    criterion = extend(nn.CrossEntropyLoss())
    with backpack(*extensions, **options):
        criterion(model(x), targets(len(x))).backward()
    return model


def assert_refused(
    kind: type[Exception], name: str, model: nn.Module, x: Tensor, **options: Any
) -> str:
    """Refused in a line, without a savefield left; the message."""
    extension = EVERY[name](ours)
    with pytest.raises(kind) as caught:
        backward(model, extension, x=x, **options)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message
    assert names_with(model, extension.savefield) == {}
    return message


@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_one_loss_of_two_outputs(name: str) -> None:
    """The loss is used twice, the model once; sums over groups are complete."""
    model, x = classifier(nn.Conv1d(1, 2, 2), x=images(3, 1, 4)), images(3, 1, 4)
    options = {}
    if name == "BatchDotGrad":
        options["param_groups"] = [list(model.parameters())]
    extension = getattr(ours, name)(**options)
    criterion, twin = extend(nn.CrossEntropyLoss()), extend(copy.deepcopy(model))
    single = SUITE[name](ours)
    with backpack(single):
        (2 * criterion(twin(x), targets(3))).backward()
    model = extend(model)
    with backpack(extension):
        outputs = model(x)
        (criterion(outputs, targets(3)) + criterion(outputs, targets(3))).backward()
    wanted = names_with(twin, single.savefield)
    if options:
        total = sum(wanted.values())
        wanted = dict.fromkeys(wanted, total)
    assert_equal(names_with(model, extension.savefield), wanted)


@pytest.mark.parametrize("retain_graph", [False, True])
@pytest.mark.parametrize("name", list(EVERY))
def test_convolution_used_twice(name: str, retain_graph: bool) -> None:
    model, x = Twice(nn.ReLU()).double(), images(3, 1, 5)
    first_order = name in FIRST_ORDER
    if not first_order:  # a chain of modules, which they need
        model = nn.Sequential(model.first, model.twice, model.between, model.twice)
        model = classifier(*model, x=x)
    message = assert_refused(ValueError, name, model, x, retain_graph=retain_graph)
    assert "Conv1d must be used once" in message and "Conv1d(2, 2," in message
    assert "retain_graph" not in message


@pytest.mark.parametrize("name", list(EVERY))
def test_another_forward_pass_before_the_backward_pass(name: str) -> None:
    """BackPACK then has the other pass's input; where sizes tell, it is refused."""
    x = images(3, 1, 5)
    model = extend(classifier(nn.Conv1d(1, 2, 2), nn.ReLU(), x=x))
    criterion, extension = extend(nn.CrossEntropyLoss()), EVERY[name](ours)
    loss = criterion(model(x), targets(3))
    model(x[:2])
    with backpack(extension), pytest.raises(ValueError) as caught:
        loss.backward()
    assert_in_form(caught.value, name, "Linear")
    with torch.no_grad():
        model(x[:2])
    backward(model, extension, x=x)
    assert names_with(model, extension.savefield)


@pytest.mark.parametrize("name", list(EVERY))
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 2, 2), (2, 5)),
        (nn.Conv2d(2, 2, 2), (2, 3, 2)),
        (nn.ConvTranspose3d(2, 2, 1), (2, 3, 1, 1)),
    ],
    ids=str,
)
def test_unbatched(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = images(*shape)
    layer = copy.deepcopy(layer).double()
    features = layer(x).flatten(1)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(features.shape[1], 3).double())
    message = assert_refused(ValueError, name, model, x)
    kind = type(layer).__name__
    assert f"{kind}.input.dim() must be at least {len(shape) + 1}" in message


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.parametrize("loss", [nn.MSELoss, nn.BCEWithLogitsLoss])
def test_squeezed_outputs(name: str, loss: Callable[[], nn.Module]) -> None:
    model, criterion = extend(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))), loss()
    extension, criterion = EVERY[name](ours), extend(criterion)
    with backpack(extension), pytest.raises(ValueError) as caught:
        criterion(model(torch.ones(4, 3)), torch.ones(4)).backward()
    assert_in_form(caught.value, name, f"{loss.__name__}.input.dim()")
    assert "[N, C]" in str(caught.value)


@pytest.mark.parametrize("name", ["BatchGrad", "SqrtGGNExact", "GGNGramExact"])
@pytest.mark.parametrize(
    "value", [[0.5], 3, [True], "01", torch.tensor([True, False]), [None]]
)
def test_subsampling_that_is_none(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        getattr(ours, name)(subsampling=value)
    assert_in_form(caught.value, name, "subsampling")


def test_subsampling_of_nothing() -> None:
    with pytest.raises(ValueError) as caught:
        ours.SqrtGGNExact(subsampling=[])
    assert_in_form(caught.value, "SqrtGGNExact", "subsampling")


@pytest.mark.parametrize("name", ["BatchGrad", "SqrtGGNExact", "BatchDotGrad"])
def test_sequences_of_samples(name: str) -> None:
    """Whatever counts samples: a tuple, a range, a tensor, a generator."""
    x = images(3, 1, 4)
    model = classifier(nn.Conv1d(1, 2, 2), x=x)
    found = []
    for samples in ([0, 2], (0, 2), range(0, 3, 2), torch.tensor([0, 2]), iter([0, 2])):
        extension: Any = getattr(ours, name)(subsampling=samples)
        twin = backward(copy.deepcopy(model), extension, x=x)
        found.append(names_with(twin, extension.savefield))
    for other in found[1:]:
        assert_close(other, found[0])


LAYERS: list[tuple[Callable[..., nn.Module], tuple[int, ...], dict[str, Any]]] = [
    (nn.Conv1d, (9,), {"kernel_size": 3, "stride": 2}),
    (nn.Conv1d, (7,), {"kernel_size": 1, "stride": 3, "padding": 1}),
    (nn.Conv1d, (6,), {"kernel_size": 2, "stride": 2, "groups": 2}),
    (nn.Conv2d, (4, 4), {"kernel_size": 2, "stride": 2}),
    (nn.Conv2d, (4, 3), {"kernel_size": 1, "groups": 2}),
    (nn.Conv2d, (5, 5), {"kernel_size": (1, 3), "stride": 2, "padding": 1}),
    (nn.Conv3d, (2, 2, 2), {"kernel_size": 1}),
    (nn.ConvTranspose1d, (4,), {"kernel_size": 3, "stride": 2, "output_padding": 1}),
    (nn.ConvTranspose1d, (4,), {"kernel_size": 1, "stride": 2, "groups": 2}),
    (nn.ConvTranspose2d, (3, 2), {"kernel_size": 2, "stride": 2}),
    (lambda *features, **_: nn.Linear(5, 4), (5,), {}),
]


@pytest.mark.parametrize(("make", "sizes", "options"), LAYERS)
def test_results_are_contiguous(
    make: Any, sizes: tuple[int, ...], options: dict[str, Any]
) -> None:
    """So that ``view(-1)`` works, whatever way a quantity is computed."""
    x = images(2, 4, *sizes)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(sizes) - 1]
    model = classifier(norm(4), make(4, 4, **options), nn.Sigmoid(), x=x).eval()
    formats = [x, x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    for inputs in formats:
        # those whose gradients others would be made of come last
        names = sorted(EVERY, key=lambda name: "Sqrt" in name or name == "BatchGrad")
        extensions = [EVERY[name](ours) for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = backward(copy.deepcopy(model), *extensions, x=inputs)
        for extension in extensions:
            for key, value in names_with(twin, extension.savefield).items():
                for tensor in value if isinstance(value, list) else [value]:
                    assert tensor.is_contiguous(), (extension.savefield, key)
