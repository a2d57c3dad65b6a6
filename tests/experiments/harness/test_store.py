"""Rows are kept, replaced by newer ones, and survive a run that is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.harness.store import Store, load

HERE = {"device_name": "here", "threads": 1, "torch": "2"}
THERE = {"device_name": "there", "threads": 1, "torch": "2"}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "rows.jsonl"
    store = Store(path, HERE)
    store.add({"layer": "a"}, [{"contender": "x", "seconds": 1.0}, {"contender": "y"}])
    store.add({"layer": "b"}, [{"reason": "none"}])
    rows = load(path)
    assert list(rows["layer"]) == ["a", "a", "b"]
    assert list(rows["contender"][:2]) == ["x", "y"]
    assert rows["seconds"][0] == 1.0 and rows["reason"][2] == "none"
    assert set(rows["device_name"]) == {"here"}


def test_what_is_measured_again_replaces_former_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Store(path, HERE).add({"layer": "a"}, [{"seconds": 1.0}, {"seconds": 2.0}])
    Store(path, THERE).add({"layer": "a"}, [{"seconds": 3.0}])
    again = Store(path, HERE)
    again.add({"layer": "a"}, [{"seconds": 4.0}])
    again.add({"layer": "b"}, [{"seconds": 5.0}])
    assert sorted(load(path)["seconds"]) == [3.0, 4.0, 5.0]


def test_has_what_was_measured_on_this_device(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Store(path, HERE).add({"layer": "a"}, [{}])
    assert Store(path, HERE).has({"layer": "a"})
    assert not Store(path, HERE).has({"layer": "b"})
    assert not Store(path, THERE).has({"layer": "a"})
    assert not Store(path, HERE | {"threads": 2}).has({"layer": "a"})


def test_an_unfinished_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Store(path, HERE).add({"layer": "a"}, [{"seconds": 1.0}])
    whole = path.read_text()
    path.write_text(whole + '{"case": {"la')
    assert len(load(path)) == 1
    Store(path, HERE).add({"layer": "b"}, [{"seconds": 2.0}])
    assert list(load(path)["layer"]) == ["a", "b"]
    path.write_text("{\n" + whole)
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        load(path)


def test_files_can_be_joined(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "joined")]
    Store(paths[0], HERE).add({"layer": "a"}, [{}])
    Store(paths[1], THERE).add({"layer": "b"}, [{}])
    paths[2].write_text(paths[0].read_text() + paths[1].read_text())
    assert load(*paths[:2]).equals(load(paths[2]))
