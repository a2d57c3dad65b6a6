"""A user's script: Kronecker factors and gradient norms by BackPACK."""

import json
import sys
import time

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
seconds = []
for _ in range(int(sys.argv[2])):
    model.zero_grad()
    torch.manual_seed(1)
    start = time.perf_counter()
    with backpack(KFAC(), BatchL2Grad(), DiagGGNExact()):
        loss(model(x), y).backward()
    seconds.append(time.perf_counter() - start)
found = [
    float(value.norm())
    for p in model.parameters()
    for value in (*p.kfac, p.batch_l2, p.diag_ggn_exact)
]
print(json.dumps({"numbers": found, "seconds": min(seconds)}))
