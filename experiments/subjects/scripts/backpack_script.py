"""A user's script: Kronecker factors and gradient norms by BackPACK."""

import json
import sys

import torch
from backpack import backpack, extend
from backpack.extensions import KFAC, BatchL2Grad, DiagGGNExact
from torch import nn

torch.manual_seed(0)
model = extend(
    nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(1024, 10)),
    )
)
loss = extend(nn.CrossEntropyLoss())
size = int(sys.argv[1])
x, y = torch.randn(size, 3, 32, 32), torch.arange(size) % 10
torch.manual_seed(1)
with backpack(KFAC(), BatchL2Grad(), DiagGGNExact()):
    loss(model(x), y).backward()
found = [
    float(value.norm())
    for p in model.parameters()
    for value in (*p.kfac, p.batch_l2, p.diag_ggn_exact)
]
print(json.dumps(found))
