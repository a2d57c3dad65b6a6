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
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.testing import assert_close

from tests.backpack import run
from tests.backpack.run import classifier, images, targets
from tests.backpack.suite import FIRST_ORDER, SUITE, assert_equal, names_with
from tests.messages import assert_in_form
from tests.reference import per_sample
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


class Shared(nn.Module):
    """A network whose modules without parameters are used over and over."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 2, 2, padding=1)
        self.last = nn.Linear(2, 3)
        self.pool, self.act, self.flatten = nn.MaxPool2d(2), nn.Tanh(), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.first(x)))
        x = self.pool(self.act(self.second(x)))
        return self.last(self.flatten(x))


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
def test_modules_without_parameters_used_twice(name: str) -> None:
    model, x = Shared().double(), images(3, 2, 4, 4)
    extension = SUITE[name](ours)
    gradients = per_sample.gradients(
        model, x, lambda z: nn.functional.cross_entropy(z, targets(len(z)))
    )
    backward(model, extension, x=x)
    made = {
        "BatchGrad": lambda g: g,
        "BatchL2Grad": lambda g: g.flatten(1).square().sum(1),
        "SumGradSquared": lambda g: g.square().sum(0),
        "Variance": lambda g: g.var(0, correction=0),
        "BatchDotGrad": lambda g: g.flatten(1) @ g.flatten(1).T,
    }[name]
    wanted = {key: made(g) for key, g in gradients.items()}
    assert_equal(names_with(model, extension.savefield), wanted)


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


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_activation_used_twice_by_second_order(name: str) -> None:
    """BackPACK needs the input of each use."""
    x, act = images(3, 1, 5), nn.Sigmoid()
    model = classifier(nn.Conv1d(1, 2, 2), act, nn.Conv1d(2, 2, 2), act, x=x)
    message = assert_refused(ValueError, name, model, x)
    assert "Sigmoid must be used once" in message


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


class Standardized(nn.Conv1d):
    """Weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class LowRank(nn.Linear):
    """An adapter inside of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(-1, keepdim=True)


def masked(layer: nn.Module, name: str = "weight") -> nn.Module:
    """Pruned by the mask of torch.nn.utils.prune."""
    return prune.l1_unstructured(layer, name, 0.5)


def with_own_method(layer: Any) -> nn.Module:
    """Set a method on the module, as some hooks of other packages do."""
    plain = layer.forward
    layer.forward = lambda x: 2 * plain(x)
    return layer


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: Standardized(2, 2, 2),
    "own method": lambda: with_own_method(nn.Conv1d(2, 2, 2)),
    "weight_norm": lambda: weight_norm(nn.Conv1d(2, 2, 2)),
    "spectral_norm": lambda: spectral_norm(nn.ConvTranspose1d(2, 2, 2)),
    "prune": lambda: masked(nn.Conv1d(2, 2, 2)),
    "prune bias": lambda: masked(nn.Conv1d(2, 2, 2), "bias"),
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv1d(2, 2, 2)),
    "linear": lambda: nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(8, 2))),
    "linear, own forward": lambda: nn.Sequential(nn.Flatten(), LowRank(8, 2)),
}


@pytest.mark.parametrize("case", list(COMPUTED))
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_computed_kernels(name: str, case: str) -> None:
    x = images(2, 1, 5)
    model = classifier(nn.Conv1d(1, 2, 2), nn.ReLU(), *chain(COMPUTED[case]()), x=x)
    message = assert_refused(NotImplementedError, name, model, x)
    assert "must multiply by its parameters" in message


def chain(module: nn.Module) -> list[nn.Module]:
    """Modules of a sequence, or the module itself."""
    return list(module) if isinstance(module, nn.Sequential) else [module]


@pytest.mark.parametrize("case", list(COMPUTED))
@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_computed_kernels_of_first_order(name: str, case: str) -> None:
    """A warning, as BackPACK's of a module that it does not know; others are saved."""
    x = images(2, 1, 5)
    model = classifier(nn.Conv1d(1, 2, 2), nn.ReLU(), *chain(COMPUTED[case]()), x=x)
    extension = SUITE[name](ours)
    with pytest.warns(UserWarning, match="must multiply by its parameters") as caught:
        backward(model, extension, x=x)
    (line,) = {str(w.message) for w in caught if "multiply" in str(w.message)}
    assert line.startswith(f"{name}: ") and "\n" not in line
    found = names_with(model, extension.savefield)
    ends = (0, len(model) - 1)
    assert set(found) == {f"{i}.{key}" for i in ends for key in ("weight", "bias")}
    for layer in model[1:-1]:  # nor on a result that is no parameter
        assert not hasattr(getattr(layer, "weight", None), extension.savefield)


@pytest.mark.parametrize("name", ["BatchGrad", "DiagGGNExact", "KFLR"])
def test_subclasses_that_compute_the_same(name: str) -> None:
    class Layer(nn.Linear):
        """Not more than a name."""

    x = images(2, 4)
    model = classifier(nn.Linear(4, 4), nn.ReLU(), x=x)
    twin = copy.deepcopy(model)
    twin[0].__class__ = Layer
    extension = EVERY[name](ours)
    wanted = names_with(backward(model, extension, x=x), extension.savefield)
    found = names_with(backward(twin, extension, x=x), extension.savefield)
    assert_close(found, wanted)


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


class Magnitude(nn.Module):
    """From complex numbers to real ones."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@pytest.mark.parametrize("name", list(FIRST_ORDER))
@pytest.mark.parametrize("layer", [nn.Conv1d(2, 3, 2), nn.Linear(5, 2)], ids=str)
def test_complex_layers(name: str, layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).to(torch.complex128)
    x = images(2, 2, 5).to(torch.complex128)
    head = nn.Sequential(Magnitude(), nn.Flatten(), nn.LazyLinear(3).double())
    model = nn.Sequential(layer, *head)
    model(x)
    message = assert_refused(TypeError, name, model, x)
    kind = type(layer).__name__
    assert f"{kind}.output must be real" in message and f"{kind}(" in message


@pytest.mark.parametrize("name", ["KFAC", "DiagGGNMC", "SqrtGGNMC", "GGNGramMC"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None])
def test_numbers_of_samples(name: str, value: Any) -> None:
    kind = ValueError if type(value) is int else TypeError
    with pytest.raises(kind) as caught:
        getattr(ours, name)(mc_samples=value)
    assert_in_form(caught.value, name, "mc_samples")


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


GRAMS = ["BatchDotGrad", "GGNGramExact", "GGNGramMC"]


@pytest.mark.parametrize("name", GRAMS)
@pytest.mark.parametrize("kept", [[], ["model"]], ids=len)
def test_groups_of_another_model(name: str, kept: list[str]) -> None:
    x = images(3, 1, 4)
    model = classifier(nn.Conv1d(1, 2, 2), x=x)
    other = copy.deepcopy(model)
    groups = [list(model.parameters()) for _ in kept] + [list(other.parameters())]
    extension = getattr(ours, name)(param_groups=groups)
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            backward(model, extension, x=x)
        assert_in_form(caught.value, name, f"param_groups[{len(kept)}]")
        assert names_with(model, extension.savefield) == {}
    backward(other, getattr(ours, name)(param_groups=groups[len(kept) :]), x=x)


@pytest.mark.parametrize("name", GRAMS)
def test_groups_that_are_frozen_or_unused_in_part(name: str) -> None:
    x = images(3, 1, 4)
    model, spare = classifier(nn.Conv1d(1, 2, 2), x=x), nn.Linear(2, 2)
    model[0].requires_grad_(False)
    groups = [model[0].parameters(), [*model[2].parameters(), *spare.parameters()]]
    extension = getattr(ours, name)(param_groups=groups)
    found = names_with(backward(model, extension, x=x), extension.savefield)
    assert set(found) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("name", GRAMS)
def test_groups_that_are_none(name: str) -> None:
    layer = nn.Conv1d(1, 2, 2)
    for groups in (layer.parameters(), [layer], [{"parameters": [layer.weight]}], [3]):
        with pytest.raises(TypeError) as caught:
            getattr(ours, name)(param_groups=groups)
        assert_in_form(caught.value, name, "param_groups[0]")
    with pytest.raises(TypeError) as caught:
        getattr(ours, name)(param_groups=3)
    assert_in_form(caught.value, name, "param_groups")


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
