"""On a CUDA device that is not there: nothing on the host, no waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.curvlinops.test_cuda import network
from tests.fake_cuda import CUDA, FakeCuda
from tn_extensions.model import ggn_diagonal, kfac_factors, per_sample_grad_norms


@pytest.mark.parametrize("fisher", ["type-2", "mc"])
def test_without_values(cuda: FakeCuda, fisher: Any) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    x, y = cuda.tensor(4, 2, 8, 8), cuda.tensor(4, dtype=torch.long)
    norms = cuda.run(per_sample_grad_norms, model, loss, x, y)
    assert norms.shape == (4,) and norms.device == CUDA
    options: dict[str, Any] = {"fisher_type": fisher}

    def diagonal() -> Any:
        return ggn_diagonal(model, loss, (x, y), **options)

    def factors() -> Any:
        return kfac_factors(model, loss, (x, y), **options)

    for name, own in cuda.run(diagonal).items():
        assert own.shape == model.get_parameter(name).shape and own.device == CUDA
    assert cuda.run(factors)["2"].A.shape == (2, 18, 18)
