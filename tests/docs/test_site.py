"""The site builds without a warning, and is complete.

In a browser, where there is Chromium, every page renders: without an error, without a
request to elsewhere, with typeset formulas, texts for pictures, and readable colours.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.docs.pages import DOCS, ROOT

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PUBLIC = (
    "functional",
    "network",
    "diagram",
    "compiler",
    "model",
    "backpack",
    "curvlinops",
    "optim",
    "dropout",
    "sampling",
)
"""Modules all of whose public names are in the reference, beside the package's own."""

LOOK = (Path(__file__).parent / "look.js").read_text("utf-8")
"""Finds what is wrong with a page in a colour scheme."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=site)
    ) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_every_page_is_built(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        path = page.relative_to(DOCS).with_suffix("")
        folder = path.parent if path.name == "index" else path
        assert (site / folder / "index.html").exists(), page


def test_links_lead_somewhere(site: Path) -> None:
    """Of all pages, also those that MkDocs does not check, and to parts of a page."""
    pages = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    names = {
        path: {*re.findall(r' id="([^"]+)"', text)} for path, text in pages.items()
    }
    for path, text in pages.items():
        if path.name == "404.html":  # served at any address
            continue
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            target, _, part = link.partition("#")
            if re.match(r"\w+:", link):
                continue
            found = (path.parent / target).resolve() if target else path
            found = found / "index.html" if found.is_dir() else found
            assert found.exists(), f"{path.relative_to(site)}: {link}"
            known = found.suffix != ".html" or not part or part in names[found]
            assert known, f"{path.relative_to(site)}: {link}"


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in PUBLIC)])
def test_reference_is_complete(site: Path, module: str) -> None:
    found: set[str] = set()
    for path in (site / "reference").rglob("*.html"):
        found |= {
            *re.findall(r' id="tn_extensions\.([\w.]+)"', path.read_text("utf-8"))
        }
    for name in importlib.import_module(f"tn_extensions{module}").__all__:
        assert any(f".{each}".endswith(f".{name}") for each in found), name


def test_pages_render(site: Path, address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="no extra docs")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    wrong: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.on("console", lambda m: wrong.append(f"{page.url}: {m.type} {m.text}"))
        page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:"))
                or wrong.append(f"{page.url}: asks for {request.url}")
            ),
        )
        for path in sorted(site.rglob("index.html")):
            page.goto(address + str(path.parent.relative_to(site)) + "/")
            for width, scheme in ((1280, "default"), (390, "slate")):
                page.set_viewport_size({"width": width, "height": 800})
                found = page.evaluate(LOOK, scheme)
                wrong += [f"{page.url}, {scheme}: {each}" for each in found]
        browser.close()
    assert not wrong, "\n".join(wrong)
