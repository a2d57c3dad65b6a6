"""Models whose parameters are used in many ways."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.strategies import noise_tensor


class Shared(nn.Module):
    """A convolution used on inputs of two sizes, and a ``Linear`` used three times."""

    shape = (3, 6, 5)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, stride=2)
        self.linear, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        once = torch.relu_(self.conv(x))
        h = self.conv(once).tanh().flatten(2).mT
        h = self.linear(self.linear(h).tanh()).mean(1)
        return torch.as_tensor(self.last(self.linear(h)))


class Frames(nn.Module):
    """Frames folded into the first axis, next to each other or as after ``cat``."""

    shape = (2, 3, 5, 4)

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.conv, self.linear = nn.Conv2d(3, 2, 3, stride=2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        num_data, num_frames = x.shape[:2]
        folded = x.transpose(0, 1) if self.order == "cat" else x
        shift = int(self.order == "neither")
        folded = folded.flatten(0, 1).roll(shift, 0)
        h = self.linear(self.conv(folded).tanh().mean((2, 3)))
        h = h.roll(-shift, 0)
        if self.order == "cat":
            h = h.unflatten(0, (num_frames, num_data)).transpose(0, 1)
        else:
            h = h.unflatten(0, (num_data, num_frames))
        return (h * torch.arange(1.0, num_frames + 1).unsqueeze(1)).sum(1)


class Tied(nn.Module):
    """A kernel of two layers of which one has a bias, and a gain."""

    shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.last, self.gain = nn.Linear(4, 3), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x).tanh()) * self.gain
        return torch.as_tensor(self.last(h))


class Words(nn.Module):
    """An embedding whose weight is also the kernel of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 5)
        self.last.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        h = self.norm(self.embedding(words))
        mixed, _ = self.attention(h, h, h, need_weights=False)
        return torch.as_tensor(self.last((h + mixed).mean(1)))


class Checkpointed(nn.Module):
    """Layers that are called again in the backward pass."""

    shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.body, x, use_reentrant=False)
        return torch.as_tensor(self.last(h))


class Functional(nn.Module):
    """A kernel that is used in a convolution and elsewhere, and a bias that is not."""

    shape = (2, 6)

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2, 3))
        self.shift = nn.Parameter(torch.randn(3))
        self.other = nn.Parameter(torch.randn(3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv1d(x, self.kernel, self.shift) * self.kernel.mean()
        return h.sum(2) + F.conv1d(x, self.other, None, 2).square().sum(2)


class Normalised(nn.Sequential):
    """Normalisations, of which none mixes data, and computed kernels."""

    shape = (4, 5, 4)

    def __init__(self) -> None:
        norm = parametrizations.weight_norm
        super().__init__(
            nn.Conv2d(4, 4, 3, groups=2),
            nn.BatchNorm2d(4),
            nn.PReLU(),
            norm(nn.Conv2d(4, 4, 2)),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )
        self.eval()


def model_and_data(make: Any, num_data: int = 3) -> Any:
    """Make a model in float64, its input and classes."""
    model = make().double()
    x = noise_tensor((num_data, *model.shape))
    return model, x, torch.arange(num_data) % 3


MODELS: dict[str, Any] = {
    "shared": Shared,
    "adjacent": partial(Frames, "adjacent"),
    "cat": partial(Frames, "cat"),
    "tied": Tied,
    "checkpointed": Checkpointed,
    "functional": Functional,
    "normalised": Normalised,
}
"""Models that use layers several times, or other parameters than layers' own."""
