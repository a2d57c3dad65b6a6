"""docs/gallery.md and its pictures are what the package draws now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from docs import gallery
from docs.scenes import pictures
from tn_extensions import quantities

SCENES = pictures()


def test_page_is_up_to_date() -> None:
    assert gallery.PAGE.read_text("utf-8") == gallery.page(), "run make docs-figures"


@pytest.mark.parametrize("name", SCENES)
def test_picture_is_up_to_date(name: str) -> None:
    image = pytest.importorskip("PIL.Image")
    path = gallery.FIGURES / f"{name}.png"
    with image.open(path) as shown:
        assert shown.text["Scene"] == gallery.digest(SCENES[name]), "make docs-figures"
    assert path.stat().st_size < 60_000


def test_all_pictures_are_shown() -> None:
    found = {path.stem for path in gallery.FIGURES.iterdir()}
    assert found == set(SCENES)
    pages = "".join(path.read_text("utf-8") for path in gallery.DOCS.rglob("*.md"))
    assert set(re.findall(r"[(/]figures/(\w+)\.png\)", pages)) == found


def test_all_quantities_are_shown() -> None:
    page = gallery.page()
    titles = {
        label.text.split(" ")[0].rstrip(",")
        for scene in SCENES.values()
        for label in scene.texts
    }
    for name in get_args(quantities.Quantity):
        assert f"| `{name}` | " in page
        assert name in titles or name == "conv"


def test_makes_page_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(gallery, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(gallery, "PAGE", tmp_path / "gallery.md")
    monkeypatch.setattr(gallery, "pictures", lambda: {"bias": SCENES["bias"]})
    gallery.main()
    assert (tmp_path / "gallery.md").read_text("utf-8") == gallery.page()
    assert (tmp_path / "figures/bias.png").read_bytes().startswith(b"\x89PNG")
