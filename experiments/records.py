"""Runs of many measurements: whatever stops one is a result, and nothing gets lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from experiments import storage
from experiments.bars import Record


class Titled(Protocol):
    """What is measured."""

    @property
    def title(self) -> str:
        """In a line."""


Row = TypeVar("Row", bound=Titled)


def complete(
    record: Record,
    parts: Iterable[dict[str, Any]],
    save: Callable[[], None] = lambda: None,
) -> Record:
    """Fill in a record part by part.

    Args:
        record: What is known before.
        parts: What is measured. If it fails, the parts before stay, and the record says
            why there are no more.
        save: Called after each part.

    Returns:
        The record.
    """
    try:
        for part in parts:
            record |= part
            save()
    except Exception as reason:  # whatever stops a toolkit is a result
        record["reason"] = f"{type(reason).__name__}: {reason}"[:200]
        save()
    return record


def measure_all(
    rows: Sequence[Row],
    parts_of: Callable[[Row], Iterable[dict[str, Any]]],
    path: Path,
    metadata: dict[str, Any],
    known: Sequence[Record] = (),
) -> None:
    """Measure rows one by one, and write the file whenever there is something new.

    Args:
        rows: What to measure.
        parts_of: Parts of a row's record, see :func:`complete`.
        path: The JSON file.
        metadata: What holds for all rows.
        known: Records of former runs, which come first.
    """
    records = list(known)
    content = {"metadata": metadata, "records": records}

    def save() -> None:
        storage.write_json(path, content)

    with tqdm(rows, unit="row", disable=None) as progress:
        for row in progress:
            progress.set_postfix_str(row.title)
            records.append({"title": row.title})
            complete(records[-1], parts_of(row), save)
