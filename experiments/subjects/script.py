"""A user's script: curvature of a small CNN by BackPACK, curvlinops or Opacus.

``python script.py TOOLKIT SIZE ROUNDS`` prints numbers, and the seconds of the fastest
round. It knows nothing of ours.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore")
torch.manual_seed(0)
model: Any = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
    *(nn.Flatten(), nn.Linear(1024, 10)),
)
loss: Any = nn.CrossEntropyLoss()
size = int(sys.argv[2])
x, y = torch.randn(size, 3, 32, 32), torch.arange(size) % 10
parameters = list(model.parameters())
vector = [torch.randn_like(p) for p in parameters]
toolkit = import_module(sys.argv[1])


def by_backpack() -> list[Tensor]:
    """Compute Kronecker factors, norms of samples' gradients and the GGN's diagonal."""
    extended, extended_loss = toolkit.extend(model), toolkit.extend(loss)
    found = toolkit.extensions
    extensions = found.KFAC(), found.BatchL2Grad(), found.DiagGGNExact()
    torch.manual_seed(1)
    with toolkit.backpack(*extensions):
        extended_loss(extended(x), y).backward()
    return [
        each for p in parameters for each in (*p.kfac, p.batch_l2, p.diag_ggn_exact)
    ]


def by_curvlinops() -> list[Tensor]:
    """Multiply with KFAC and its inverse."""
    kfac = toolkit.KFACLinearOperator(
        model, loss, parameters, [(x, y)], fisher_type="empirical"
    )
    inverse = toolkit.KFACInverseLinearOperator(kfac, damping=1e-2)
    return [*(kfac @ vector), *(inverse @ vector)]


def by_opacus() -> list[Tensor]:
    """Compute the norms of samples' gradients."""
    wrapped = toolkit.GradSampleModule(model)
    loss(wrapped(x), y).backward()
    norms = [p.grad_sample.flatten(1).norm(dim=1) for p in parameters]
    wrapped.to_standard_module()
    return list(torch.stack(norms).norm(dim=0))


compute: Callable[[], list[Tensor]] = {
    "backpack": by_backpack,
    "curvlinops": by_curvlinops,
    "opacus": by_opacus,
}[sys.argv[1]]
seconds = []
for _ in range(int(sys.argv[3])):
    model.zero_grad()
    start = time.perf_counter()
    tensors = compute()
    seconds.append(time.perf_counter() - start)
numbers = [float(each.norm()) for each in tensors]
print(json.dumps({"numbers": numbers, "seconds": min(seconds)}))
