"""Preconditioned gradients against dense references, and in training loops."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.messages import assert_in_form
from tests.optim.support import (
    assert_same_state,
    batch,
    gradients,
    joint,
    loss_of,
    matrix_of,
    network,
    preconditioned,
    reference_factors,
    reference_step,
    train,
)
from tests.strategies import (
    BATCHES,
    examples,
    module_input,
    modules,
    noise_tensor,
)
from tn_extensions import curvlinops
from tn_extensions.optim import KFACPreconditioner

APPROX = ["expand", "reduce"]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("fixed", {"damping": 1e-2}),
    ("pi", {"damping": 1e-2, "use_heuristic_damping": True}),
    ("exact", {"damping": 1e-2, "use_exact_damping": True}),
]


@examples(80)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    """Two steps, whose factors are averaged."""
    module, sizes = case.draw(modules())
    approx = case.draw(st.sampled_from(APPROX))
    model = nn.Sequential(module, nn.Flatten()).double()
    options = {"damping": 0.1, "damping_method": "fixed", "kl_clip": None}
    found = KFACPreconditioner(model, approx=approx, ema_decay=0.7, **options)
    A = B = torch.zeros(())
    for step, count in enumerate([case.draw(BATCHES), case.draw(BATCHES)]):
        x = module_input(module, sizes, count) * (step + 1)
        with torch.no_grad():
            g = noise_tensor(module(x).shape)
        model.zero_grad()
        ((model(x) * g.flatten(1)).sum() / count).backward()
        bias = None if module.bias is None else module.bias.grad
        before = joint(module, module.weight.grad, bias)
        found.step()
        new = reference_factors(module, x, g.flatten(2), approx)
        A, B = new if step == 0 else (0.7 * A + 0.3 * new[0], 0.7 * B + 0.3 * new[1])
        after = joint(module, module.weight.grad, bias)
        expected = reference_step(module, A, B, before, 0.1)
        assert_close(after, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("fisher", ["empirical", "type-2"])
@pytest.mark.parametrize(
    ("method", "damping", "corrected"),
    [(*own, False) for own in METHODS] + [(*METHODS[-1], True)],
)
def test_first_step_is_that_of_the_operators(
    approx: str, fisher: str, method: str, damping: dict[str, Any], corrected: bool
) -> None:
    options = {"damping_method": method, "eigenvalue_correction": corrected}
    # until it has seen gradients in a basis, EKFAC has the eigenvalues of KFAC
    before, after = preconditioned(
        network(), batch(), approx=approx, fisher=fisher, damping=1e-2, **options
    )
    model = network()
    operator = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [batch()],
        fisher_type=fisher,
        kfac_approx=approx,
        separate_weight_and_bias=False,
    )
    assert_close(after, operator.inverse(**damping) @ before, rtol=1e-7, atol=1e-9)


def test_sampled_fisher_is_unbiased() -> None:
    model = network()
    options: dict[str, Any] = {"factor_update_steps": 1, "inverse_update_steps": 10**6}
    exact = KFACPreconditioner(model, fisher="type-2", **options)
    train(model, exact, [0])
    other = network()
    sampled = KFACPreconditioner(other, fisher="mc", mc_samples=20, **options)
    # 20 samples of 100 copies of the data are as many as 2000 of each
    x, y = batch()
    train(other, sampled, [0], data=lambda _: (x.repeat(100, 1, 1, 1), y.repeat(100)))
    for name, layer in exact._layers.items():
        expected = matrix_of(layer.averages["gradients"])
        actual = matrix_of(sampled._layers[name].averages["gradients"])
        assert_close(actual, expected, rtol=0, atol=0.05 * float(expected.max()))


@pytest.mark.parametrize("loss", [nn.MSELoss, nn.BCEWithLogitsLoss])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_other_losses(loss: Any, reduction: str) -> None:
    """The factors are those of the operators."""
    x, y = batch()
    model = network()
    loss_func = loss(reduction=reduction)
    targets = nn.functional.one_hot(y, 3).double()
    found = KFACPreconditioner(
        model, fisher="type-2", loss_func=loss_func, loss_reduction=reduction
    )
    loss_func(model(x), targets).backward()
    found.step()
    other = network()
    operator = curvlinops.KFACLinearOperator(
        other,
        loss_func,
        list(other.parameters()),
        [(x, targets)],
        fisher_type="type-2",
        separate_weight_and_bias=False,
    )
    operator.compute_kronecker_factors()
    for name, layer in found._layers.items():
        for what, expected in (
            ("inputs", operator._input_covariances[name]),
            ("gradients", operator._gradient_covariances[name]),
        ):
            actual = matrix_of(layer.averages[what])
            assert_close(actual.reshape(expected.shape), expected)


# -- eigenvalue correction


# -- factors of some of the data

# -- schedules and options


def test_intervals() -> None:
    model = network()
    found = KFACPreconditioner(model, factor_update_steps=2, inverse_update_steps=3)
    layer = found._layers["0"]
    changes = []
    for step in range(7):
        known = layer.averages.get("inputs", torch.zeros(1, 0, 1))
        factor = matrix_of(known).clone()
        inverse = layer.inverse
        train(model, found, [step])
        has_changed = not torch.equal(factor, matrix_of(layer.averages["inputs"]))
        changes.append((has_changed, layer.inverse is not inverse))
    factors, inverses = zip(*changes, strict=True)
    assert factors == (True, False, True, False, True, False, True)
    assert inverses == (True, False, False, True, False, False, True)


def test_hyperparameters_of_the_step() -> None:
    plain, callable_ = network(), network()
    first = train(plain, KFACPreconditioner(plain, damping=0.3, ema_decay=0.5), [0, 1])
    asked = []

    def damping(step: int) -> float:
        asked.append(step)
        return 0.3

    found = KFACPreconditioner(
        callable_,
        damping=damping,
        ema_decay=lambda step: 0.5,
        lr=lambda step: 0.1,
        kl_clip=lambda step: 1e-3,
        factor_update_steps=lambda step: 1,
        inverse_update_steps=lambda step: 1,
    )
    assert_close(train(callable_, found, [0, 1]), first, rtol=0, atol=0)
    assert set(asked) == {0, 1}


# -- what training scripts do


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("fisher", ["empirical", "type-2"])
def test_gradient_accumulation(approx: str, fisher: Any) -> None:
    x, y = batch()
    options: dict[str, Any] = {"approx": approx, "fisher": fisher, "kl_clip": None}
    _, together = preconditioned(network(), (x, y), **options)
    model = network()
    found = KFACPreconditioner(model, **options)
    for part in ([0, 1], [2, 3], [4, 5]):
        (loss_of(model, (x[part], y[part])) / 3).backward()
    found.step()
    assert_close(gradients(model), together)


def test_evaluation_between_does_not_count() -> None:
    model = network()
    found = KFACPreconditioner(model)
    loss_of(model, batch()).backward()
    model.eval()
    loss_of(model, batch(number=1)).backward()
    with torch.no_grad():
        loss_of(model.train(), batch(number=2))
    model.zero_grad()
    loss_of(model, batch()).backward()
    found.step()
    expected, (x, y) = KFACPreconditioner(other := network()), batch()
    train(other, expected, [0], data=lambda _: (torch.cat([x, x]), torch.cat([y, y])))
    for name, layer in found._layers.items():
        actual, wanted = layer.averages, expected._layers[name].averages
        assert_close(matrix_of(actual["inputs"]), matrix_of(wanted["inputs"]))


def test_a_pass_without_backward_does_not_count() -> None:
    model = network()
    found = KFACPreconditioner(model, kl_clip=None)
    model(batch(number=3)[0])
    loss_of(model, batch()).backward()
    found.step()
    _, expected = preconditioned(network(), batch())
    assert_close(gradients(model), expected)


def test_a_copy_of_the_model_is_another_one() -> None:
    model = network()
    found = KFACPreconditioner(model, kl_clip=None)
    other = copy.deepcopy(model)
    loss = loss_of(model, batch())
    loss_of(other, batch(number=1)).backward()
    loss.backward()
    found.step()
    _, expected = preconditioned(network(), batch())
    assert_close(gradients(model), expected)


class Twice(nn.Module):
    """A layer that is used twice, one without effect, one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.without = nn.Conv1d(4, 4, 1)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Conv1d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(x)))
        self.without(x)
        return self.last(torch.tanh(x)).mean(2)


@pytest.mark.parametrize("approx", APPROX)
def test_layers_used_several_times(approx: Any) -> None:
    model = Twice().double()
    data = noise_tensor([5, 4, 6]), torch.tensor([0, 1, 2, 0, 1])
    found = KFACPreconditioner(
        model, approx=approx, damping=0.1, damping_method="exact", kl_clip=None
    )
    loss_of(model, data).backward()
    params = [*model.twice.parameters(), *model.last.parameters()]
    before = [p.grad.clone() for p in params]
    found.step()
    operator = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        params,
        [data],
        fisher_type="empirical",
        kfac_approx=approx,
        separate_weight_and_bias=False,
    )
    expected = operator.inverse(0.1, use_exact_damping=True) @ before
    assert_close([p.grad for p in params], expected)
    assert model.unused.weight.grad is None


class HalfUsed(nn.Module):
    """Of two uses of a layer, one has no effect; and an output size is given."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        self.up(x)
        return self.up(x, [8]).mean(2)


def test_a_use_without_effect() -> None:
    """In each part of an accumulated gradient."""
    x, y = noise_tensor([4, 4, 3]), torch.tensor([0, 1, 2, 0])
    state = HalfUsed().double().state_dict()
    results = []
    for parts in ([slice(4)], [slice(2), slice(2, 4)]):
        model = HalfUsed().double()
        model.load_state_dict(state)
        found = KFACPreconditioner(model, kl_clip=None)
        for part in parts:
            (loss_of(model, (x[part], y[part])) / len(parts)).backward()
        found.step()
        results.append(gradients(model))
    assert_close(*results)


@pytest.mark.parametrize("fisher", ["empirical", "mc"])
@pytest.mark.parametrize("has_backward", [True, False])
def test_nothing_of_a_pass_stays(fisher: Any, has_backward: bool) -> None:
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)

    def count() -> int:
        gc.collect()
        return sum(type(own) is Tensor for own in gc.get_objects())

    counts = []
    for number in range(4):
        train(model, found, [number])
        if not has_backward:
            model(batch()[0])
        train(model, found, [number])
        counts.append(count())
    assert counts[1] == counts[3]


def test_removing_hooks() -> None:
    model = network()
    found = KFACPreconditioner(model, fisher="mc")
    found.remove_hooks()
    loss_of(model, batch()).backward()
    with pytest.raises(RuntimeError, match="forward and backward pass"):
        found.step()
    assert not any(module._forward_hooks for module in model.modules())


def test_freezing_later() -> None:
    model = network()
    found = KFACPreconditioner(model)
    train(model, found, [0, 1])
    model[0].requires_grad_(False)
    weight = model[0].weight.clone()
    train(model, found, [2, 3])
    assert torch.equal(model[0].weight, weight)
    assert found.steps == 4


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.inner[:3], x, use_reentrant=False)
        return self.inner[3:](x)


def test_gradient_checkpointing() -> None:
    _, expected = preconditioned(network(), batch())
    _, found = preconditioned(Checkpointed(network()), batch())
    assert_close(found, expected)


@pytest.mark.parametrize("fisher", ["empirical", "type-2"])
def test_compiled_models(fisher: Any) -> None:
    model = network()
    compiled = torch.compile(network(), backend="eager")
    first = train(model, KFACPreconditioner(model, fisher=fisher), range(3))
    found = KFACPreconditioner(compiled, fisher=fisher)
    assert_close(train(compiled, found, range(3)), first)
    assert set(found._layers) == {"0", "2", "5"}


def test_channels_last_and_gradient_clipping() -> None:
    model, other = network(), network().to(memory_format=torch.channels_last)
    for each in (model, other):
        found = KFACPreconditioner(each)
        x, y = batch()
        if each is other:
            x = x.to(memory_format=torch.channels_last)
        loss_of(each, (x, y)).backward()
        nn.utils.clip_grad_norm_(each.parameters(), 0.1)
        found.step()
    assert_close(gradients(other), gradients(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = network(torch.float32)
    found = KFACPreconditioner(model, damping=0.1, kl_clip=None)
    x, y = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    found.step()
    for layer in found._layers.values():
        assert all(own.dtype == torch.float32 for own in layer.averages.values())
    options: dict[str, Any] = {"damping": 0.1}
    _, expected = preconditioned(network(torch.float32), (x, y), **options)
    assert_close(gradients(model), expected, rtol=0.1, atol=0.05)


def test_grad_scaler() -> None:
    """Scaled losses have the factors of plain ones; overflows are skipped."""
    model = network(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = KFACPreconditioner(model, grad_scaler=scaler, damping=0.1, kl_clip=None)
    data = batch(dtype=torch.float32)
    for is_overflow in (False, True):
        optimizer.zero_grad()
        loss = loss_of(model, data)
        scaler.scale(loss * torch.inf if is_overflow else loss).backward()
        scaler.unscale_(optimizer)
        before = copy.deepcopy(found.state_dict())
        weights = copy.deepcopy(model.state_dict())
        found.step()
        if not is_overflow:
            _, expected = preconditioned(network(torch.float32), data, damping=0.1)
            assert_close(gradients(model), expected, rtol=1e-3, atol=1e-5)
        scaler.step(optimizer)
        scaler.update()
        if is_overflow:
            assert_close(model.state_dict(), weights, rtol=0, atol=0)
            assert_same_state({**before, "skipped": 1}, found.state_dict())
    assert (found.steps, found.skipped) == (1, 1)


# -- state


# -- the optimizer


# -- bad input


@pytest.mark.parametrize(
    ("options", "argument", "kind"),
    [
        ({"damping": 0.0}, "damping", ValueError),
        ({"damping": -1.0}, "damping", ValueError),
        ({"damping": float("nan")}, "damping", ValueError),
        ({"damping": "big"}, "damping", TypeError),
        ({"damping": None}, "damping", TypeError),
        ({"factor_update_steps": 0}, "factor_update_steps", ValueError),
        ({"inverse_update_steps": 0}, "inverse_update_steps", ValueError),
        ({"inverse_update_steps": 1.5}, "inverse_update_steps", ValueError),
        ({"ema_decay": 1.0}, "ema_decay", ValueError),
        ({"keep": 0.5}, "keep", TypeError),
        ({"keep": {"ci": 0.5}}, "keep", ValueError),
        ({"keep": {"n": 0.0}}, "keep['n']", ValueError),
        ({"ema_decay": -0.1}, "ema_decay", ValueError),
        ({"kl_clip": 0.0}, "kl_clip", ValueError),
        ({"approx": "kfac"}, "approx", ValueError),
        ({"fisher": "exact"}, "fisher", ValueError),
        ({"damping_method": "none"}, "damping_method", ValueError),
        ({"loss_reduction": "none"}, "loss_reduction", ValueError),
        ({"mc_samples": 0}, "mc_samples", ValueError),
        ({"grad_worker_fraction": 2.0}, "grad_worker_fraction", ValueError),
        ({"skip_layers": "0"}, "skip_layers", TypeError),
        ({"overrides": {"7": {}}}, "overrides", ValueError),
        ({"overrides": {"0": {"lr": 1}}}, "an override", ValueError),
        ({"overrides": {"0": {"damping": 0.0}}}, "damping", ValueError),
        ({"skip_layers": (".*",)}, "model", ValueError),
        ({"fisher": "mc", "loss_func": nn.L1Loss()}, "loss_func", NotImplementedError),
        (
            {"fisher": "mc", "loss_func": nn.CrossEntropyLoss(torch.ones(3))},
            "loss_func",
            NotImplementedError,
        ),
    ],
)
def test_bad_options(options: Any, argument: str, kind: Any) -> None:
    model = network()
    with pytest.raises(kind) as error:
        KFACPreconditioner(model, **options)
    assert_in_form(error.value, "KFACPreconditioner", argument)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["damping", "ema_decay", "kl_clip", "lr"])
def test_bad_hyperparameters_of_a_step(name: str) -> None:
    model = network()
    found = KFACPreconditioner(model, **{name: lambda step: -1.0 if step else 0.5})
    train(model, found, [0])
    state = copy.deepcopy(found.state_dict())
    model.zero_grad()
    loss_of(model, batch()).backward()
    with pytest.raises(ValueError, match=r", got -1") as error:
        found.step()
    assert_in_form(error.value, "KFACPreconditioner", name)
    assert_same_state(state, found.state_dict())


def test_no_backward() -> None:
    model = network()
    found = KFACPreconditioner(model)
    with pytest.raises(RuntimeError) as error:
        found.step()
    assert_in_form(error.value, "KFACPreconditioner", "step")
    model.eval()
    loss_of(model, batch()).backward()
    before = gradients(model)
    with pytest.raises(RuntimeError, match="training mode"):
        found.step()
    assert_close(gradients(model), before, rtol=0, atol=0)
    assert found.steps == 0
    model.train()
    model.zero_grad()
    train(model, found, [0])
