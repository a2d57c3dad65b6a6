"""A user's script: products with KFAC and its inverse by curvlinops."""

import json
import sys
import time

import torch
from curvlinops import KFACInverseLinearOperator, KFACLinearOperator
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
    *(nn.Flatten(), nn.Linear(1024, 10)),
)
size = int(sys.argv[1])
x, y = torch.randn(size, 3, 32, 32), torch.arange(size) % 10
parameters = list(model.parameters())
vector = [torch.randn_like(p) for p in parameters]
seconds = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    kfac = KFACLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [(x, y)], fisher_type="empirical"
    )
    inverse = KFACInverseLinearOperator(kfac, damping=1e-2)
    found = [*(kfac @ vector), *(inverse @ vector)]
    seconds.append(time.perf_counter() - start)
numbers = [float(each.norm()) for each in found]
print(json.dumps({"numbers": numbers, "seconds": min(seconds)}))
