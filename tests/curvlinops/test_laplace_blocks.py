"""Blocks of laplace-torch whose parameters are frozen or unknown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laplace.curvature import curvlinops as stock
from laplace.utils import matrix
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.curvlinops.test_kfac import cnn
from tests.curvlinops.test_laplace import N, batches
from tests.messages import assert_in_form
from tn_extensions.curvlinops import laplace as ours


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
