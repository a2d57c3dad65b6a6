"""Rows on disk, as JSON lines: nothing that was measured gets lost.

A file has two kinds of lines: one for each run, which says on what machine and with
which versions it measured; and one for each row, with the number of its run, the key of
its case, and what was measured. Files can be joined by ``cat``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.harness.case import Row


class Store:
    """A file of rows, open for one run.

    Args:
        path: The file; it is created where it is missing, else rows are appended.
        machine: What holds for all rows of the run.
    """

    def __init__(self, path: Path, machine: Mapping[str, Any]) -> None:
        self.path, self._machine = path, dict(machine)
        self._lines = _read(path)
        self._has_begun = False

    def has(self, key: Mapping[str, Any]) -> bool:
        """Tell whether a case was measured before, on the same device."""
        name, seen = _device(self._machine), None
        for line in self._lines:
            if "machine" in line:
                seen = _device(line["machine"])
            elif line["case"] == dict(key) and seen == name:
                return True
        return False

    def add(self, key: Mapping[str, Any], rows: Iterable[Row]) -> None:
        """Append the rows of a case."""
        lines: list[dict[str, Any]] = [{"case": dict(key)} | row for row in rows]
        if not self._has_begun:
            lines.insert(0, {"machine": self._machine})
            self._has_begun = True
            self._drop_unfinished_line()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._lines += lines

    def _drop_unfinished_line(self) -> None:
        """Cut off what a run that was stopped while writing has left."""
        if self.path.exists():
            content = self.path.read_bytes()
            with self.path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


def load(*paths: Path) -> pd.DataFrame:
    """Read rows: a column for each part of the key, each measurement, each version.

    A case that was measured again, on a device of the same name with as many threads,
    replaces its former rows.

    Args:
        paths: Files that :class:`Store` wrote.

    Raises:
        ValueError: If a line is no JSON, save an unfinished last one.
    """
    cases: dict[str, list[Row]] = {}
    for path in paths:
        machine: dict[str, Any] = {}
        fresh: set[str] = set()
        for line in _read(path):
            if "machine" in line:
                machine, fresh = line["machine"], set()
                continue
            case = line.pop("case")
            key = json.dumps([case, _device(machine)], sort_keys=True)
            if key not in fresh:
                fresh.add(key)
                cases[key] = []
            cases[key].append({**case, **line, **machine})
    return pd.DataFrame([row for rows in cases.values() for row in rows])


def _device(machine: Mapping[str, Any]) -> list[Any]:
    return [machine.get("device_name"), machine.get("threads")]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as reason:
            if number == len(lines):  # a run was cut off here
                break
            raise ValueError(f"{path}, line {number} is no JSON: {reason}.") from None
    return found
