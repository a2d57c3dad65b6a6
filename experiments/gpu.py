"""A complete pass over one device, in minutes.

Each part is a process of its own, with a limit of time: whatever becomes of one, the
others run, and what it has measured by then is kept.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """A part of the pass: what it does, arguments of Python, and its minutes."""

    title: str
    command: list[str]
    minutes: float


_QUESTIONS = {
    # the figure that decides comes first
    "next_line": 1.0,
    "curvlinops": 0.7,
    "convolutions": 1.8,
    "memory": 0.4,
    "tuning": 1.2,
    "optimizers": 0.7,
    "privacy": 0.4,
}
"""Questions and their minutes; a quick pass takes a tenth of them."""

_GRACE_MINUTES = 0.3
"""For a question to finish the case that it is at, and to write its report."""


def parts(device: str, quick: bool, output: Path) -> list[Part]:
    """List the parts: the questions, then the tests that need a device."""
    found = []
    for name, whole in _QUESTIONS.items():
        minutes = whole / 10 if quick else whole
        command = ["-m", "experiments", name, "--device", device, "--resume"]
        command += ["--minutes", str(minutes), "--output", str(output)]
        command += ["--quick"] if quick else []
        found.append(Part(name, command, minutes + _GRACE_MINUTES))
    which = "tests/functional/test_cuda.py" if quick else "tests"
    tests = ["-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider", which]
    return [*found, Part("tests", tests, 1.5)]


def run(device: str, quick: bool, output: Path, minutes: float) -> int:
    """Run all parts, within so many minutes; count those that failed or had no time."""
    end, failures = time.monotonic() + 60 * minutes, 0
    for part in parts(device, quick, output):
        left = min(60 * part.minutes, end - time.monotonic())
        verdict, start = "out of time", time.monotonic()
        if left > 0:
            command, root = [sys.executable, *part.command], Path(__file__).parents[1]
            try:
                code = subprocess.run(command, cwd=root, timeout=left).returncode
                verdict = f"exit {code}" if code else "done"
            except subprocess.TimeoutExpired:
                pass
        failures += verdict != "done"
        print(f"{part.title}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    return failures
