"""Extensions in a backward pass: sharing, memory, hooks, errors, precision, DDP."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backpack import backpack, disable, extend
from backpack.extensions.firstorder.base import FirstOrderBackpropExtension
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor, nn

from tests.backpack.run import classifier, images, targets
from tests.backpack.suite import (
    EXACT,
    FIRST_ORDER,
    HESSIAN,
    SAMPLED,
    SUITE,
    assert_equal,
    expected,
    names_with,
    saved,
)
from tests.backpack.test_models import Scaled, Standardized
from tests.messages import assert_in_form
from tests.strategies import noise_tensor
from tn_extensions import backpack as ours
from tn_extensions import functional, memory_budget
from tn_extensions.backpack import layer
from tn_extensions.backpack.derivatives import ConvDerivatives
from tn_extensions.backpack.sharing import SHARED

NAMES = sorted(SUITE)
KRONECKER: dict[str, Callable[[Any], Any]] = {
    "KFAC": lambda m: m.KFAC(2),
    "KFLR": lambda m: m.KFLR(),
    "KFRA": lambda m: m.KFRA(),
}
EVERY = SUITE | KRONECKER

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def small() -> tuple[nn.Module, Tensor]:
    """Make a model with padding that is not zero, groups, and two convolutions."""
    x = images(3, 2, 5, 4)
    first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
    second = nn.Conv2d(4, 2, 2, groups=2, padding="same", padding_mode="reflect")
    return classifier(first, nn.ReLU(), second, nn.Sigmoid(), x=x), x


class Calls:
    """Counts calls of a function, which it replaces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.count = 0
        self._function = getattr(owner, name)
        monkeypatch.setattr(owner, name, self._make())

    def _make(self) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            return self._function(*args, **options)

        call.__name__ = self._function.__name__
        return call


@pytest.mark.parametrize("reverse", [False, True])
def test_what_extensions_share(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On each layer, and in backpropagation, what several need is computed once.

    In whatever order they come.
    """
    model, x = small()
    padded = Calls(monkeypatch, layer, "pad")
    through = Calls(monkeypatch, ConvDerivatives, "input_vjp")
    factors = Calls(monkeypatch, functional, "kfac_expand")
    together = Calls(monkeypatch, functional, "together")
    every = [make(ours) for make in (EXACT | FIRST_ORDER).values()]
    every = [*every, ours.KFLR(), ours.KFAC()]
    saved(model, every[::-1] if reverse else every, x)
    # of two convolutions, and a Linear
    assert padded.count == 2
    assert factors.count == 2 + 1
    # the first one's input needs no gradient; KFAC has samples of its own
    assert through.count == 2
    # of the square root, and of the gradients; of the Linear, Gram matrices
    assert together.count == 2 * (2 + 1)
    saved(model, [ours.DiagGGNExact()], x)
    assert together.count == 2 * (2 + 1) + 2


def test_pieces_are_joined_for_those_that_need_all_columns() -> None:
    """A Gram matrix does, and a diagonal can then be made of the same gradients."""
    model, x = small()
    diagonal, gram = ours.DiagGGNExact(), ours.GGNGramExact()
    expected = [saved(model, [one], x)[0] for one in (diagonal, gram)]
    with memory_budget(2000):
        for extensions in ([diagonal, gram], [gram, diagonal]):
            found = saved(model, extensions, x)
            for own, values in zip(extensions, found, strict=True):
                assert_equal(values, expected[0 if own is diagonal else 1])


def test_savefields_have_memory_of_their_own() -> None:
    model, x = small()
    extensions = [ours.KFLR(), ours.KFAC(), ours.DiagGGNExact(), ours.DiagGGNExact()]
    kflr, kfac, first, second = saved(model, extensions, x)
    second = copy.deepcopy(first)
    for factor in kflr["0.weight"]:
        factor.zero_()
    for value in first.values():
        value.zero_()
    assert kfac["0.weight"][1].abs().sum() > 0
    assert second["0.weight"].abs().sum() > 0


def live_tensors() -> int:
    """Count the tensors in memory."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("together", [False, True])
def test_nothing_is_kept(together: bool) -> None:
    """After a backward pass, and with the savefields gone, all is as before."""
    model, x = small()
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    if together:
        contexts = [[make(ours) for make in EVERY.values()]]
    else:
        contexts = [[make(ours)] for make in EVERY.values()]

    def step() -> None:
        for extensions in contexts:
            loss = criterion(model(x), targets(len(x)))
            with backpack(*extensions):
                loss.backward()
            for extension in extensions:
                assert not extension.saved_quantities._saved_quantities
        for parameter in model.parameters():
            for name in list(vars(parameter)):
                delattr(parameter, name)

    step()
    before = live_tensors()
    step()
    assert live_tensors() <= before
    assert not SHARED.active and not SHARED._values


def test_nothing_is_kept_where_a_stock_extension_runs_last() -> None:
    from backpack.extensions import BatchGrad

    model, x = small()
    saved(model, [ours.KFLR(), ours.DiagGGNExact(), BatchGrad()], x)
    assert not SHARED.active and not SHARED._values


class Failing(FirstOrderBackpropExtension):
    """Fails at convolutions, between two of ours."""

    def __init__(self) -> None:
        super().__init__("failing", {nn.Conv2d: FailingModule()})


class FailingModule(ModuleExtension):
    """Fails."""

    def __call__(self, *args: Any) -> None:
        raise RuntimeError("failing")


def test_nothing_is_taken_from_a_pass_that_failed_elsewhere() -> None:
    model, x = small()
    first, second = ours.BatchGrad(), ours.SumGradSquared()
    with pytest.raises(RuntimeError, match="failing"):
        saved(model, [first, Failing(), second], 2 * x)
    conv = nn.Sequential(model[2], nn.Flatten())  # what failed comes first
    z = model[1](model[0](x)).detach()
    y = noise_tensor((3, 40))
    (wanted,) = saved(conv, [ours.SumGradSquared()], z, nn.MSELoss(), y)
    actual = saved(conv, [first, second], z, nn.MSELoss(), y)[1]
    assert_equal(actual, wanted)


def test_other_derivatives_are_not_shared() -> None:
    """A user's module extension counts for the extension that has it."""

    class Zero(ModuleExtension):
        def backpropagate(self, ext: Any, module: Any, *rest: Any) -> Any:
            return torch.zeros_like(rest[-1])

    model, x = small()
    own, other = ours.DiagGGNExact(), ours.KFLR()
    other.set_module_extension(nn.ReLU, Zero(), overwrite=True)
    (wanted,) = saved(model, [own], x)
    actual, zero = saved(model, [own, other], x)
    assert_equal(actual, wanted)
    assert not zero["0.weight"][0].any()


@pytest.mark.parametrize("name", list(EVERY))
def test_two_backward_passes(name: str) -> None:
    """With retain_graph, the second one overwrites what the first one saved."""
    model, x = small()
    extension = EVERY[name](ours)
    (wanted,) = saved(model, [extension], x)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    with backpack(extension, retain_graph=True):
        loss = criterion(model(x), targets(len(x)))
        for _ in range(2):
            torch.manual_seed(1)
            loss.backward(retain_graph=True)
            assert_close_fields(names_with(model, extension.savefield), wanted)


def assert_close_fields(actual: Any, wanted: Any) -> None:
    """Equal names and values, of tensors or lists of them."""
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(actual[name], value)


@pytest.mark.parametrize("name", NAMES)
def test_extension_hook(name: str) -> None:
    """Quantities are complete when the hook runs, and may be dropped by it."""
    model, x = small()
    wanted = expected(name, model, x)
    extension = SUITE[name](ours)
    seen: list[Tensor] = []

    def compress(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            seen.append(getattr(parameter, extension.savefield))
            delattr(parameter, extension.savefield)

    (left,) = saved(model, [extension], x, extension_hook=compress)
    assert left == {}
    # layers last to first, of each its parameters in their order
    layers = sorted({key.split(".")[0] for key in wanted}, reverse=True)
    keys = [f"{i}.{parameter}" for i in layers for parameter in ("weight", "bias")]
    assert_equal(dict(zip(keys, seen, strict=True)), wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", ["0.weight", "2.bias", "0.", "2."])
def test_frozen_parameters(name: str, frozen: str) -> None:
    model, x = small()
    wanted = expected(name, model, x)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.startswith(frozen))
    (actual,) = saved(model, [SUITE[name](ours)], x)
    assert_equal(actual, {k: v for k, v in wanted.items() if not k.startswith(frozen)})


@pytest.mark.parametrize("name", NAMES)
def test_subclasses(name: str) -> None:
    x = images(2, 2, 4, 4)
    model = classifier(Scaled(2, 4, 2, groups=2), nn.ReLU(), Scaled(4, 2, 2), x=x)
    (actual,) = saved(model, [SUITE[name](ours)], x)
    assert_equal(actual, expected(name, model, x))


class Gain(nn.Module):
    """A module that BackPACK does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class GainExtension(ModuleExtension):
    """A user's extension for it: with whole tensors, as in BackPACK."""

    def __init__(self) -> None:
        super().__init__(params=["gain"])

    def gain(self, ext: Any, module: Any, g_inp: Any, g_out: Any, sqrt: Any) -> Tensor:
        vectors = g_out if sqrt is None else sqrt
        vectors = vectors[0][None] if isinstance(vectors, tuple) else vectors
        assert isinstance(vectors, Tensor)
        products = (vectors * module.input0).flatten(2).sum(2, keepdim=True)
        return products[0] if sqrt is None else products.square().sum((0, 1))

    def backpropagate(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, sqrt: Any
    ) -> Tensor:
        assert isinstance(sqrt, Tensor)
        return module.gain.detach() * sqrt


@pytest.mark.parametrize("name", ["BatchGrad", "DiagGGNExact"])
def test_user_defined_module_extension(name: str) -> None:
    x = images(2, 2, 4, 4)
    model = classifier(nn.Conv2d(2, 2, 2), Gain(), nn.Conv2d(2, 2, 2), x=x)
    wanted = expected(name, model, x)
    for budget in (1, 2**20):
        extension = SUITE[name](ours)
        extension.set_module_extension(Gain, GainExtension())
        with memory_budget(budget):
            (actual,) = saved(model, [extension], x)
        assert_equal(actual, wanted)


@pytest.mark.parametrize("name", list(EVERY))
def test_channels_last(name: str) -> None:
    model, x = small()
    (wanted,) = saved(model, [EVERY[name](ours)], x)
    model, x = (thing.to(memory_format=torch.channels_last) for thing in (model, x))
    (actual,) = saved(model, [EVERY[name](ours)], x)
    assert_near(actual, wanted, 1e-10, torch.float64)


@pytest.mark.parametrize("name", list(EVERY))
def test_float32(name: str) -> None:
    model, x = small()
    (wanted,) = saved(model, [EVERY[name](ours)], x)
    (actual,) = saved(model.float(), [EVERY[name](ours)], x.float())
    assert_near(actual, wanted, 1e-4, torch.float32)


@pytest.mark.parametrize("name", [n for n in EVERY if "Hessian" not in n])
@pytest.mark.parametrize("way", ["autocast", "module"])
def test_bfloat16(name: str, way: str) -> None:
    """Squares and sums are of float32; gradients have the parameter's dtype."""
    model, x = small()
    (wanted,) = saved(model, [EVERY[name](ours)], x)
    model, x = model.float(), x.float()
    extension = EVERY[name](ours)
    if way == "module":
        dtype = torch.bfloat16 if extension.in_parameter_dtype else torch.float32
        (actual,) = saved(model.bfloat16(), [extension], x.bfloat16())
    else:
        dtype = torch.float32
        criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(model(x), targets(len(x)))
        torch.manual_seed(1)
        with backpack(extension):
            loss.backward()
        actual = names_with(model, extension.savefield)
    assert_near(actual, wanted, 0.1, dtype)


def assert_near(actual: Any, wanted: Any, tolerance: float, dtype: Any) -> None:
    """Values up to a tolerance relative to the largest, in a dtype."""
    assert actual.keys() == wanted.keys()
    for key, values in wanted.items():
        pairs = (
            zip(actual[key], values, strict=True)
            if isinstance(values, list)
            else [(actual[key], values)]
        )
        for found, exact in pairs:
            assert found.dtype == dtype, key
            assert found.shape == exact.shape
            assert (found - exact).abs().max() <= tolerance * exact.abs().max(), key


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    """Set up a group of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", list(EVERY))
def test_distributed_data_parallel(name: str) -> None:
    model, x = small()
    (wanted,) = saved(model, [EVERY[name](ours)], x)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    parallel = nn.parallel.DistributedDataParallel(model)
    extension = EVERY[name](ours)
    torch.manual_seed(1)
    with backpack(extension):
        criterion(parallel(x), targets(len(x))).backward()
    assert_close_fields(names_with(model, extension.savefield), wanted)


@pytest.mark.parametrize("name", ["BatchDotGrad", "GGNGramExact", "GGNGramMC"])
@pytest.mark.parametrize("as_dict", [True, False])
def test_sums_over_groups(name: str, as_dict: bool) -> None:
    model, x = small()
    wanted = expected(name, model, x)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    parameters = dict(model.named_parameters())
    weights = [p for key, p in parameters.items() if key.endswith("weight")]
    groups: list[Any] = [weights, [parameters["0.bias"]]]
    if as_dict:
        groups = [{"params": group, "lr": 0.1} for group in groups]
    options = {"mc_samples": 2} if name.endswith("MC") else {}
    extension = getattr(ours, name)(param_groups=groups, **options)
    for _ in range(2):  # a second pass begins anew
        loss = criterion(model(x), targets(len(x)))
        torch.manual_seed(1)
        with backpack(extension):
            loss.backward()
        total = sum(value for key, value in wanted.items() if key.endswith("weight"))
        for key, parameter in parameters.items():
            found = getattr(parameter, extension.savefield)
            exact = total if key.endswith("weight") else wanted[key]
            torch.testing.assert_close(found, exact)
    shared = {getattr(p, extension.savefield).data_ptr() for p in weights}
    assert len(shared) == 1


def test_groups_that_do_not_fit() -> None:
    weight = nn.Conv2d(1, 1, 1).weight
    with pytest.raises(ValueError) as twice:
        ours.BatchDotGrad(param_groups=[[weight], [weight]])
    assert_in_form(twice.value, "BatchDotGrad", "param_groups[1]")
    with pytest.raises(TypeError) as wrong:
        ours.GGNGramExact(param_groups=[{"params": ["weight"]}])
    assert_in_form(wrong.value, "GGNGramExact", "param_groups[0]")


SECOND_ORDER = [*EXACT, *SAMPLED, *HESSIAN]


def fields_of(model: nn.Module, extension: Any) -> list[str]:
    """Names of parameters with a savefield."""
    return list(names_with(model, extension.savefield))


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_unknown_module(name: str) -> None:
    """Nothing is left of the pass, not even of the extensions beside."""
    x = images(2, 2, 4, 4)
    model = classifier(nn.Conv2d(2, 2, 2), Standardized(2, 2, 2), x=x)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    extensions = [ours.BatchGrad(), SUITE[name](ours)]
    with backpack(*extensions), pytest.raises(NotImplementedError, match="Standardi"):
        criterion(model(x), targets(len(x))).backward()
    for extension in extensions:
        assert fields_of(model, extension) == []
    assert not SHARED.active and not SHARED._values


@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_unknown_module_of_first_order(name: str) -> None:
    """As in BackPACK, a warning."""
    x = images(2, 2, 4, 4)
    model = classifier(nn.Conv2d(2, 2, 2), Standardized(2, 2, 2), x=x)
    wanted = expected(name, model, x)
    with pytest.warns(UserWarning, match="Standardized"):
        criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
        extension = SUITE[name](ours)
        with backpack(extension):
            criterion(model(x), targets(len(x))).backward()
    actual = names_with(model, extension.savefield)
    assert_equal(actual, {k: v for k, v in wanted.items() if not k.startswith("1.")})


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_loss_without_reduction(name: str) -> None:
    model, x = small()
    criterion, model = extend(nn.CrossEntropyLoss(reduction="none")), extend(model)
    with backpack(SUITE[name](ours)), pytest.raises(ValueError) as caught:
        criterion(model(x), targets(len(x))).sum().backward()
    assert_in_form(caught.value, name, "CrossEntropyLoss.reduction")


@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_first_order_takes_a_loss_without_reduction(name: str) -> None:
    model, x = small()
    wanted = expected(name, model, x, nn.CrossEntropyLoss(reduction="sum"))
    criterion, model = extend(nn.CrossEntropyLoss(reduction="none")), extend(model)
    extension = SUITE[name](ours)
    with backpack(extension):
        criterion(model(x), targets(len(x))).sum().backward()
    assert_equal(names_with(model, extension.savefield), wanted)


@pytest.mark.parametrize("name", list(EVERY))
def test_model_that_is_not_extended(name: str) -> None:
    """No hook runs, as in BackPACK."""
    model, x = small()
    extension = EVERY[name](ours)
    with backpack(extension):
        nn.CrossEntropyLoss()(model(x), targets(len(x))).backward()
    assert fields_of(model, extension) == []


@pytest.mark.parametrize("name", list(EVERY))
@pytest.mark.parametrize("how", ["disabled", "second"])
def test_without_a_forward_pass(name: str, how: str) -> None:
    """The message says what to do; a pass that was complete stays."""
    model, x = small()
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    extension = EVERY[name](ours)
    if how == "disabled":
        with disable():
            loss = criterion(model(x), targets(len(x)))
    else:
        loss = criterion(model(x), targets(len(x)))
        with backpack(extension):
            loss.backward(retain_graph=True)
    with backpack(extension), pytest.raises(AttributeError) as caught:
        loss.backward()
    assert_in_form(caught.value, type(extension).__name__, "CrossEntropyLoss")
    assert "retain_graph=True" in str(caught.value)


@pytest.mark.parametrize("name", ["BatchGrad", "SqrtGGNExact", "SqrtGGNMC"])
@pytest.mark.parametrize("subsampling", [[0, 3], [-4]])
def test_subsampling_that_does_not_fit(name: str, subsampling: list[int]) -> None:
    model, x = small()
    extension = getattr(ours, name)(subsampling=subsampling)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    with backpack(extension), pytest.raises(ValueError) as caught:
        criterion(model(x), targets(len(x))).backward()
    assert_in_form(caught.value, name, "subsampling")
    assert "3 samples" in str(caught.value)
    assert fields_of(model, extension) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(EVERY))
def test_cuda(name: str) -> None:
    model, x = small()
    extension = EVERY[name](ours)
    model, x, y = model.cuda(), x.cuda(), targets(len(x)).cuda()
    (actual,) = saved(model, [extension], x, y=y)
    if name not in SAMPLED and name != "KFAC":  # the GPU draws other samples
        (wanted,) = saved(model.cpu(), [extension], x.cpu())
        for key, value in wanted.items():
            values = value if isinstance(value, list) else [value]
            found = actual[key] if isinstance(value, list) else [actual[key]]
            for one, other in zip(found, values, strict=True):
                torch.testing.assert_close(one.cpu(), other, rtol=1e-8, atol=1e-10)
