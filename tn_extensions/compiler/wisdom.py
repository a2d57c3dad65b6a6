"""Wisdom: measured times of candidates, remembered in a file.

There is a readable JSON file for each device, release of torch and number of threads,
in ``$TN_EXTENSIONS_CACHE/wisdom`` (default: the user's cache folder). It has an entry
for each measured network, with the seconds of its candidates. Plans use the fastest
candidate of an entry; without an entry, they use estimates.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from filelock import FileLock, Timeout

from tn_extensions.errors import describe
from tn_extensions.network import TensorNetwork

FORMAT = 1
"""Version of the file format; files of other versions are ignored."""

_PATIENCE = 5.0
"""Seconds to wait while another process writes."""

Entry = Mapping[str, Any]
"""``network``, ``itemsize``, ``budget``, and ``seconds`` by candidate."""


def find(key: str, device: str) -> Mapping[str, float]:
    """Find the measured seconds of a network's candidates.

    Args:
        key: Key of the network, see :func:`key_of`.
        device: Device type.

    Returns:
        Seconds by candidate; empty without an entry.
    """
    entry = _store(device).entries.get(key)
    return {} if entry is None else entry["seconds"]


def record(key: str, entry: Entry, device: str) -> None:
    """Remember an entry, in this process and in the file."""
    _store(device).add({key: entry})


def key_of(network: TensorNetwork, itemsize: int, budget: int) -> str:
    """Make the key of a network with an element size and a budget, in bytes."""
    text = repr((network.nodes, network.output, sorted(network.sizes.items())))
    digest = hashlib.sha256(f"{text} {itemsize} {budget}".encode())
    return digest.hexdigest()[:20]


def save(path: str | os.PathLike[str], device: str = "cpu") -> None:
    """Save all entries of a device to a file, which can be loaded elsewhere.

    Args:
        path: The file, which is overwritten.
        device: Device type.

    Raises:
        OSError: If the file cannot be written.
    """
    store = _store(device)
    _write(Path(path), {**store.header, "plans": dict(store.entries)})


def load(*paths: str | os.PathLike[str]) -> int:
    """Load entries from files.

    They replace present entries of the same networks. Plans that are made from now on
    use them; plans that have been made stay unchanged.

    Args:
        *paths: Files that :func:`save` has written, or files of another cache folder.

    Returns:
        Number of entries loaded.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file has another format; no file is loaded then.
    """
    contents = []
    for path in paths:
        found = _parse(Path(path).read_text())
        if found is None:
            rule = f"be wisdom files of format {FORMAT}"
            raise ValueError(describe("load", "paths", rule, str(path)))
        contents.append(found)
    for found in contents:
        _store_of(tuple(found[name] for name in _HEADER)).add(found["plans"])
    return sum(len(found["plans"]) for found in contents)


def show(device: str = "cpu") -> str:
    """List all entries of a device: each network with its candidates, fastest first."""
    store = _store(device)
    lines = [f"{store.path}: {len(store.entries)} network(s)"]
    for entry in store.entries.values():
        lines.append(f"{entry['network']}  ({entry['itemsize']} bytes an entry)")
        times = sorted(entry["seconds"].items(), key=lambda item: item[1])
        lines += [f"  {1e3 * seconds:10.3f} ms  {label}" for label, seconds in times]
    return "\n".join(lines)


def forget(device: str = "cpu") -> None:
    """Delete all entries of a device, in this process and in the file."""
    _store(device).clear()


class _Store:
    """The entries of a file."""

    def __init__(self, header: tuple[Any, ...]) -> None:
        self.header = {"format": FORMAT, **dict(zip(_HEADER, header, strict=True))}
        self.path = _folder() / f"{_file_name(header)}.json"
        self._lock = RLock()
        self._warned = False
        self.entries: dict[str, Entry] = self._read() or {}

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Add entries, and write them to the file, next to those of other processes."""
        with self._lock:
            self.entries.update(entries)
            if self._warned:
                return  # the file stays as it is
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self.path}.lock", timeout=_PATIENCE):
                    others = self._read()
                    if others is not None:
                        self.entries = {**others, **self.entries}
                        content = {**self.header, "plans": self.entries}
                        _write(self.path, content)
            except (OSError, Timeout) as reason:
                self._warn(f"cannot be written ({reason})")

    def clear(self) -> None:
        """Delete the file and all entries."""
        with self._lock:
            self.entries, self._warned = {}, False
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Entry] | None:
        """Read the file's entries; None if the file exists but cannot be used."""
        try:
            found = _parse(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as reason:
            self._warn(f"cannot be read ({reason})")
            return None
        if found is None:
            self._warn(f"is not a wisdom file of format {FORMAT}")
            return None
        return dict(found["plans"])

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            text = f"{self.path} {reason}: measurements are kept in this process only."
            warnings.warn(text, stacklevel=2)


_HEADER = ("device", "torch", "threads")


def _store(device: str) -> _Store:
    """Return the store of a device of this machine, with torch's present settings."""
    version = torch.__version__.partition("+")[0]
    return _store_of((_device_name(device), version, torch.get_num_threads()))


@lru_cache(maxsize=64)
def _store_of(header: tuple[Any, ...]) -> _Store:
    return _Store(header)


@lru_cache(maxsize=8)
def _device_name(device: str) -> str:
    """Return the name of a processor or accelerator; of several, the first one's."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if device != "cpu":
        return device
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()} {capability}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine()).strip()


def _file_name(header: tuple[Any, ...]) -> str:
    device, version, threads = header
    kept = "".join(sign if sign.isalnum() else "-" for sign in device)
    return f"{kept}-torch{version}-{threads}threads"


def _folder() -> Path:
    own = os.environ.get("TN_EXTENSIONS_CACHE")
    if own:
        return Path(own) / "wisdom"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tn_extensions" / "wisdom"


def _parse(text: str) -> dict[str, Any] | None:
    """Parse a file; None if it has another format."""
    try:
        found = json.loads(text)
        valid = found["format"] == FORMAT and all(name in found for name in _HEADER)
        for entry in found["plans"].values():
            valid = valid and all(float(t) >= 0 for t in entry["seconds"].values())
            valid = valid and {"network", "itemsize", "budget"} <= {*entry}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if valid else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file atomically, so that no process reads half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
