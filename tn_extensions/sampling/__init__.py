"""Column-row sampling: estimates of networks from randomly drawn slices."""

from tn_extensions.sampling.sampled import Sampled, sample
from tn_extensions.sampling.samplers import SAMPLERS, Draw, Sampler, draw

__all__ = ["SAMPLERS", "Draw", "Sampled", "Sampler", "draw", "sample"]
