"""A user's script: products with KFAC and its inverse by curvlinops."""

import json
import sys

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
kfac = KFACLinearOperator(
    model, nn.CrossEntropyLoss(), parameters, [(x, y)], fisher_type="empirical"
)
inverse = KFACInverseLinearOperator(kfac, damping=1e-2)
vector = [torch.randn_like(p) for p in parameters]
print(
    json.dumps([float(each.norm()) for each in (*(kfac @ vector), *(inverse @ vector))])
)
