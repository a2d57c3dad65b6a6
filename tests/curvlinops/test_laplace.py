"""laplace-torch on our operators: its values where right, dense algebra elsewhere."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import curvlinops
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from tests.backpack.run import classifier, images, targets
from tests.curvlinops.test_kfac import cnn, dense, grouped
from tests.messages import assert_in_form
from tests.strategies import noise_tensor, with_stale_attributes
from tn_extensions.curvlinops import KFACLinearOperator

laplace = pytest.importorskip("laplace")

from laplace.curvature import curvlinops as stock  # noqa: E402
from laplace.utils import matrix  # noqa: E402

from tn_extensions.curvlinops import laplace as ours  # noqa: E402

LIKELIHOODS = ["classification", "regression"]
BACKENDS = ["CurvlinopsGGN", "CurvlinopsEF"]
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
N = 5


def labels(likelihood: str) -> Tensor:
    return targets(N) if likelihood == "classification" else images(N, 3)


def batches(x: Tensor, y: Tensor, size: int = 2) -> Any:
    """Of 2, 2 and 1."""
    return DataLoader(TensorDataset(x, y), batch_size=size)


def fitted(
    model: nn.Module,
    likelihood: str,
    x: Tensor,
    subset: str = "all",
    structure: str = "kron",
    backend: Any = ours.CurvlinopsGGN,
    **options: Any,
) -> Any:
    la = laplace.Laplace(
        copy.deepcopy(model), likelihood, subset, structure, backend=backend, **options
    )
    la.fit(batches(x, labels(likelihood)))
    return la


def operator(
    model: nn.Module, likelihood: str, x: Tensor, kind: Any, **options: Any
) -> Tensor:
    """Compute laplace's sum over the data of its log likelihood, by an operator."""
    is_class = likelihood == "classification"
    loss = (nn.CrossEntropyLoss if is_class else nn.MSELoss)(reduction="sum")
    params = [p for p in model.parameters() if p.requires_grad]
    op = kind(model, loss, params, [(x, labels(likelihood))], **options)
    return dense(op) * (1 if is_class else 0.5)


def kfac(model: nn.Module, likelihood: str, x: Tensor, **options: Any) -> Tensor:
    options = {"fisher_type": "type-2", **options}
    return operator(model, likelihood, x, KFACLinearOperator, **options)


def test_nothing_else_imports_it() -> None:
    """The package is complete where laplace is not installed."""
    folder = Path(ours.__file__).parents[1]
    statement = re.compile(r"^ *(from|import) .*\blaplace\b", re.MULTILINE)
    texts = {path: path.read_text("utf-8") for path in folder.rglob("*.py")}
    assert [path for path, text in texts.items() if statement.search(text)] == [
        Path(ours.__file__)
    ]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", ["kron", "diag", "full"])
@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_laplaces(
    backend: str, subset: str, structure: str, likelihood: str
) -> None:
    if (backend, subset, structure) == ("CurvlinopsEF", "last_layer", "diag"):
        pytest.skip("laplace's is zero")
    x = images(N, 2, 8, 7)
    args = cnn(x), likelihood, x, subset, structure
    mine, theirs = (fitted(*args, getattr(m, backend)) for m in (ours, stock))
    assert type(mine) is type(theirs)
    for la in (mine, theirs):
        la.prior_precision = 0.3
    assert_close(mine.loss, theirs.loss, **TIGHT)
    found, expected = (la.log_marginal_likelihood() for la in (mine, theirs))
    assert_close(found, expected, **TIGHT)
    assert_close(mine(x), theirs(x), **TIGHT)
    samples = [la.sample(2, torch.Generator().manual_seed(0)) for la in (mine, theirs)]
    assert_close(*samples, **TIGHT)
    if structure == "kron":
        found, expected = (la.state_dict()["H"] for la in (mine, theirs))
        assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_options_are_the_operators(approx: str) -> None:
    x = images(N, 2, 8, 7)
    options = {"asdl_fisher_kwargs": {"kfac_approx": approx, "mc_samples": 3}}
    options["backend_kwargs"] = {"stochastic": True}
    args = cnn(x), "classification", x, "all", "kron"
    mine, theirs = (fitted(*args, m.CurvlinopsGGN, **options) for m in (ours, stock))
    assert_close(mine.state_dict()["H"], theirs.state_dict()["H"], **TIGHT)


def test_laplaces_own_is_off_here() -> None:
    x = images(N, 2, 5, 4)
    with pytest.raises(NotImplementedError):
        fitted(grouped(x), "classification", x, backend=stock.CurvlinopsGGN)
    x = images(N, 4, 5, 4)
    model = classifier(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), x=x)
    mine, theirs = (
        fitted(model, "classification", x, backend=m.CurvlinopsGGN).H_facs.to_matrix()
        for m in (ours, stock)
    )
    # it averages inputs over groups
    mine, theirs = (kron[:108, :108] for kron in (mine, theirs))
    assert torch.linalg.norm(mine - theirs) > 0.1 * torch.linalg.norm(mine)


def networks() -> dict[str, tuple[nn.Sequential, Tensor]]:
    torch.manual_seed(0)
    x, series = images(N, 2, 5, 4), images(N, 4, 6)
    transposed = classifier(
        nn.ConvTranspose1d(4, 3, 2, bias=False), nn.Tanh(), x=series
    )
    depthwise = classifier(
        nn.Conv1d(4, 4, 3, groups=4),
        nn.Tanh(),
        nn.ConvTranspose1d(4, 4, 2, groups=4),
        x=series,
    )
    return {
        "grouped": (grouped(x), x),
        "transposed": (transposed, series),
        "depthwise": (depthwise, series),
    }


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", ["grouped", "transposed", "depthwise"])
def test_posterior_is_the_operators(name: str, likelihood: str) -> None:
    """The sum of batches is the operator on all data; what is made of it, dense."""
    model, x = networks()[name]
    expected = kfac(model, likelihood, x)
    sizes = [p.numel() for p in model.parameters()]
    prior = 0.5 + torch.rand(len(sizes), dtype=torch.float64)
    regression = {"sigma_noise": 0.7} if likelihood == "regression" else {}
    options = {"prior_precision": prior, "temperature": 0.8, **regression}
    la = fitted(model, likelihood, x, **options)
    kron = la.H_facs
    assert isinstance(kron, ours.Kron) and len(kron) == len(sizes)
    assert_close(kron.to_matrix(), expected, **TIGHT)
    assert_close(kron.diag(), expected.diagonal(), **TIGHT)
    w = noise_tensor([2, 3, len(expected)])
    assert_close(kron.bmm(w), w @ expected, **TIGHT)

    scale = 1 / 0.8 / regression.get("sigma_noise", 1) ** 2
    precision = scale * expected + prior.repeat_interleave(torch.tensor(sizes)).diag()
    covariance = torch.linalg.inv(precision)
    posterior = la.posterior_precision
    assert_close(posterior.to_matrix(), precision, **TIGHT)
    assert_close(posterior.diag(), precision.diagonal(), **TIGHT)
    assert_close(posterior.diag(-1), covariance.diagonal(), **TIGHT)
    for vectors in (w, w[0], w[0, 0]):
        assert_close(posterior.bmm(vectors), vectors @ covariance, **TIGHT)
    assert_close(la.log_det_posterior_precision, precision.logdet(), **TIGHT)
    assert_close(la.square_norm(la.mean + w[0, 0]), w[0, 0] @ precision @ w[0, 0])
    # the predictive
    jacobians, _ = la.backend.jacobians(x)
    variance = jacobians @ covariance @ jacobians.mT
    assert_close(la.functional_variance(jacobians), variance, **TIGHT)
    stacked = jacobians.flatten(0, 1)
    joint = la.functional_covariance(jacobians)
    assert_close(joint, stacked @ covariance @ stacked.T, **TIGHT)
    # samples: the symmetric root of the covariance
    found = la.sample(3, torch.Generator().manual_seed(0)) - la.mean
    noise = torch.randn(
        *found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(0)
    )
    values, vectors = torch.linalg.eigh(covariance)
    assert_close(found, noise @ (vectors * values.sqrt()) @ vectors.T, **TIGHT)


def test_more_data_and_empirical_fisher() -> None:
    model, x = networks()["grouped"]
    y = targets(N)
    expected = kfac(model, "classification", x, fisher_type="empirical")
    la = laplace.Laplace(
        model, "classification", "all", "kron", backend=ours.CurvlinopsEF
    )
    la.fit(batches(x[:2], y[:2]))
    la.fit(batches(x[2:], y[2:]), override=False)
    assert_close(la.H_facs.to_matrix(), expected, **TIGHT)


def test_frozen_parameters() -> None:
    model, x = networks()["grouped"]
    model[2].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    la = fitted(model, "classification", x)
    assert_close(la.H_facs.to_matrix(), kfac(model, "classification", x), **TIGHT)
    assert la(x).isfinite().all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_diagonal(subset: str, backend: str, likelihood: str) -> None:
    model, x = networks()["grouped"]
    la = fitted(model, likelihood, x, subset, "diag", getattr(ours, backend))
    kind = "GGNLinearOperator" if "GGN" in backend else "EFLinearOperator"
    if subset == "last_layer":
        model.requires_grad_(False)[-1].requires_grad_(True)
    expected = operator(model, likelihood, x, getattr(curvlinops, kind)).diagonal()
    assert_close(la.H, expected, **TIGHT)
    assert la(x)[0].isfinite().all()


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("damping", [False, True])
def test_matrices_equal_laplaces(damping: bool, diagonal: bool) -> None:
    """On factors without groups, with and without damping; also on diagonals."""
    roots = [[images(3, 3), images(4, 4)], [images(3, 3)], [images(2, 2)]]
    factors = [[root @ root.T for root in F] for F in roots]
    if diagonal:
        factors = [[factor.diagonal() for factor in F] for F in factors]
    mine, theirs = ours.Kron(factors) * 1.3, matrix.Kron(factors) * 1.3
    w = noise_tensor([2, 3, 17])
    assert_close(mine.bmm(w), theirs.bmm(w))
    assert_close(mine.to_matrix(), theirs.to_matrix())
    assert_close(mine.logdet(), theirs.logdet())
    assert_close(mine.diag(), theirs.diag())
    deltas = torch.tensor([0.3, 0.2, 0.1]).double()
    found, expected = (
        type(kron.decompose())(own.eigenvectors, own.eigenvalues, deltas, damping)
        for kron, own in ((kron, kron.decompose()) for kron in (mine, theirs))
    )
    assert type(found) is ours.KronDecomposed
    assert_close(found.logdet(), expected.logdet())
    for exponent in (1, -1, -0.5):
        assert_close(found.bmm(w, exponent), expected.bmm(w, exponent))
        assert_close(found.to_matrix(exponent), expected.to_matrix(exponent))
        assert_close(found.diag(exponent), expected.diag(exponent))
    assert_close(found.inv_square_form(w), expected.inv_square_form(w))


def test_prior_precision_is_differentiable() -> None:
    model, x = networks()["grouped"]
    la = fitted(model, "classification", x)
    prior = torch.full([len(la.params)], 0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(la.log_marginal_likelihood, prior)
    before = la.log_marginal_likelihood()
    la.optimize_prior_precision(
        pred_type="glm", method="marglik", n_steps=20, prior_structure="layerwise"
    )
    assert la.log_marginal_likelihood() > before


def test_state() -> None:
    model, x = networks()["grouped"]
    la = fitted(model, "classification", x)
    fresh = ours.KronLaplace(model, "classification", backend=ours.CurvlinopsGGN)
    with pytest.raises(AttributeError, match="not fitted"):
        fresh.log_marginal_likelihood()
    fresh.load_state_dict(la.state_dict())
    assert torch.equal(fresh(x), la(x))
    fresh.fit(batches(x, targets(N)))
    assert torch.equal(fresh(x), la(x))
    # laplace's own does not take them for what they are not
    theirs = laplace.KronLaplace(model, "classification", backend=ours.CurvlinopsGGN)
    theirs.load_state_dict(la.state_dict())
    with pytest.raises(RuntimeError):
        theirs(x)
    # without groups, it is the same
    x = images(N, 2, 8, 7)
    la = fitted(cnn(x), "classification", x)
    theirs = laplace.KronLaplace(la.model, "classification")
    theirs.load_state_dict(la.state_dict())
    assert_close(theirs(x), la(x))
    chosen = laplace.Laplace(la.model, "classification", "all", "kron")
    assert type(chosen) is laplace.KronLaplace


def test_three_dimensions() -> None:
    x = images(N, 2, 2, 3, 2)
    model = classifier(nn.ConvTranspose3d(2, 4, 2, groups=2), nn.Tanh(), x=x)
    la = ours.KronLaplace(model, "classification", backend=ours.CurvlinopsGGN)
    la.fit(batches(x, targets(N)))
    assert_close(la.H_facs.to_matrix(), kfac(model, "classification", x), **TIGHT)


def test_sums_are_of_the_same_shapes() -> None:
    model, x = networks()["transposed"]
    kron = fitted(model, "classification", x).H_facs
    # factors are added, as laplace does, not products
    assert_close(
        (kron + kron).kfacs, [[2 * factor for factor in F] for F in kron.kfacs]
    )
    other = matrix.Kron.init_from_model(model, x.device, x.dtype)
    assert_close((other + kron).to_matrix(), kron.to_matrix())
    assert_close((kron + other).to_matrix(), kron.to_matrix())
    other.kfacs[0][0] += 1
    with pytest.raises(ValueError, match="shapes") as error:
        _ = other + kron
    assert_in_form(error.value, "Kron.__add__", "other")
    with pytest.raises(ValueError, match="Can only add Kron"):
        _ = kron + 1


def test_dictionaries_as_input() -> None:
    class OfDictionary(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: Any) -> Tensor:
            return self.net(batch["input_ids"])

    net, x = networks()["transposed"]
    y = targets(N)
    data = [{"input_ids": x[n], "labels": y[n]} for n in range(N)]
    model = OfDictionary(net)
    la = laplace.KronLaplace(model, "classification", backend=ours.CurvlinopsGGN)
    la.fit(DataLoader(data, batch_size=2))  # type: ignore[arg-type]
    assert_close(la.H_facs.to_matrix(), kfac(net, "classification", x), **TIGHT)


def test_diagonal_of_other_layers_is_laplaces() -> None:
    x, y = images(N, 2, 6, 6), labels("classification")
    model = nn.Sequential(nn.BatchNorm2d(2), classifier(nn.Conv2d(2, 3, 3), x=x))
    model = model.double().eval()
    found, expected = (
        backend(model, "classification").diag(x, y)
        for backend in (ours.CurvlinopsGGN, stock.CurvlinopsGGN)
    )
    assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend: str, likelihood: str, dtype: torch.dtype) -> None:
    """The result is in half precision, and equals that in double up to rounding."""
    x = images(N, 2, 8, 7).to(dtype)
    half = cnn(x.double()).to(dtype)
    y = labels(likelihood)
    posteriors = []
    for model, data in ((half, x), (copy.deepcopy(half).double(), x.double())):
        own = y.to(data.dtype) if y.is_floating_point() else y
        la = laplace.Laplace(
            model, likelihood, "all", "kron", backend=getattr(ours, backend)
        )
        la.fit(batches(data, own))
        posteriors.append((la, data))

    def results(la: Any, data: Tensor) -> list[Tensor]:
        predicted = la(data)
        noise = torch.ones(2, 3, la.n_params, dtype=data.dtype)
        return [
            *(predicted if isinstance(predicted, tuple) else [predicted]),
            la.functional_covariance(la.backend.jacobians(data)[0]),
            la.posterior_precision.bmm(noise),
            la.H_facs.bmm(noise),
            la.mean - 0 * la.sample(3).sum(0),
        ]

    found, expected = (results(la, data) for la, data in posteriors)
    assert {result.dtype for result in found} == {dtype}
    for mine, exact in zip(found, expected, strict=True):
        error = (mine.double() - exact).norm()
        assert error < 0.1 * exact.norm(), (mine, exact)
    assert posteriors[0][0].log_prob(posteriors[0][0].mean).isfinite()


def test_before_a_fit_it_is_the_prior() -> None:
    x = images(N, 2, 8, 7)
    options: dict[str, Any] = {"prior_mean": 0.1, "prior_precision": 0.3}
    mine, theirs = (
        kind(cnn(x), "classification", backend=ours.CurvlinopsGGN, **options)
        for kind in (ours.KronLaplace, laplace.KronLaplace)
    )
    value = noise_tensor([mine.n_params])
    for normalized in (True, False):
        found, expected = (la.log_prob(value, normalized) for la in (mine, theirs))
        assert_close(found, expected)
    for act in (mine.sample, mine.log_marginal_likelihood, lambda: mine(x)):
        with pytest.raises(AttributeError, match="not fitted"):
            act()


class OfWholeLayers(ours.CurvlinopsGGN):
    """Has blocks of a trained layer's frozen parameters, too, as those of ASDL do."""

    _all_layers = False

    def kron(self, x: Any, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, Any]:
        loss, kron = super().kron(x, y, N, **kwargs)
        trained, found = iter(kron.kfacs), []
        for module in self.model.modules():
            params = [*module.parameters(recurse=False)]
            if self._all_layers or any(p.requires_grad for p in params):
                for p in params:
                    sizes = p.flatten(1).shape if p.dim() > 1 else p.shape
                    ones = [torch.eye(size, dtype=p.dtype) for size in sizes]
                    found.append(next(trained) if p.requires_grad else ones)
        return loss, matrix.Kron(found)


class OfAllLayers(OfWholeLayers):
    _all_layers = True


@pytest.mark.parametrize("backend", [OfWholeLayers, OfAllLayers])
@pytest.mark.parametrize(
    "frozen", [["0.bias"], ["0.weight"], ["0.weight", "0.bias", "4.bias"], []]
)
def test_blocks_of_frozen_parameters_are_dropped(
    frozen: list[str], backend: Any
) -> None:
    x, y = images(N, 2, 5, 4), targets(N)
    model = classifier(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 1, bias=False), nn.Tanh(), x=x
    )
    model.insert(4, nn.Conv2d(4, 4, 1).double())
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    found, expected = (
        ours.KronLaplace(model, "classification", backend=kind)
        for kind in (backend, ours.CurvlinopsGGN)
    )
    for la in (found, expected):
        la.fit(batches(x, y))
    assert len(found.H_facs) == len(found.params)
    assert_close(found.H_facs.kfacs, expected.H_facs.kfacs)
    assert_close(found(x), expected(x))


def test_blocks_of_unknown_parameters() -> None:
    class Lacking(stock.CurvlinopsGGN):
        def kron(self, x: Any, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, Any]:
            loss, kron = super().kron(x, y, N, **kwargs)
            return loss, matrix.Kron(kron.kfacs[1:])

    x = images(N, 2, 8, 7)
    la = ours.KronLaplace(cnn(x), "classification", backend=Lacking)
    with pytest.raises(ValueError, match="blocks") as error:
        la.fit(batches(x, targets(N)))
    assert_in_form(error.value, "KronLaplace", "the backend's factors")


def test_kernels_that_were_exchanged() -> None:
    x = images(N, 2, 8, 7)
    model = grouped(x)
    wanted = fitted(model, "classification", x).log_marginal_likelihood()
    found = fitted(with_stale_attributes(model), "classification", x)
    assert_close(found.log_marginal_likelihood(), wanted)
