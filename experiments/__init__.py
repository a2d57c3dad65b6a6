"""Experiments: one script a question; measuring writes JSON, reports read JSON only."""

import warnings

# curvlinops' dependencies script functions on import; nothing a reader could change
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
