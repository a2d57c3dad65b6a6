"""A user's script: the norms of samples' gradients, and a step, by Opacus."""

import json
import sys
import warnings

import torch
from opacus import GradSampleModule
from torch import nn

warnings.filterwarnings("ignore")
torch.manual_seed(0)
model = GradSampleModule(
    nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(1024, 10)),
    )
)
size = int(sys.argv[1])
x, y = torch.randn(size, 3, 32, 32), torch.arange(size) % 10
nn.functional.cross_entropy(model(x), y).backward()
norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in model.parameters()])
print(json.dumps(norms.norm(dim=0).tolist()))
