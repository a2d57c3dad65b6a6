"""Uses of a layer: the parameters that it multiplies by, and the rows of a datum."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.strategies import with_stale_attributes
from tn_extensions.kronecker.factors import add_gradient_factor, add_input_factor
from tn_extensions.layers.gradients import per_sample_gradients
from tn_extensions.layers.module import Use, out_channels, reason_against


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Named(nn.Linear):
    """Of another name, but of torch's forward."""


class Computed(nn.Module):
    def forward(self, weight):
        return weight.tanh()


def _patched():
    layer = nn.Linear(2, 3)
    layer.forward = lambda x: x
    return layer


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv1d(2, 3, 2), None),
        (nn.ConvTranspose2d(2, 3, 2, bias=False), None),
        (Named(2, 3), None),
        (Standardised(2, 3, 2), "has a forward of its own"),
        (_patched(), "has a forward of its own"),
        (nn.utils.weight_norm(nn.Conv1d(2, 3, 2)), "computes its weight"),
        (nn.utils.spectral_norm(nn.Linear(2, 3)), "computes its weight"),
        (prune.random_unstructured(nn.Linear(2, 3), "bias", 0.5), "computes its bias"),
        (parametrizations.weight_norm(nn.Conv3d(2, 3, 2)), "computes its weight"),
        (
            parametrize.register_parametrization(
                nn.ConvTranspose1d(2, 3, 2), "bias", Computed()
            ),
            "computes its bias",
        ),
    ],
)
def test_reason_against(layer, reason):
    assert reason_against(layer) == reason


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 6),
        nn.Conv2d(2, 6, 3, groups=2),
        nn.ConvTranspose1d(4, 6, 3, groups=2),
    ],
)
def test_out_channels(layer):
    assert out_channels(layer) == 6
    assert out_channels(with_stale_attributes(layer)) == 6


@pytest.mark.parametrize("is_cat", [False, True])
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(4, 6), ()),
        (nn.Linear(4, 6), (3,)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4)),
        (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (5,)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (4,)),
    ],
)
def test_rows_of_a_datum_are_positions(layer, size, is_cat):
    layer, (data, rows) = layer.double(), (3, 2)
    shape = (4, *size) if not isinstance(layer, nn.Linear) else (*size, 4)
    x = torch.rand(data, rows, *shape, dtype=torch.float64)
    folded = (x.transpose(0, 1) if is_cat else x).flatten(0, 1)
    output = layer(folded)
    g = torch.rand_like(output)
    use = Use.of(layer, folded, output, "separate", data)
    use = use.as_cat() if is_cat else use
    pairs = [(use, use.gradient(g))]

    for key, parameter in layer.named_parameters():
        found = per_sample_gradients(pairs, key)
        for n in range(data):
            own = torch.zeros(rows, data, *g.shape[1:]).double()
            chosen = g.unflatten(0, (rows, data) if is_cat else (data, rows))
            own = own if is_cat else own.transpose(0, 1).contiguous()
            index = (slice(None), n) if is_cat else (n,)
            own[index] = chosen[index]
            (expected,) = torch.autograd.grad(
                output, parameter, own.flatten(0, 1), retain_graph=True
            )
            torch.testing.assert_close(found[n].reshape(parameter.shape), expected)

    # positions are as those of several uses on the same data
    uses = []
    for row in range(rows):
        one = layer(x[:, row])
        each = Use.of(layer, x[:, row], one, "separate")
        grad = g.unflatten(0, (rows, data) if is_cat else (data, rows))
        uses.append((each, each.gradient(grad[row] if is_cat else grad[:, row])))
    for approx in ("expand", "reduce"):
        for add, ours, theirs in (
            (
                lambda u, a: add_input_factor(u, a, None, 0.5, True, 0.0),
                [use],
                [u for u, _ in uses],
            ),
            (lambda p, a: add_gradient_factor(p, a, None, 0.5, 0.0), pairs, uses),
        ):
            torch.testing.assert_close(add(ours, approx), add(theirs, approx))
