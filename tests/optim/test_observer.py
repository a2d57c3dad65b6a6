"""Which passes count, and what hooks hold, in the loops that people write."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.optim.support import (
    batch,
    gradients,
    loss_of,
    matrix_of,
    network,
    preconditioned,
    train,
)
from tests.strategies import noise_tensor
from tn_extensions.optim import KFACPreconditioner

Factors = dict[tuple[str, str], Tensor]


def factors(found: KFACPreconditioner) -> Factors:
    return {
        (name, what): matrix_of(own)
        for name, layer in found._layers.items()
        for what, own in layer.averages.items()
    }


def factors_of(model: nn.Module, loss: Callable[[], Tensor], **options: Any) -> Factors:
    """Factors of one plain step."""
    found = KFACPreconditioner(model, **options)
    model.zero_grad()
    loss().backward()
    found.step()
    found.remove_hooks()
    return factors(found)


def expected_factors(**options: Any) -> Factors:
    model = network()
    return factors_of(model, lambda: loss_of(model, batch()), **options)


FISHERS = ["empirical", "type-2"]


# -- passes whose gradients are thrown away


@pytest.mark.parametrize("in_place", [False, True])
def test_step_of_a_generator(in_place: bool) -> None:
    """It leads through the discriminator, whose gradients are then set to zero."""
    generator = nn.Linear(3, 18).double()
    model = network()
    found = KFACPreconditioner(model)
    fake = generator(noise_tensor([6, 3])).reshape(6, 2, 3, 3)
    loss_of(model, (fake, batch()[1])).backward()
    model.zero_grad(set_to_none=not in_place)
    for number in range(2):
        (loss_of(model, batch(number=number)) / 2).backward()
    found.step()
    other = network()
    both = [torch.cat(parts) for parts in zip(batch(), batch(number=1), strict=True)]
    wanted = factors_of(other, lambda: loss_of(other, (both[0], both[1])))
    assert_close(factors(found), wanted)


@pytest.mark.parametrize("fisher", FISHERS)
def test_pause(fisher: Any) -> None:
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)
    with found.pause():
        loss_of(model, batch(number=1)).backward()
        with found.pause():
            pass
        loss_of(model, batch(number=2)).backward()
    loss_of(model, batch()).backward()
    found.step()
    assert_close(factors(found), expected_factors(fisher=fisher))


# -- several backward passes through one graph


@pytest.mark.parametrize("fisher", FISHERS)
def test_two_losses_of_one_graph(fisher: Any) -> None:
    """Data count once; gradients' outer products of each pass are added."""
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)
    x, y = batch()
    output = model(x)
    losses = [nn.functional.cross_entropy(output, y), output.square().mean()]
    losses[0].backward(retain_graph=True)
    losses[1].backward()
    found.step()
    parts = []
    for number in range(2):
        other = network()

        def loss(other: Any = other, number: int = number) -> Tensor:
            out = other(x)
            return (
                nn.functional.cross_entropy(out, y)
                if not number
                else (out.square().mean())
            )

        parts.append(factors_of(other, loss, fisher=fisher))
    for key, actual in factors(found).items():
        wanted = parts[0][key]
        if key[1] == "gradients" and fisher == "empirical":
            wanted = wanted + parts[1][key]
        assert_close(actual, wanted)


def test_gradients_per_task() -> None:
    """Each pass through the graph makes a gradient, and a step, of its own."""
    model = network()
    found = KFACPreconditioner(model, ema_decay=0.0)
    output, (x, y) = model(batch()[0]), batch()
    for number in range(2):
        model.zero_grad()
        loss = output.square().mean() if number else None
        loss = nn.functional.cross_entropy(output, y) if loss is None else loss
        loss.backward(retain_graph=not number)
        found.step()
    other = network()
    wanted = factors_of(other, lambda: other(x).square().mean())
    assert_close(factors(found), wanted)


@pytest.mark.parametrize("fisher", FISHERS)
def test_gradient_penalty(fisher: Any) -> None:
    """Only the pass that adds to ``.grad`` counts, once."""
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)
    x, y = batch()
    loss = loss_of(model, (x.requires_grad_(), y))
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()
    found.step()
    actual, wanted = factors(found), expected_factors(fisher=fisher)
    assert all(own.isfinite().all() for own in actual.values())
    for key in wanted:
        if key[1] == "inputs" or fisher == "type-2":
            assert_close(actual[key], wanted[key])
    # nothing of the penalty reaches the last layer's outputs but through the loss
    assert torch.linalg.matrix_norm(actual["5", "gradients"]).item() > 0


@pytest.mark.parametrize("fisher", FISHERS)
def test_hessian_vector_product(fisher: Any) -> None:
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)
    loss = loss_of(model, batch())
    params = list(model.parameters())
    grads = torch.autograd.grad(loss, params, create_graph=True)
    inner = sum((g * g.detach()).sum() for g in grads)
    torch.autograd.grad(inner, params, retain_graph=True)
    loss.backward()
    found.step()
    assert_close(factors(found), expected_factors(fisher=fisher))


def test_a_backward_pass_in_two_parts() -> None:
    """A first one ends at a layer's output, a second one starts there."""
    model = network()
    found = KFACPreconditioner(model)
    x, y = batch()
    middle = model[2](model[1](model[0](x)))
    loss = nn.functional.cross_entropy(model[5](model[4](model[3](middle.clone()))), y)
    (g,) = torch.autograd.grad(loss, middle, retain_graph=True)
    loss.backward(inputs=list(model[5].parameters()), retain_graph=True)
    middle.backward(g)
    found.step()
    assert_close(factors(found), expected_factors())


# -- passes that do not start at the model


def by_children(model: nn.Sequential, x: Tensor) -> Tensor:
    for layer in model:
        x = layer(x)
    return x


def by_parts(model: nn.Sequential, x: Tensor) -> Tensor:
    return model[3:](model[:3](x))


@pytest.mark.parametrize("forward", [by_children, by_parts])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_the_own_forward_is_not_called(forward: Any, approx: Any) -> None:
    model = network()
    found = KFACPreconditioner(model, approx=approx)
    x, y = batch()
    nn.functional.cross_entropy(forward(model, x), y).backward()
    found.step()
    assert_close(factors(found), expected_factors(approx=approx))


def test_a_container_of_models() -> None:
    """Two uses of one part are on data of their own."""
    models = nn.ModuleDict({"one": network(), "other": network()})
    found = KFACPreconditioner(models)
    x, y = batch()
    loss = loss_of(models["one"], (x[:3], y[:3])) + loss_of(models["one"], (x, y))
    loss.backward()
    found.step()
    assert all(
        bool(own.averages) == n.startswith("one") for n, own in found._layers.items()
    )
    model = network()
    single = KFACPreconditioner(model)
    (loss_of(model, (x[:3], y[:3])) + loss_of(model, (x, y))).backward()
    single.step()
    for (name, what), wanted in factors(single).items():
        assert_close(factors(found)[f"one.{name}", what], wanted)


def test_other_fishers_need_the_own_forward() -> None:
    model = network()
    found = KFACPreconditioner(model, fisher="mc")
    x, y = batch()
    nn.functional.cross_entropy(by_children(model, x), y).backward()
    with pytest.raises(RuntimeError, match="the model itself"):
        found.step()


def test_keyword_inputs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, data: Tensor) -> Tensor:
            x = data
            for layer in self.inner:
                x = layer(input=x)
            return x

    model = Model()
    found = KFACPreconditioner(model)
    x, y = batch()
    nn.functional.cross_entropy(model(data=x), y).backward()
    found.step()
    wanted = {
        (f"inner.{n}", what): own for (n, what), own in expected_factors().items()
    }
    assert_close(factors(found), wanted)


# -- what hooks hold


def alive(tensors: list[weakref.ref[Tensor]]) -> int:
    gc.collect()
    return sum(each() is not None for each in tensors)


@pytest.mark.parametrize("fisher", FISHERS)
def test_inputs_do_not_outlive_the_backward_pass(fisher: Any) -> None:
    """Though the loss is still there."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    KFACPreconditioner(model, fisher=fisher)
    seen: list[weakref.ref[Tensor]] = []
    for layer in (model[0], model[2]):
        layer.register_forward_pre_hook(
            lambda _, args: seen.append(weakref.ref(args[0]))
        )
    losses = []
    for is_attack in (False, True):
        losses.append(model(noise_tensor([5, 4])).square().sum())
        if is_attack:
            torch.autograd.grad(losses[-1], model[0].weight)
        else:
            losses[-1].backward()
        model.zero_grad()
    assert len(seen) == 4
    assert alive(seen) == 0


@pytest.mark.parametrize("is_paused", [False, True])
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_inputs_are_not_held(
    use_reentrant: bool, fisher: Any, is_paused: bool
) -> None:
    """Between the passes; and pausing does not disturb the second forward pass."""
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)
    seen: list[weakref.ref[Tensor]] = []
    model[2].register_forward_pre_hook(
        lambda _, args: seen.append(weakref.ref(args[0]))
    )

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(model[:3], x, use_reentrant=use_reentrant)
            return model[3:](x)

    x, y = batch()
    outer = Model()
    if is_paused:
        with found.pause():
            loss = loss_of(outer, (x.requires_grad_(), y))
    else:
        loss = loss_of(outer, (x.requires_grad_(), y))
    assert alive(seen) == 0
    loss.backward()
    assert alive(seen) == 0
    if not is_paused and fisher == "empirical":
        found.step()
        assert_close(factors(found), expected_factors())


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = network(), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.inner[:3], x, use_reentrant=self.use_reentrant)
        return self.inner[3:](x)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize(
    ("fisher", "use_reentrant"),
    [("empirical", False), ("empirical", True), ("type-2", False)],
)
def test_checkpointing(fisher: Any, use_reentrant: bool, approx: Any) -> None:
    model = Checkpointed(use_reentrant)
    found = KFACPreconditioner(model, fisher=fisher, approx=approx)
    x, y = batch()
    loss_of(model, (x.requires_grad_(), y)).backward()
    found.step()
    expected = expected_factors(fisher=fisher, approx=approx)
    wanted = {(f"inner.{n}", what): own for (n, what), own in expected.items()}
    assert_close(factors(found), wanted)


def test_activations_in_place() -> None:
    """After a ``Linear`` on three axes, whose output is a view."""
    x, y = noise_tensor([6, 5, 4]), batch()[1]
    results = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    for in_place in (False, True):
        model = copy.deepcopy(first)
        model[1].inplace = in_place
        for fisher in FISHERS:
            found = KFACPreconditioner(model, fisher=fisher)
            model.zero_grad()
            labels = y[:, None].expand(6, 5)
            logits = model(x)
            nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten()
            ).backward()
            if fisher == "empirical":
                found.step()
                results.append(factors(found))
            found.remove_hooks()
    assert len(results[1]) == 4
    assert_close(*results)


# -- transforms, tracing, copies


def per_sample(model: nn.Module) -> None:
    params = {k: v.detach() for k, v in model.named_parameters()}
    x, y = batch(number=1)

    def loss(own: Any, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            functional_call(model, own, (x[None],)), y[None]
        )

    vmap(grad(loss), (None, 0, 0))(params, x, y)


def jacobian(model: nn.Module) -> None:
    jacrev(model)(batch(number=1)[0])


def jacobian_vectorised(model: nn.Module) -> None:
    torch.autograd.functional.jacobian(model, batch(number=1)[0], vectorize=True)


@pytest.mark.filterwarnings("ignore")
def trace(model: nn.Module) -> None:
    torch.jit.trace(model, batch(number=1)[0])


def save(model: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    loss_of(loaded, batch(number=1)).backward()
    torch.save(loaded, file)


def copied(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    loss_of(other, batch(number=1)).backward()
    copy.deepcopy(other)


def fast_weights(model: nn.Module) -> None:
    """Do an inner step as in meta-learning, and throw it away."""
    params = dict(model.named_parameters())
    x, y = batch(number=1)
    loss = nn.functional.cross_entropy(functional_call(model, params, (x,)), y)
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    fast = {n: p - 0.1 * g for (n, p), g in zip(params.items(), grads, strict=True)}
    functional_call(model, fast, (x,)).sum().backward()
    model.zero_grad()


@pytest.mark.filterwarnings("ignore:.*trace")
@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize(
    "disturb",
    [per_sample, jacobian, jacobian_vectorised, trace, save, copied, fast_weights],
)
def test_transforms_and_copies(disturb: Any, fisher: Any) -> None:
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)
    disturb(model)
    loss_of(model, batch()).backward()
    disturb(network())
    found.step()
    assert_close(factors(found), expected_factors(fisher=fisher))


def test_a_copy_knows_nothing_of_the_preconditioner() -> None:
    model = network()
    found = KFACPreconditioner(model)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"tn_extensions.optim.observer" not in file.getvalue()
    other = copy.deepcopy(model)
    loss_of(other, batch()).backward()
    with pytest.raises(RuntimeError, match="backward"):
        found.step()


# -- gradients without statistics


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2)).double()


@pytest.mark.parametrize("fisher", FISHERS)
def test_parameters_used_without_their_layer(fisher: Any) -> None:
    model = transformer()
    with pytest.warns(UserWarning, match="LayerNorm"):
        found = KFACPreconditioner(model, fisher=fisher, kl_clip=None)
    data = noise_tensor([5, 3, 8]), torch.tensor([0, 1, 1, 0, 1])
    for number in range(2):
        model.zero_grad()
        loss_of(model, data).backward()
        projection = model[0].self_attn.out_proj.weight
        before = projection.grad.clone(), model[2].weight.grad.clone()
        if number:
            found.step()
        else:
            with pytest.warns(UserWarning, match=r"used for '0\.self_attn\.out_proj'"):
                found.step()
        assert torch.equal(projection.grad, before[0])
        assert not torch.equal(model[2].weight.grad, before[1])


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.head = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.head](torch.tanh(self.body(x)))


@pytest.mark.filterwarnings("error")
def test_heads_in_turn() -> None:
    model = Heads().double()
    found = KFACPreconditioner(model, kl_clip=None)
    data = noise_tensor([6, 4]), batch()[1]
    for model.head in (0, 1, 0, 1):
        model.zero_grad(set_to_none=False)
        loss_of(model, data).backward()
        found.step()
        unused = model.heads[1 - model.head].weight.grad
        assert unused is None or not unused.any()
    assert all(layer.averages for layer in found._layers.values())
    assert found.steps == 4


def test_a_penalty_on_an_unused_layer() -> None:
    model = Heads().double()
    found = KFACPreconditioner(model, kl_clip=None)
    data = noise_tensor([6, 4]), batch()[1]
    (loss_of(model, data) + model.heads[1].weight.square().sum()).backward()
    with pytest.warns(UserWarning, match=r"used for 'heads\.1'.*was not called"):
        found.step()
    assert_close(model.heads[1].weight.grad, 2 * model.heads[1].weight.detach())


def test_an_empty_batch() -> None:
    model = network()
    found = KFACPreconditioner(model)
    x, y = batch()
    loss = nn.functional.cross_entropy(model(x[:0]), y[:0], reduction="sum")
    loss.backward()
    with pytest.warns(UserWarning, match="used for '0', '2', '5'.*empty batch"):
        found.step()
    assert not any(gradient.any() for gradient in gradients(model))
    model.zero_grad()
    loss_of(model, batch()).backward()
    found.step()
    assert_close(factors(found), expected_factors())


def test_what_is_not_a_batch() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv1d(2, 3, 2), nn.Linear(3, 3)
            self.of_all = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            # a table that is the same for all data
            table = self.of_all(torch.eye(3).to(x)[None])
            single = self.conv(x[0])
            return self.last(x.mean((1, 2))[:, None] + table[0, 0]) + single.mean()

    model = Model().double()
    found = KFACPreconditioner(model, kl_clip=None)
    loss_of(model, (noise_tensor([6, 2, 3]), batch()[1])).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    with pytest.warns(UserWarning) as seen:
        found.step()
    messages = " ".join(str(each.message) for each in seen)
    assert (
        "used for 'of_all'" in messages
        and "1 rows, which is not a multiple of the 6 data" in messages
    )
    assert "used for 'conv'" in messages and "[2, 3], which is not a batch" in messages
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, before[name]) != name.startswith("last")


# -- rows of the first axis that are not data


class Folded(nn.Module):
    """Frames, which share a convolution, folded into the batch or an axis."""

    def __init__(self, is_folded: bool) -> None:
        super().__init__()
        self.is_folded = is_folded
        kernel = (3, 3) if is_folded else (1, 3, 3)
        kind = nn.Conv2d if is_folded else nn.Conv3d
        self.conv = kind(2, 4, kernel, groups=2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_folded:
            out = self.conv(x.transpose(1, 2).flatten(0, 1))
            out = out.unflatten(0, (len(x), -1)).transpose(1, 2)
        else:
            out = self.conv(x)
        return self.last(torch.tanh(out).mean((2, 3, 4)))


@pytest.mark.parametrize(
    "options",
    [
        {"approx": "expand"},
        {"approx": "reduce"},
        {"eigenvalue_correction": True},
        {"fisher": "type-2", "approx": "reduce"},
        {"keep": {"n": 0.5}},
    ],
)
def test_frames_in_the_batch(options: Any) -> None:
    results = []
    x, y = noise_tensor([6, 2, 5, 4, 4]), batch()[1]
    for is_folded in (False, True):
        torch.manual_seed(0)
        model = Folded(is_folded).double()
        found = KFACPreconditioner(model, kl_clip=None, damping=0.1, **options)
        train(model, found, range(3), data=lambda number: (x + number, y))
        results.append([factors(found), [p.flatten() for p in model.parameters()]])
    assert_close(*results)


# -- kernels that are computed


class Standardised(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return nn.functional.conv1d(x, weight, self.bias)


COMPUTED = [
    lambda: Standardised(3, 4, 2),
    lambda: parametrizations.weight_norm(nn.Conv1d(3, 4, 2)),
    lambda: parametrizations.spectral_norm(nn.Conv1d(3, 4, 2)),
    lambda: nn.utils.weight_norm(nn.Conv1d(3, 4, 2)),
    lambda: nn.utils.spectral_norm(nn.Conv1d(3, 4, 2)),
    lambda: prune.l1_unstructured(nn.Conv1d(3, 4, 2), "weight", 0.5),
    lambda: prune.l1_unstructured(nn.Conv1d(3, 4, 2), "bias", 0.5),
]


def assert_first_is_left_alone(model: nn.Module, found: KFACPreconditioner) -> None:
    loss_of(model, (noise_tensor([6, 3, 3]), batch()[1])).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    found.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, before[name]) == name.startswith("0.")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", COMPUTED)
def test_computed_kernels(make: Any) -> None:
    model = nn.Sequential(make(), nn.Flatten(), nn.Linear(8, 3)).double()
    with pytest.warns(UserWarning, match="layer '0' (computes|has)"):
        found = KFACPreconditioner(model, kl_clip=None)
    assert_first_is_left_alone(model, found)
    with pytest.raises(ValueError, match="layer '0' (computes|has)"):
        KFACPreconditioner(model[:1])


@pytest.mark.parametrize("key", ["weight", "bias"])
def test_kernels_that_are_computed_later(key: str) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.Flatten(), nn.Linear(8, 3)).double()
    found = KFACPreconditioner(model, kl_clip=None)
    prune.l1_unstructured(model[0], key, 0.5)
    with pytest.warns(UserWarning, match="for '0', as each no longer multiplies"):
        assert_first_is_left_alone(model, found)


# -- a step without a backward pass


def test_bound_that_comes_and_goes() -> None:
    """A callable may turn the bound off."""
    results = []
    for clip in (None, lambda step: None, lambda step: 1e9, lambda step: 1e-12):
        _, after = preconditioned(network(), batch(), kl_clip=clip)
        results.append(after)
    assert_close(results[0], results[1], rtol=0, atol=0)
    assert_close(results[0], results[2], rtol=0, atol=0)
    assert not torch.allclose(results[0][0], results[3][0])


def test_not_finite_outputs() -> None:
    model = network()
    KFACPreconditioner(model, fisher="mc")
    x, _ = batch()
    with pytest.raises(ValueError, match="the model's output must be finite"):
        model(x * torch.nan)


def test_squeezed_outputs() -> None:
    x = noise_tensor([6, 4])
    results = []
    for is_squeezed in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 1)).double()
        if is_squeezed:
            model.append(nn.Flatten(0))
        found = KFACPreconditioner(model, fisher="type-2", loss_func=nn.MSELoss())
        model(x).square().mean().backward()
        found.step()
        results.append(factors(found))
    assert_close(*results)


def test_models_that_return_several_outputs() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    model = Twice(nn.Linear(4, 3)).double()
    KFACPreconditioner(model, fisher="mc")
    with pytest.raises(TypeError, match="the model must return a tensor, got tuple"):
        model(noise_tensor([2, 4]))
