"""What a measurement depends on beyond the code: device, threads, versions."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = (
    "asdfghjkl",
    "backpack-for-pytorch",
    "curvlinops-for-pytorch",
    "einconv",
    "kronfluence",
    "opacus",
    "opt_einsum",
    "singd",
)


def describe(device: torch.device) -> dict[str, object]:
    """Describe a measurement that starts now."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "packages": ", ".join(filter(None, map(_version, _PACKAGES))),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
    }


def device_name(device: torch.device) -> str:
    """Name of a GPU or of the processor."""
    if not is_available(device):
        return f"no {device.type} device"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def is_available(device: torch.device) -> bool:
    """Tell whether the machine has a device."""
    return device.type != "cuda" or torch.cuda.is_available()


def git_revision() -> str | None:
    """Return the working tree's revision, marked if it has changes; None if unknown."""
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip()


def label(device: torch.device) -> str:
    """Name a device and its number of threads, as a part of a file's name."""
    words = re.findall(r"[a-z0-9]+", device_name(device).lower())
    words = [word for word in words if word not in ("r", "tm", "processor", "cpu")]
    name = "-".join(words[:4])
    if device.type == "cuda":
        return name
    threads = torch.get_num_threads()
    return f"{name}-{threads}-thread{'s' if threads > 1 else ''}"


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None
